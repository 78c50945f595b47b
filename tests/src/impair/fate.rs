//! What becomes of each datagram, drawn from a seed: the same seed, the same fates.

use super::{Impairment, MILLION};
use crate::load::content::mix;

/// What becomes of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Pass,
    /// It does not.
    Lose,
    /// It goes on, and again when this many later ones have passed.
    Double(u32),
    /// It goes on when this many later ones have passed.
    Delay(u32),
}

/// An endless row of fates.
#[derive(Clone, Debug)]
pub struct Fates {
    impairment: Impairment,
    key: u64,
    drawn: u64,
}

impl Fates {
    /// The row of direction number `direction`.
    #[must_use]
    pub fn new(impairment: Impairment, direction: u64) -> Self {
        Self {
            impairment,
            key: mix(impairment.seed ^ mix(direction)),
            drawn: 0,
        }
    }

    /// Draws the next one.
    pub fn draw(&mut self) -> Fate {
        let Impairment {
            lose_ppm,
            double_ppm,
            delay_ppm,
            positions_max,
            ..
        } = self.impairment;
        let number = mix(self.key.wrapping_add(self.drawn));
        self.drawn += 1;
        let chance = below(number >> 32, MILLION);
        let positions = 1 + below(number & 0xffff_ffff, positions_max.max(1));
        if chance < lose_ppm {
            Fate::Lose
        } else if chance < lose_ppm + double_ppm {
            Fate::Double(positions)
        } else if chance < lose_ppm + double_ppm + delay_ppm {
            Fate::Delay(positions)
        } else {
            Fate::Pass
        }
    }
}

/// A number below `limit` from 32 even bits.
fn below(bits: u64, limit: u32) -> u32 {
    ((bits * u64::from(limit)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a million fates each kind has the share that was asked for, within what chance allows, every
    /// number of positions occurs, and another seed or direction gives another row.
    #[test]
    fn shares_are_as_asked_for() {
        let impairment = Impairment {
            lose_ppm: 1_000,
            double_ppm: 2_000,
            delay_ppm: 3_000,
            positions_max: 4,
            ..Impairment::one_in_a_thousand(7)
        };
        let row = |impairment, direction| {
            let mut fates = Fates::new(impairment, direction);
            (0..MILLION).map(|_| fates.draw()).collect::<Vec<_>>()
        };
        let fates = row(impairment, 0);
        let count = |is: &dyn Fn(&Fate) -> bool| fates.iter().filter(|fate| is(fate)).count();
        // Six standard deviations of a binomial distribution.
        let near = |found: usize, mean: f64| (found as f64 - mean).abs() < 6.0 * mean.sqrt();
        assert!(near(count(&|fate| *fate == Fate::Lose), 1_000.0));
        assert!(near(
            count(&|fate| matches!(fate, Fate::Double(_))),
            2_000.0
        ));
        assert!(near(count(&|fate| matches!(fate, Fate::Delay(_))), 3_000.0));
        for positions in 1..=4 {
            let found = count(&|fate| *fate == Fate::Delay(positions));
            assert!(near(found, 750.0), "{positions}: {found}");
        }
        assert_eq!(fates, row(impairment, 0));
        assert_ne!(fates, row(impairment, 1));
        assert_ne!(
            fates,
            row(
                Impairment {
                    seed: 8,
                    ..impairment
                },
                0
            )
        );
    }
}
