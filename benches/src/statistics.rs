//! Middles, ends and percentiles of values. Never done here: knowing what the values are.

/// Middle and ends of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of `values` in any order; `None` without values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(values)?,
            min: values.iter().copied().reduce(f64::min)?,
            max: values.iter().copied().reduce(f64::max)?,
        })
    }
}

/// The middle value, or the mean of the two in the middle; `None` without values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some((lower + upper) / 2.0)
}

/// The smallest value that at least `percent` of all values do not exceed (nearest rank), one that was
/// observed and never one in between: 0 is the smallest, 100 the largest. `None` without values, and
/// beyond 100.
#[must_use]
pub fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let rank = (values.len() * percent).div_ceil(100);
    sorted(values).get(rank.saturating_sub(1)).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle of the sorted values, whatever their order and number.
    #[test]
    fn medians_are_middles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    /// Of 200 values two are above the 99th percentile; of few values it is the largest.
    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 99), Some(198.0));
        assert_eq!(percentile(&values, 50), Some(100.0));
        assert_eq!(percentile(&values, 100), Some(200.0));
        assert_eq!(percentile(&values, 0), Some(1.0));
        assert_eq!(percentile(&[2.0, 1.0], 99), Some(2.0));
        assert_eq!(percentile(&[], 99), None);
    }

    /// A spread has the median between both ends.
    #[test]
    fn spreads_have_ends() {
        let spread = Spread::of(&[2.0, 9.0, 1.0]);
        let expected = Spread {
            median: 2.0,
            min: 1.0,
            max: 9.0,
        };
        assert_eq!((spread, Spread::of(&[])), (Some(expected), None));
    }
}
