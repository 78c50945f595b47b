//! Figures that have a limit of their own, beside nobody: lookup, ADD of a pod, idling, restart.
//!
//! Comes in: the programs, for labs of real daemons. Goes out: figures, each with the most it may be.
//! Never done here: comparing with others; that is the side-by-side runner.
//!
//! [`lookup`] times routes, [`attach`] the plugin, [`idle`] a daemon with many peers and nothing to
//! do, [`restart`] the way from the start of a daemon to its first packet. [`figures`] sums up.

pub mod attach;
pub mod figures;
pub mod idle;
pub mod lookup;
pub mod restart;

use std::path::PathBuf;

use fabric_node::lab::{Interrupt, LabName, LabOptions, Progress};

/// What every measurement needs that builds a lab.
#[derive(Debug)]
pub struct Stage {
    /// Name of the labs, of which one is up at a time.
    pub name: LabName,
    /// Folder of `fabric-node` and `fabric-cni`.
    pub bin_dir: PathBuf,
    /// Where progress is shown.
    pub progress: Progress,
    /// Whether somebody asked to stop.
    pub interrupt: Interrupt,
}

impl Stage {
    /// A lab with so many pods on each worker.
    #[must_use]
    pub fn lab(&self, pods: &[usize]) -> LabOptions {
        LabOptions {
            pods: pods.to_vec(),
            ..LabOptions::new(self.name.clone(), pods.len(), 0, self.bin_dir.clone())
        }
    }
}
