//! tinc of the distribution: RSA keys of its own making, and its own choice of cipher and MTU.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use super::{Daemon, End, Site, Tunnel, program, run_tool};

/// TCP and UDP port of both ends: its default.
const PORT: u16 = 655;
/// Names of the two nodes: letters and digits only.
const NODES: [&str; 2] = ["a", "b"];
/// Length of their keys (bits): its default.
const KEY_BITS: &str = "2048";

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let program = program::installed("tincd", "tinc")?;
    let folders = NODES.map(|node| folder.join(node));
    for (index, own, _) in site.pairs() {
        configure(index, own, &folders[index])?;
        let mut keys = Command::new(&program.path);
        keys.arg("-c").arg(&folders[index]).args(["-K", KEY_BITS]);
        run_tool(keys)?;
    }
    let mut daemons = Vec::new();
    for (index, own, _) in site.pairs() {
        let theirs = Path::new("hosts").join(NODES[1 - index]);
        fs::copy(
            folders[1 - index].join(&theirs),
            folders[index].join(&theirs),
        )?;
        let mut command = Command::new(&program.path);
        command
            .arg("-c")
            .arg(&folders[index])
            .arg("--no-detach")
            .arg(format!(
                "--pidfile={}",
                folders[index].join("pid").display()
            ));
        daemons.push(Daemon::start(own, command, folder)?);
    }
    Ok(Tunnel {
        version: program.version,
        daemons,
        _traces: Vec::new(),
    })
}

/// Everything but keys, which the program adds.
fn configure(index: usize, own: &End<'_>, folder: &Path) -> anyhow::Result<()> {
    let [name, peer] = [NODES[index], NODES[1 - index]];
    fs::create_dir_all(folder.join("hosts"))?;
    fs::write(
        folder.join("tinc.conf"),
        format!(
            "Name = {name}\nConnectTo = {peer}\nInterface = {}\nBindToAddress = {} {PORT}\n",
            own.ifname, own.underlay
        ),
    )?;
    fs::write(
        folder.join("hosts").join(name),
        format!(
            "Address = {} {PORT}\nSubnet = {}\n",
            own.underlay,
            own.inner.addr()
        ),
    )?;
    let up = folder.join("tinc-up");
    fs::write(
        &up,
        format!(
            "#!/bin/sh\nip address add {} dev \"$INTERFACE\"\nip link set dev \"$INTERFACE\" up\n",
            own.inner
        ),
    )?;
    fs::set_permissions(&up, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
