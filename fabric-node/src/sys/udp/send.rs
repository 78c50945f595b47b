//! One `sendmsg` for all payloads that go to one destination.
//!
//! Comes in: a socket, payloads, where they go. Goes out: a system call, and its error as it is.
//! Never done here: remembering an error, or trying again without something.

use std::{
    io,
    mem::{self, size_of},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use super::control::Control;

/// Payloads for one destination, handed to the kernel in one call.
#[derive(Clone, Copy, Debug)]
pub struct Payloads<'a> {
    /// Where they go.
    pub destination: SocketAddr,
    /// The address they come from; the socket's own, or the kernel's choice, if `None`.
    pub source: Option<IpAddr>,
    /// Congestion mark: the two low bits of the TOS or traffic class byte (RFC 3168 section 5).
    pub ecn: u8,
    /// The payloads, one behind the other.
    pub contents: &'a [u8],
    /// Length of each payload but the last, which may be shorter (bytes); `None` for one payload.
    pub segment_bytes: Option<u16>,
}

/// Sends `payloads`.
///
/// # Errors
///
/// What the kernel said; then none of the payloads was sent. `WouldBlock` where a non-blocking socket
/// has no room. For batches the kernel answers EIO, EINVAL or EMSGSIZE where the route, the device or
/// the length stand against cutting them (`udp_send_skb`, net/ipv4/udp.c).
pub fn send(socket: BorrowedFd<'_>, payloads: &Payloads<'_>) -> io::Result<()> {
    let mut control = control_of(payloads);
    let (name, name_len) = name_of(payloads.destination);
    let mut piece = libc::iovec {
        iov_base: payloads.contents.as_ptr().cast_mut().cast(),
        iov_len: payloads.contents.len(),
    };
    // SAFETY: `msghdr` is plain data for which all zeros is a valid, empty value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = ptr::from_ref(&name).cast_mut().cast();
    message.msg_namelen = name_len;
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.start().cast();
        message.msg_controllen = control.len() as _;
    }
    loop {
        // SAFETY: the descriptor is borrowed; the address, the piece and the control messages that
        // `message` points to live until the end of this function, are as long as it says, and are
        // only read by sendmsg.
        if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// What goes with the payloads: their mark, where they are cut, the address they come from.
fn control_of(payloads: &Payloads<'_>) -> Control {
    let mut control = Control::new();
    if payloads.ecn != 0 {
        // What leaves for an IPv4-mapped address is an IPv4 packet.
        let (level, kind) = match payloads.destination.ip().to_canonical() {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        control.push(level, kind, &libc::c_int::from(payloads.ecn).to_ne_bytes());
    }
    if let Some(bytes) = payloads.segment_bytes {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }
    match payloads.source {
        None => {}
        // `in_pktinfo` (ip(7)): interface, source, an address that only receivers are told.
        Some(IpAddr::V4(source)) => {
            let mut info = [0; size_of::<libc::in_pktinfo>()];
            info[4..8].copy_from_slice(&source.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        // `in6_pktinfo` (RFC 3542 section 6): source, interface.
        Some(IpAddr::V6(source)) => {
            let mut info = [0; size_of::<libc::in6_pktinfo>()];
            info[..16].copy_from_slice(&source.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
    }
    control
}

/// An address of either family as the kernel reads it; which one it is, its first field says.
#[repr(C)]
union Name {
    ipv4: libc::sockaddr_in,
    ipv6: libc::sockaddr_in6,
}

/// `address` for the kernel, and its length (bytes).
fn name_of(address: SocketAddr) -> (Name, libc::socklen_t) {
    let (name, len) = match address {
        SocketAddr::V4(address) => {
            let ipv4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            (Name { ipv4 }, size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(address) => {
            let ipv6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            (Name { ipv6 }, size_of::<libc::sockaddr_in6>())
        }
    };
    (name, len as libc::socklen_t)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::UdpSocket, os::fd::AsFd as _, time::Duration};

    use bytes::BytesMut;

    use super::*;
    use crate::sys::udp::{
        Received, check_segmentation, omit_checksums, prepare, receive, set_coalescing,
    };

    /// A socket on loopback that tells marks and addresses, and joins.
    fn bound(ip: &str) -> UdpSocket {
        let socket = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
        prepare(socket.as_fd(), socket.local_addr().unwrap()).unwrap();
        set_coalescing(socket.as_fd(), true).unwrap();
        let patience = Duration::from_secs(5);
        socket.set_read_timeout(Some(patience)).unwrap();
        socket
    }

    /// Reads messages until `bytes` have come: payloads cut where the kernel had joined them, and what
    /// the last message came with.
    fn arrived(socket: &UdpSocket, bytes: usize) -> (Vec<Vec<u8>>, Received) {
        let (mut payloads, mut metas) = (Vec::new(), [Received::default()]);
        while payloads.iter().map(Vec::len).sum::<usize>() < bytes {
            let mut slots = [BytesMut::with_capacity(70_000)];
            socket.peek_from(&mut [0]).unwrap();
            receive(socket.as_fd(), &mut slots, &mut metas).unwrap();
            let filled = slots[0].chunks(metas[0].segment_bytes.max(1));
            payloads.extend(filled.map(<[u8]>::to_vec));
        }
        (payloads, metas[0])
    }

    /// Over both families a batch arrives as payloads of the length asked for, the last one shorter,
    /// from the address and with the mark that were asked for.
    #[test]
    fn a_batch_is_cut_and_marked() {
        for (ip, source) in [("127.0.0.1", "127.0.0.9"), ("::1", "::1")] {
            let receiver = bound(ip);
            let any = if ip == "::1" { "[::]:0" } else { "0.0.0.0:0" };
            let sender = UdpSocket::bind(any).unwrap();
            let contents: Vec<u8> = (0..2500_u32).map(|n| (n % 251) as u8).collect();
            let payloads = Payloads {
                destination: receiver.local_addr().unwrap(),
                source: Some(source.parse().unwrap()),
                ecn: 0b10,
                contents: &contents,
                segment_bytes: Some(1000),
            };
            send(sender.as_fd(), &payloads).unwrap();
            let (arrived, meta) = arrived(&receiver, contents.len());
            assert_eq!(
                arrived.iter().map(Vec::len).collect::<Vec<_>>(),
                [1000, 1000, 500]
            );
            assert_eq!(arrived.concat(), contents);
            assert_eq!(meta.ecn, 0b10, "{ip}");
            assert_eq!(meta.from.ip(), source.parse::<IpAddr>().unwrap());
        }
    }

    /// One payload without a mark or an address of its own needs no control message.
    #[test]
    fn one_payload_goes_as_it_is() {
        let receiver = bound("127.0.0.1");
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let payloads = Payloads {
            destination: receiver.local_addr().unwrap(),
            source: None,
            ecn: 0,
            contents: b"one",
            segment_bytes: None,
        };
        send(sender.as_fd(), &payloads).unwrap();
        let (arrived, meta) = arrived(&receiver, 3);
        assert_eq!((arrived, meta.ecn), (vec![b"one".to_vec()], 0));
    }

    /// A socket without checksums sends payloads and refuses batches; with checksums again it takes
    /// both.
    #[test]
    fn without_checksums_batches_are_refused() {
        let receiver = bound("127.0.0.1");
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let try_send = |segment_bytes| {
            let payloads = Payloads {
                destination: receiver.local_addr().unwrap(),
                source: None,
                ecn: 0,
                contents: &[7; 2000],
                segment_bytes,
            };
            send(sender.as_fd(), &payloads).map_err(|error| error.raw_os_error())
        };
        assert_eq!(try_send(Some(1000)), Ok(()));
        omit_checksums(sender.as_fd(), true).unwrap();
        assert_eq!(try_send(Some(1000)), Err(Some(libc::EINVAL)));
        assert_eq!(try_send(None), Ok(()));
        omit_checksums(sender.as_fd(), false).unwrap();
        assert_eq!(try_send(Some(1000)), Ok(()));
    }

    /// This kernel knows both options, and joining can be turned off.
    #[test]
    fn joining_can_be_turned_off() {
        let receiver = bound("127.0.0.1");
        check_segmentation(receiver.as_fd()).unwrap();
        set_coalescing(receiver.as_fd(), false).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let payloads = Payloads {
            destination: receiver.local_addr().unwrap(),
            source: None,
            ecn: 0,
            contents: &[7; 2500],
            segment_bytes: Some(1000),
        };
        send(sender.as_fd(), &payloads).unwrap();
        let mut buffer = [0; 4000];
        let lengths = [1000, 1000, 500];
        assert_eq!(
            lengths.map(|_| receiver.recv(&mut buffer).unwrap()),
            lengths
        );
    }
}
