//! A machine of a test's own: new mount, network and process namespaces, with an empty `/run`, in
//! which a script runs as root. What others do on the real machine is not seen there, so that all
//! namespaces, interfaces, mounts, files and processes before and after can be compared exactly.

use std::{ffi::OsStr, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command::{self, Answer};
use serde_json::Value;

/// How long a script may take.
const SCRIPT_MAX: Duration = Duration::from_secs(240);

/// Functions for the scripts.
const PRELUDE: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 machine /run
ip link set lo up

# What there is: named namespaces, interfaces, mounts, files that a lab could leave, processes.
inventory() {
    echo namespaces; ip netns list
    echo interfaces; ip -o link | cut -d: -f2 | sort
    # Those of the real machine come first, and go when it takes them away.
    echo mounts; sed '1,/^machine /d' /proc/self/mounts | cut -d' ' -f2,3
    echo files; find /run /dev/net -xdev | sort; find /tmp "${TMPDIR:-/tmp}" -maxdepth 1 -name 'fabric*' | sort
    echo processes
    for stat in /proc/[0-9]*/stat; do
        # This shell and its children of this moment, and the dead whom nobody has collected, are no
        # news.
        sed -n 's/^[0-9]* (\(.*\)) \([A-Y]\).*/\1/p' "$stat" 2>/dev/null || true
    done | grep -v -x -e sh -e sed -e sort -e grep | sort
}

# Puts a device node that everybody may open in the place of /dev/net/tun.
open_tun() {
    mkdir /run/devices
    mount -t tmpfs -o mode=0755 tmpfs /run/devices
    mknod -m 0666 /run/devices/tun c 10 200
    mount --bind /run/devices/tun /dev/net/tun
}
"#;

/// Runs `script` as root of a new machine; `$1`.. are `arguments`.
///
/// # Errors
///
/// The machine cannot be made, or the script does not end.
pub fn run_script(script: &str, arguments: &[&OsStr]) -> anyhow::Result<Answer> {
    let mut unshare = Command::new(command::find("unshare").context("install util-linux")?);
    unshare
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--propagation", "private"])
        .args(["/bin/sh", "-c", &format!("{PRELUDE}\n{script}"), "sh"])
        .args(arguments)
        .env_remove("XDG_RUNTIME_DIR");
    command::run(unshare, b"", SCRIPT_MAX)
}

/// Copies the programs to `folder`, where every user may run them.
///
/// # Errors
///
/// One cannot be copied.
pub fn copy_programs(from: &Path, folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder, everybody.clone())?;
    for program in ["fabric", "fabric-node", "fabric-cni"] {
        let copy = folder.join(program);
        fs::copy(from.join(program), &copy).with_context(|| format!("cannot copy {program}"))?;
        fs::set_permissions(&copy, everybody.clone())?;
    }
    Ok(())
}

/// Checks the document that `fabric lab demo -o json` printed: every proof of the issue is there and
/// holds.
///
/// # Errors
///
/// A proof is missing or does not hold; with what it found.
pub fn check_proofs(document: &str) -> anyhow::Result<()> {
    /// Beginnings of the names of the proofs that a demo has.
    const PROOFS: [&str; 13] = [
        "addresses",
        "ping",
        "ping-neighbour",
        "host-to",
        "pod-to",
        "no-nat-tcp",
        "no-nat-udp",
        "no-nat-icmp",
        "iperf3-across",
        "iperf3-neighbour",
        "encryption",
        "conservation",
        "clean-up",
    ];
    let document: Value = serde_json::from_str(document).context("that is no document")?;
    let proofs = document["proofs"]
        .as_array()
        .context("there are no proofs")?;
    for proof in proofs {
        ensure!(
            proof["ok"] == true,
            "{} does not hold: {}",
            proof["id"],
            proof["value"]
        );
    }
    for name in PROOFS {
        let is_named = |proof: &Value| proof["id"].as_str().is_some_and(|id| id.starts_with(name));
        ensure!(
            proofs.iter().any(is_named),
            "there is no proof {name} in {document:#}"
        );
    }
    ensure!(document["ok"] == true, "the demo does not hold as a whole");
    Ok(())
}
