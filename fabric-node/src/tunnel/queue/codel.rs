//! When a queue has been long for too long: CoDel (RFC 8289).
//!
//! Comes in: how long each packet waited, when its turn comes. Goes out: whether its sender is to be
//! told of congestion, by a mark or by the loss of it. Never done here: dropping, or asking the time.

use std::time::{Duration, Instant};

/// Waiting time that a queue may have for good.
///
/// RFC 8289 4.4 asks for 5 to 10 % of the interval. 2 ms are 1 MiB at 4 Gbit/s, which keeps a link
/// busy through a scheduling hiccup of its sender.
pub(super) const TARGET: Duration = Duration::from_millis(2);
/// How long a queue may be longer than that: a burst is let pass, and a sender is given one round
/// trip to react. RFC 8289 4.3: the longest round trip that is usual, here that between sites.
pub(super) const INTERVAL: Duration = Duration::from_millis(40);
/// Intervals after the last signal within which a queue that grows again is answered at the rate
/// that it needed before (RFC 8289 5.4).
const MEMORY_INTERVALS: u32 = 16;

/// What CoDel remembers of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codel {
    /// When it will have been above the target for an interval; `None` while below.
    above_until: Option<Instant>,
    /// When the next signal is due; while not signalling, when it would have been.
    next: Option<Instant>,
    count: u32,
    count_before: u32,
    signalling: bool,
}

impl Codel {
    /// Whether the packet that waited for `waited` and leaves at `now` is to carry a signal. A packet
    /// that is dropped for it has the next one judged in its place.
    ///
    /// `backlogged`: enough waits behind it that the queue is more than a packet on its way.
    pub(super) fn judge(&mut self, waited: Duration, backlogged: bool, now: Instant) -> bool {
        let overdue = self.is_overdue(waited, backlogged, now);
        if !self.signalling {
            if overdue {
                self.begin(now);
            }
            return overdue;
        }
        if !overdue {
            self.signalling = false;
            return false;
        }
        match self.next {
            Some(next) if now >= next => {
                self.count = self.count.saturating_add(1);
                self.next = Some(next + self.gap());
                true
            }
            _ => false,
        }
    }

    fn is_overdue(&mut self, waited: Duration, backlogged: bool, now: Instant) -> bool {
        if waited < TARGET || !backlogged {
            self.above_until = None;
            return false;
        }
        now >= *self.above_until.get_or_insert(now + INTERVAL)
    }

    fn begin(&mut self, now: Instant) {
        let grown = self.count - self.count_before;
        let recently = self
            .next
            .is_some_and(|next| now.saturating_duration_since(next) < INTERVAL * MEMORY_INTERVALS);
        self.count = if grown > 1 && recently { grown } else { 1 };
        self.count_before = self.count;
        self.signalling = true;
        self.next = Some(now + self.gap());
    }

    /// Time between two signals: it shrinks with the root of their number, which makes the rate of a
    /// TCP fall linearly (RFC 8289 3.3).
    fn gap(&self) -> Duration {
        INTERVAL.div_f32((self.count as f32).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A queue that is long for less than an interval is let be, however long it is.
    #[test]
    fn bursts_pass() {
        let (mut codel, mut now) = (Codel::default(), Instant::now());
        for _ in 0..100 {
            for waited in (0..39).rev() {
                assert!(!codel.judge(MS * waited, true, now));
                now += MS;
            }
        }
    }

    /// A queue that stays long is told so after one interval, and then ever faster.
    #[test]
    fn a_standing_queue_is_told_of() {
        let (mut codel, begin) = (Codel::default(), Instant::now());
        let signals: Vec<u32> = (0..400)
            .filter(|&ms| codel.judge(TARGET, true, begin + MS * ms))
            .collect();
        assert_eq!(signals.first(), Some(&40));
        assert_eq!(signals.get(1), Some(&80));
        let gaps: Vec<u32> = signals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            gaps.windows(2).all(|pair| pair[1] <= pair[0] + 1),
            "{gaps:?}"
        );
        assert!(gaps.last() < Some(&12), "{gaps:?}");
    }

    /// A packet that nothing waits behind is no standing queue, even if it waited long: at a low rate
    /// one super-packet takes longer than the target.
    #[test]
    fn a_packet_on_its_way_is_no_queue() {
        let (mut codel, begin) = (Codel::default(), Instant::now());
        assert!((0..1000).all(|ms| !codel.judge(MS * 10, false, begin + MS * ms)));
    }

    /// A queue that grows again soon after is answered at the rate that it needed before; after a
    /// long rest it is met as a stranger.
    #[test]
    fn remembers_for_a_while() {
        for (rest, at_least, at_most) in [(MS * 50, 3, u32::MAX), (MS * 5000, 1, 1)] {
            let (mut codel, mut now) = (Codel::default(), Instant::now());
            for _ in 0..400 {
                codel.judge(TARGET, true, now);
                now += MS;
            }
            codel.judge(Duration::ZERO, true, now);
            now += rest;
            codel.judge(TARGET, true, now);
            assert!(codel.judge(TARGET, true, now + INTERVAL));
            assert!(
                (at_least..=at_most).contains(&codel.count),
                "{}",
                codel.count
            );
        }
    }
}
