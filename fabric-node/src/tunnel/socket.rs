//! A UDP socket with segmentation offload on send and receive offload on receive.
//!
//! Comes in: batches of equal-sized payloads. Goes out: the same, with whatever the kernel could
//! join, in buffers that it fills and nobody clears. How batches leave, and what happens to those that
//! the kernel refuses, is in [`outbox`].
//!
//! [`outbox`]: super::outbox

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use bytes::BytesMut;
use rustix::{io::Errno, net::sockopt};

use super::{
    buffers::BufferPool,
    outbox::{Outbox, SendLosses},
    report::{Throttle, UnderlayLosses},
    segmentation::{Availability, Paths, Segmentation},
};
use crate::sys::udp::{self, Received};

pub use super::outbox::Sent;

/// Messages read with one system call; each may hold up to 64 payloads.
pub const MESSAGES_MAX: usize = 8;
/// Kernel buffers asked for (bytes): 64 full batches of 64 KiB, or 3 ms at 10 Gbit/s. The kernel counts
/// what it needs beside the payloads as well, and doubles the number for it (socket(7)).
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
    local: SocketAddr,
    slots: [BytesMut; MESSAGES_MAX],
    outbox: Outbox,
    gro: Availability,
    /// Messages that did not arrive whole.
    cut: u64,
    cut_log: Throttle,
    overruns: Overruns,
}

/// Messages that the kernel has thrown away, out of a count that begins anew after 32 bits.
#[derive(Debug, Default)]
struct Overruns {
    told: u32,
    total: u64,
}

impl Overruns {
    /// A message came with this count, or with 0 for none.
    fn note(&mut self, told: u32) {
        if told != 0 {
            self.total += u64::from(told.wrapping_sub(self.told));
            self.told = told;
        }
    }
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
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        udp::prepare(socket.as_fd(), local)?;
        enlarge_buffers(&socket);
        let gso = available(wanted.gso, || udp::check_segmentation(socket.as_fd()));
        let gro = available(wanted.gro, || udp::set_coalescing(socket.as_fd(), true));
        Ok(Self {
            local,
            socket,
            slots: std::array::from_fn(|_| pool.take_empty()),
            outbox: Outbox::new(Paths::new(gso)),
            gro,
            cut: 0,
            cut_log: Throttle::default(),
            overruns: Overruns::default(),
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

    /// What was lost here since the socket was bound.
    #[must_use]
    pub fn losses(&self) -> UnderlayLosses {
        let SendLosses { refused, too_large } = self.outbox.losses();
        UnderlayLosses {
            overrun: self.overruns.total,
            cut: self.cut,
            refused,
            too_large,
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

    /// Reads one batch of messages and hands each on that arrived whole; returns how many there were.
    /// Fewer than [`MESSAGES_MAX`] were all there were. What did not arrive whole is lost and counted:
    /// QUIC sends again what was on streams.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn receive(
        &mut self,
        pool: &mut BufferPool,
        now: Instant,
        mut on_message: impl FnMut(&Received, BytesMut),
    ) -> io::Result<usize> {
        let mut metas = [Received::default(); MESSAGES_MAX];
        let received = udp::receive(self.socket.as_fd(), &mut self.slots, &mut metas)?;
        for (meta, slot) in metas.iter().zip(&mut self.slots).take(received) {
            self.overruns.note(meta.overruns);
            if meta.whole {
                on_message(meta, pool.take_filled(slot));
                continue;
            }
            self.cut += 1;
            if let Some(suppressed) = self.cut_log.allow(now) {
                tracing::warn!(remote = %meta.from, suppressed, "a message from the underlay did not arrive whole and is lost");
            }
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

/// Asks beyond the system's limit first, which needs CAP_NET_ADMIN, then within it.
fn enlarge_buffers(socket: &UdpSocket) {
    let bytes = KERNEL_BUFFER_BYTES;
    let receive = sockopt::set_socket_recv_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes));
    if let Err(error) = receive {
        tracing::debug!(%error, "the receive buffer stays at its default");
    }
    let send = sockopt::set_socket_send_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes));
    if let Err(error) = send {
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
                    let read = receiver.receive(&mut pool, Instant::now(), |meta, data| {
                        assert_eq!(meta.ecn, quinn_proto::EcnCodepoint::Ect0 as u8);
                        assert_eq!(meta.to, Some(local.ip()));
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

    /// However messages come, in threes or full, small or large: slots are used again where they are
    /// or come out of the pool with room for the largest message, and nothing of an earlier message is
    /// in a later one.
    #[test]
    fn slots_always_have_room() {
        let mut pool = BufferPool::default();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let wanted = WantedOffloads::default();
        let mut receiver = UnderlaySocket::bind(local, wanted, &mut pool).unwrap();
        let sender = UdpSocket::bind(local).unwrap();
        for round in 0..64_u8 {
            let lengths = [20, 65_507, 1400, 30_000];
            let count = if round % 2 == 0 { 3 } else { MESSAGES_MAX };
            let sent: Vec<usize> = (0..count)
                .map(|n| lengths[(n + usize::from(round)) % lengths.len()])
                .collect();
            for length in &sent {
                sender
                    .send_to(&vec![round; *length], receiver.local())
                    .unwrap();
            }
            let mut arrived = Vec::new();
            let read = receiver.receive(&mut pool, Instant::now(), |meta, data| {
                assert_eq!(meta.len, data.len());
                assert!(data.iter().all(|byte| *byte == round));
                arrived.push(data.len());
            });
            assert_eq!(read.unwrap(), count);
            assert_eq!(arrived, sent);
            let room = receiver.slots.iter().map(BytesMut::capacity);
            assert!(room.min() >= Some(crate::tunnel::buffers::BUFFER_BYTES));
            assert!(receiver.slots.iter().all(BytesMut::is_empty));
        }
    }
    /// Whatever is thrown away because the receive buffer is full, and whatever does not fit its slot, is
    /// counted: with what arrives it makes all that was sent.
    #[test]
    fn losses_on_the_way_in_are_counted() {
        const SENT: u64 = 200;
        let mut pool = BufferPool::default();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let wanted = WantedOffloads::default();
        let mut receiver = UnderlaySocket::bind(local, wanted, &mut pool).unwrap();
        sockopt::set_socket_recv_buffer_size(&receiver.socket, 0).unwrap();
        let sender = UdpSocket::bind(local).unwrap();
        let mut arrived = 0;
        let mut receive = |receiver: &mut UnderlaySocket| {
            let count = |_: &Received, _| arrived += 1;
            match receiver.receive(&mut pool, Instant::now(), count) {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    false
                }
            }
        };
        // In two floods, so that the count of the second is not that of both.
        for _ in 0..2 {
            for _ in 0..SENT / 2 - 1 {
                sender.send_to(&[7; 1000], receiver.local()).unwrap();
            }
            while receive(&mut receiver) {}
            // With this one the others are told of.
            sender.send_to(&[7; 1000], receiver.local()).unwrap();
            assert!(receive(&mut receiver));
        }
        receiver.slots[0] = BytesMut::with_capacity(10);
        sender.send_to(&[7; 11], receiver.local()).unwrap();
        assert!(receive(&mut receiver));
        let losses = receiver.losses();
        assert!(losses.overrun > 100, "{losses:?}");
        assert_eq!(arrived + losses.overrun, SENT);
        let other = UnderlayLosses {
            overrun: 0,
            ..losses
        };
        let expected = UnderlayLosses {
            cut: 1,
            ..UnderlayLosses::default()
        };
        assert_eq!(other, expected);
    }

    /// The kernel's count of 32 bits is followed past its end; a message without it changes nothing.
    #[test]
    fn counts_of_overruns_go_round() {
        let mut overruns = Overruns::default();
        for told in [0, 3, 0, 3, u32::MAX, 4, 0] {
            overruns.note(told);
        }
        assert_eq!(overruns.total, (1 << 32) + 4);
    }
}
