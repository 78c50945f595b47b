//! What a state source says is put in force, and kept for the next start.

use std::{path::Path, sync::Arc, time::SystemTime};

use crate::{
    admin::view::SourceContact,
    causes::with_causes,
    control::{
        desired::DesiredState,
        file::{self, FileWatch, SourceEvent},
        in_force::InForce,
        last_good::LastGood,
    },
};

/// Where states go.
#[derive(Clone)]
pub(super) struct Target {
    /// Puts them in force.
    pub(super) in_force: Arc<InForce>,
    /// Keeps them.
    pub(super) last_good: LastGood,
    /// Notes that the source has spoken.
    pub(super) contact: Arc<SourceContact>,
}

impl Target {
    /// Puts a state in force and on disk; false if it is refused, and what was in force stays. Blocks.
    pub(super) fn apply(&self, desired: DesiredState) -> bool {
        let in_force = &self.in_force;
        match in_force.set_desired(desired.clone()) {
            Ok(()) => {
                self.contact.confirm(SystemTime::now());
                tracing::info!(
                    nodes = desired.nodes.len(),
                    generation = in_force.generation().0,
                    "new state in force"
                );
                if let Err(error) = self.last_good.save(&desired, SystemTime::now()) {
                    tracing::error!(%error, "the state in force will not survive a restart");
                }
                true
            }
            Err(error) => {
                tracing::error!(
                    error = with_causes(&error),
                    "the new state is refused; the last good one stays in force"
                );
                false
            }
        }
    }
}

/// Applies every change of the directory at `path`, until the watch is dropped.
///
/// # Errors
///
/// It cannot be watched.
pub(super) fn files(path: &Path, first: DesiredState, target: Target) -> anyhow::Result<FileWatch> {
    let watch = file::watch(path, first, move |event| {
        // Failures and recoveries are logged where they are found; what is in force stays.
        let SourceEvent::Changed(desired) = event else {
            return;
        };
        target.apply(desired);
    })?;
    Ok(watch)
}
