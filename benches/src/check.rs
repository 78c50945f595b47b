//! Floors that show a regression, as ratios within one run. They are below what is promised, which
//! `report::targets` has and `make bench-peers` judges on a quiet machine.

use crate::{
    plan::{Measure, System},
    report::Samples,
};

/// One TCP stream across workers, against wireguard-go in the same run. Promised is 1.7: this is three
/// quarters of it, because what tests share their processors with slows down one side of a ratio of
/// short samples and not the other.
pub const ACROSS_VS_WIREGUARD_GO_MIN: f64 = 1.3;
/// One TCP stream between two pods of a node, against a plain virtual cable in the same run. Promised
/// is 0.5; lower for the same reason.
pub const SAME_NODE_VS_VETH_MIN: f64 = 0.4;

/// What one floor says.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What is compared.
    pub what: String,
    /// The ratio of medians; `None` when one side has no sample.
    pub ratio: Option<f64>,
    /// The floor.
    pub min: f64,
}

impl Outcome {
    /// Whether the floor is kept. What could not be measured is not.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio >= self.min)
    }

    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        let verdict = if self.holds() { "ok" } else { "FAILED" };
        let ratio = self
            .ratio
            .map_or_else(|| "not measured".to_owned(), |ratio| format!("{ratio:.2}x"));
        format!("{verdict}: {}: {ratio}, floor {:.2}x", self.what, self.min)
    }
}

/// Compares with all floors.
#[must_use]
pub fn check(samples: &Samples) -> Vec<Outcome> {
    [
        (
            Measure::TcpAcross,
            System::WireguardGo,
            ACROSS_VS_WIREGUARD_GO_MIN,
        ),
        (Measure::TcpSameNode, System::Veth, SAME_NODE_VS_VETH_MIN),
    ]
    .map(|(measure, other, min)| Outcome {
        what: format!("{}, fabric vs {}", measure.title(), other.title()),
        ratio: samples.ratio(measure, measure.main_figure(), System::Fabric, other),
        min,
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ratio: Option<f64>) -> Outcome {
        Outcome {
            what: "x".to_owned(),
            ratio,
            min: 1.3,
        }
    }

    /// A floor holds from exactly its value on, and never for what was not measured.
    #[test]
    fn floors_hold_from_their_value_on() {
        assert!(outcome(Some(1.3)).holds());
        assert!(!outcome(Some(1.29)).holds());
        assert!(!outcome(None).holds());
        assert!(outcome(None).line().contains("not measured"));
    }

    /// Without samples every floor fails.
    #[test]
    fn nothing_measured_fails() {
        let outcomes = check(&Samples::default());
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes.iter().all(|outcome| !outcome.holds()));
    }
}
