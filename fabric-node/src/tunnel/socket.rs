//! A UDP socket with segmentation offload on send and receive offload on receive.
//!
//! Comes in: batches of equal-sized payloads. Goes out: the same, with whatever the kernel could
//! join. A batch that the kernel refuses to segment goes out one payload at a time.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use bytes::BytesMut;
use quinn_udp::{EcnCodepoint, RecvMeta, UdpSockRef, UdpSocketState};

use super::buffers::BufferPool;

/// Messages read with one system call; each may hold up to 64 payloads.
pub const MESSAGES_MAX: usize = 8;
/// Kernel buffers asked for (bytes): 2 MiB holds 32 full receive batches.
const KERNEL_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// One bound socket.
#[derive(Debug)]
pub struct UnderlaySocket {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    slots: [BytesMut; MESSAGES_MAX],
    held: Option<Held>,
    /// Sends the kernel refused for good (unreachable network, device down).
    pub send_errors: u64,
}

/// A batch that waits for room in the kernel's send buffer.
#[derive(Debug)]
struct Held {
    transmit: quinn_proto::Transmit,
    contents: Vec<u8>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel has it, or lost it: QUIC will find out.
    Done,
    /// Kept until the socket is writable; send nothing more before that.
    Held,
}

impl UnderlaySocket {
    /// Binds to `local`.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn bind(local: SocketAddr, pool: &mut BufferPool) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        enlarge_buffers(&socket, &state);
        Ok(Self {
            local: socket.local_addr()?,
            socket,
            state,
            slots: std::array::from_fn(|_| pool.take()),
            held: None,
            send_errors: 0,
        })
    }

    /// The bound address.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Payloads that one send may carry.
    #[must_use]
    pub fn segments_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Whether a batch waits for room.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_some()
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
    pub fn send(&mut self, transmit: quinn_proto::Transmit, contents: &[u8]) -> Sent {
        match self.try_send(&transmit, contents, transmit.segment_size) {
            Ok(()) => Sent::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.held = Some(Held {
                    transmit,
                    contents: contents.to_vec(),
                });
                Sent::Held
            }
            Err(error) => {
                self.send_apart(&transmit, contents, &error);
                Sent::Done
            }
        }
    }

    /// Tries again what waits.
    pub fn send_held(&mut self) -> Sent {
        match self.held.take() {
            None => Sent::Done,
            Some(held) => self.send(held.transmit, &held.contents),
        }
    }

    /// After a refused batch: one payload at a time, where there was more than one.
    fn send_apart(&mut self, transmit: &quinn_proto::Transmit, contents: &[u8], error: &io::Error) {
        let Some(size) = transmit.segment_size.filter(|size| *size < contents.len()) else {
            self.note(error, contents.len());
            return;
        };
        for payload in contents.chunks(size) {
            if let Err(error) = self.try_send(transmit, payload, None) {
                self.note(&error, payload.len());
            }
        }
    }

    fn note(&mut self, error: &io::Error, bytes: usize) {
        // A path MTU probe that exceeds the interface's MTU is meant to fail.
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            return;
        }
        self.send_errors += 1;
        tracing::debug!(%error, bytes, "the underlay refused a datagram");
    }

    fn try_send(
        &self,
        transmit: &quinn_proto::Transmit,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        self.state.try_send(
            UdpSockRef::from(&self.socket),
            &quinn_udp::Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn.map(|ecn| match ecn {
                    quinn_proto::EcnCodepoint::Ect0 => EcnCodepoint::Ect0,
                    quinn_proto::EcnCodepoint::Ect1 => EcnCodepoint::Ect1,
                    quinn_proto::EcnCodepoint::Ce => EcnCodepoint::Ce,
                }),
                contents,
                segment_size,
                src_ip: transmit.src_ip,
            },
        )
    }
}

impl AsFd for UnderlaySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
