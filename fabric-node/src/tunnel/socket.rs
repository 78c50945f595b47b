//! A UDP socket with segmentation offload on send and receive offload on receive.
//!
//! Comes in: batches of equal-sized payloads. Goes out: the same, with whatever the kernel could
//! join. How batches leave, and what happens to those that the kernel refuses, is in [`outbox`].
//!
//! [`outbox`]: super::outbox

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use bytes::BytesMut;
use quinn_udp::{EcnCodepoint, RecvMeta, UdpSockRef, UdpSocketState};
use rustix::io::Errno;

use super::{
    buffers::BufferPool,
    outbox::Outbox,
    segmentation::{Availability, Paths, Segmentation},
};
use crate::sys::udp;

pub use super::outbox::Sent;

/// Messages read with one system call; each may hold up to 64 payloads.
pub const MESSAGES_MAX: usize = 8;
/// Kernel buffers asked for (bytes): 2 MiB holds 32 full receive batches.
const KERNEL_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Which offloads a socket is to use, where the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedOffloads {
    /// The kernel cuts batches that are sent.
    pub gso: bool,
    /// The kernel joins what arrives.
    pub gro: bool,
}

impl Default for WantedOffloads {
    /// Both.
    fn default() -> Self {
        Self {
            gso: true,
            gro: true,
        }
    }
}

/// What became of [`WantedOffloads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOffloads {
    /// The kernel cuts batches that are sent, but on paths where it refuses.
    pub gso: Availability,
    /// The kernel joins what arrives.
    pub gro: Availability,
}

/// One bound socket.
#[derive(Debug)]
pub struct UnderlaySocket {
    socket: UdpSocket,
    /// Receives, and has set the socket's options. It sends nothing: it would turn segmentation and
    /// marks off for all paths after an error on one.
    state: UdpSocketState,
    local: SocketAddr,
    slots: [BytesMut; MESSAGES_MAX],
    outbox: Outbox,
    gro: Availability,
}

impl UnderlaySocket {
    /// Binds to `local`.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn bind(
        local: SocketAddr,
        wanted: WantedOffloads,
        pool: &mut BufferPool,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        enlarge_buffers(&socket, &state);
        udp::stop_timestamps(socket.as_fd())?;
        let gso = available(wanted.gso, || udp::check_segmentation(socket.as_fd()));
        let gro = available(wanted.gro, || udp::set_coalescing(socket.as_fd(), true));
        if !wanted.gro && state.gro_segments() > 1 {
            udp::set_coalescing(socket.as_fd(), false)?;
        }
        Ok(Self {
            local: socket.local_addr()?,
            socket,
            state,
            slots: std::array::from_fn(|_| pool.take()),
            outbox: Outbox::new(Paths::new(gso)),
            gro,
        })
    }

    /// The bound address.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Offloads in use, and why others are not.
    #[must_use]
    pub fn offloads(&self) -> SocketOffloads {
        SocketOffloads {
            gso: self.outbox.paths.availability(),
            gro: self.gro,
        }
    }

    /// Whether batches to `remote` leave whole.
    #[must_use]
    pub fn segmentation(&self, remote: IpAddr) -> Segmentation {
        self.outbox.paths.state(remote)
    }

    /// Whether a batch waits for room.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.outbox.is_held()
    }

    /// Reads one batch of messages and hands each on; returns how many there were. Fewer than
    /// [`MESSAGES_MAX`] were all there were.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn receive(
        &mut self,
        pool: &mut BufferPool,
        mut on_message: impl FnMut(&RecvMeta, BytesMut),
    ) -> io::Result<usize> {
        let mut metas = [RecvMeta::default(); MESSAGES_MAX];
        let received = {
            let mut slices = self.slots.each_mut().map(|slot| IoSliceMut::new(slot));
            self.state
                .recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas)?
        };
        for (meta, slot) in metas.iter().zip(&mut self.slots).take(received) {
            on_message(meta, pool.carve(slot, meta.len));
        }
        Ok(received)
    }

    /// Sends a batch that `transmit` describes.
    pub fn send(&mut self, transmit: quinn_proto::Transmit, contents: &[u8], now: Instant) -> Sent {
        self.outbox.send(&self.socket, transmit, contents, now)
    }

    /// Tries again what waits.
    pub fn send_held(&mut self, now: Instant) -> Sent {
        self.outbox.send_held(&self.socket, now)
    }
}

impl AsFd for UnderlaySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn available(wanted: bool, ask: impl FnOnce() -> io::Result<()>) -> Availability {
    if !wanted {
        return Availability::SwitchedOff;
    }
    match ask() {
        Ok(()) => Availability::InUse,
        Err(error) => {
            Availability::Refused(Errno::from_io_error(&error).unwrap_or(Errno::NOPROTOOPT))
        }
    }
}

/// Translates the mark of a received message.
#[must_use]
pub fn ecn_of(meta: &RecvMeta) -> Option<quinn_proto::EcnCodepoint> {
    meta.ecn.map(|ecn| match ecn {
        EcnCodepoint::Ect0 => quinn_proto::EcnCodepoint::Ect0,
        EcnCodepoint::Ect1 => quinn_proto::EcnCodepoint::Ect1,
        EcnCodepoint::Ce => quinn_proto::EcnCodepoint::Ce,
    })
}

/// Asks beyond the system's limit first, which needs CAP_NET_ADMIN, then within it.
fn enlarge_buffers(socket: &UdpSocket, state: &UdpSocketState) {
    use rustix::net::sockopt::{
        set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force,
    };
    if set_socket_recv_buffer_size_force(socket, KERNEL_BUFFER_BYTES).is_err()
        && let Err(error) =
            state.set_recv_buffer_size(UdpSockRef::from(socket), KERNEL_BUFFER_BYTES)
    {
        tracing::debug!(%error, "the receive buffer stays at its default");
    }
    if set_socket_send_buffer_size_force(socket, KERNEL_BUFFER_BYTES).is_err()
        && let Err(error) =
            state.set_send_buffer_size(UdpSockRef::from(socket), KERNEL_BUFFER_BYTES)
    {
        tracing::debug!(%error, "the send buffer stays at its default");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What a batch was marked with arrives with it, joined or one by one, over both families.
    #[test]
    fn marks_arrive_with_batches() {
        for (gso, gro) in [(true, true), (true, false), (false, true), (false, false)] {
            for ip in ["127.0.0.1", "::1"] {
                let mut pool = BufferPool::default();
                let local = SocketAddr::new(ip.parse().unwrap(), 0);
                let mut bind = |wanted| UnderlaySocket::bind(local, wanted, &mut pool).unwrap();
                let mut receiver = bind(WantedOffloads { gso: true, gro });
                let mut sender = bind(WantedOffloads { gso, gro: true });
                let contents: Vec<u8> = (0..2500_u32).map(|n| (n % 251) as u8).collect();
                let transmit = quinn_proto::Transmit {
                    destination: receiver.local(),
                    ecn: Some(quinn_proto::EcnCodepoint::Ect0),
                    size: contents.len(),
                    segment_size: Some(1000),
                    src_ip: Some(local.ip()),
                };
                assert_eq!(sender.send(transmit, &contents, Instant::now()), Sent::Done);
                let mut arrived = Vec::new();
                // Loopback delivers before a send returns.
                while arrived.len() < contents.len() {
                    let read = receiver.receive(&mut pool, |meta, data| {
                        assert_eq!(ecn_of(meta), Some(quinn_proto::EcnCodepoint::Ect0));
                        assert!(gro || data.len() <= 1000);
                        arrived.extend_from_slice(&data);
                    });
                    assert!(read.unwrap() > 0);
                }
                assert_eq!(arrived, contents);
                let asked = |on| {
                    if on {
                        Availability::InUse
                    } else {
                        Availability::SwitchedOff
                    }
                };
                assert_eq!(sender.offloads().gso, asked(gso));
                assert_eq!(receiver.offloads().gro, asked(gro));
            }
        }
    }
}
