//! When each connection wants to be called, and when this thread wakes up for it.
//!
//! Comes in: what each connection says when it was last touched. Goes out: the time of the next call.
//! Never done here: asking the connections, or the time.
//!
//! A node has hundreds of idle connections, each with a keep-alive a second ahead. To wake up for
//! each by itself costs more than all that is then done, so what is far off is put off a little, to a
//! time that it shares with others. What is near is on time: it is about losses and acknowledgements.

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
    places: Vec<Option<Due>>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    asked: Instant,
    put_off: Instant,
}

impl Timers {
    /// Begins empty; `epoch` is any time of the past.
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            places: Vec::new(),
        }
    }

    /// The connection at place `index` asks at `now` to be called at `asked`, or not at all.
    pub(super) fn set(&mut self, index: usize, asked: Option<Instant>, now: Instant) {
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
        }
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        // What was put off stays so when its time comes near: else all would be woken for apart.
        if asked != place.map(|due| due.asked) {
            *place = asked.map(|asked| Due {
                asked,
                put_off: put_off(self.epoch, asked, now),
            });
        }
    }

    /// Whether the connection at place `index` is to be called.
    pub(super) fn is_due(&self, index: usize, now: Instant) -> bool {
        let due = self.places.get(index).copied().flatten();
        due.is_some_and(|due| due.put_off <= now)
    }

    /// When the next of all is to be called.
    pub(super) fn next(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|due| due.put_off).min()
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

    use std::collections::BTreeSet;

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
            let due = timers.places[index as usize].unwrap().put_off;
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
}
