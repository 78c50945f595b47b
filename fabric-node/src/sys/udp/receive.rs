//! Several messages with one `recvmmsg`, into memory that was never written before or holds something
//! old.
//!
//! Comes in: a socket, empty places for messages. Goes out: the places, as long as what came into
//! them, and what the headers said. Never done here: zeroing, cutting joined payloads apart.

use std::{
    array, io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use bytes::BytesMut;

use super::control::{ControlRoom, control_messages};

/// What is known of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it comes from, as the kernel names it: an IPv6 socket sees an IPv4 sender as an
    /// IPv4-mapped address, and an answer to that finds its way.
    pub from: SocketAddr,
    /// The address that it was sent to.
    pub to: Option<IpAddr>,
    /// Bytes of it, all payloads together.
    pub len: usize,
    /// Bytes of each payload but the last, which may be shorter; `len` for a single payload.
    pub segment_bytes: usize,
    /// Congestion mark: the two low bits of the TOS or traffic class byte (RFC 3168 section 5).
    pub ecn: u8,
    /// Messages that the kernel had thrown away on this socket when this one came: because there was no
    /// room for them, or because of a wrong checksum. It counts from the socket's making, all 32 bits
    /// round, and what it had joined as one (`SO_RXQ_OVFL`, socket(7)). 0 is not told.
    pub overruns: u32,
    /// Whether all of it arrived. If not, where its payloads end is unknown, and there are no bytes of
    /// it: the place was too small, or the control messages found no room.
    pub whole: bool,
}

impl Default for Received {
    /// Nothing, from nowhere.
    fn default() -> Self {
        Self {
            from: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            to: None,
            len: 0,
            segment_bytes: 0,
            ecn: 0,
            overruns: 0,
            whole: false,
        }
    }
}

/// Receives up to `N` messages without waiting; returns how many came. The first so many of `slots`
/// hold one each, and `metas` tells about them; all other slots are empty. A message may be as long as
/// the capacity of its slot; what a slot held before is gone.
///
/// # Errors
///
/// What the kernel said: `WouldBlock` where there is no message. All slots are empty then.
pub fn receive<const N: usize>(
    socket: BorrowedFd<'_>,
    slots: &mut [BytesMut; N],
    metas: &mut [Received; N],
) -> io::Result<usize> {
    let mut places = [const { Place::EMPTY }; N];
    let mut headers: [libc::mmsghdr; N] = array::from_fn(|_| {
        // SAFETY: `mmsghdr` is plain data for which all zeros is a valid, empty value.
        unsafe { mem::zeroed() }
    });
    for ((header, place), slot) in headers.iter_mut().zip(&mut places).zip(slots.iter_mut()) {
        slot.clear();
        place.point(&mut header.msg_hdr, slot);
    }
    let received = loop {
        // SAFETY: the descriptor is borrowed. Each of the `N` headers points to the name, the control
        // room and the piece of its own place, and the piece to the spare capacity of its own slot;
        // all of them live until the end of this function, are as long as the header says, may be
        // written without having been read, and are not touched before the call returns.
        let result = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                N as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if let Ok(received) = usize::try_from(result) {
            break received;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let messages = headers.iter().zip(&places).take(received);
    for (((header, place), slot), meta) in messages.zip(slots).zip(metas) {
        *meta = place.read(header);
        // SAFETY: the slot was empty, and the kernel wrote the message at the beginning of its
        // capacity: `msg_len` bytes, which was no more than the piece had, as the message is whole.
        unsafe { slot.set_len(meta.len) };
    }
    Ok(received)
}

/// Where the kernel writes what it knows of one message. Also read where it wrote less, so it begins
/// as zeros.
struct Place {
    name: libc::sockaddr_in6,
    control: ControlRoom,
    piece: libc::iovec,
}

impl Place {
    const EMPTY: Self = Self {
        name: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
        control: ControlRoom::EMPTY,
        piece: libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        },
    };

    /// Makes `header` point here, and to the spare capacity of `slot`.
    fn point(&mut self, header: &mut libc::msghdr, slot: &mut BytesMut) {
        let room = slot.spare_capacity_mut();
        self.piece.iov_base = room.as_mut_ptr().cast();
        self.piece.iov_len = room.len();
        header.msg_name = (&raw mut self.name).cast();
        header.msg_namelen = size_of_val(&self.name) as libc::socklen_t;
        header.msg_iov = &raw mut self.piece;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.control).cast();
        header.msg_controllen = size_of_val(&self.control) as _;
    }

    /// What the kernel wrote.
    fn read(&self, header: &libc::mmsghdr) -> Received {
        let len = header.msg_len as usize;
        let mut received = Received::default();
        let cut = header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        if let Some(from) = self.from() {
            received.from = from;
            received.whole = !cut && len <= self.piece.iov_len;
        }
        if received.whole {
            received.len = len;
            received.segment_bytes = len;
        }
        #[allow(
            clippy::unnecessary_cast,
            reason = "other C libraries have another type"
        )]
        let control_len = header.msg_hdr.msg_controllen as usize;
        let control = self.control.0.get(..control_len).unwrap_or_default();
        for message in control_messages(control) {
            received.note(message.level, message.kind, message.data);
        }
        received
    }

    fn from(&self) -> Option<SocketAddr> {
        match libc::c_int::from(self.name.sin6_family) {
            libc::AF_INET => {
                const { assert!(size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>()) };
                // SAFETY: the larger structure has all bytes of the smaller, which may be any, and
                // they are read without regard to alignment.
                let name: libc::sockaddr_in =
                    unsafe { ptr::read_unaligned((&raw const self.name).cast()) };
                let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
                Some((ip, u16::from_be(name.sin_port)).into())
            }
            libc::AF_INET6 => Some(SocketAddr::V6(SocketAddrV6::new(
                self.name.sin6_addr.s6_addr.into(),
                u16::from_be(self.name.sin6_port),
                self.name.sin6_flowinfo,
                self.name.sin6_scope_id,
            ))),
            _ => None,
        }
    }
}

impl Received {
    /// Takes over what a control message says.
    fn note(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let bytes = number(data).and_then(|bytes| usize::try_from(bytes).ok());
                if let Some(bytes) = bytes.filter(|bytes| (1..=self.len).contains(bytes)) {
                    self.segment_bytes = bytes;
                }
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                if let Some(count) = data.first_chunk() {
                    self.overruns = u32::from_ne_bytes(*count);
                }
            }
            // One byte or an `int`, by option and age of the kernel.
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.ecn = number(data).unwrap_or_default() as u8 & 0b11;
            }
            // `in_pktinfo` (ip(7)): interface, local address, destination in the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                if let Some(ip) = data.get(8..).and_then(<[u8]>::first_chunk::<4>) {
                    self.to = Some(Ipv4Addr::from(*ip).into());
                }
            }
            // `in6_pktinfo` (RFC 3542 section 6): destination, interface.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(ip) = data.first_chunk::<16>() {
                    self.to = Some(Ipv6Addr::from(*ip).into());
                }
            }
            _ => {}
        }
    }
}

/// A number of four bytes or of one.
fn number(data: &[u8]) -> Option<libc::c_int> {
    data.first_chunk()
        .map(|number| libc::c_int::from_ne_bytes(*number))
        .or_else(|| data.first().copied().map(libc::c_int::from))
}

#[cfg(test)]
mod tests;
