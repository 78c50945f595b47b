//! The memory of the queue: records in chains, all in one area that is used again.
//!
//! A deque per flow would keep the room that each flow once needed; this keeps what all of them
//! needed at one time.

use std::time::Instant;

use bytes::Bytes;

use super::{Lane, lanes::SlotId};

/// Bytes that a waiting record costs beside its own.
pub(super) const ENTRY_BYTES: usize = size_of::<Node>();

const NONE: u32 = u32::MAX;

/// A record that waits, or what is left of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Bytes,
    /// When it came.
    pub(super) at: Instant,
    /// Length of the packet that it completes, if it completes one that is counted.
    pub(super) account: Option<u32>,
    /// Memory that it keeps in use (bytes).
    pub(super) pinned: u32,
    pub(super) lane: Lane,
    /// Where the lane of its flow is remembered.
    pub(super) slot: SlotId,
    /// Its turn has come: it goes out, whatever happens behind it.
    pub(super) begun: bool,
}

#[derive(Debug)]
struct Node {
    entry: Entry,
    next: u32,
}

/// First and last record of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
        }
    }
}

impl Chain {
    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }
}

/// All records of one connection.
#[derive(Debug)]
pub(super) struct Entries {
    nodes: Vec<Node>,
    /// First of those that are not in use.
    free: u32,
}

impl Default for Entries {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: NONE,
        }
    }
}

impl Entries {
    pub(super) fn push_back(&mut self, chain: &mut Chain, entry: Entry) {
        let node = Node { entry, next: NONE };
        let at = self.free;
        let at = match self.nodes.get_mut(at as usize) {
            Some(place) => {
                self.free = place.next;
                *place = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        match self.nodes.get_mut(chain.last as usize) {
            Some(last) => last.next = at,
            None => chain.first = at,
        }
        chain.last = at;
    }

    pub(super) fn front(&self, chain: Chain) -> Option<&Entry> {
        self.nodes.get(chain.first as usize).map(|node| &node.entry)
    }

    pub(super) fn front_mut(&mut self, chain: Chain) -> Option<&mut Entry> {
        self.nodes
            .get_mut(chain.first as usize)
            .map(|node| &mut node.entry)
    }

    pub(super) fn pop_front(&mut self, chain: &mut Chain) -> Option<Entry> {
        let at = chain.first;
        let next = self.nodes.get(at as usize)?.next;
        chain.first = next;
        if next == NONE {
            chain.last = NONE;
        }
        self.release(at)
    }

    /// Takes out the oldest record that has not begun: the first one or the second.
    pub(super) fn pop_waiting(&mut self, chain: &mut Chain) -> Option<Entry> {
        let front = self.nodes.get(chain.first as usize)?;
        if !front.entry.begun {
            return self.pop_front(chain);
        }
        let at = front.next;
        let after = self.nodes.get(at as usize)?.next;
        self.nodes.get_mut(chain.first as usize)?.next = after;
        if after == NONE {
            chain.last = chain.first;
        }
        self.release(at)
    }

    fn release(&mut self, at: u32) -> Option<Entry> {
        let node = self.nodes.get_mut(at as usize)?;
        node.next = self.free;
        self.free = at;
        let record = std::mem::take(&mut node.entry.record);
        Some(Entry {
            record,
            ..node.entry
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use fabric_core::ids::PortId;

    use super::*;
    use crate::tunnel::{link::Label, queue::Class};

    fn entry(number: u32, at: Instant) -> Entry {
        Entry {
            record: Bytes::new(),
            at,
            account: Some(number),
            pinned: 0,
            lane: Lane::Stream,
            slot: SlotId::of(Label {
                port: PortId(0),
                flow: 0,
                class: Class::Bulk,
            }),
            begun: false,
        }
    }

    proptest! {
        /// Chains in one area behave as queues of their own, and freed places are used again.
        #[test]
        fn chains_are_queues(steps in prop::collection::vec((0..4usize, 0..4u8), 0..400)) {
            let now = Instant::now();
            let mut entries = Entries::default();
            let mut chains = [Chain::default(); 4];
            let mut model: [VecDeque<(u32, bool)>; 4] = Default::default();
            let mut most = 0;
            for (number, (which, what)) in (0..).zip(steps) {
                let (chain, queue) = (&mut chains[which], &mut model[which]);
                match what {
                    0 | 1 => {
                        entries.push_back(chain, entry(number, now));
                        queue.push_back((number, false));
                    }
                    2 => {
                        let popped = entries.pop_front(chain).and_then(|entry| entry.account);
                        prop_assert_eq!(popped, queue.pop_front().map(|(number, _)| number));
                    }
                    _ => {
                        if number % 2 == 0 && let Some(front) = entries.front_mut(*chain) {
                            front.begun = true;
                            queue[0].1 = true;
                        }
                        let at = queue.iter().position(|(_, begun)| !begun);
                        let expected = at.and_then(|at| queue.remove(at)).map(|(number, _)| number);
                        let popped = entries.pop_waiting(chain).and_then(|entry| entry.account);
                        prop_assert_eq!(popped, expected);
                    }
                }
                prop_assert_eq!(chain.is_empty(), queue.is_empty());
                most = most.max(model.iter().map(VecDeque::len).sum());
            }
            prop_assert_eq!(entries.nodes.len(), most);
        }
    }
}
