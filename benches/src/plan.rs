//! What is measured: the pairs of measure and system that make sense, their order, and how long all
//! of it takes. [`crate::measure`] has the measures, [`crate::system`] the systems.

use std::time::Duration;

use clap::ValueEnum as _;

use crate::ping::Pings;
pub use crate::{
    measure::{Figure, Measure, Probe},
    system::System,
};

/// MTU of the underlay that everything is measured with (bytes).
pub const UNDERLAY_MTU_BYTES: u32 = 1500;
/// MTU of an underlay with large frames (bytes).
pub const JUMBO_MTU_BYTES: u32 = 9000;

/// A load runs this long before pings are sent beside it: queues and windows have grown by then.
pub const RAMP: Duration = Duration::from_secs(1);
/// A load runs this much longer than pings are sent beside it: they wait a second for lost answers, and
/// a busy processor makes them late.
const SLACK: Duration = Duration::from_secs(2);
/// What starting programs and saying goodbye adds to a measurement under load.
const LOAD_OVERHEAD: Duration = Duration::from_millis(350);
/// What it adds to pings.
const PING_OVERHEAD: Duration = Duration::from_millis(50);

/// One system asked one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// The question; cases that answer the same one stand together.
    pub measure: Measure,
    /// Who is asked.
    pub system: System,
}

/// The cases that the floors of [`crate::check`] compare.
pub const CHECKED: [Case; 4] = [
    case(Measure::TcpAcross, System::Fabric),
    case(Measure::TcpAcross, System::WireguardGo),
    case(Measure::TcpSameNode, System::Fabric),
    case(Measure::TcpSameNode, System::Veth),
];

/// What is measured a second time over an underlay with another MTU.
const ANOTHER_MTU: [Measure; 2] = [Measure::TcpAcross, Measure::TcpAcross4];

const fn case(measure: Measure, system: System) -> Case {
    Case { measure, system }
}

/// All cases. Those to be compared are neighbours, so that they meet the machine in the same mood.
#[must_use]
pub fn cases() -> Vec<Case> {
    let measures = Measure::value_variants().iter();
    measures
        .flat_map(|&measure| System::ALL.map(|system| case(measure, system)))
        .filter(|case| asked(case.measure).contains(case.system))
        .collect()
}

/// The cases for a second underlay: what a larger MTU changes most, of those who lead.
#[must_use]
pub fn cases_with_another_mtu() -> Vec<Case> {
    let mut cases = cases();
    cases
        .retain(|case| ANOTHER_MTU.contains(&case.measure) && Asked::Leaders.contains(case.system));
    cases
}

/// Who is asked a question.
#[derive(Clone, Copy)]
enum Asked {
    /// Every system: what a user would compare.
    Everyone,
    /// Those whose figures a target names, and the references. The others are slower at one stream
    /// already, and every one of them costs minutes.
    Leaders,
    /// Who has two ends on one worker.
    SameNode,
}

fn asked(measure: Measure) -> Asked {
    match measure {
        Measure::TcpAcross
        | Measure::Udp64
        | Measure::Udp1200
        | Measure::RttIdle
        | Measure::RttBesideTcp => Asked::Everyone,
        Measure::TcpAcrossReverse
        | Measure::TcpAcrossBothWays
        | Measure::TcpAcross4
        | Measure::TcpAcross16
        | Measure::RttIdleSparse
        | Measure::RttBesideTcp4 => Asked::Leaders,
        Measure::TcpSameNode | Measure::RttSameNode => Asked::SameNode,
    }
}

impl Asked {
    fn contains(self, system: System) -> bool {
        match self {
            Self::Everyone => true,
            Self::Leaders => {
                let is_leader = matches!(system, System::Fabric | System::WireguardGo);
                is_leader || !(system.encrypted() || system == System::Quinn)
            }
            Self::SameNode => matches!(system, System::Fabric | System::Veth),
        }
    }
}

/// The order of repetition number `index`: every other one runs backwards, so that neither of two
/// neighbours is always the first.
pub fn order(cases: &[Case], index: u32) -> impl Iterator<Item = Case> {
    let backwards = index % 2 == 1;
    let count = cases.len();
    (0..count).filter_map(move |position| {
        let position = if backwards {
            count - 1 - position
        } else {
            position
        };
        cases.get(position).copied()
    })
}

/// How long a load runs that `pings` are sent beside (seconds).
#[must_use]
pub fn load_seconds(pings: Pings) -> u32 {
    let needed = RAMP + pings.duration() + SLACK;
    u32::try_from(needed.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// About how long one measurement takes, where a load is `seconds` long.
#[must_use]
pub fn duration(measure: Measure, seconds: u32) -> Duration {
    let load = |seconds: u32| Duration::from_secs(seconds.into()) + LOAD_OVERHEAD;
    match measure.probe() {
        Probe::Tcp { .. } | Probe::Udp { .. } => load(seconds),
        Probe::Rtt {
            pings,
            beside_streams,
        } => match beside_streams {
            0 => pings.duration() + PING_OVERHEAD,
            _ => load(load_seconds(pings)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the floors compare is among what is measured, each case once, and so is what another MTU
    /// is measured with.
    #[test]
    fn cases_are_distinct_and_cover_the_check() {
        let all = cases();
        let distinct: BTreeSet<Case> = all.iter().copied().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(CHECKED.iter().all(|case| distinct.contains(case)));
        let short = cases_with_another_mtu();
        assert!(!short.is_empty() && short.len() < all.len());
        assert!(short.iter().all(|case| distinct.contains(case)));
    }

    /// This project answers every question, beside somebody or something it can be compared with.
    #[test]
    fn every_measure_compares() {
        for &measure in Measure::value_variants() {
            let mut asked = cases();
            asked.retain(|case| case.measure == measure);
            assert!(asked.contains(&case(measure, System::Fabric)));
            assert!(asked.len() > 1, "{measure:?}");
        }
    }

    /// Two repetitions in a row mirror each other.
    #[test]
    fn every_other_repetition_runs_backwards() {
        let all = cases();
        let forwards: Vec<Case> = order(&all, 0).collect();
        let mut backwards: Vec<Case> = order(&all, 1).collect();
        assert_eq!(forwards, all);
        backwards.reverse();
        assert_eq!(backwards, all);
    }

    /// A load is as long as asked, one beside pings as long as these need, and pings alone as long as
    /// their pauses.
    #[test]
    fn durations_follow_the_probes() {
        let rounded = |measure| duration(measure, 3).as_secs_f64().round();
        assert_eq!(rounded(Measure::TcpAcross16), 3.0);
        assert_eq!(rounded(Measure::Udp64), 3.0);
        assert_eq!(rounded(Measure::RttBesideTcp), 5.0);
        assert_eq!(rounded(Measure::RttIdle), 2.0);
        assert_eq!(rounded(Measure::RttIdleSparse), 3.0);
    }

    /// Everything takes less than 40 minutes with 5 repetitions of 3 s and twelve systems: those that
    /// are here, and for each one that is not a contender that is asked what everyone is asked.
    #[test]
    fn a_run_stays_sensible() {
        let seconds = |cases: &[Case]| -> f64 {
            let each = cases.iter().map(|case| duration(case.measure, 3));
            each.sum::<Duration>().as_secs_f64()
        };
        let mut of_one = cases();
        of_one.retain(|case| {
            case.system == System::Fabric && matches!(asked(case.measure), Asked::Everyone)
        });
        let absent = 12_usize.saturating_sub(System::ALL.len());
        let one_run = seconds(&cases())
            + seconds(&cases_with_another_mtu())
            + seconds(&of_one) * absent as f64;
        assert!(
            5.0 * one_run < 40.0 * 60.0,
            "{one_run} s for one repetition"
        );
    }
}
