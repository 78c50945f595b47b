//! A machine of a test's own: new mount, network and process namespaces, with an empty `/run`, in
//! which a script runs as root. What others do on the real machine is not seen there, so that all
//! namespaces, interfaces, mounts, files and processes before and after can be compared exactly.

use std::{
    collections::BTreeSet, ffi::OsStr, fs, net::IpAddr, path::Path, process::Command,
    time::Duration,
};

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

/// Proofs of a demo, in its order, each with how many addresses of either family its value names: every
/// proof over both families says so with an address of each.
const PROOFS: [(&str, usize); 18] = [
    // Three pods.
    ("addresses", 3),
    ("ping-ipv4", 0),
    ("ping-ipv6", 0),
    ("ping-neighbour-ipv4", 0),
    ("ping-neighbour-ipv6", 0),
    ("host-to-pod-a-1", 1),
    ("host-to-pod-b-1", 1),
    ("pod-to-worker-a", 1),
    ("pod-to-worker-b", 1),
    ("no-nat-tcp", 1),
    ("no-nat-udp", 1),
    ("no-nat-icmp", 1),
    ("iperf3-across", 0),
    ("iperf3-neighbour", 0),
    ("encryption", 0),
    ("conservation-worker-a", 0),
    ("conservation-worker-b", 0),
    ("clean-up", 0),
];

/// Checks the document that `fabric lab demo -o json` printed: it has exactly the proofs that a demo
/// has, all hold, and those over both families name addresses of both.
///
/// # Errors
///
/// A proof is missing, unknown or does not hold; with what it found.
pub fn check_proofs(document: &str) -> anyhow::Result<()> {
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
    let ids: Vec<&str> = proofs.iter().filter_map(|it| it["id"].as_str()).collect();
    let expected = PROOFS.map(|(id, _)| id);
    ensure!(
        ids == expected && proofs.len() == expected.len(),
        "the proofs are {ids:?}, not {expected:?}"
    );
    for ((id, count), proof) in PROOFS.iter().zip(proofs) {
        if *count > 0 {
            let value = proof["value"].as_str().unwrap_or_default();
            check_families(value, *count).with_context(|| format!("{id}: {value}"))?;
        }
    }
    ensure!(document["ok"] == true, "the demo does not hold as a whole");
    Ok(())
}

/// Checks that `value` names exactly `count` different addresses of either family.
fn check_families(value: &str, count: usize) -> anyhow::Result<()> {
    let words = value.split(|c: char| c == ',' || c.is_whitespace());
    let addresses: BTreeSet<IpAddr> = words.filter_map(|word| word.parse().ok()).collect();
    let ipv6 = addresses.iter().filter(|it| it.is_ipv6()).count();
    let ipv4 = addresses.len() - ipv6;
    ensure!(
        ipv4 == count && ipv6 == count,
        "{ipv4} IPv4 and {ipv6} IPv6 addresses, not {count} of either"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use serde_json::json;

    use super::*;

    /// A demo as it should be.
    fn demo() -> Value {
        let value = |count: usize| {
            let pair = |n| format!("10.244.1.{n} in 0.1 ms, fd44::{n} in 0.2 ms");
            (1..=count).map(pair).collect::<Vec<_>>().join(", ")
        };
        let proof = |(id, count)| json!({"id": id, "ok": true, "value": value(count)});
        json!({"ok": true, "proofs": PROOFS.map(proof)})
    }

    /// A demo with all proofs passes; without one of them, with one of another name, with one too many
    /// or with one family alone it does not.
    #[test]
    fn proofs_are_compared_exactly() {
        assert!(check_proofs(&demo().to_string()).is_ok());
        for number in 0..PROOFS.len() {
            let refused = |change: &dyn Fn(&mut Vec<Value>)| {
                let mut changed = demo();
                change(changed["proofs"].as_array_mut().unwrap());
                assert!(check_proofs(&changed.to_string()).is_err(), "{changed:#}");
            };
            refused(&|proofs| drop(proofs.remove(number)));
            refused(&|proofs| proofs.insert(number, proofs[number].clone()));
            refused(&|proofs| proofs[number]["ok"] = json!(false));
            refused(&|proofs| {
                proofs[number]["id"] = json!(format!("{}-more", PROOFS[number].0));
            });
            if PROOFS[number].1 > 0 {
                refused(&|proofs| proofs[number]["value"] = json!("10.244.1.2, 10.244.1.3"));
                refused(&|proofs| proofs[number]["value"] = json!("fd44::2"));
            }
        }
    }
}
