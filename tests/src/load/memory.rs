//! What processes hold in memory over time, and whether it grows.

use std::fs;

use anyhow::Context as _;

/// Resident memory of a process (KiB): `VmRSS` of proc(5).
///
/// # Errors
///
/// It does not run any more.
pub fn rss_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut lines = status.lines();
    lines
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{path} has no VmRSS"))
}

/// Memory of one process, over time.
#[derive(Clone, Debug, Default)]
pub struct Course {
    samples: Vec<Sample>,
}

/// One look.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: f64,
    kib: f64,
}

impl Course {
    /// Adds what was seen `seconds` after the begin.
    pub fn add(&mut self, seconds: f64, kib: u64) {
        self.samples.push(Sample {
            seconds,
            kib: kib as f64,
        });
    }

    /// The most that was seen (MiB).
    #[must_use]
    pub fn max_mib(&self) -> f64 {
        let all = self.samples.iter().map(|sample| sample.kib);
        all.fold(0.0, f64::max) / 1024.0
    }

    /// The last that was seen (MiB).
    #[must_use]
    pub fn last_mib(&self) -> f64 {
        self.samples
            .last()
            .map_or(0.0, |sample| sample.kib / 1024.0)
    }

    /// Growth in the second half of the time (MiB in 5 minutes): the slope of the straight line that
    /// fits best (least squares). `None` with fewer than two samples there.
    #[must_use]
    pub fn growth(&self) -> Option<f64> {
        let half = self.samples.last()?.seconds / 2.0;
        let late: Vec<Sample> = self
            .samples
            .iter()
            .copied()
            .filter(|it| it.seconds >= half)
            .collect();
        let count = late.len() as f64;
        let mean_of = |value: fn(&Sample) -> f64| late.iter().map(value).sum::<f64>() / count;
        let (seconds, kib) = (mean_of(|it| it.seconds), mean_of(|it| it.kib));
        let spread: f64 = late.iter().map(|it| (it.seconds - seconds).powi(2)).sum();
        let together: f64 = late
            .iter()
            .map(|it| (it.seconds - seconds) * (it.kib - kib))
            .sum();
        (spread > 0.0).then(|| together / spread / 1024.0 * 300.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn course(kib: impl Fn(u64) -> u64) -> Course {
        let mut course = Course::default();
        for second in 0..=600 {
            course.add(second as f64, kib(second));
        }
        course
    }

    /// Growth is that of the second half alone; steps up and down around a constant are none.
    #[test]
    fn growth_is_that_of_the_second_half() {
        let warm_up = course(|second| 10_240 + 100 * second.min(200));
        assert!(warm_up.growth().unwrap().abs() < 1e-9);
        assert!((warm_up.max_mib() - 29.53).abs() < 0.01);
        // 1024 KiB in 300 s.
        let leak = course(|second| 10_240 * 300 + 1_024 * second);
        assert!((leak.growth().unwrap() - 300.0).abs() < 1e-6);
        let steps = course(|second| 20_480 + 64 * (second % 2));
        assert!(steps.growth().unwrap().abs() < 0.01);
        assert_eq!(Course::default().growth(), None);
    }

    /// This very process holds something.
    #[test]
    fn own_memory_is_readable() {
        assert!(rss_kib(std::process::id()).unwrap() > 100);
    }
}
