//! What waits in front of a connection: short, fair, managed, counted.
//!
//! Comes in: records with their port, flow and class. Goes out: records in the order in which they
//! are to be sent, as fast as the engine asks for them ([`ahead`] says how fast that is). What
//! becomes of each is counted once. Never done here: asking the time, waiting, encrypting.
//!
//! The order, from the outside in:
//!
//! 1. Small packets of flows that had nothing to send go first, within what their port may send
//!    ahead of its turn.
//! 2. Ports take turns of one super-packet's bytes each (deficit round robin). A pod that floods
//!    delays others by one turn, whatever it sends.
//! 3. Within a port flows take turns likewise, new ones first ([`port`], RFC 8290).
//! 4. A flow that stays long is told, by a mark or a loss ([`codel`], RFC 8289; [`mark`](mod@mark)).
//!
//! A record that has begun on a stream is finished before another begins on the same stream. Where the
//! engine takes nothing for one lane, records of the other one go on.
//!
//! Packets of a flow leave in the order in which they came, also if some fit a datagram and some do
//! not ([`lanes`]).

mod ahead;
mod codel;
mod entries;
mod lanes;
mod mark;
mod port;
mod room;
mod turns;

use std::time::Instant;

use bytes::{Buf, Bytes};
use fabric_core::{counters::Tally, snapshot::POD_MTU};

pub use self::{
    ahead::{Ahead, Portion},
    room::QUEUE_BYTES_MAX,
};
use self::{
    entries::{ENTRY_BYTES, Entries, Entry},
    lanes::{Lanes, SlotId},
    mark::mark,
    port::PortQueue,
    turns::Turns,
};
use super::link::Label;

/// Memory that waiting stream records of one connection may keep in use (bytes).
///
/// 8 MiB are 124 buffers, as many as the pool of the worker remembers, and 8 ms at 8 Gbit/s: what
/// several streams send while the receiver waits for a processor finds room. With half of it four
/// streams had thirty times as many packets sent again. How long a queue stays is not for this to
/// say but for [`codel`]. When it is full, the port that holds the most loses its oldest record
/// (PEER_QUEUE_FULL).
pub const STREAM_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Records that may wait to leave as datagrams. When full, as above.
pub const DATAGRAM_QUEUE_PACKETS_MAX: usize = 4096;
/// Streams per connection over which flows are spread.
pub const STREAM_BUCKETS: usize = 16;

/// Lanes into the engine.
const LANES: usize = 2;

/// How a record leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// In a QUIC datagram.
    Datagram,
    /// On a QUIC stream.
    Stream,
}

/// What a packet wants of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// TCP: throughput.
    Bulk,
    /// Everything else: a short wait.
    Latency,
}

/// A record to be queued.
#[derive(Debug)]
pub struct Pending {
    /// The record, header and packet.
    pub record: Bytes,
    /// Memory that it keeps in use (bytes): a slice keeps its whole buffer.
    pub pinned: usize,
    /// Length of the packet that this record completes, if it completes one that is counted.
    pub account: Option<u32>,
}

/// Where records go. It keeps the order of datagrams, and the order of what a stream was given.
pub trait Engine {
    /// Largest record that a datagram takes at present (bytes).
    fn datagram_room(&mut self) -> usize;

    /// Takes a record as a datagram; false if there is no room at present.
    fn take_datagram(&mut self, record: &Bytes) -> bool;

    /// Bytes of datagrams that it took and has not sent, at least.
    fn datagrams_unsent(&mut self) -> usize {
        0
    }

    /// Takes the beginning of `piece`, the next bytes of stream `bucket`, off it.
    fn take_stream(&mut self, bucket: usize, piece: &mut Bytes) -> Written;

    /// The same packet as a stream record, for one that fits no datagram any more.
    fn as_stream_record(&mut self, record: &Bytes) -> Bytes;
}

/// What a stream did with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It took so many.
    Bytes(usize),
    /// It has ended; another takes its place.
    Ended,
}

/// What became of counted packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAccounts {
    /// Taken by the engine.
    pub handed: Tally,
    /// Dropped because the queue was full.
    pub full: u64,
    /// Dropped as a signal of congestion.
    pub managed: u64,
    /// Lost with the stream that had their beginning: PEER_DISCONNECTED, as all that waits when a
    /// connection ends.
    pub cut: u64,
    /// Marked as a signal of congestion; they are counted above as well, each where it ended.
    pub marked: u64,
}

impl QueueAccounts {
    /// Adds what became of others.
    pub fn add(&mut self, other: Self) {
        self.handed.packets += other.handed.packets;
        self.handed.bytes += other.handed.bytes;
        self.full += other.full;
        self.managed += other.managed;
        self.cut += other.cut;
        self.marked += other.marked;
    }
}

/// Records that the engine has not taken yet.
#[derive(Debug, Default)]
pub struct SendQueue {
    entries: Entries,
    turns: Turns,
    /// The flow that each stream is in the midst of a record of: its port's place and its own.
    begun: [Option<(usize, usize)>; STREAM_BUCKETS],
    lanes: Lanes,
    load: [usize; LANES],
    queued: u64,
    accounts: QueueAccounts,
    /// What is left to this connection of the memory of all; `None` if there are no others.
    room: Option<usize>,
}

impl SendQueue {
    /// Whether a stream has the beginning of a record, whose rest waits here.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        self.begun.iter().any(Option::is_some)
    }

    /// Appends a record to its flow. If there is too much of its lane then, the port that has the
    /// most of that loses some.
    pub fn push(&mut self, lane: Lane, label: Label, pending: Pending, now: Instant) {
        let slot = SlotId::of(label);
        if lane == Lane::Stream {
            self.lanes.queued(slot);
        }
        let entry = Entry {
            pinned: (pending.pinned + ENTRY_BYTES) as u32,
            record: pending.record,
            at: now,
            account: pending.account,
            lane,
            slot,
            begun: false,
        };
        let before = self.bytes();
        let place = self.turns.place(label.port);
        let flow = PortQueue::flow_of(label.class, label.flow);
        self.load[lane as usize] += entry.load();
        self.queued += u64::from(entry.account.is_some());
        self.turns.push(&mut self.entries, place, flow, entry);
        while self.load[lane as usize] > bound(lane) && self.lose(lane, (place, flow)) {}
        self.keep_to_room((place, flow), before);
    }

    /// Loses a record of `lane`, or of a flow that has just got one; false if there is none to lose.
    fn lose(&mut self, lane: Lane, fallback: (usize, usize)) -> bool {
        let total = self.load[lane as usize];
        let Some(lost) = self.turns.evict(&mut self.entries, lane, total, fallback) else {
            return false;
        };
        self.load[lost.lane as usize] -= lost.load();
        let counted = u64::from(lost.account.is_some());
        self.queued -= counted;
        self.accounts.full += counted;
        true
    }

    /// Hands records to the engine in their order until it has taken `bytes`, or takes no more;
    /// returns how many it took. A stream is given at most `piece` bytes at a time.
    pub fn serve(
        &mut self,
        now: Instant,
        bytes: usize,
        piece: usize,
        engine: &mut impl Engine,
    ) -> usize {
        let mut handed = 0;
        let mut shut = [false; LANES];
        while handed < bytes {
            let Some((place, flow)) = self.turns.next(&self.entries) else {
                break;
            };
            let step = match self.turns.front(&mut self.entries, place, flow) {
                Some(front) if !shut[front.lane as usize] => {
                    self.serve_flow(now, (place, flow), piece, engine)
                }
                _ => Step::Later,
            };
            match step {
                Step::Taken(taken) => handed += taken,
                Step::Again => {}
                Step::Later => self.turns.set_aside(place, flow),
                Step::Refused(lane) => {
                    shut[lane as usize] = true;
                    if self
                        .load
                        .iter()
                        .zip(shut)
                        .all(|(load, shut)| shut || *load == 0)
                    {
                        break;
                    }
                    self.turns.set_aside(place, flow);
                }
            }
        }
        self.turns.bring_back(&self.entries);
        handed
    }

    fn serve_flow(
        &mut self,
        now: Instant,
        (place, flow): (usize, usize),
        piece: usize,
        engine: &mut impl Engine,
    ) -> Step {
        let Some(front) = self.turns.front(&mut self.entries, place, flow) else {
            return Step::Later;
        };
        if front.lane == Lane::Stream
            && let Some(owner) = self.begun[bucket(flow)]
        {
            return self.hand_piece(owner, piece, engine);
        }
        if !front.begun && self.is_dropped(place, flow, now) {
            return Step::Again;
        }
        let Some(front) = self.turns.front(&mut self.entries, place, flow) else {
            return Step::Later;
        };
        front.begun = true;
        match front.lane {
            Lane::Stream => {
                if !self
                    .lanes
                    .may_begin(front.slot, || engine.datagrams_unsent())
                {
                    return Step::Later;
                }
                self.hand_piece((place, flow), piece, engine)
            }
            Lane::Datagram
                if front.record.len() > engine.datagram_room()
                    || self.lanes.is_on_stream(front.slot) =>
            {
                self.move_to_stream(place, flow, engine);
                Step::Again
            }
            Lane::Datagram => {
                if !engine.take_datagram(&front.record) {
                    return Step::Refused(Lane::Datagram);
                }
                let len = front.record.len();
                self.lanes.took_datagram(len);
                self.turns.port(place).charge(flow, len);
                self.finish(place, flow, true);
                Step::Taken(len)
            }
        }
    }

    /// Asks CoDel about the first record of a flow. It is dropped if its sender is to be told of
    /// congestion and understands nothing else.
    fn is_dropped(&mut self, place: usize, flow: usize, now: Instant) -> bool {
        let port = self.turns.port(place);
        let Some(front) = port.front(&mut self.entries, flow) else {
            return false;
        };
        let (codel, waiting) = port.codel(flow);
        let len = front.record.len();
        let backlogged = waiting.saturating_sub(len) > len.max(POD_MTU as usize);
        let waited = now.saturating_duration_since(front.at);
        if !codel.judge(waited, backlogged, now) {
            return false;
        }
        if mark(&mut front.record, front.lane) {
            self.accounts.marked += 1;
            return false;
        }
        if let Some(entry) = port.pop(&mut self.entries, flow) {
            self.load[entry.lane as usize] -= entry.load();
            let counted = u64::from(entry.account.is_some());
            self.queued -= counted;
            self.accounts.managed += counted;
        }
        true
    }

    /// Gives a stream more of the record that the flow is in the midst of, or begins one.
    fn hand_piece(
        &mut self,
        (place, flow): (usize, usize),
        most: usize,
        engine: &mut impl Engine,
    ) -> Step {
        let Some(front) = self.turns.front(&mut self.entries, place, flow) else {
            self.begun[bucket(flow)] = None;
            return Step::Again;
        };
        let offered = front.record.len().min(most);
        let written = if offered < front.record.len() {
            let mut piece = front.record.slice(..offered);
            engine.take_stream(bucket(flow), &mut piece)
        } else {
            engine.take_stream(bucket(flow), &mut front.record.clone())
        };
        let Written::Bytes(taken) = written else {
            // What the stream has of the record is lost with it; the rest is of no use.
            if self.begun[bucket(flow)].take().is_some() {
                self.finish(place, flow, false);
            }
            return Step::Refused(Lane::Stream);
        };
        front.record.advance(taken);
        if taken > 0 {
            self.lanes.streamed(front.slot);
        }
        let whole = front.record.is_empty();
        let port = self.turns.port(place);
        port.shorten(flow, taken);
        port.charge(flow, taken);
        if whole {
            self.begun[bucket(flow)] = None;
            self.finish(place, flow, true);
        } else if taken > 0 {
            self.begun[bucket(flow)] = Some((place, flow));
        }
        // Less than was offered is an engine that takes no more: it says so when it is asked again.
        if taken == 0 {
            Step::Refused(Lane::Stream)
        } else {
            Step::Taken(taken)
        }
    }

    /// The path takes smaller packets than when this one was queued, or its flow is on a stream.
    fn move_to_stream(&mut self, place: usize, flow: usize, engine: &mut impl Engine) {
        let (mut before, mut after) = (0, 0);
        let port = self.turns.port(place);
        port.change_lane(&mut self.entries, flow, |entry| {
            before = entry.load();
            entry.record = engine.as_stream_record(&entry.record);
            entry.pinned = (entry.record.len() + ENTRY_BYTES) as u32;
            entry.lane = Lane::Stream;
            after = entry.load();
        });
        // The bound of the streams is not applied: the packet was accepted once.
        self.load[Lane::Datagram as usize] -= before;
        self.load[Lane::Stream as usize] += after;
    }

    /// The first record of a flow is gone: to the engine, or with the stream it was on.
    fn finish(&mut self, place: usize, flow: usize, handed: bool) {
        let Some(entry) = self.turns.port(place).pop(&mut self.entries, flow) else {
            return;
        };
        self.load[entry.lane as usize] -= entry.load();
        let Some(bytes) = entry.account else { return };
        self.queued -= 1;
        if handed {
            self.accounts.handed.packets += 1;
            self.accounts.handed.bytes += u64::from(bytes);
        } else {
            self.accounts.cut += 1;
        }
    }

    /// Whether the next packet of a flow that is not TCP has to be queued for a stream, whatever its
    /// length: others of it are on their way there.
    #[must_use]
    pub fn wants_stream(&self, flow: u32) -> bool {
        self.lanes.wants_stream(flow)
    }

    /// Ends an epoch of the streams, if the end of one is of interest: see [`Self::settle`].
    pub fn end_epoch(&mut self) -> Option<u64> {
        self.lanes.end_epoch()
    }

    /// The peer has all that the engine had taken when this epoch ended: flows that sent nothing large
    /// since then may use datagrams again.
    pub fn settle(&mut self, epoch: u64) {
        self.lanes.settle(epoch);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.load == [0; LANES]
    }

    /// Memory that waiting stream records keep in use (bytes).
    #[must_use]
    pub fn pinned(&self) -> usize {
        self.load[Lane::Stream as usize]
    }

    /// Counted packets that wait.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// What became of counted packets since the last call.
    pub fn take_accounts(&mut self) -> QueueAccounts {
        std::mem::take(&mut self.accounts)
    }
}

/// What came of one look at a flow.
enum Step {
    /// The engine took so many bytes of it.
    Taken(usize),
    /// Something else was done first: look again.
    Again,
    /// It cannot go on before the engine has sent something.
    Later,
    /// The engine takes no more for this lane.
    Refused(Lane),
}

/// The most of a lane that may wait, in its unit.
fn bound(lane: Lane) -> usize {
    match lane {
        Lane::Datagram => DATAGRAM_QUEUE_PACKETS_MAX,
        Lane::Stream => STREAM_QUEUE_BYTES_MAX,
    }
}

/// The stream of a flow. Flows of all ports share the streams.
fn bucket(flow: usize) -> usize {
    flow % STREAM_BUCKETS
}

#[cfg(test)]
mod tests;
