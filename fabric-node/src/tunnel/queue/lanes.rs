//! Which flows are on the streams: a flow of small packets and large ones keeps its order.
//!
//! Comes in: which flows have records for a stream, how far streams and datagrams have got. Goes out:
//! whether a record that would fit a datagram has to take the stream. Never done here: moving records.
//!
//! A datagram overtakes a stream that has to repeat something, and a stream may fill the end of a
//! packet that the next datagram was too large for. So a flow changes its lane only when nothing of it
//! is under way on the other one:
//!
//! - It goes over to its stream with the first record that fits no datagram, once the engine has sent
//!   all datagrams that it was given before. The engine sends them first, so that is soon.
//! - It goes back when the peer has acknowledged all that was on the streams ([`Lanes::settle`]). A
//!   peer acknowledges in the turn in which it takes the records, after it.
//!
//! Flows are told apart by [`SLOTS`] numbers. Those that share one change their lanes together, which
//! costs some a datagram and none its order.

use super::Class;
use crate::tunnel::link::Label;

/// Flows that are told apart. The memory, 24 bytes for each, is taken with the first large packet.
const SLOTS: usize = 512;
/// The slot of flows that are always on streams.
const NONE: u16 = u16::MAX;

/// Where the flow of a record is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId(u16);

impl SlotId {
    /// The slot of a flow. TCP has none: all of it is on streams.
    pub(super) fn of(label: Label) -> Self {
        match label.class {
            Class::Bulk => Self(NONE),
            Class::Latency => Self::of_flow(label.flow),
        }
    }

    fn of_flow(flow: u32) -> Self {
        // Another multiplier than for the queues: flows that share one of those share no slot by it.
        Self(((flow.wrapping_mul(0x85EB_CA6B) >> 16) as usize % SLOTS) as u16)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The last epoch in which a record for a stream was queued.
    queued: u64,
    /// The last epoch in which the engine was offered one, or took some of it.
    offered: u64,
    /// What [`Lanes::datagrams`] was when the slot went over to the streams, until all those
    /// datagrams have been sent.
    after: Option<u32>,
}

/// The lanes of the flows of one connection.
#[derive(Debug)]
pub(super) struct Lanes {
    slots: Box<[Slot]>,
    epoch: u64,
    /// The last epoch of which nothing is under way.
    settled: u64,
    /// The last epoch in which any slot was on the streams.
    latest: u64,
    /// Bytes of datagrams that the engine has taken; wraps.
    datagrams: u32,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            slots: Box::default(),
            epoch: 1,
            settled: 0,
            latest: 0,
            datagrams: 0,
        }
    }
}

impl Lanes {
    /// Whether the next record of a flow that is not TCP is to be made one for the stream.
    pub(super) fn wants_stream(&self, flow: u32) -> bool {
        self.slot(SlotId::of_flow(flow))
            .is_some_and(|slot| slot.queued.max(slot.offered) > self.settled)
    }

    /// Whether a record for a datagram has to take the stream after all.
    pub(super) fn is_on_stream(&self, id: SlotId) -> bool {
        self.slot(id)
            .is_some_and(|slot| slot.offered > self.settled)
    }

    /// A record for a stream is queued.
    pub(super) fn queued(&mut self, id: SlotId) {
        if id.0 == NONE {
            return;
        }
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); SLOTS].into_boxed_slice();
        }
        let epoch = self.epoch;
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            slot.queued = epoch;
            self.latest = epoch;
        }
    }

    /// Whether a record may begin on its stream, while the engine has up to `unsent` bytes of
    /// datagrams. From the first question on its slot is on the streams.
    pub(super) fn may_begin(&mut self, id: SlotId, unsent: impl FnOnce() -> usize) -> bool {
        self.queued(id);
        let Some(slot) = self.slots.get_mut(usize::from(id.0)) else {
            return true;
        };
        if slot.offered <= self.settled {
            slot.after = Some(self.datagrams);
        }
        slot.offered = self.epoch;
        if let Some(after) = slot.after {
            // They leave in the order in which they were taken: as long as one from before is there,
            // so are all from after it, and together they are more than those.
            if unsent() > self.datagrams.wrapping_sub(after) as usize {
                return false;
            }
            slot.after = None;
        }
        true
    }

    /// A stream has taken some of a record.
    pub(super) fn streamed(&mut self, id: SlotId) {
        let epoch = self.epoch;
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            slot.offered = epoch;
            self.latest = epoch;
        }
    }

    /// The engine has taken a datagram of so many bytes.
    pub(super) fn took_datagram(&mut self, bytes: usize) {
        self.datagrams = self.datagrams.wrapping_add(bytes as u32);
    }

    /// Ends an epoch, if flows are on the streams; all that streams take later is of another one.
    pub(super) fn end_epoch(&mut self) -> Option<u64> {
        if self.latest <= self.settled {
            return None;
        }
        self.epoch += 1;
        Some(self.epoch - 1)
    }

    /// The peer has all that streams took up to the end of this epoch.
    pub(super) fn settle(&mut self, epoch: u64) {
        self.settled = self.settled.max(epoch);
    }

    fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots.get(usize::from(id.0))
    }
}

#[cfg(test)]
mod tests {
    use fabric_core::ids::PortId;

    use super::*;

    fn slot(class: Class, flow: u32) -> SlotId {
        SlotId::of(Label {
            port: PortId(1),
            flow,
            class,
        })
    }

    /// A flow is on the streams from its first large record until all of them have arrived; others
    /// never are, and TCP is nobody's concern.
    #[test]
    fn a_flow_goes_over_and_back() {
        let mut lanes = Lanes::default();
        let (large, other) = (slot(Class::Latency, 1), slot(Class::Latency, 2));
        assert!(lanes.may_begin(slot(Class::Bulk, 1), || 1_000_000));
        assert!(lanes.slots.is_empty() && lanes.end_epoch().is_none());
        lanes.queued(large);
        assert!(lanes.wants_stream(1) && !lanes.is_on_stream(large));
        assert!(lanes.may_begin(large, || 0));
        lanes.streamed(large);
        assert!(lanes.is_on_stream(large));
        let first = lanes.end_epoch().unwrap_or_default();
        // More of it, in the next epoch.
        lanes.streamed(large);
        lanes.settle(first);
        assert!(lanes.wants_stream(1) && lanes.is_on_stream(large));
        let second = lanes.end_epoch().unwrap_or_default();
        assert!(second > first);
        lanes.settle(second);
        assert!(!lanes.wants_stream(1) && !lanes.is_on_stream(large));
        assert!(!lanes.wants_stream(2) && !lanes.is_on_stream(other));
        assert!(lanes.end_epoch().is_none());
    }

    /// The first record on a stream waits for the datagrams that were taken before it, and for no
    /// others; those behind it wait for nothing.
    #[test]
    fn datagrams_taken_before_leave_first() {
        let mut lanes = Lanes::default();
        let id = slot(Class::Latency, 1);
        lanes.took_datagram(1000);
        lanes.took_datagram(100);
        assert!(!lanes.may_begin(id, || 1100));
        assert!(!lanes.may_begin(id, || 100));
        // Others come as fast as those leave.
        lanes.took_datagram(1000);
        assert!(!lanes.may_begin(id, || 1100));
        assert!(lanes.may_begin(id, || 1000));
        assert!(lanes.may_begin(id, || 5000));
    }
}
