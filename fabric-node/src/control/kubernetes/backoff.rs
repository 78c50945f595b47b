//! How long to wait before the next attempt.

use std::time::{Duration, Instant};

/// Shortest wait after a failure.
pub const WAIT_MIN: Duration = Duration::from_millis(500);
/// Longest wait, however often it failed.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Time without a failure after which the next one is the first. A list that succeeds says little: the
/// watch after it may fail again and again.
pub const FORGET: Duration = Duration::from_secs(60);

/// Doubles from [`WAIT_MIN`] to [`WAIT_MAX`]. Each wait is a random part, half at least, of that: the
/// nodes of a cluster, which lose an API server at the same time, do not come back at the same time.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// No failure yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            failures: 0,
            last: None,
        }
    }

    /// The wait after one more failure, at `now`. `asked` is what the other side asks for (Retry-After), which
    /// is honoured up to [`WAIT_MAX`]; `random` is any number, each as likely as the others.
    pub fn next(&mut self, now: Instant, asked: Option<Duration>, random: u64) -> Duration {
        if self.last.is_none_or(|last| now - last >= WAIT_MAX + FORGET) {
            self.failures = 0;
        }
        self.last = Some(now);
        let factor = 1_u32 << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        let whole = WAIT_MIN.saturating_mul(factor).min(WAIT_MAX);
        let half = whole / 2;
        // Two thousand steps are fine enough to spread a cluster's nodes.
        let part = u32::try_from(random % 2001).unwrap_or_default();
        let wait = half + half * part / 2000;
        asked.map_or(wait, |asked| wait.max(asked.min(WAIT_MAX)))
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// Any number.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness all nodes wait for the same time, which is no more than unkind.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits double from half a second to half a minute, each between a half and the whole of that.
    #[test]
    fn waits_double_and_end_at_half_a_minute() {
        for (random, part) in [(0, 2), (2000, 1)] {
            let mut backoff = Backoff::new();
            let now = Instant::now();
            for whole in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
                let wanted = Duration::from_millis(whole) / part;
                assert_eq!(backoff.next(now, None, random), wanted);
            }
            let later = now + WAIT_MAX + FORGET;
            assert_eq!(backoff.next(later, None, random), WAIT_MIN / part);
        }
    }

    /// What the API server asks for is honoured, within the same bound.
    #[test]
    fn retry_after_is_honoured() {
        let mut backoff = Backoff::new();
        let now = Instant::now();
        let asked = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(backoff.next(now, asked(7), 0), Duration::from_secs(7));
        assert_eq!(backoff.next(now, asked(3_600), 0), WAIT_MAX);
        assert_eq!(backoff.next(now, asked(0), 2000), Duration::from_secs(2));
    }
}
