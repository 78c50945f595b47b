//! Faults of the kernel that no setting of an interface brings about on every kernel.
//!
//! Comes in: a process. Goes out: its sockets on the underlay, changed. Never done here: anything to a
//! process that is not a daemon of a lab.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, ensure};
use rustix::{
    net::{AddressFamily, SocketType, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::sys::udp;

/// Makes the kernel refuse batches on all IPv4 sockets for UDP of the process `pid`, or take them
/// again: it cuts none without checksums. Payloads one by one pass in either case.
///
/// # Errors
///
/// The process does not run, or has no such socket.
pub fn refuse_batches(pid: u32, refuse: bool) -> anyhow::Result<()> {
    let sockets = sockets(pid).with_context(|| format!("the sockets of process {pid}"))?;
    ensure!(!sockets.is_empty(), "process {pid} has no UDP socket");
    for socket in sockets {
        udp::omit_checksums(socket.as_fd(), refuse)?;
    }
    Ok(())
}

/// The IPv4 sockets for UDP of a process, shared with it.
fn sockets(pid: u32) -> anyhow::Result<Vec<OwnedFd>> {
    let process = Pid::from_raw(i32::try_from(pid)?).context("no process id")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let name = entry?.file_name();
        let number: RawFd = name.to_str().context("no number")?.parse()?;
        // One that was closed since the list was read is not one of those that are sought.
        let Ok(found) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        if sockopt::socket_type(&found) == Ok(SocketType::DGRAM)
            && sockopt::socket_domain(&found) == Ok(AddressFamily::INET)
        {
            sockets.push(found);
        }
    }
    Ok(sockets)
}
