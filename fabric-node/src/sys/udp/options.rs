//! Socket options of the tunnel's sockets.
//!
//! Comes in: a bound socket. Goes out: the kernel's answer, as it is. Never done here: choosing
//! between an option and its fall-back.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

const ON: libc::c_int = 1;

/// Makes `socket`, bound to `local`, tell of every message what [`receive`](super::receive()) hands on,
/// and never cut a datagram into fragments. All of these options are older than Linux 3.0.
///
/// Whether an IPv6 socket also takes IPv4 is left to the system (`net.ipv6.bindv6only`): it matters
/// for a socket bound to `::` alone, and such a socket must do the same for both families.
///
/// # Errors
///
/// What the kernel said; some options may be set then.
pub fn prepare(socket: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, ON)?;
    // These two also for IPv6: packets of IPv4-mapped addresses are IPv4 packets.
    //
    // QUIC measures the path's MTU itself and forbids fragments (RFC 9000 section 14): packets carry
    // "don't fragment", and what the kernel believes of a path, which others can forge, stops none.
    let probe = libc::IP_PMTUDISC_PROBE;
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)?;
    // Marks of congestion are echoed to the sender (RFC 9000 section 13.4).
    set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, ON)?;
    if local.is_ipv4() {
        // Answers leave from the address that was asked, whichever of the host's it is.
        return set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, ON);
    }
    let probe = libc::IPV6_PMTUDISC_PROBE;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
    // The option before lets a packet exceed what the kernel believes of the path; this one refuses
    // to make fragments of what exceeds the device (`__ip6_append_data`, net/ipv6/ip6_output.c).
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, ON)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, ON)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, ON)
}

/// Asks whether the kernel can cut batches sent on `socket`; changes nothing.
///
/// # Errors
///
/// What the kernel said: older ones do not know the option (Linux 4.18).
pub fn check_segmentation(socket: BorrowedFd<'_>) -> io::Result<()> {
    // Zero means that a send without a control message of its own is not cut, which is the default.
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
}

/// Whether the kernel may join what arrives on `socket` into one message.
///
/// # Errors
///
/// What the kernel said: older ones do not know the option (Linux 5.0).
pub fn set_coalescing(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, on.into())
}

/// Leaves out the checksums of IPv4 datagrams sent on `socket`, or computes them. Without checksums
/// the kernel refuses to cut batches (EINVAL), so this is how a lab makes it refuse them.
///
/// # Errors
///
/// What the kernel said.
pub fn omit_checksums(socket: BorrowedFd<'_>, omit: bool) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, omit.into())
}

/// Sets an option that is one `int`.
pub(super) fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, and the kernel reads one `int` from a place that outlives
    // the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::UdpSocket, os::fd::AsFd as _};

    use super::*;
    use crate::sys::{
        netlink::{LinkSettings, Netlink},
        netns::Netns,
    };

    /// Over both families, a datagram that the device can only take in fragments is refused.
    #[test]
    fn nothing_is_sent_in_fragments() {
        let netns = Netns::create().expect("this test makes a network namespace: run it as root");
        let sockets = netns.run(|| {
            let netlink = Netlink::connect().unwrap();
            netlink.set_loopback_up().unwrap();
            let mtu = LinkSettings {
                mtu: Some(1500),
                ..LinkSettings::default()
            };
            let lo = netlink.link("lo").unwrap().unwrap();
            netlink.configure_link(lo.index, mtu).unwrap();
            ["127.0.0.1:0", "[::1]:0"].map(|local| UdpSocket::bind(local).unwrap())
        });
        for socket in sockets.unwrap() {
            let local = socket.local_addr().unwrap();
            assert_eq!(socket.send_to(&[7; 3000], local).unwrap(), 3000);
            prepare(socket.as_fd(), local).unwrap();
            let refused = socket.send_to(&[7; 3000], local).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE), "{local}");
            assert_eq!(socket.send_to(&[7; 1400], local).unwrap(), 1400);
        }
    }
}
