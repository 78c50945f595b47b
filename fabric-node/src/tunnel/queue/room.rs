//! The memory of a queue among those of other connections.
//!
//! Comes in: how much the worker leaves to this connection. Goes out: how much it uses; records that are
//! lost because there is no more. Never done here: knowing the other connections.

use fabric_core::{record::DATAGRAM_HEADER_LEN, snapshot::POD_MTU};

use super::{
    DATAGRAM_QUEUE_PACKETS_MAX, Lane, STREAM_QUEUE_BYTES_MAX, SendQueue, entries::ENTRY_BYTES,
};

/// What a record that is to leave as a datagram counts for (bytes): as much as the largest. Shorter
/// ones share areas with others, which they may outlive.
const DATAGRAM_FOOTPRINT_BYTES: usize = POD_MTU as usize + DATAGRAM_HEADER_LEN + ENTRY_BYTES;
/// Memory of one connection's queue when both lanes are full (bytes).
pub const QUEUE_BYTES_MAX: usize =
    STREAM_QUEUE_BYTES_MAX + DATAGRAM_QUEUE_PACKETS_MAX * DATAGRAM_FOOTPRINT_BYTES;

impl SendQueue {
    /// Memory that waiting records of both lanes keep in use (bytes).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pinned() + self.load[Lane::Datagram as usize] * DATAGRAM_FOOTPRINT_BYTES
    }

    /// Leaves `bytes` to this queue, beneath the bounds of its lanes. A queue that has more keeps what it
    /// has and does not grow: what is pushed takes the place of something else.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = Some(bytes);
    }

    /// Most that waiting stream records may keep in use at present (bytes).
    #[must_use]
    pub fn stream_bytes_max(&self) -> usize {
        STREAM_QUEUE_BYTES_MAX.min(self.room.unwrap_or(usize::MAX))
    }

    /// Loses records of the lane that has more, until there is room for the last one pushed, which is of
    /// the flow `latest`; there were `before` bytes without it.
    pub(super) fn keep_to_room(&mut self, latest: (usize, usize), before: usize) {
        let Some(room) = self.room else { return };
        while self.bytes() > room.max(before) {
            let lane = if self.pinned() > self.bytes() / 2 {
                Lane::Stream
            } else {
                Lane::Datagram
            };
            if !self.lose(lane, latest) {
                break;
            }
        }
    }
}
