//! The side-by-side runner: fabric and what one would pick otherwise, between the same two workers.
//!
//! Comes in: programs (the daemon, iperf3, ping, Go and cargo for the contenders). Goes out: throughput, round-trip
//! time, CPU and memory of each system, as samples, medians and ratios. Never done here: judging
//! absolute figures, which belong to one machine and one day; only ratios of one run are compared.
//!
//! [`system`] says who is measured, [`plan`] what, [`bed`] builds the two workers with every system
//! on them, [`runner`] measures in turns with [`iperf`], [`ping`] and [`usage`], [`report`] sums up
//! and [`check`] compares with the floors. [`contender`] is how others are set up, [`child`] how
//! programs end.
//! [`fabric`] is what the micro-benchmarks of `benches/benches` decide about.

pub mod bed;
pub mod check;
pub mod child;
pub mod contender;
pub mod fabric;
pub mod fair;
pub mod iperf;
pub mod ping;
pub mod plan;
pub mod report;
pub mod runner;
pub mod system;
pub mod usage;

pub use contender::wireguard_go as wireguard;
