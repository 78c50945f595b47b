//! Checks that try something: TUN, its offloads, UDP segmentation.

use std::{
    fs::OpenOptions,
    io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
};

use super::Finding;
use crate::sys::{
    netns::{Netns, NetnsError},
    tun::{Tun, TunOffloads},
    udp,
};

const TUN_PATH: &str = "/dev/net/tun";
/// Name of the device in the scratch namespace, which vanishes with it.
const SCRATCH_DEVICE: &str = "fabric-doctor";

/// All checks that try something.
pub(super) fn examine() -> Vec<Finding> {
    vec![
        tun_device(),
        tun_offloads(),
        udp_segmentation(),
        udp_coalescing(),
    ]
}

/// Opening the clone device makes no interface.
fn tun_device() -> Finding {
    let name = "tun-device";
    let opened = OpenOptions::new().read(true).write(true).open(TUN_PATH);
    let Err(error) = opened else {
        return Finding::ok(name, format!("{TUN_PATH} can be opened"));
    };
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the enum of std keeps growing"
    )]
    match error.kind() {
        io::ErrorKind::NotFound => Finding::missing(
            name,
            format!("{TUN_PATH} does not exist"),
            "modprobe tun; in a container mount the host's /dev/net/tun",
        ),
        io::ErrorKind::PermissionDenied if !rustix::process::geteuid().is_root() => {
            Finding::warning(
                name,
                format!("{TUN_PATH} is not for this user"),
                "run as root; for `fabric lab` without root: sudo chmod 0666 /dev/net/tun",
            )
        }
        io::ErrorKind::PermissionDenied => Finding::missing(
            name,
            format!("{TUN_PATH} is forbidden although this is root"),
            "allow device 10:200 (docker: --device /dev/net/tun; Kubernetes: mount it as a hostPath CharDevice)",
        ),
        _ => Finding::missing(name, format!("{TUN_PATH}: {error}"), "modprobe tun"),
    }
}

/// Asks the kernel, on a device in a network namespace of its own.
fn tun_offloads() -> Finding {
    let name = "tun-offloads";
    let probed = Netns::create()
        .and_then(|netns| netns.run(|| Tun::create(SCRATCH_DEVICE, TunOffloads::ALL)));
    let offloads = match probed {
        Ok(Ok(tun)) => tun.offloads(),
        Ok(Err(error)) => {
            return Finding::unknown(
                name,
                format!("not probed: {error}"),
                "mend tun-device first",
            );
        }
        Err(NetnsError::Create { .. }) if !rustix::process::geteuid().is_root() => {
            let detail = "not probed: this user cannot make a network namespace";
            return Finding::unknown(name, detail, "sudo fabric doctor");
        }
        Err(error) => {
            return Finding::unknown(
                name,
                format!("not probed: {error}"),
                "mend cap-sys-admin first",
            );
        }
    };
    describe_offloads(name, offloads)
}

fn describe_offloads(name: &'static str, offloads: TunOffloads) -> Finding {
    let all = [
        ("checksum", offloads.checksum),
        ("tso4", offloads.tso4),
        ("tso6", offloads.tso6),
        ("uso4", offloads.uso4),
        ("uso6", offloads.uso6),
    ];
    let pick = |wanted: bool| {
        let names = all
            .iter()
            .filter(|(_, held)| *held == wanted)
            .map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(",")
    };
    if offloads == TunOffloads::ALL {
        return Finding::ok(name, pick(true));
    }
    let accepted = if offloads == TunOffloads::NONE {
        "none".to_owned()
    } else {
        pick(true)
    };
    let detail = format!("accepted: {accepted}; refused: {}", pick(false));
    Finding::warning(name, detail, "use Linux 6.2 or newer")
}

fn udp_segmentation() -> Finding {
    let found = probe_udp(udp::check_segmentation);
    describe_udp_offload("udp-gso", found, "use Linux 4.18 or newer")
}

fn udp_coalescing() -> Finding {
    let found = probe_udp(|socket| udp::set_coalescing(socket, true));
    describe_udp_offload("udp-gro", found, "use Linux 5.0 or newer")
}

/// What the kernel answers `ask` on a loopback socket that sends nothing; an error if there is no
/// socket.
fn probe_udp(ask: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<io::Result<()>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)))?;
    Ok(ask(socket.as_fd()))
}

fn describe_udp_offload(
    name: &'static str,
    found: io::Result<io::Result<()>>,
    fix: &'static str,
) -> Finding {
    match found {
        Ok(Ok(())) => Finding::ok(name, "many datagrams a call"),
        Ok(Err(error)) => Finding::warning(
            name,
            format!("one system call per datagram, so the tunnel is slower: {error}"),
            fix,
        ),
        Err(error) => {
            Finding::missing(name, format!("no UDP socket: {error}"), "allow UDP sockets")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    /// All offloads are fine; fewer are listed with those refused.
    #[test]
    fn offloads_in_words() {
        let all = describe_offloads("x", TunOffloads::ALL);
        assert_eq!(
            (all.status, all.detail.as_str()),
            (Verdict::Ok, "checksum,tso4,tso6,uso4,uso6")
        );
        let some = TunOffloads {
            uso4: false,
            uso6: false,
            ..TunOffloads::ALL
        };
        let some = describe_offloads("x", some);
        assert_eq!(some.status, Verdict::Warning);
        assert_eq!(
            some.detail,
            "accepted: checksum,tso4,tso6; refused: uso4,uso6"
        );
        let none = describe_offloads("x", TunOffloads::NONE);
        assert!(
            none.detail
                .starts_with("accepted: none; refused: checksum,"),
            "{}",
            none.detail
        );
    }

    /// Probing the scratch device leaves no interface in this network namespace.
    #[test]
    fn probing_leaves_nothing() {
        assert_eq!(tun_offloads().name, "tun-offloads");
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        assert!(
            links.contains("lo:") && !links.contains(SCRATCH_DEVICE),
            "{links}"
        );
    }
}
