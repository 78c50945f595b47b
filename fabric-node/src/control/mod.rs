//! From sources of truth to the snapshot in force.
//!
//! `Source -> DesiredState (complete, not a delta) -> reconcile (pure) -> SnapshotBuilder -> publish`.

pub mod desired;
pub mod file;
pub mod last_good;
pub mod reconcile;
