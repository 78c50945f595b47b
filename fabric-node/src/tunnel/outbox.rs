//! Hands batches of payloads to a socket, whole where the path takes them so, else one by one.
//!
//! Comes in: batches of equal-sized payloads, the time. Goes out: system calls. No payload is lost to
//! the way it is sent: what of a batch finds no room waits, and a batch that is refused as a whole
//! goes payload by payload. A payload that is refused alone is lost, and counted. Whether the kernel
//! refuses batches or just this one is decided by its first payload, which is of full length: if the
//! kernel takes that alone, batches are at fault.

use std::{io, net::UdpSocket, os::fd::AsFd as _, time::Instant};

use quinn_proto::Transmit;

use super::segmentation::{Paths, may_be_about_cutting};
use crate::sys::udp::{self, Payloads};

/// What sends payloads: a socket, or in tests something that says no.
pub trait Sender {
    /// Sends all of `payloads` or nothing.
    ///
    /// # Errors
    ///
    /// As [`udp::send`].
    fn send(&self, payloads: &Payloads<'_>) -> io::Result<()>;
}

impl Sender for UdpSocket {
    fn send(&self, payloads: &Payloads<'_>) -> io::Result<()> {
        udp::send(self.as_fd(), payloads)
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel has it, or lost it: QUIC will find out.
    Done,
    /// Some or all of it is kept until the socket is writable; send nothing more before that.
    Held,
}

/// The way out of one socket.
#[derive(Debug)]
pub struct Outbox {
    /// Which paths take batches.
    pub paths: Paths,
    /// What waits for room in the kernel's send buffer.
    held: Option<Held>,
    /// The payloads that wait, or room for the next that have to: at most one batch.
    kept: Vec<u8>,
    losses: SendLosses,
}

/// Payloads that the kernel did not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendLosses {
    /// For any reason but their length.
    pub refused: u64,
    /// Because they are larger than the interface takes.
    pub too_large: u64,
}

/// Payloads that wait: those in [`Outbox::kept`] from `sent` on.
#[derive(Debug)]
struct Held {
    transmit: Transmit,
    sent: usize,
}

impl Outbox {
    /// Begins empty.
    #[must_use]
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            held: None,
            kept: Vec::new(),
            losses: SendLosses::default(),
        }
    }

    /// Whether payloads wait for room.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// What was lost since the beginning.
    #[must_use]
    pub fn losses(&self) -> SendLosses {
        self.losses
    }

    /// Sends the batch that `transmit` describes. What finds no room is copied and waits; nothing else
    /// may wait then ([`Self::is_held`]).
    pub fn send(
        &mut self,
        sender: &impl Sender,
        transmit: Transmit,
        contents: &[u8],
        now: Instant,
    ) -> Sent {
        let left = self.hand_over(sender, &transmit, contents, now);
        if left.is_empty() {
            return Sent::Done;
        }
        debug_assert!(!self.is_held(), "what waits goes first");
        self.kept.clear();
        self.kept.extend_from_slice(left);
        self.held = Some(Held { transmit, sent: 0 });
        Sent::Held
    }

    /// Tries again what waits.
    pub fn send_held(&mut self, sender: &impl Sender, now: Instant) -> Sent {
        let Some(Held { transmit, sent }) = self.held.take() else {
            return Sent::Done;
        };
        let kept = std::mem::take(&mut self.kept);
        let contents = kept.get(sent..).unwrap_or_default();
        let left = self.hand_over(sender, &transmit, contents, now).len();
        let sent = kept.len() - left;
        self.kept = kept;
        if left == 0 {
            return Sent::Done;
        }
        self.held = Some(Held { transmit, sent });
        Sent::Held
    }

    /// Returns the end of `contents` that found no room.
    fn hand_over<'a>(
        &mut self,
        sender: &impl Sender,
        transmit: &Transmit,
        contents: &'a [u8],
        now: Instant,
    ) -> &'a [u8] {
        let remote = transmit.destination.ip();
        // The length field of UDP has 16 bits, so every size of a payload fits.
        let segment = transmit
            .segment_size
            .filter(|size| *size < contents.len())
            .and_then(|size| u16::try_from(size).ok());
        let Some(segment) = segment else {
            return self.send_apart(sender, transmit, contents, contents.len(), None, now);
        };
        let mut refused = None;
        if self.paths.takes_batches(remote, now) {
            let batch = payloads(transmit, contents, Some(segment));
            match sender.send(&batch) {
                Ok(()) => {
                    self.paths.note_taken(remote);
                    return &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return contents,
                Err(error) => refused = Some(error),
            }
        }
        self.send_apart(sender, transmit, contents, segment.into(), refused, now)
    }

    /// One payload of `size` at a time; `refused` is why not all of them at once.
    fn send_apart<'a>(
        &mut self,
        sender: &impl Sender,
        transmit: &Transmit,
        contents: &'a [u8],
        size: usize,
        refused: Option<io::Error>,
        now: Instant,
    ) -> &'a [u8] {
        let mut suspect = refused.as_ref().and_then(may_be_about_cutting);
        let mut rest = contents;
        while !rest.is_empty() {
            let (payload, after) = rest.split_at(size.clamp(1, rest.len()));
            match sender.send(&payloads(transmit, payload, None)) {
                Ok(()) => {
                    if let Some(errno) = suspect {
                        self.paths
                            .note_refused(transmit.destination.ip(), errno, now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return rest,
                // A probe of the path's MTU that exceeds the interface's is meant to fail.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    self.losses.too_large += 1;
                }
                Err(error) => {
                    self.losses.refused += 1;
                    tracing::debug!(%error, bytes = payload.len(), "the underlay refused a datagram");
                }
            }
            suspect = None;
            rest = after;
        }
        rest
    }
}

fn payloads<'a>(transmit: &Transmit, contents: &'a [u8], segment: Option<u16>) -> Payloads<'a> {
    Payloads {
        destination: transmit.destination,
        source: transmit.src_ip,
        // `EcnCodepoint` is its two bits.
        ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
        contents,
        segment_bytes: segment,
    }
}

#[cfg(test)]
mod tests;
