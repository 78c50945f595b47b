//! When to dial a peer, and which of its addresses. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// First wait after a failure; doubles up to the configured maximum.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// An attempt that has not authenticated by then is given up, so that a fresh one with fresh timers
/// follows: QUIC's own retransmissions back off beyond the time in which traffic must resume.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// The dialling state of one connection slot of one peer.
#[derive(Clone, Debug)]
pub struct Dialer {
    failures: u32,
    /// Counts the addresses that did not answer; stands still at one that does.
    turn: usize,
    answered: bool,
    due: Instant,
    backoff_max: Duration,
}

impl Dialer {
    /// Due at once.
    #[must_use]
    pub fn new(now: Instant, backoff_max: Duration) -> Self {
        Self {
            failures: 0,
            turn: 0,
            answered: false,
            due: now,
            backoff_max,
        }
    }

    /// When the next attempt may begin.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Which of `count` addresses the next attempt takes: the one that answered last, else the next.
    #[must_use]
    pub fn address_index(&self, count: usize) -> usize {
        self.turn.checked_rem(count).unwrap_or(0)
    }

    /// An attempt or a connection ended. `spread` (any number) moves the next attempt by up to a
    /// quarter, so that many nodes do not dial in step.
    pub fn failed(&mut self, now: Instant, spread: u64) {
        let exponent = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        if !std::mem::take(&mut self.answered) {
            self.turn = self.turn.wrapping_add(1);
        }
        let base = BACKOFF_FIRST
            .saturating_mul(1 << exponent)
            .min(self.backoff_max);
        let quarter = (base.as_millis() as u64 / 4).max(1);
        self.due = now + base - Duration::from_millis(spread % quarter);
    }

    /// A connection authenticated.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.answered = true;
    }
}

/// First wait after a connection that was to take another's place came to nothing; doubles up to
/// [`RENEWAL_BACKOFF_MAX`]. Nothing is broken meanwhile.
const RENEWAL_BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest such wait.
const RENEWAL_BACKOFF_MAX: Duration = Duration::from_secs(64);

/// The connection that is to take the place of one that carries packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Renewal {
    /// When it is to be begun; `None` while there is no reason to.
    pub(super) due: Option<Instant>,
    /// Its place, once it has begun.
    pub(super) link: Option<usize>,
    failures: u32,
}

impl Renewal {
    /// Asks for it at `due`, or after the wait for the last failure where that is later.
    pub(super) fn ask(&mut self, due: Instant, now: Instant) {
        // What was asked for stays: else each look at it would put it off.
        if self.due.is_some_and(|before| before <= due) {
            return;
        }
        let wait = self
            .failures
            .checked_sub(1)
            .map_or(Duration::ZERO, |doublings| {
                RENEWAL_BACKOFF_FIRST
                    .saturating_mul(1 << doublings.min(16))
                    .min(RENEWAL_BACKOFF_MAX)
            });
        let due = due.max(now + wait);
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// The attempt, or its beginning, came to nothing.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.due = None;
        self.link = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wait doubles, stays bounded, and starts again after a success.
    #[test]
    fn backs_off_within_bounds() {
        let now = Instant::now();
        let max = Duration::from_secs(1);
        let mut dialer = Dialer::new(now, max);
        assert_eq!(dialer.due(), now);
        let mut waits = Vec::new();
        for spread in 0..40 {
            dialer.failed(now, spread * 7919);
            waits.push(dialer.due() - now);
        }
        assert!(waits[0] <= BACKOFF_FIRST && waits[0] >= BACKOFF_FIRST * 3 / 4);
        assert!(
            waits
                .iter()
                .all(|w| *w <= max && *w >= BACKOFF_FIRST * 3 / 4)
        );
        assert!(waits[10..].iter().all(|w| *w >= max * 3 / 4));
        dialer.succeeded();
        dialer.failed(now, 0);
        assert!(dialer.due() - now <= BACKOFF_FIRST);
    }

    /// Failures walk through all addresses of the peer; one that answered is tried first again.
    #[test]
    fn rotates_addresses() {
        let now = Instant::now();
        let mut dialer = Dialer::new(now, Duration::from_secs(1));
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(dialer.address_index(3));
            dialer.failed(now, 0);
        }
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(dialer.address_index(0), 0);
        dialer.failed(now, 0);
        dialer.succeeded();
        dialer.failed(now, 0);
        assert_eq!(dialer.address_index(3), 1);
        dialer.failed(now, 0);
        assert_eq!(dialer.address_index(3), 2);
    }
}
