//! How long ADDs take: pure, a histogram of fixed size.
//!
//! Comes in: one duration per ADD. Goes out: how many there were, the middle, the slow end, the
//! slowest. Never done here: asking a clock.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use fabric_proto::admin::AttachTimes;

/// Buckets per doubling of the duration: a quantile is told at most 1/16 too high.
const BUCKETS_PER_DOUBLING: usize = 16;
/// Buckets (3 KiB). The last one begins at 130 s, which is longer than any plugin waits; what takes
/// longer still is counted there, and shown exactly as the slowest.
const BUCKETS: usize = 384;
/// Ends of the histogram's buckets (logarithm of microseconds): 1.024 ms, and then doubled up to 16.8 s.
/// A bucket of ours begins at each of them, so none has to be divided.
const HISTOGRAM_ENDS_LOG2_US: RangeInclusive<u32> = 10..=24;

/// Durations of ADDs since the daemon's start. Any number of threads may record at once.
#[derive(Debug)]
pub struct AddTimes {
    /// ADDs by duration in microseconds: one bucket each up to 16 µs, then 16 per doubling.
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

/// ADDs by duration, in buckets as monitoring systems keep them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// All durations together (seconds).
    pub sum_seconds: f64,
    /// How many there were.
    pub count: u64,
    /// The end of each bucket (seconds), and how many took no longer than it and longer than the
    /// end before; the slowest ones are in none.
    pub buckets: Vec<(f64, u64)>,
}

impl Default for AddTimes {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum_us: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
        }
    }
}

impl AddTimes {
    /// Counts one ADD.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(bucket_of(us)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    /// The durations so far in buckets that double from one to the next.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        let counts = self.counts.each_ref().map(|c| c.load(Ordering::Relaxed));
        let mut begin = 0;
        let buckets = HISTOGRAM_ENDS_LOG2_US.map(|log2| {
            let end_us = 1_u64 << log2;
            let end = bucket_of(end_us);
            let within = counts.get(begin..end).unwrap_or_default();
            begin = end;
            (ms(end_us) / 1_000.0, within.iter().sum())
        });
        Histogram {
            sum_seconds: ms(self.sum_us.load(Ordering::Relaxed)) / 1_000.0,
            count: counts.iter().sum(),
            buckets: buckets.collect(),
        }
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> AttachTimes {
        let counts = self.counts.each_ref().map(|c| c.load(Ordering::Relaxed));
        let adds = counts.iter().sum();
        let max_us = self.max_us.load(Ordering::Relaxed);
        AttachTimes {
            adds,
            p50_ms: ms(quantile(&counts, adds, 50).min(max_us)),
            p99_ms: ms(quantile(&counts, adds, 99).min(max_us)),
            max_ms: ms(max_us),
        }
    }
}

/// The end of the bucket in which the ADD of that rank is, so that at least `percent` of all took no
/// longer (microseconds).
fn quantile(counts: &[u64; BUCKETS], adds: u64, percent: u64) -> u64 {
    let rank = adds.saturating_mul(percent).div_ceil(100);
    let mut seen = 0_u64;
    let reached = counts.iter().position(|count| {
        seen = seen.saturating_add(*count);
        seen > 0 && seen >= rank
    });
    reached.map_or(0, end_of)
}

fn bucket_of(us: u64) -> usize {
    const LINEAR: u64 = BUCKETS_PER_DOUBLING as u64;
    let linear = usize::try_from(us.min(LINEAR)).unwrap_or(BUCKETS_PER_DOUBLING);
    if us < LINEAR {
        return linear;
    }
    // Doublings beyond the linear part, and the four bits behind the leading one.
    let doublings = us.ilog2().saturating_sub(LINEAR.ilog2());
    let place = usize::try_from((us >> doublings) & (LINEAR - 1)).unwrap_or_default();
    let row = usize::try_from(doublings)
        .unwrap_or(BUCKETS)
        .saturating_add(1);
    row.saturating_mul(BUCKETS_PER_DOUBLING)
        .saturating_add(place)
        .min(BUCKETS - 1)
}

/// The largest duration that a bucket counts (microseconds).
fn end_of(bucket: usize) -> u64 {
    let (row, place) = (bucket / BUCKETS_PER_DOUBLING, bucket % BUCKETS_PER_DOUBLING);
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let Some(doublings) = row.checked_sub(1) else {
        return number(bucket);
    };
    (number(BUCKETS_PER_DOUBLING + place + 1) << doublings).saturating_sub(1)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "durations below 2^53 µs, which is 285 years"
)]
fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every duration falls into a bucket that ends no earlier than it and at most 1/16 later, and
    /// buckets follow each other without a gap.
    #[test]
    fn buckets_are_narrow_and_without_gaps() {
        for bucket in 1..BUCKETS {
            assert_eq!(bucket_of(end_of(bucket - 1) + 1), bucket);
            assert_eq!(bucket_of(end_of(bucket)), bucket);
        }
        for us in (0..200_000).chain([1_000_000, 9_999_999, 59_000_000]) {
            let end = end_of(bucket_of(us));
            assert!(us <= end && end - us <= us / 16, "{us}: {end}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    /// The quantiles of 1,000 ADDs of 1 to 1,000 ms are those of the sorted list, 1/16 too high at
    /// most, and the slowest is exact.
    #[test]
    fn quantiles() {
        let times = AddTimes::default();
        assert_eq!(times.figures(), AttachTimes::default());
        for ms in (1..=1_000).rev() {
            times.record(Duration::from_millis(ms));
        }
        let figures = times.figures();
        assert_eq!(figures.adds, 1_000);
        assert!((500.0..=531.25).contains(&figures.p50_ms), "{figures:?}");
        assert!((990.0..=1_000.0).contains(&figures.p99_ms), "{figures:?}");
        assert!((figures.max_ms - 1_000.0).abs() < f64::EPSILON);
    }

    /// Each ADD is in the first bucket of the histogram that is no shorter than it, and the sum is that of
    /// all.
    #[test]
    fn the_histogram_is_that_of_a_list() {
        let times = AddTimes::default();
        let list: Vec<u64> = (0..4_000).map(|n| n * n).collect();
        for us in &list {
            times.record(Duration::from_micros(*us));
        }
        let histogram = times.histogram();
        assert_eq!(histogram.count, 4_000);
        assert!((histogram.sum_seconds - ms(list.iter().sum()) / 1_000.0).abs() < 1e-9);
        assert_eq!(histogram.buckets.len(), 15);
        let mut begin = 0.0;
        for (end, count) in histogram.buckets {
            let within = |us: &&u64| (begin..end).contains(&(ms(**us) / 1_000.0));
            assert_eq!(list.iter().filter(within).count() as u64, count, "{end}");
            begin = end;
        }
    }

    /// One ADD is its own middle, slow end and maximum.
    #[test]
    fn one() {
        let times = AddTimes::default();
        times.record(Duration::from_micros(4_321));
        let figures = times.figures();
        for ms in [figures.p50_ms, figures.p99_ms, figures.max_ms] {
            assert!((ms - 4.321).abs() < f64::EPSILON, "{figures:?}");
        }
    }
}
