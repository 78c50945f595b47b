//! Random numbers of a seed: the same seed, the same numbers. What they lead to also depends on who of
//! the others is faster.

use std::time::Duration;

use crate::load::content::mix;

/// An endless row of numbers.
#[derive(Clone, Debug)]
pub struct Draws {
    key: u64,
    drawn: u64,
}

impl Draws {
    /// Row number `row` of `seed`.
    #[must_use]
    pub fn new(seed: u64, row: u64) -> Self {
        Self {
            key: mix(seed ^ mix(row)),
            drawn: 0,
        }
    }

    /// A number below `limit`; 0 for a limit of 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let bits = mix(self.key.wrapping_add(self.drawn)) >> 32;
        self.drawn += 1;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        // Less than the limit, which was a usize.
        usize::try_from((bits * limit) >> 32).unwrap_or_default()
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A time below `limit`, in steps of a microsecond.
    pub fn time_below(&mut self, limit: Duration) -> Duration {
        let micros = usize::try_from(limit.as_micros()).unwrap_or(usize::MAX);
        Duration::from_micros(self.below(micros).try_into().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers stay below their limit and reach all of it, and a seed repeats them.
    #[test]
    fn rows_repeat() {
        let row = |seed, row| {
            let mut draws = Draws::new(seed, row);
            (0..1000).map(|_| draws.below(7)).collect::<Vec<_>>()
        };
        assert_eq!(row(1, 2), row(1, 2));
        assert_ne!(row(1, 2), row(1, 3));
        assert_ne!(row(1, 2), row(2, 2));
        let mut seen = row(5, 5);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(Draws::new(1, 1).below(0), 0);
        assert!(!Draws::new(1, 1).chance(0) && Draws::new(1, 1).chance(100));
    }
}
