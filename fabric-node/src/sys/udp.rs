//! What UDP sockets can do beyond the standard library: batches that the kernel cuts, batches that it
//! has joined.
//!
//! Comes in: a socket, payloads, where they go. Goes out: system calls, and their errors as they are.
//! Never done here: remembering an error, or trying again without something.

use std::{
    ffi::c_void,
    io,
    mem::{self, size_of},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

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
    let mut control = Control::new();
    if payloads.ecn != 0 {
        let (level, kind) = match payloads.destination {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
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
    let (ipv4, ipv6);
    let (name, name_len) = match payloads.destination {
        SocketAddr::V4(address) => {
            ipv4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            (ptr::from_ref(&ipv4).cast::<c_void>(), size_of_val(&ipv4))
        }
        SocketAddr::V6(address) => {
            ipv6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            (ptr::from_ref(&ipv6).cast::<c_void>(), size_of_val(&ipv6))
        }
    };
    let mut piece = libc::iovec {
        iov_base: payloads.contents.as_ptr().cast_mut().cast(),
        iov_len: payloads.contents.len(),
    };
    // SAFETY: `msghdr` is plain data for which all zeros is a valid, empty value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = name.cast_mut();
    message.msg_namelen = name_len as libc::socklen_t;
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if control.len > 0 {
        message.msg_control = control.space.as_mut_ptr().cast();
        message.msg_controllen = control.len as _;
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

/// Asks whether the kernel can cut batches sent on `socket`; changes nothing.
///
/// # Errors
///
/// What the kernel said: older ones do not know the option (Linux 4.18).
pub fn check_segmentation(socket: BorrowedFd<'_>) -> io::Result<()> {
    // Zero means that a send without a control message of its own is not cut, which is the default.
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
}

/// Whether the kernel may join what arrives on `socket` into one message.
///
/// # Errors
///
/// What the kernel said: older ones do not know the option (Linux 5.0).
pub fn set_coalescing(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, on.into())
}

/// Receives no times of arrival on `socket`. They take the place of marks: what quinn-udp 0.6.3 keeps
/// for control messages (96 bytes) holds a time (32), a segment length (24) and an address (32), and
/// the kernel then leaves out the mark (24).
///
/// # Errors
///
/// What the kernel said.
pub fn stop_timestamps(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0)
}

/// Leaves out the checksums of IPv4 datagrams sent on `socket`, or computes them. Without checksums
/// the kernel refuses to cut batches (EINVAL), so this is how a lab makes it refuse them.
///
/// # Errors
///
/// What the kernel said.
pub fn omit_checksums(socket: BorrowedFd<'_>, omit: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, omit.into())
}

fn set_option(
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

/// Bytes of control messages: a mark (24), a segment length (24) and the larger packet info (40), each
/// with its header and padding, on 64-bit machines.
const CONTROL_BYTES: usize = 88;

/// Control messages, aligned as their headers want it.
struct Control {
    space: [u64; CONTROL_BYTES / 8],
    len: usize,
}

impl Control {
    fn new() -> Self {
        Self {
            space: [0; CONTROL_BYTES / 8],
            len: 0,
        }
    }

    /// Adds one message.
    ///
    /// # Panics
    ///
    /// There is no room for it, which the size of [`CONTROL_BYTES`] rules out for what [`send`] adds.
    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        const { assert!(align_of::<libc::cmsghdr>() <= align_of::<u64>()) };
        let data_len = data.len() as libc::c_uint;
        // SAFETY: these two compute lengths from lengths.
        let (taken, len) = unsafe { (libc::CMSG_SPACE(data_len), libc::CMSG_LEN(data_len)) };
        assert!(self.len + taken as usize <= CONTROL_BYTES);
        // SAFETY: `len` is a multiple of the header's alignment and within `space`, as all earlier
        // messages were padded and fitted; header, data and padding of this one fit, as asserted.
        unsafe {
            let header = self
                .space
                .as_mut_ptr()
                .byte_add(self.len)
                .cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as _;
            let place = header.byte_add(libc::CMSG_LEN(0) as usize).cast::<u8>();
            ptr::copy_nonoverlapping(data.as_ptr(), place, data.len());
        }
        self.len += taken as usize;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{io::IoSliceMut, net::UdpSocket, os::fd::AsFd as _};

    use quinn_udp::{EcnCodepoint, RecvMeta, UdpSocketState};

    use super::*;

    /// A socket on loopback, and what it takes to read marks and addresses from it.
    fn bound(ip: &str) -> (UdpSocket, UdpSocketState) {
        let socket = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        stop_timestamps(socket.as_fd()).unwrap();
        socket.set_nonblocking(false).unwrap();
        (socket, state)
    }

    /// Reads messages until `bytes` have come: payloads cut where the kernel had joined them, and what
    /// the last message was marked with.
    fn receive(
        (socket, state): &(UdpSocket, UdpSocketState),
        bytes: usize,
    ) -> (Vec<Vec<u8>>, RecvMeta) {
        let (mut payloads, mut meta) = (Vec::new(), RecvMeta::default());
        while payloads.iter().map(Vec::len).sum::<usize>() < bytes {
            let mut buffer = vec![0; 70_000];
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let metas = std::slice::from_mut(&mut meta);
            state.recv(socket.into(), &mut slices, metas).unwrap();
            let filled = buffer[..meta.len].chunks(meta.stride.max(1));
            payloads.extend(filled.map(<[u8]>::to_vec));
        }
        (payloads, meta)
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
                destination: receiver.0.local_addr().unwrap(),
                source: Some(source.parse().unwrap()),
                ecn: 0b10,
                contents: &contents,
                segment_bytes: Some(1000),
            };
            send(sender.as_fd(), &payloads).unwrap();
            let (arrived, meta) = receive(&receiver, contents.len());
            assert_eq!(
                arrived.iter().map(Vec::len).collect::<Vec<_>>(),
                [1000, 1000, 500]
            );
            assert_eq!(arrived.concat(), contents);
            assert_eq!(meta.ecn, Some(EcnCodepoint::Ect0), "{ip}");
            assert_eq!(meta.addr.ip(), source.parse::<IpAddr>().unwrap());
        }
    }

    /// One payload without a mark or an address of its own needs no control message.
    #[test]
    fn one_payload_goes_as_it_is() {
        let receiver = bound("127.0.0.1");
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let payloads = Payloads {
            destination: receiver.0.local_addr().unwrap(),
            source: None,
            ecn: 0,
            contents: b"one",
            segment_bytes: None,
        };
        send(sender.as_fd(), &payloads).unwrap();
        let (arrived, meta) = receive(&receiver, 3);
        assert_eq!((arrived, meta.ecn), (vec![b"one".to_vec()], None));
    }

    /// A socket without checksums sends payloads and refuses batches; with checksums again it takes
    /// both.
    #[test]
    fn without_checksums_batches_are_refused() {
        let receiver = bound("127.0.0.1");
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let try_send = |segment_bytes| {
            let payloads = Payloads {
                destination: receiver.0.local_addr().unwrap(),
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
        check_segmentation(receiver.0.as_fd()).unwrap();
        set_coalescing(receiver.0.as_fd(), false).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let payloads = Payloads {
            destination: receiver.0.local_addr().unwrap(),
            source: None,
            ecn: 0,
            contents: &[7; 2500],
            segment_bytes: Some(1000),
        };
        send(sender.as_fd(), &payloads).unwrap();
        let mut buffer = [0; 4000];
        let lengths = [1000, 1000, 500];
        assert_eq!(
            lengths.map(|_| receiver.0.recv(&mut buffer).unwrap()),
            lengths
        );
    }
}
