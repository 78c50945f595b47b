//! How far the engine may be ahead of what it has sent.
//!
//! Comes in: what the engine was given, what it has sent, why it stopped. Goes out: how much to give
//! it. Whatever the engine has and cannot send waits where nobody sees or sorts it, so it gets about
//! a millisecond's worth, at most one send, at a time. It always has enough: when it runs dry it is
//! given more before anybody waits.

use std::time::Duration;

/// Time that it takes to send what the engine is given at once, at the rate of the path.
const PORTION: Duration = Duration::from_millis(1);
/// Fewest bytes given at once, and the pieces in which a slow path is given long records.
pub(super) const PIECE_BYTES: usize = 16 * 1024;
/// Bytes given after which the engine is let run dry once, for what it still has is estimated and
/// the error grows: by a few bytes per packet, and by what is sent a second time.
const ESTIMATED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What each packet carries beside records, at least (bytes): header, tag and one frame's header.
const PACKET_OVERHEAD_BYTES: usize = 32;

/// What the engine has and has not sent, as far as can be known from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    /// At least so much is unsent (bytes).
    unsent: usize,
    /// Given since the engine was seen to have nothing (bytes).
    given: usize,
    /// Whether congestion control or pacing held the engine back.
    held: bool,
    /// Whether the last send was full: another like it will do.
    full: bool,
}

/// How much to give, and in which pieces (bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// At once.
    pub bytes: usize,
    /// Of one record at a time.
    pub piece: usize,
}

impl Portion {
    /// A portion for a path that sends `window` bytes per `rtt`, in sends of up to `batch` bytes.
    #[must_use]
    pub fn of(window: u64, rtt: Duration, batch: usize) -> Self {
        let batch = batch.max(PIECE_BYTES);
        let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        let worth = window.saturating_mul(PORTION.as_micros() as u64) / rtt_us;
        let bytes = usize::try_from(worth)
            .unwrap_or(usize::MAX)
            .clamp(PIECE_BYTES, batch);
        // A fast path takes records whole: it is done with one before anybody has waited for it.
        let piece = if bytes == batch {
            usize::MAX
        } else {
            PIECE_BYTES
        };
        Self { bytes, piece }
    }
}

impl Ahead {
    /// Bytes to give before the next send, of a portion of `portion`.
    #[must_use]
    pub fn wanted(&self, portion: usize, mtu: usize) -> usize {
        let enough = if self.full { portion } else { mtu };
        if self.held || self.given >= ESTIMATED_BYTES_MAX || self.unsent >= enough {
            0
        } else {
            portion - self.unsent
        }
    }

    /// The engine was given `bytes`.
    pub fn gave(&mut self, bytes: usize) {
        self.unsent += bytes;
        self.given += bytes;
    }

    /// The engine has sent `bytes` in packets of up to `mtu`, where `batch` would have been full.
    pub fn sent(&mut self, bytes: usize, mtu: usize, batch: usize) {
        // A bare acknowledgement says nothing about records.
        if bytes < mtu / 2 {
            return;
        }
        let overhead = bytes.div_ceil(mtu.max(1)) * PACKET_OVERHEAD_BYTES;
        self.unsent = self.unsent.saturating_sub(bytes.saturating_sub(overhead));
        self.full = bytes + mtu > batch;
        self.held = false;
    }

    /// The engine has more and may not send it.
    pub fn was_held(&mut self) {
        self.held = true;
    }

    /// The engine has nothing more to send.
    pub fn ran_dry(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: usize = 1452;
    const BATCH: usize = 44 * MTU;

    /// A fast path is given a whole send at once, a slow one a millisecond's worth in small pieces.
    #[test]
    fn portions_follow_the_rate() {
        let of = |window, rtt_us| Portion::of(window, Duration::from_micros(rtt_us), BATCH);
        let fast = Portion {
            bytes: BATCH,
            piece: usize::MAX,
        };
        assert_eq!(of(1 << 20, 500), fast);
        assert_eq!(of(128 << 10, 1000), fast);
        assert_eq!(of(1 << 20, 0), fast);
        // 100 Mbit/s, 800 Mbit/s at a distance.
        assert_eq!(of(128 << 10, 10_500).bytes, PIECE_BYTES);
        assert_eq!(of(2 << 20, 60_000).bytes, 34_952);
        assert_eq!(of(2 << 20, 60_000).piece, PIECE_BYTES);
    }

    /// An engine that sends whatever it gets always has a full send, and is let run dry from time to
    /// time.
    #[test]
    fn a_fast_engine_has_full_sends() {
        let mut ahead = Ahead::default();
        let (mut has, mut full, mut dry) = (0, 0, 0);
        for _ in 0..1000 {
            let wanted = ahead.wanted(BATCH, MTU);
            if wanted > 0 {
                // Records are given whole.
                let given = wanted.next_multiple_of(65_000);
                ahead.gave(given);
                has += given;
            }
            let payload = has.min(44 * (MTU - 40));
            has -= payload;
            if payload == 0 {
                ahead.ran_dry();
                dry += 1;
            } else {
                full += usize::from(payload == 44 * (MTU - 40));
                ahead.sent(payload + payload.div_ceil(MTU - 40) * 40, MTU, BATCH);
            }
            assert!(has <= 3 * BATCH, "{has}");
        }
        assert!(dry > 5 && full > 900, "{dry} times dry, {full} full sends");
    }

    /// An engine that is held back gets nothing more, whatever acknowledgements it sends.
    #[test]
    fn a_held_engine_gets_nothing() {
        let mut ahead = Ahead::default();
        ahead.gave(BATCH);
        ahead.was_held();
        for _ in 0..10_000 {
            assert_eq!(ahead.wanted(BATCH, MTU), 0);
            ahead.sent(60, MTU, BATCH);
        }
        ahead.sent(10 * MTU, MTU, BATCH);
        assert_eq!(ahead.wanted(BATCH, MTU), 0, "it has enough");
        ahead.ran_dry();
        assert_eq!(ahead.wanted(BATCH, MTU), BATCH);
    }
}
