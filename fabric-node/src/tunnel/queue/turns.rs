//! Whose turn it is: ports in deficit round robin, small beginnings ahead of it.
//!
//! Comes in: records with their port and flow. Goes out: the port and flow to serve next, or the
//! record to lose when there is too much. Never done here: handing anything to the engine.

use std::collections::{HashMap, VecDeque};

use fabric_core::ids::PortId;

use super::{
    LANES, Lane,
    entries::{Entries, Entry},
    port::{EXPRESS_BYTES, PortQueue, QUANTUM_BYTES},
};

/// Ports whose queues are kept while they are empty, so that CoDel remembers their flows. Beyond it
/// the queues of the port that has been idle for the longest time are given to a new one.
const IDLE_PORTS_MAX: usize = 16;

/// All ports that send to one peer.
#[derive(Debug, Default)]
pub(super) struct Turns {
    ports: Vec<PortQueue>,
    places: HashMap<PortId, usize>,
    /// Place of the port that was asked for last: packets come in bursts of one port.
    recent: Option<(PortId, usize)>,
    /// Ports that have something to send, in turns.
    ring: VecDeque<usize>,
    /// Ports that have something small to send.
    express: VecDeque<usize>,
    /// Ports with flows that were passed over, for the rest of a round.
    aside: Vec<usize>,
    /// Ports of the ring that have no others; they are out of it for as long.
    out: Vec<usize>,
    /// Ports that had nothing to send when they were looked at last.
    idle: VecDeque<usize>,
    /// The port that was last seen with the most of each lane.
    heaviest: [usize; LANES],
}

impl Turns {
    /// The place of a port; it gets one if it has none.
    pub(super) fn place(&mut self, id: PortId) -> usize {
        if let Some((recent, place)) = self.recent
            && recent == id
        {
            return place;
        }
        let place = match self.places.get(&id) {
            Some(&place) => place,
            None => self.settle(id),
        };
        self.recent = Some((id, place));
        place
    }

    fn settle(&mut self, id: PortId) -> usize {
        let place = match self.longest_idle() {
            Some(place) => {
                let port = &mut self.ports[place];
                self.places.remove(&port.id);
                port.reuse(id);
                place
            }
            None => {
                self.ports.push(PortQueue::new(id));
                self.ports.len() - 1
            }
        };
        self.places.insert(id, place);
        place
    }

    fn longest_idle(&mut self) -> Option<usize> {
        while self.idle.len() >= IDLE_PORTS_MAX {
            let place = self.idle.pop_front()?;
            let port = &mut self.ports[place];
            port.in_idle = false;
            if !port.in_ring {
                return Some(place);
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn ports_known(&self) -> usize {
        assert_eq!(self.places.len(), self.ports.len());
        self.ports.len()
    }

    /// The queues of a port.
    pub(super) fn port(&mut self, place: usize) -> &mut PortQueue {
        &mut self.ports[place]
    }

    /// The first record of a flow of a port.
    pub(super) fn front<'a>(
        &self,
        entries: &'a mut Entries,
        place: usize,
        flow: usize,
    ) -> Option<&'a mut Entry> {
        self.ports[place].front(entries, flow)
    }

    pub(super) fn push(&mut self, entries: &mut Entries, place: usize, flow: usize, entry: Entry) {
        let lane = entry.lane;
        let port = &mut self.ports[place];
        port.push(entries, flow, entry);
        if !port.in_ring {
            port.in_ring = true;
            port.deficit = QUANTUM_BYTES;
            port.credit = EXPRESS_BYTES;
            self.ring.push_back(place);
        }
        if !port.in_express && port.express_flow(entries).is_some() {
            port.in_express = true;
            self.express.push_back(place);
        }
        let load = port.load(lane);
        if load > self.ports[self.heaviest[lane as usize]].load(lane) {
            self.heaviest[lane as usize] = place;
        }
    }

    /// Port and flow to serve next; `None` if nothing waits but what was set aside.
    pub(super) fn next(&mut self, entries: &Entries) -> Option<(usize, usize)> {
        while let Some(&place) = self.express.front() {
            let port = &mut self.ports[place];
            if let Some(flow) = port.express_flow(entries) {
                return Some((place, flow));
            }
            port.in_express = false;
            self.express.pop_front();
        }
        while let Some(&place) = self.ring.front() {
            let port = &mut self.ports[place];
            if port.is_empty() {
                self.ring.pop_front();
                self.rest(place);
            } else if port.deficit <= 0 {
                port.deficit += QUANTUM_BYTES;
                port.credit = EXPRESS_BYTES;
                self.ring.rotate_left(1);
                if !port.in_express && port.express_flow(entries).is_some() {
                    port.in_express = true;
                    self.express.push_back(place);
                    return self.next(entries);
                }
            } else {
                if let Some(flow) = port.next_flow() {
                    return Some((place, flow));
                }
                self.ring.pop_front();
                self.out.push(place);
            }
        }
        None
    }

    /// Passes over the flow that is to be served next, until [`Self::bring_back`]. It is charged
    /// nothing and loses no place.
    pub(super) fn set_aside(&mut self, place: usize, flow: usize) {
        if self.ports[place].set_aside(flow) {
            self.aside.push(place);
        }
    }

    /// Ends a round: whoever was passed over is the next again.
    pub(super) fn bring_back(&mut self, entries: &Entries) {
        while let Some(place) = self.out.pop() {
            self.ring.push_front(place);
        }
        for place in self.aside.drain(..) {
            let port = &mut self.ports[place];
            port.bring_back();
            if !port.in_express && port.express_flow(entries).is_some() {
                port.in_express = true;
                self.express.push_back(place);
            }
        }
    }

    /// A port has nothing left to send.
    fn rest(&mut self, place: usize) {
        let port = &mut self.ports[place];
        port.in_ring = false;
        port.clear_lists();
        if !port.in_idle {
            port.in_idle = true;
            self.idle.push_back(place);
        }
    }

    /// Takes out a record of the port that has the most of `lane`, of which all together have `total`.
    /// Where all that this port has is on its way, `fallback`, a port and a flow, loses one.
    pub(super) fn evict(
        &mut self,
        entries: &mut Entries,
        lane: Lane,
        total: usize,
        fallback: (usize, usize),
    ) -> Option<Entry> {
        let heaviest = self.heaviest(lane, total);
        self.ports[heaviest]
            .evict(entries, lane)
            .or_else(|| self.ports[fallback.0].evict_from(entries, fallback.1))
    }

    fn heaviest(&mut self, lane: Lane, total: usize) -> usize {
        let known = self.heaviest[lane as usize];
        // As among the flows of a port: one with less than the mean is not the heaviest.
        if self.ports[known].load(lane) * self.ring.len() >= total {
            return known;
        }
        let heaviest = self
            .ring
            .iter()
            .copied()
            .max_by_key(|&place| self.ports[place].load(lane))
            .unwrap_or(known);
        self.heaviest[lane as usize] = heaviest;
        heaviest
    }
}
