//! What waits of one port: a queue for each flow, served in turns (RFC 8290).
//!
//! Comes in: records with the number of their flow. Goes out: the flow whose turn it is. Never done
//! here: comparing ports with each other.

use std::collections::VecDeque;

use fabric_core::ids::PortId;

use super::{
    Class, LANES, Lane,
    codel::Codel,
    entries::{Chain, Entries, Entry},
};
use crate::tunnel::buffers::BUFFER_BYTES;

/// Queues for TCP flows per port. More flows share them, as in FQ-CoDel.
const BULK_FLOWS: usize = 64;
/// Queues for all other flows per port: a ping never shares one with a TCP.
const LATENCY_FLOWS: usize = 32;
const FLOWS: usize = BULK_FLOWS + LATENCY_FLOWS;
const _: () = assert!(FLOWS <= 1 << u8::BITS);

/// Bytes that a flow, and that a port, may send before the next one has its turn: one super-packet.
pub(super) const QUANTUM_BYTES: i64 = BUFFER_BYTES as i64;
/// Bytes that the flows of a port that wait for the first time may send ahead of other ports, once
/// each time that the port has its turn. They are taken off what it may send in its turn. A hundred
/// pings and handshakes, or five full packets; beside a super-packet they delay others little.
pub(super) const EXPRESS_BYTES: i64 = 8 * 1024;
/// Bytes that a flow may send ahead of those that have waited before it is one of them.
const FRESH_BYTES: i64 = EXPRESS_BYTES / 2;

/// The records of one port.
#[derive(Debug)]
pub(super) struct PortQueue {
    pub(super) id: PortId,
    flows: Box<[Flow]>,
    /// Flows that had nothing to send and began with a small packet; served first of all.
    express: VecDeque<u8>,
    /// Flows that had nothing to send; served before those that had.
    fresh: VecDeque<u8>,
    /// All others, in turns.
    old: VecDeque<u8>,
    /// Flows taken out of their lines for the rest of a round.
    aside: Vec<u8>,
    /// Records that wait.
    entries: usize,
    load: [usize; LANES],
    /// The flow that was last seen with the most of each lane.
    heaviest: [u8; LANES],
    /// What it may send in its turn.
    pub(super) deficit: i64,
    /// What it may send ahead of its turn.
    pub(super) credit: i64,
    /// Whether it stands in the line of ports, and in that of ports with something small.
    pub(super) in_ring: bool,
    pub(super) in_express: bool,
    /// Whether it stands among those that may be given to another port.
    pub(super) in_idle: bool,
}

#[derive(Clone, Debug, Default)]
struct Flow {
    chain: Chain,
    codel: Codel,
    bytes: usize,
    load: [usize; LANES],
    deficit: i64,
    list: List,
}

/// The line in which a flow stands; it may stand there with nothing left to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum List {
    #[default]
    None,
    Express,
    Fresh,
    Old,
}

impl PortQueue {
    pub(super) fn new(id: PortId) -> Self {
        Self {
            id,
            flows: vec![Flow::default(); FLOWS].into_boxed_slice(),
            express: VecDeque::with_capacity(FLOWS),
            fresh: VecDeque::with_capacity(FLOWS),
            old: VecDeque::with_capacity(FLOWS),
            aside: Vec::with_capacity(FLOWS),
            entries: 0,
            load: [0; LANES],
            heaviest: [0; LANES],
            deficit: 0,
            credit: 0,
            in_ring: false,
            in_express: false,
            in_idle: false,
        }
    }

    /// Gives the queues of an idle port to another one.
    pub(super) fn reuse(&mut self, id: PortId) {
        debug_assert!(self.is_empty());
        self.id = id;
        self.clear_lists();
        self.flows.fill(Flow::default());
    }

    /// The queue of a flow. It is the same for all its packets, so they keep their order.
    pub(super) fn flow_of(class: Class, hash: u32) -> usize {
        let spread = (hash.wrapping_mul(0x9E37_79B1) >> 16) as usize;
        match class {
            Class::Bulk => spread % BULK_FLOWS,
            Class::Latency => BULK_FLOWS + spread % LATENCY_FLOWS,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How much of a lane waits, in the unit of that lane's bound.
    pub(super) fn load(&self, lane: Lane) -> usize {
        self.load[lane as usize]
    }

    /// Appends a record to a flow.
    pub(super) fn push(&mut self, entries: &mut Entries, at: usize, entry: Entry) {
        let small = entry.record.len() as i64 <= EXPRESS_BYTES;
        let flow = &mut self.flows[at];
        self.entries += 1;
        self.load[entry.lane as usize] += entry.load();
        flow.load[entry.lane as usize] += entry.load();
        flow.bytes += entry.record.len();
        let lane = entry.lane as usize;
        entries.push_back(&mut flow.chain, entry);
        if flow.list == List::None {
            flow.deficit = FRESH_BYTES;
            if small {
                flow.list = List::Express;
                self.express.push_back(at as u8);
            } else {
                flow.list = List::Fresh;
                self.fresh.push_back(at as u8);
            }
        }
        if flow.load[lane] > self.flows[usize::from(self.heaviest[lane])].load[lane] {
            self.heaviest[lane] = at as u8;
        }
    }

    /// The flow that may go ahead of other ports, if there is one.
    pub(super) fn express_flow(&mut self, entries: &Entries) -> Option<usize> {
        while let Some(&at) = self.express.front() {
            let flow = &self.flows[usize::from(at)];
            let len = entries
                .front(flow.chain)
                .map(|entry| entry.record.len() as i64);
            match len {
                Some(len) if flow.deficit > 0 && len <= EXPRESS_BYTES => {
                    return (len <= self.credit).then_some(usize::from(at));
                }
                Some(_) => {
                    self.express.pop_front();
                    self.demote(at);
                }
                None => {
                    self.express.pop_front();
                    self.flows[usize::from(at)].list = List::None;
                }
            }
        }
        None
    }

    /// The flow whose turn it is. A port that is not empty has one, unless all that send are aside.
    pub(super) fn next_flow(&mut self) -> Option<usize> {
        while let Some(&at) = self.express.front() {
            let flow = &mut self.flows[usize::from(at)];
            if flow.chain.is_empty() {
                // What it sends next is as small: how often that may go first is for the credit.
                flow.list = List::None;
                self.express.pop_front();
            } else if flow.deficit > 0 && self.credit > 0 {
                return Some(usize::from(at));
            } else {
                self.express.pop_front();
                self.demote(at);
            }
        }
        while let Some(&at) = self.fresh.front() {
            let flow = &self.flows[usize::from(at)];
            if !flow.chain.is_empty() && flow.deficit > 0 {
                return Some(usize::from(at));
            }
            self.fresh.pop_front();
            self.demote(at);
        }
        while let Some(at) = self.old.pop_front() {
            let flow = &mut self.flows[usize::from(at)];
            if flow.chain.is_empty() {
                flow.list = List::None;
            } else if flow.deficit <= 0 {
                flow.deficit += QUANTUM_BYTES;
                self.old.push_back(at);
            } else {
                self.old.push_front(at);
                return Some(usize::from(at));
            }
        }
        None
    }

    /// A flow that has had its start waits in turns from here on, also if nothing of it waits: one
    /// that sends large packets one by one would otherwise always be the first.
    fn demote(&mut self, at: u8) {
        let flow = &mut self.flows[usize::from(at)];
        if flow.deficit <= 0 {
            flow.deficit += QUANTUM_BYTES;
        }
        flow.list = List::Old;
        self.old.push_back(at);
    }

    /// Passes over the flow whose turn it is, until [`Self::bring_back`]. True if it is the first.
    pub(super) fn set_aside(&mut self, at: usize) -> bool {
        let line = self.line(at);
        debug_assert_eq!(line.front(), Some(&(at as u8)), "it is its turn");
        line.pop_front();
        self.aside.push(at as u8);
        self.aside.len() == 1
    }

    /// Gives the flows that were passed over their places back, in front of their lines.
    pub(super) fn bring_back(&mut self) {
        while let Some(at) = self.aside.pop() {
            self.line(usize::from(at)).push_front(at);
        }
    }

    fn line(&mut self, at: usize) -> &mut VecDeque<u8> {
        match self.flows[at].list {
            List::Express => &mut self.express,
            List::Fresh => &mut self.fresh,
            List::Old | List::None => &mut self.old,
        }
    }

    /// Forgets who waits in which line, once nobody has anything to send.
    pub(super) fn clear_lists(&mut self) {
        for line in [&mut self.express, &mut self.fresh, &mut self.old] {
            for at in line.drain(..) {
                self.flows[usize::from(at)].list = List::None;
            }
        }
    }

    pub(super) fn front<'a>(&self, entries: &'a mut Entries, at: usize) -> Option<&'a mut Entry> {
        entries.front_mut(self.flows[at].chain)
    }

    /// What CoDel remembers of a flow, and the bytes of it that wait.
    pub(super) fn codel(&mut self, at: usize) -> (&mut Codel, usize) {
        let flow = &mut self.flows[at];
        (&mut flow.codel, flow.bytes)
    }

    /// Takes out the first record of a flow.
    pub(super) fn pop(&mut self, entries: &mut Entries, at: usize) -> Option<Entry> {
        let entry = entries.pop_front(&mut self.flows[at].chain)?;
        self.removed(at, &entry);
        Some(entry)
    }

    /// Takes out a record of the flow that has the most of `lane`, for there is too much of that.
    ///
    /// The oldest: its sender hears of the loss soonest, and what is newest is worth most.
    pub(super) fn evict(&mut self, entries: &mut Entries, lane: Lane) -> Option<Entry> {
        let at = self.heaviest(lane);
        self.evict_from(entries, at)
    }

    /// Takes out the oldest record of a flow that is not on its way.
    pub(super) fn evict_from(&mut self, entries: &mut Entries, at: usize) -> Option<Entry> {
        let entry = entries.pop_waiting(&mut self.flows[at].chain)?;
        self.removed(at, &entry);
        Some(entry)
    }

    fn heaviest(&mut self, lane: Lane) -> usize {
        let lane = lane as usize;
        let listed = self.express.len() + self.fresh.len() + self.old.len();
        let known = usize::from(self.heaviest[lane]);
        // The heaviest of so many has at least the mean. Where the known one has less, others are
        // looked at; where it has not, it is above its share.
        if self.flows[known].load[lane] * listed >= self.load[lane] {
            return known;
        }
        let loads = self.flows.iter().map(|flow| flow.load[lane]).enumerate();
        let at = loads.max_by_key(|&(_, load)| load).map_or(0, |(at, _)| at);
        self.heaviest[lane] = at as u8;
        at
    }

    fn removed(&mut self, at: usize, entry: &Entry) {
        let flow = &mut self.flows[at];
        self.entries -= 1;
        self.load[entry.lane as usize] -= entry.load();
        flow.load[entry.lane as usize] -= entry.load();
        flow.bytes -= entry.record.len();
    }

    /// A flow has sent `bytes`.
    pub(super) fn charge(&mut self, at: usize, bytes: usize) {
        let flow = &mut self.flows[at];
        flow.deficit -= bytes as i64;
        self.deficit -= bytes as i64;
        if flow.list == List::Express {
            self.credit -= bytes as i64;
        }
    }

    /// Of a flow's first record `bytes` fewer wait.
    pub(super) fn shorten(&mut self, at: usize, bytes: usize) {
        self.flows[at].bytes -= bytes;
    }

    /// A flow's first record takes another way.
    pub(super) fn change_lane(
        &mut self,
        entries: &mut Entries,
        at: usize,
        change: impl FnOnce(&mut Entry),
    ) {
        let flow = &mut self.flows[at];
        let Some(entry) = entries.front_mut(flow.chain) else {
            return;
        };
        for load in [&mut self.load, &mut flow.load] {
            load[entry.lane as usize] -= entry.load();
        }
        flow.bytes -= entry.record.len();
        change(entry);
        flow.bytes += entry.record.len();
        for load in [&mut self.load, &mut flow.load] {
            load[entry.lane as usize] += entry.load();
        }
    }
}

impl Entry {
    /// What it counts for in the bound of its lane.
    pub(super) fn load(&self) -> usize {
        match self.lane {
            Lane::Datagram => 1,
            Lane::Stream => self.pinned as usize,
        }
    }
}
