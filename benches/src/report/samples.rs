//! Keeps what was measured and sums it up: medians, spread, ratios.

use std::collections::BTreeMap;

use crate::{
    plan::{Case, Figure, Measure, System},
    statistics::Spread,
};

/// The figures of one measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    figures: BTreeMap<Figure, f64>,
    congestion: Option<String>,
}

impl Sample {
    /// Adds a figure, in its unit.
    #[must_use]
    pub fn with(mut self, figure: Figure, value: f64) -> Self {
        self.figures.insert(figure, value);
        self
    }

    /// Notes the TCP congestion control that was used.
    #[must_use]
    pub fn with_congestion(mut self, name: String) -> Self {
        self.congestion = Some(name);
        self
    }
}

/// Why there are fewer samples of a case than there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How often.
    pub times: u32,
    /// The last reason.
    pub reason: String,
}

/// All samples over one underlay.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    taken: BTreeMap<Case, Vec<Sample>>,
    failed: BTreeMap<Case, Failure>,
}

impl Samples {
    /// Adds a sample.
    pub fn add(&mut self, case: Case, sample: Sample) {
        self.taken.entry(case).or_default().push(sample);
    }

    /// Notes that a measurement failed.
    pub fn fail(&mut self, case: Case, reason: String) {
        let times = self.failures(case) + 1;
        self.failed.insert(case, Failure { times, reason });
    }

    /// Cases of which there is a sample, in order.
    pub fn cases(&self) -> impl Iterator<Item = Case> {
        self.taken.keys().copied()
    }

    /// Cases that have failed at least once, in order.
    pub fn failed(&self) -> impl Iterator<Item = (Case, &Failure)> {
        self.failed.iter().map(|(case, failure)| (*case, failure))
    }

    /// How often a case has failed.
    #[must_use]
    pub fn failures(&self, case: Case) -> u32 {
        self.failed.get(&case).map_or(0, |failure| failure.times)
    }

    /// A figure of all samples of a case, in the order in which they were taken.
    #[must_use]
    pub fn values(&self, case: Case, figure: Figure) -> Vec<f64> {
        let samples = self.taken.get(&case).into_iter().flatten();
        samples
            .filter_map(|sample| sample.figures.get(&figure).copied())
            .collect()
    }

    /// Figures that any sample of a case has, in order.
    #[must_use]
    pub fn figures(&self, case: Case) -> Vec<Figure> {
        let samples = self.taken.get(&case).into_iter().flatten();
        let mut figures: Vec<Figure> = samples
            .flat_map(|sample| sample.figures.keys().copied())
            .collect();
        figures.sort_unstable();
        figures.dedup();
        figures
    }

    /// Median and ends of a figure; `None` without a sample.
    #[must_use]
    pub fn spread(&self, measure: Measure, figure: Figure, system: System) -> Option<Spread> {
        Spread::of(&self.values(Case { measure, system }, figure))
    }

    /// Median of a figure of `one` divided by that of `other`; `None` without both, or by nothing.
    #[must_use]
    pub fn ratio(
        &self,
        measure: Measure,
        figure: Figure,
        one: System,
        other: System,
    ) -> Option<f64> {
        let divisor = self.spread(measure, figure, other)?.median;
        (divisor > 0.0).then_some(self.spread(measure, figure, one)?.median / divisor)
    }

    /// The most memory that the larger process of a system had resident in any measurement under
    /// load (MiB); `None` for what has no processes.
    #[must_use]
    pub fn peak_rss_mib(&self, system: System) -> Option<f64> {
        let cases = self.cases().filter(|case| case.system == system);
        cases
            .flat_map(|case| self.values(case, Figure::PeakRssMib))
            .reduce(f64::max)
    }

    /// TCP congestion controls that were used.
    #[must_use]
    pub fn congestion(&self) -> Vec<&str> {
        let samples = self.taken.values().flatten();
        samples
            .filter_map(|sample| sample.congestion.as_deref())
            .filter(|name| !name.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MEASURE: Measure = Measure::TcpAcross;
    const FIGURE: Figure = Figure::GbitPerSecond;

    fn samples(fabric: &[f64], peer: &[f64]) -> Samples {
        let mut samples = Samples::default();
        for (system, values) in [(System::Fabric, fabric), (System::WireguardGo, peer)] {
            for &value in values {
                let case = Case {
                    measure: MEASURE,
                    system,
                };
                samples.add(case, Sample::default().with(FIGURE, value));
            }
        }
        samples
    }

    /// A ratio is one of medians, and there is none without both.
    #[test]
    fn ratios_are_of_medians() {
        let ratio = |fabric: &[f64], peer: &[f64]| {
            samples(fabric, peer).ratio(MEASURE, FIGURE, System::Fabric, System::WireguardGo)
        };
        assert_eq!(ratio(&[3.0, 100.0, 2.0], &[1.5]), Some(2.0));
        assert_eq!(ratio(&[3.0], &[]), None);
        assert_eq!(ratio(&[3.0], &[0.0]), None);
    }

    /// The peak is the largest of all measures, whatever their median is.
    #[test]
    fn the_peak_is_over_the_whole_run() {
        let mut samples = Samples::default();
        for (measure, mib) in [(MEASURE, 20.0), (MEASURE, 31.0), (Measure::Udp64, 24.0)] {
            let case = Case {
                measure,
                system: System::Fabric,
            };
            samples.add(case, Sample::default().with(Figure::PeakRssMib, mib));
        }
        assert_eq!(samples.peak_rss_mib(System::Fabric), Some(31.0));
        assert_eq!(samples.peak_rss_mib(System::Veth), None);
    }

    /// Failures are counted, and the last reason is kept.
    #[test]
    fn failures_are_counted() {
        let mut samples = Samples::default();
        let case = Case {
            measure: MEASURE,
            system: System::Fabric,
        };
        samples.fail(case, "first".to_owned());
        samples.fail(case, "second".to_owned());
        let (failed, failure) = samples.failed().next().unwrap();
        assert_eq!((failed, failure.times), (case, 2));
        assert_eq!(failure.reason, "second");
    }
}
