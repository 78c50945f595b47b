//! What a run found, summed up. Comes in: samples, and what could not be had. Goes out: a document for
//! programs ([`json`]), tables for people ([`markdown`]), pictures ([`charts`]). Never done here:
//! measuring, or writing files.
//!
//! [`samples`] keeps and sums up, [`targets`] judges the medians by what the project has promised
//! itself.

pub mod charts;
pub mod json;
pub mod markdown;
pub mod samples;
pub mod targets;

use std::collections::BTreeMap;

pub use self::samples::{Sample, Samples};
use crate::{bed::Missing, machine::Machine, plan::System};

/// Everything that a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Under which circumstances.
    pub circumstances: Circumstances,
    /// One part for each underlay, in the order in which they were built.
    pub parts: Vec<Part>,
}

/// What was found over one underlay.
#[derive(Clone, Debug)]
pub struct Part {
    /// MTU of the underlay (bytes).
    pub underlay_mtu: u32,
    /// All measurements.
    pub samples: Samples,
    /// What ran as each system, where that is known.
    pub versions: BTreeMap<System, String>,
    /// Systems that could not be built or started.
    pub missing: Vec<Missing>,
    /// Why there are no samples at all, where that is so.
    pub unbuilt: Option<String>,
    /// How often all repetitions were made.
    pub rounds: u32,
}

/// Under which circumstances was measured.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Passes over all cases in a round.
    pub repetitions: u32,
    /// Length of one measurement under load (seconds).
    pub seconds: u32,
    /// On which machine.
    pub machine: Machine,
}

impl Part {
    /// One without samples so far.
    #[must_use]
    pub fn new(underlay_mtu: u32) -> Self {
        Self {
            underlay_mtu,
            samples: Samples::default(),
            versions: BTreeMap::new(),
            missing: Vec::new(),
            unbuilt: None,
            rounds: 1,
        }
    }

    /// One without samples, and why.
    #[must_use]
    pub fn unbuilt(underlay_mtu: u32, reason: String) -> Self {
        Self {
            unbuilt: Some(reason),
            ..Self::new(underlay_mtu)
        }
    }
}

impl Report {
    /// What was measured over the underlay with this MTU (bytes).
    #[must_use]
    pub fn samples(&self, underlay_mtu: u32) -> Option<&Samples> {
        let part = self
            .parts
            .iter()
            .find(|part| part.underlay_mtu == underlay_mtu);
        part.map(|part| &part.samples)
    }

    /// TCP congestion controls that were used, each once.
    #[must_use]
    pub fn congestion(&self) -> Vec<&str> {
        let parts = self.parts.iter();
        let mut names: Vec<&str> = parts.flat_map(|part| part.samples.congestion()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod example;
