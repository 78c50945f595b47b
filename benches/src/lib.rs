//! The side-by-side runner: fabric, wireguard-go and plain veth between the same two workers.
//!
//! Comes in: programs (the daemon, iperf3, ping, Go for the peer). Goes out: throughput, round-trip
//! time, CPU and memory of each system, as samples, medians and ratios. Never done here: judging
//! absolute figures, which belong to one machine and one day; only ratios of one run are compared.
//!
//! [`system`] says who is measured, [`plan`] what, [`bed`] builds the two workers with every system on them,
//! [`runner`] measures in turns with [`iperf`], [`ping`] and [`usage`], [`report`] sums up and
//! [`check`] compares with the floors. [`wireguard`] is the peer, [`child`] how programs end.
//! The micro-benchmarks of `benches/benches` decide about a [`fabric`], and share [`stages`].
//!
//! Beside it, [`limits`] are figures that are compared with a limit and with nobody, and [`yardstick`]
//! has two relays to hold the fabric against.

pub mod bed;
pub mod check;
pub mod child;
pub mod fabric;
pub mod iperf;
pub mod limits;
pub mod ping;
pub mod plan;
pub mod report;
pub mod runner;
pub mod stages;
pub mod system;
pub mod usage;
pub mod wireguard;
pub mod yardstick;
