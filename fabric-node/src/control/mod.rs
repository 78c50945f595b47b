//! From sources of truth to the snapshot in force.
//!
//! `Source -> DesiredState (complete, not a delta) -> reconcile (pure) -> SnapshotBuilder -> publish`.

pub mod desired;
pub mod file;
pub mod host;
pub mod in_force;
pub mod kubernetes;
pub mod last_good;
pub mod outside;
pub mod reconcile;
mod value;
