//! When each connection wants to be called, and when this thread wakes up for it.
//!
//! Comes in: what each connection says when it was last touched. Goes out: the time of the next call.
//! Never done here: asking the connections, or the time.
//!
//! A node has hundreds of idle connections, each with a keep-alive that is 1.4 s ahead at first. To
//! wake up for each by itself costs more than all that is then done, so what is far off is put off a
//! little, to a time that it shares with others. What is near is on time: it is about losses and
//! acknowledgements.
//!
//! Each turn asks twice for the earliest of all times and changes a few of them, so those of a thousand
//! idle connections must not be looked at: the earliest of each pair of places is kept, and of each
//! pair of pairs, up to the earliest of all.

use std::time::{Duration, Instant};

/// What is at least so far off may be put off.
const FAR_OFF: Duration = Duration::from_millis(200);
/// Times that are far off are multiples of this. A keep-alive and an idle timeout, both of seconds,
/// may be late by that much; so may a probe on a path whose round trip is so long that a probe is
/// [`FAR_OFF`].
const GRID: Duration = Duration::from_millis(50);

/// The times of all connections, by place.
#[derive(Debug)]
pub(super) struct Timers {
    epoch: Instant,
    /// What was asked for; as many places as `earliest` has leaves.
    asked: Vec<Option<Instant>>,
    /// A binary tree: the children of node `n` are `2n` and `2n + 1`, the root is 1, and the second half
    /// are the places. Each node has the earlier of its children; each place what was asked for, put
    /// off.
    earliest: Vec<Option<Instant>>,
}

impl Timers {
    /// Begins empty; `epoch` is any time of the past.
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            asked: vec![None],
            earliest: vec![None; 2],
        }
    }

    /// The connection at place `index` asks at `now` to be called at `asked`, or not at all.
    /// O(log places).
    pub(super) fn set(&mut self, index: usize, asked: Option<Instant>, now: Instant) {
        if self.asked.len() <= index {
            self.grow(index + 1);
        }
        // What was put off stays so when its time comes near: else all would be woken for apart.
        if self.asked[index] == asked {
            return;
        }
        self.asked[index] = asked;
        let mut node = self.asked.len() + index;
        self.earliest[node] = asked.map(|asked| put_off(self.epoch, asked, now));
        while node > 1 {
            node /= 2;
            let earlier = self.earlier_child(node);
            if self.earliest[node] == earlier {
                break;
            }
            self.earliest[node] = earlier;
        }
    }

    /// Makes room for so many places and up to as many again. O(places).
    fn grow(&mut self, places: usize) {
        let before = self.asked.len();
        let places = places.next_power_of_two();
        self.asked.resize(places, None);
        let mut earliest = vec![None; places];
        earliest.extend_from_slice(&self.earliest[before..]);
        earliest.resize(2 * places, None);
        self.earliest = earliest;
        for node in (1..places).rev() {
            self.earliest[node] = self.earlier_child(node);
        }
    }

    fn earlier_child(&self, node: usize) -> Option<Instant> {
        let children = [self.earliest[2 * node], self.earliest[2 * node + 1]];
        children.into_iter().flatten().min()
    }

    /// Whether the connection at place `index` is to be called.
    pub(super) fn is_due(&self, index: usize, now: Instant) -> bool {
        let due = self.earliest.get(self.asked.len() + index).copied();
        due.flatten().is_some_and(|due| due <= now)
    }

    /// When the next of all is to be called. O(1).
    pub(super) fn next(&self) -> Option<Instant> {
        self.earliest[1]
    }
}

fn put_off(epoch: Instant, asked: Instant, now: Instant) -> Instant {
    if asked < now + FAR_OFF {
        return asked;
    }
    let since = asked.saturating_duration_since(epoch);
    let steps = since.as_nanos().div_ceil(GRID.as_nanos());
    epoch + GRID * u32::try_from(steps).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A thousand keep-alives of different times within a second need 21 calls, none early and none
    /// late by more than the grid.
    #[test]
    fn far_times_are_shared() {
        let epoch = Instant::now();
        let mut timers = Timers::new(epoch);
        let mut calls = BTreeSet::new();
        for index in 0..1000 {
            let asked = epoch + ms(1000 + index);
            timers.set(index as usize, Some(asked), epoch + ms(index));
            let due = timers.earliest[timers.asked.len() + index as usize].unwrap();
            assert!(due >= asked && due < asked + GRID);
            calls.insert(due);
        }
        assert_eq!(calls.len(), 21);
        assert_eq!(timers.next(), Some(epoch + ms(1000)));
    }

    /// What is near is called for on time, and what was put off is not brought forward by being asked
    /// for again.
    #[test]
    fn near_times_are_kept() {
        let epoch = Instant::now();
        let mut timers = Timers::new(epoch);
        timers.set(3, Some(epoch + ms(7)), epoch);
        assert!(!timers.is_due(3, epoch + ms(6)) && timers.is_due(3, epoch + ms(7)));
        timers.set(3, Some(epoch + ms(1001)), epoch);
        timers.set(3, Some(epoch + ms(1001)), epoch + ms(1000));
        assert_eq!(timers.next(), Some(epoch + ms(1050)));
        timers.set(3, None, epoch + ms(1010));
        assert_eq!(timers.next(), None);
        assert!(!timers.is_due(3, epoch + ms(2000)) && !timers.is_due(99, epoch));
    }
    proptest! {
        /// However times are set, changed and taken back, the next is the earliest of all, as a look at
        /// each would find it, and exactly the places whose time has come are due.
        #[test]
        fn the_next_is_the_earliest(
            steps in prop::collection::vec((0..40usize, prop::option::of(0..400u64)), 0..200)
        ) {
            let epoch = Instant::now();
            let mut timers = Timers::new(epoch);
            let mut model = BTreeMap::new();
            for (index, asked) in steps {
                // Near, so that nothing is put off.
                let asked = asked.map(|at| epoch + ms(at / 2));
                timers.set(index, asked, epoch);
                model.insert(index, asked);
                prop_assert_eq!(timers.next(), model.values().copied().flatten().min());
            }
            let now = epoch + ms(100);
            for index in 0..50 {
                let due = model.get(&index).copied().flatten().is_some_and(|due| due <= now);
                prop_assert_eq!(timers.is_due(index, now), due);
            }
        }
    }
}
