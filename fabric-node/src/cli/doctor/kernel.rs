//! Checks of the kernel, read from a proc file system, which a test can make up.

use std::{fs, path::Path};

use super::Finding;

/// First version with UDP segmentation offload on TUN.
const KERNEL_USO: (u32, u32) = (6, 2);
/// First version that is supported at all.
const KERNEL_MIN: (u32, u32) = (4, 18);
/// Socket buffers below this lose packets in bursts at several Gbit/s (bytes).
const SOCKET_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
/// Bits of a capability set (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// All checks of the kernel behind `proc`.
pub(super) fn examine(proc: &Path) -> Vec<Finding> {
    vec![
        version(proc),
        capability(
            proc,
            "cap-net-admin",
            CAP_NET_ADMIN,
            "make TUN devices, addresses and routes",
        ),
        capability(
            proc,
            "cap-sys-admin",
            CAP_SYS_ADMIN,
            "enter the pods' network namespaces",
        ),
        user_namespaces(proc),
        buffer(proc, "rmem-max", "rmem_max"),
        buffer(proc, "wmem-max", "wmem_max"),
        ipv6(proc),
        reverse_path_filter(proc),
    ]
}

fn read(proc: &Path, file: &str) -> Option<String> {
    fs::read_to_string(proc.join(file))
        .ok()
        .map(|text| text.trim().to_owned())
}

fn read_number(proc: &Path, file: &str) -> Option<u64> {
    read(proc, file)?.parse().ok()
}

fn version(proc: &Path) -> Finding {
    let name = "kernel";
    let Some(release) = read(proc, "sys/kernel/osrelease") else {
        return Finding::unknown(name, "the kernel's version cannot be read", "mount /proc");
    };
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < KERNEL_MIN {
        let (major, minor) = KERNEL_MIN;
        return Finding::missing(name, release, format!("use Linux {major}.{minor} or newer"));
    }
    if found < KERNEL_USO {
        let fix = "use Linux 6.2 or newer: UDP between pods gets faster";
        return Finding::warning(
            name,
            format!("{release}: no UDP segmentation offload on TUN"),
            fix,
        );
    }
    Finding::ok(name, release)
}

fn capability(proc: &Path, name: &'static str, bit: u32, purpose: &str) -> Finding {
    let status = read(proc, "self/status").unwrap_or_default();
    let field = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|rest| rest.trim().to_owned())
    };
    let effective = field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    // The second of four ids is the effective one (proc(5)).
    let root = field("Uid:").and_then(|ids| ids.split_whitespace().nth(1).map(|id| id == "0"));
    let (Some(effective), Some(root)) = (effective, root) else {
        return Finding::unknown(name, "the capabilities cannot be read", "mount /proc");
    };
    if effective >> bit & 1 == 1 {
        return Finding::ok(name, format!("held: can {purpose}"));
    }
    let constant = name.to_uppercase().replace('-', "_");
    if root {
        let short = constant.trim_start_matches("CAP_");
        let fix =
            format!("give the container {constant} (securityContext.capabilities.add: [{short}])");
        return Finding::missing(name, format!("root without it: cannot {purpose}"), fix);
    }
    let detail = "not held by this user; the daemon needs it".to_owned();
    Finding::warning(
        name,
        detail,
        "run the daemon as root; for this check: sudo fabric doctor",
    )
}

fn user_namespaces(proc: &Path) -> Finding {
    let name = "user-namespaces";
    let number = |file: &str| read_number(proc, &format!("sys/{file}"));
    let refused = |setting: &str, fix: &str| {
        Finding::warning(
            name,
            format!("forbidden by {setting}: `fabric lab` needs root"),
            fix,
        )
    };
    if number("user/max_user_namespaces").unwrap_or(0) == 0 {
        return refused(
            "user.max_user_namespaces",
            "sysctl -w user.max_user_namespaces=10000",
        );
    }
    if number("kernel/unprivileged_userns_clone") == Some(0) {
        let fix = "sysctl -w kernel.unprivileged_userns_clone=1";
        return refused("kernel.unprivileged_userns_clone", fix);
    }
    if number("kernel/apparmor_restrict_unprivileged_userns").is_some_and(|n| n > 0) {
        let fix = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
        return refused("kernel.apparmor_restrict_unprivileged_userns", fix);
    }
    Finding::ok(name, "allowed by the settings: `fabric lab` needs no root")
}

fn buffer(proc: &Path, name: &'static str, setting: &str) -> Finding {
    let Some(bytes) = read_number(proc, &format!("sys/net/core/{setting}")) else {
        // Network namespaces other than the first do not show it.
        let detail = format!("net.core.{setting} is not visible in this network namespace");
        return Finding::unknown(name, detail, "run it on the host");
    };
    if bytes >= SOCKET_BUFFER_BYTES {
        return Finding::ok(name, format!("{bytes} bytes"));
    }
    let fix = format!("sysctl -w net.core.{setting}={SOCKET_BUFFER_BYTES}");
    Finding::warning(name, format!("{bytes} bytes: bursts may be lost"), fix)
}

fn ipv6(proc: &Path) -> Finding {
    let name = "ipv6";
    if !proc.join("net/if_inet6").exists() {
        let fix = "boot without ipv6.disable=1, or use IPv4 ranges only";
        return Finding::warning(name, "the kernel runs without IPv6", fix);
    }
    if read_number(proc, "sys/net/ipv6/conf/all/disable_ipv6") == Some(1) {
        let fix = "sysctl -w net.ipv6.conf.all.disable_ipv6=0";
        return Finding::warning(name, "disabled on all interfaces", fix);
    }
    Finding::ok(name, "enabled")
}

fn reverse_path_filter(proc: &Path) -> Finding {
    let name = "rp-filter";
    match read_number(proc, "sys/net/ipv4/conf/all/rp_filter") {
        Some(1) => Finding::warning(
            name,
            "strict: drops replies where the way back differs",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        ),
        Some(0) => Finding::ok(name, "off"),
        Some(_) => Finding::ok(name, "loose"),
        None => Finding::unknown(
            name,
            "net.ipv4.conf.all.rp_filter cannot be read",
            "mount /proc",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::doctor::Verdict;

    /// A proc file system with these files.
    fn proc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
        dir
    }

    fn sound() -> Vec<(&'static str, &'static str)> {
        vec![
            ("sys/kernel/osrelease", "6.18.44-generic"),
            (
                "self/status",
                "Name:\tfabric\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff",
            ),
            ("sys/user/max_user_namespaces", "10000"),
            ("sys/net/core/rmem_max", "8388608"),
            ("sys/net/core/wmem_max", "8388608"),
            ("net/if_inet6", ""),
            ("sys/net/ipv6/conf/all/disable_ipv6", "0"),
            ("sys/net/ipv4/conf/all/rp_filter", "2"),
        ]
    }

    /// The verdict of check `name` when `file` has `content` on a machine that is else sound.
    fn with(file: &'static str, content: &'static str, name: &str) -> Finding {
        let mut files = sound();
        files.retain(|(path, _)| *path != file);
        files.push((file, content));
        examine(proc(&files).path())
            .into_iter()
            .find(|finding| finding.name == name)
            .unwrap()
    }

    /// A sound machine has nothing to mend.
    #[test]
    fn sound_machine() {
        for finding in examine(proc(&sound()).path()) {
            assert_eq!(finding.status, Verdict::Ok, "{finding:?}");
            assert!(finding.fix.is_empty());
        }
    }

    /// Each flaw is found by its check, with a fix.
    #[test]
    fn flaws() {
        let status = "self/status";
        for (file, content, name, verdict, fix) in [
            (
                "sys/kernel/osrelease",
                "5.15.0-1",
                "kernel",
                Verdict::Warning,
                "6.2",
            ),
            (
                "sys/kernel/osrelease",
                "3.10.0",
                "kernel",
                Verdict::Missing,
                "4.18",
            ),
            (
                status,
                "Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000000",
                "cap-net-admin",
                Verdict::Missing,
                "NET_ADMIN",
            ),
            (
                status,
                "Uid:\t0\t0\t0\t0\nCapEff:\t0000000000001000",
                "cap-sys-admin",
                Verdict::Missing,
                "SYS_ADMIN",
            ),
            (
                status,
                "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000",
                "cap-net-admin",
                Verdict::Warning,
                "sudo",
            ),
            (
                status,
                "garbage",
                "cap-net-admin",
                Verdict::Unknown,
                "/proc",
            ),
            (
                "sys/user/max_user_namespaces",
                "0",
                "user-namespaces",
                Verdict::Warning,
                "user.max_user_namespaces",
            ),
            (
                "sys/kernel/unprivileged_userns_clone",
                "0",
                "user-namespaces",
                Verdict::Warning,
                "userns_clone=1",
            ),
            (
                "sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "user-namespaces",
                Verdict::Warning,
                "userns=0",
            ),
            (
                "sys/net/core/rmem_max",
                "212992",
                "rmem-max",
                Verdict::Warning,
                "net.core.rmem_max=8388608",
            ),
            (
                "sys/net/core/wmem_max",
                "212992",
                "wmem-max",
                Verdict::Warning,
                "net.core.wmem_max=8388608",
            ),
            (
                "sys/net/ipv6/conf/all/disable_ipv6",
                "1",
                "ipv6",
                Verdict::Warning,
                "disable_ipv6=0",
            ),
            (
                "sys/net/ipv4/conf/all/rp_filter",
                "1",
                "rp-filter",
                Verdict::Warning,
                "rp_filter=2",
            ),
        ] {
            let finding = with(file, content, name);
            assert_eq!(finding.status, verdict, "{finding:?}");
            assert!(finding.fix.contains(fix), "{finding:?}");
        }
    }

    /// Without a proc file system nothing is claimed to be well.
    #[test]
    fn nothing_to_read() {
        for finding in examine(proc(&[]).path()) {
            assert_ne!(finding.status, Verdict::Ok, "{finding:?}");
        }
    }
}
