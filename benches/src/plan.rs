//! What can be measured: measures, and the pairs of measure and system that make sense.

use serde::Serialize;

pub use crate::system::System;

/// A question asked of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Measure {
    /// One TCP stream from worker a to worker b.
    TcpAcross,
    /// One TCP stream from worker b to worker a.
    TcpAcrossReverse,
    /// Four TCP streams from worker a to worker b.
    TcpAcross4,
    /// One TCP stream within a worker.
    TcpSameNode,
    /// Round-trip time across workers without load.
    RttIdle,
}

impl Measure {
    /// For a person.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::TcpAcross => "TCP across, 1 stream",
            Self::TcpAcrossReverse => "TCP across, reverse",
            Self::TcpAcross4 => "TCP across, 4 streams",
            Self::TcpSameNode => "TCP same node",
            Self::RttIdle => "RTT idle",
        }
    }

    /// What its values count.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::RttIdle => "ms",
            Self::TcpAcross | Self::TcpAcrossReverse | Self::TcpAcross4 | Self::TcpSameNode => {
                "Gbit/s"
            }
        }
    }

    /// TCP streams and whether they run from b to a; `None` for what is no TCP.
    #[must_use]
    pub fn streams(self) -> Option<(u32, bool)> {
        match self {
            Self::TcpAcross | Self::TcpSameNode => Some((1, false)),
            Self::TcpAcrossReverse => Some((1, true)),
            Self::TcpAcross4 => Some((4, false)),
            Self::RttIdle => None,
        }
    }
}

/// One system asked one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Case {
    /// The question; cases that answer the same one stand together.
    pub measure: Measure,
    /// Who is asked.
    pub system: System,
}

/// All cases. Those to be compared are neighbours, so that they meet the machine in the same mood.
pub const CASES: [Case; 12] = [
    case(Measure::TcpAcross, System::Fabric),
    case(Measure::TcpAcross, System::WireguardGo),
    case(Measure::TcpAcross, System::Veth),
    case(Measure::TcpAcrossReverse, System::Fabric),
    case(Measure::TcpAcrossReverse, System::WireguardGo),
    case(Measure::TcpAcross4, System::Fabric),
    case(Measure::TcpAcross4, System::WireguardGo),
    case(Measure::TcpSameNode, System::Fabric),
    case(Measure::TcpSameNode, System::Veth),
    case(Measure::RttIdle, System::Fabric),
    case(Measure::RttIdle, System::WireguardGo),
    case(Measure::RttIdle, System::Veth),
];

/// The cases that the floors of [`crate::check`] compare.
pub const CHECKED: [Case; 4] = [
    case(Measure::TcpAcross, System::Fabric),
    case(Measure::TcpAcross, System::WireguardGo),
    case(Measure::TcpSameNode, System::Fabric),
    case(Measure::TcpSameNode, System::Veth),
];

const fn case(measure: Measure, system: System) -> Case {
    Case { measure, system }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the floors compare is among what is measured, each case once.
    #[test]
    fn cases_are_distinct_and_cover_the_check() {
        let mut sorted = CASES.to_vec();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), CASES.len());
        assert!(CHECKED.iter().all(|case| CASES.contains(case)));
    }

    /// Two repetitions in a row mirror each other.
    #[test]
    fn every_other_repetition_runs_backwards() {
        let forwards: Vec<Case> = order(&CASES, 0).collect();
        let mut backwards: Vec<Case> = order(&CASES, 1).collect();
        assert_eq!(forwards, CASES);
        backwards.reverse();
        assert_eq!(backwards, CASES);
    }
}
