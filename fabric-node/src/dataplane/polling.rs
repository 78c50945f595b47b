//! Whether a thread that has run out of work looks on for a moment before it sleeps.
//!
//! Comes in: when packets were worked on, and on which way. Goes out: until when to look on. Never
//! done here: looking, and asking the time.
//!
//! To be woken costs a thread tens of microseconds, more on a virtual machine, and a packet's way to
//! another node and back has four such waits. After a packet to a peer its answer is usually near,
//! after one to a pod often, too; how often is a habit of the traffic, and kept for each way. A way
//! whose packets are not followed by others within [`LOOK_MAX`] is not waited for, so a thread with
//! nothing to do sleeps, and one with a packet now and then spends at most [`LOOK_MAX`] on each.
//!
//! A turn with more than [`LIGHT_BYTES_MAX`] is bulk: there the processor is scarce, not the time of a
//! single packet, and whoever fills the next batch needs it. That goes for [`BULK_LASTS`] after it: the
//! acknowledgements of bulk are light.

use std::time::{Duration, Instant};

/// Longest time to look on after a packet.
pub(super) const LOOK_MAX: Duration = Duration::from_micros(400);
/// What a request or an answer comes to, at most (bytes of a turn).
const LIGHT_BYTES_MAX: u64 = 4 * 1024;
/// How long a thread that has seen bulk does not look on.
const BULK_LASTS: Duration = Duration::from_millis(5);
/// A follower that came this late would still have been met: it includes the time to wake up.
const FOLLOWS_WITHIN: Duration = Duration::from_micros(600);
/// Upper end of a habit.
const HABIT_MAX: u8 = 8;
/// A habit from which on it is worth looking.
const HABIT_WORTH: u8 = 4;

/// The way of the last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From a port.
    Egress,
    /// From a peer.
    Ingress,
}

/// What is known about the traffic of one thread.
#[derive(Debug, Default)]
pub(super) struct Polling {
    last: Option<(Way, Instant)>,
    bulk: Option<Instant>,
    egress: u8,
    ingress: u8,
}

impl Polling {
    /// Packets of `bytes` together were worked on in the turn that began at `began` and ended at
    /// `ended`, the last of them on `way`.
    pub(super) fn worked(&mut self, way: Way, bytes: u64, began: Instant, ended: Instant) {
        if bytes > LIGHT_BYTES_MAX {
            self.bulk = Some(ended);
        }
        if self.in_bulk(ended) {
            self.last = None;
        } else if let Some((before, at)) = self.last.replace((way, ended)) {
            let habit = self.habit(before);
            *habit = if began.saturating_duration_since(at) <= FOLLOWS_WITHIN {
                habit.saturating_add(1).min(HABIT_MAX)
            } else {
                habit.saturating_sub(2)
            };
        }
    }

    /// Whether bulk has passed just before `now`.
    pub(super) fn in_bulk(&self, now: Instant) -> bool {
        self.bulk.is_some_and(|bulk| now < bulk + BULK_LASTS)
    }

    /// Until when to look on; `None` to sleep at once.
    pub(super) fn until(&self) -> Option<Instant> {
        let (way, at) = self.last?;
        let habit = match way {
            Way::Egress => self.egress,
            Way::Ingress => self.ingress,
        };
        (habit >= HABIT_WORTH).then(|| at + LOOK_MAX)
    }

    fn habit(&mut self, way: Way) -> &mut u8 {
        match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(20);

    /// A request every second that is answered at once: waited for on the way to the peer, and the
    /// second of silence after the answer is slept through.
    #[test]
    fn waits_for_answers_and_sleeps_between_requests() {
        let mut polling = Polling::default();
        let mut now = Instant::now();
        for _ in 0..20 {
            polling.worked(Way::Egress, 100, now, now + TURN);
            now += Duration::from_micros(150);
            polling.worked(Way::Ingress, 100, now, now + TURN);
            now += Duration::from_secs(1);
        }
        assert_eq!(polling.until(), None);
        polling.worked(Way::Egress, 100, now, now + TURN);
        assert_eq!(polling.until(), Some(now + TURN + LOOK_MAX));
    }

    /// Lone packets are not waited after, and neither is one that comes after much traffic.
    #[test]
    fn sleeps_after_lone_packets() {
        let mut polling = Polling::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            polling.worked(Way::Egress, 100, now, now + TURN);
            now += TURN;
        }
        assert!(polling.until().is_some());
        for _ in 0..4 {
            now += Duration::from_millis(1);
            polling.worked(Way::Egress, 100, now, now + TURN);
        }
        assert_eq!(polling.until(), None);
    }

    /// After bulk the thread sleeps at once, whatever came before.
    #[test]
    fn sleeps_after_bulk() {
        let mut polling = Polling::default();
        let now = Instant::now();
        for _ in 0..100 {
            polling.worked(Way::Egress, 100, now, now + TURN);
        }
        assert!(polling.until().is_some());
        polling.worked(Way::Egress, 65_536, now, now + TURN);
        assert_eq!(polling.until(), None);
        polling.worked(Way::Egress, 100, now + TURN, now + 2 * TURN);
        assert_eq!(polling.until(), None);
        let later = now + TURN + BULK_LASTS;
        polling.worked(Way::Egress, 100, later, later + TURN);
        assert!(polling.until().is_some());
    }

    /// Without any traffic there is nothing to wait for.
    #[test]
    fn sleeps_when_nothing_ever_came() {
        assert_eq!(Polling::default().until(), None);
    }
}
