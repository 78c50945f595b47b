//! What waits in front of a connection: short, bounded, counted.

use std::collections::VecDeque;

use bytes::Bytes;
use fabric_core::counters::Tally;

use super::link::QueueFull;

/// Bytes that may wait for the streams of one connection.
///
/// 2 MiB is 4 ms at 4 Gbit/s: enough to cover a scheduling hiccup, short enough to be felt as a
/// link by the TCP inside. When full, the packet is dropped and counted (PEER_QUEUE_FULL).
pub const STREAM_QUEUE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Packets that may wait to leave as datagrams. When full, as above.
pub const DATAGRAM_QUEUE_PACKETS_MAX: usize = 4096;
/// Streams per connection over which flows are spread.
pub const STREAM_BUCKETS: usize = 16;

/// Records that the engine has not taken yet.
#[derive(Debug)]
pub struct SendQueue {
    buckets: [VecDeque<Pending>; STREAM_BUCKETS],
    stream_bytes: usize,
    datagrams: VecDeque<Pending>,
    queued: u64,
    handed: Tally,
}

/// A record or what is left of it.
#[derive(Debug)]
pub struct Pending {
    /// Bytes still to be handed to the engine.
    pub record: Bytes,
    /// Length of the packet that this record completes, if it completes one that is counted.
    pub account: Option<u32>,
}

impl Default for SendQueue {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| VecDeque::new()),
            stream_bytes: 0,
            datagrams: VecDeque::new(),
            queued: 0,
            handed: Tally::default(),
        }
    }
}

impl SendQueue {
    /// Appends a record to the bucket of `flow`.
    ///
    /// # Errors
    ///
    /// [`QueueFull`]; nothing was queued.
    pub fn push_stream(&mut self, flow: u32, pending: Pending) -> Result<(), QueueFull> {
        if self.stream_bytes + pending.record.len() > STREAM_QUEUE_BYTES_MAX {
            return Err(QueueFull);
        }
        self.stream_bytes += pending.record.len();
        self.queued += u64::from(pending.account.is_some());
        self.buckets[flow as usize % STREAM_BUCKETS].push_back(pending);
        Ok(())
    }

    /// Appends a datagram.
    ///
    /// # Errors
    ///
    /// [`QueueFull`]; nothing was queued.
    pub fn push_datagram(&mut self, pending: Pending) -> Result<(), QueueFull> {
        if self.datagram_slots() == 0 {
            return Err(QueueFull);
        }
        self.queued += u64::from(pending.account.is_some());
        self.datagrams.push_back(pending);
        Ok(())
    }

    /// Datagrams that can still be queued.
    #[must_use]
    pub fn datagram_slots(&self) -> usize {
        DATAGRAM_QUEUE_PACKETS_MAX.saturating_sub(self.datagrams.len())
    }

    /// Offers the records of `bucket` in order: `take` is given what is left of one and returns how
    /// many bytes of it the engine took. Fewer than all ends the round.
    pub fn drain_bucket(&mut self, bucket: usize, mut take: impl FnMut(&mut Bytes) -> usize) {
        let Some(queue) = self.buckets.get_mut(bucket) else {
            return;
        };
        while let Some(front) = queue.front_mut() {
            let before = front.record.len();
            let taken = take(&mut front.record);
            self.stream_bytes -= taken;
            if taken < before {
                return;
            }
            if let Some(bytes) = front.account {
                self.queued -= 1;
                self.handed.packets += 1;
                self.handed.bytes += u64::from(bytes);
            }
            queue.pop_front();
        }
    }

    /// Whether `bucket` has anything to send.
    #[must_use]
    pub fn has_stream(&self, bucket: usize) -> bool {
        self.buckets
            .get(bucket)
            .is_some_and(|queue| !queue.is_empty())
    }

    /// Offers the datagrams in order until `take` hands one back.
    pub fn drain_datagrams(&mut self, mut take: impl FnMut(Bytes) -> Taken) {
        while let Some(pending) = self.datagrams.pop_front() {
            match take(pending.record) {
                Taken::Yes => {
                    if let Some(bytes) = pending.account {
                        self.queued -= 1;
                        self.handed.packets += 1;
                        self.handed.bytes += u64::from(bytes);
                    }
                }
                Taken::Later(record) => {
                    self.datagrams.push_front(Pending { record, ..pending });
                    return;
                }
                Taken::OnStream(record) => {
                    // The bound of the streams is not applied: the packet was accepted once.
                    self.stream_bytes += record.len();
                    self.buckets[0].push_back(Pending { record, ..pending });
                }
            }
        }
    }

    /// Counted packets that wait.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Counted packets that the engine took since the last call.
    pub fn take_handed(&mut self) -> Tally {
        std::mem::take(&mut self.handed)
    }
}

/// What the engine did with a datagram.
#[derive(Debug)]
pub enum Taken {
    /// It is in the engine.
    Yes,
    /// No room at present.
    Later(Bytes),
    /// It fits no datagram any more; this stream record carries it.
    OnStream(Bytes),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Buf;

    use super::*;

    fn pending(record: Vec<u8>) -> Pending {
        Pending {
            account: Some(u32::try_from(record.len()).unwrap()),
            record: Bytes::from(record),
        }
    }

    /// Order within a bucket holds while the engine takes records piece by piece, and every packet
    /// is counted once, when its last byte is taken.
    #[test]
    fn keeps_order_through_partial_takes() {
        let mut queue = SendQueue::default();
        for n in 0..5u8 {
            queue.push_stream(3, pending(vec![n; 10])).unwrap();
        }
        let mut taken = Vec::new();
        while queue.has_stream(3) {
            let mut budget = 7;
            queue.drain_bucket(3, |rest| {
                let n = rest.len().min(budget);
                budget -= n;
                taken.extend_from_slice(&rest[..n]);
                rest.advance(n);
                n
            });
            assert_eq!(queue.handed.packets, taken.len() as u64 / 10);
        }
        let expected: Vec<u8> = (0..5u8).flat_map(|n| [n; 10]).collect();
        assert_eq!(taken, expected);
        assert_eq!((queue.stream_bytes, queue.queued()), (0, 0));
        assert_eq!(
            queue.take_handed(),
            Tally {
                packets: 5,
                bytes: 50
            }
        );
    }

    /// A full queue refuses and stays as it is.
    #[test]
    fn refuses_when_full() {
        let mut queue = SendQueue::default();
        let mut accepted = 0;
        while queue.push_stream(0, pending(vec![0; 65_536])).is_ok() {
            accepted += 1;
        }
        assert_eq!(accepted, STREAM_QUEUE_BYTES_MAX / 65_536);
        for _ in 0..DATAGRAM_QUEUE_PACKETS_MAX {
            queue.push_datagram(pending(vec![1])).unwrap();
        }
        assert_eq!(queue.push_datagram(pending(vec![1])), Err(QueueFull));
        assert_eq!(
            queue.queued(),
            (accepted + DATAGRAM_QUEUE_PACKETS_MAX) as u64
        );
    }

    /// A datagram that no longer fits moves to a stream and stays counted as waiting.
    #[test]
    fn oversized_datagrams_move_to_a_stream() {
        let mut queue = SendQueue::default();
        queue.push_datagram(pending(vec![1, 2, 3])).unwrap();
        queue.drain_datagrams(|_| Taken::OnStream(Bytes::from_static(b"record")));
        assert_eq!(queue.queued(), 1);
        queue.drain_bucket(0, |rest| rest.len());
        assert_eq!(
            queue.take_handed(),
            Tally {
                packets: 1,
                bytes: 3
            }
        );
    }
}
