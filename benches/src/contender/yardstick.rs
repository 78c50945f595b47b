//! The two yardsticks of this source tree, program `yardstick`: how fast an encrypted tunnel in
//! userspace could be that does nothing else, and how fast the obvious way to write one is.

use std::{path::Path, process::Command};

use super::{Daemon, Site, Tunnel};

const PROGRAM: &str = "yardstick";
/// UDP ports of both ends.
const RELAY_PORT: u16 = 7001;
const QUINN_PORT: u16 = 7002;

/// Super-packets in AES-GCM over UDP, without recovery of losses.
pub(super) fn start_relay(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    start(site, folder, RELAY_PORT, [&["relay"]; 2])
}

/// The asynchronous QUIC library.
pub(super) fn start_quinn(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let [server, client] = ["server", "client"].map(|role| ["quinn", "--role", role]);
    start(site, folder, QUINN_PORT, [&server, &client])
}

fn start(
    site: &Site<'_>,
    folder: &Path,
    port: u16,
    arguments: [&[&str]; 2],
) -> anyhow::Result<Tunnel> {
    let program = site.programs.own(PROGRAM)?;
    let mut daemons = Vec::new();
    for (index, own, peer) in site.pairs() {
        let mut command = Command::new(&program.path);
        command
            .args(arguments[index])
            .args(["--tun", &own.ifname])
            .args(["--listen", &own.listen(port).to_string()])
            .args(["--peer", &peer.listen(port).to_string()])
            .args(["--address", &own.inner.to_string()])
            .args(["--mtu", &site.underlay_mtu.to_string()]);
        daemons.push(Daemon::start(own, command, folder)?);
    }
    Ok(Tunnel {
        version: program.version,
        daemons,
        _traces: Vec::new(),
    })
}
