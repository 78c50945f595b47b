//! The side-by-side runner: fabric and what one would pick otherwise, between the same two workers.
//!
//! Comes in: programs (the daemon, iperf3, Go and cargo for the contenders). Goes out:
//! throughput, round-trip time, CPU and memory of each system, as samples, medians, ratios, charts, and verdicts on what the
//! project has promised itself. Never done here: comparing figures of different runs, which belong to
//! one machine and one day.
//!
//! [`system`] says who is measured, [`measure`] what can be asked, [`plan`] who is asked what. [`bed`]
//! builds the two workers with every system on them, [`runner`] measures in turns with [`iperf`],
//! [`ping`] and [`usage`], [`report`] sums up with [`statistics`] and judges, [`check`] compares with
//! the floors. [`contender`] is how others are set up, [`child`] how they end. The
//! micro-benchmarks of `benches/benches` decide about a [`fabric`], and share [`stages`].
//!
//! Beside it, [`limits`] are figures that are compared with a limit and with nobody, [`fair`] is how
//! four pods share a node, and [`yardstick`] has two relays to hold the fabric against. All programs
//! share [`invocation`], what they are told and how they end, and [`machine`], where they ran;
//! [`two_pods`] is for those that look at one stream.

pub mod bed;
pub mod check;
pub mod child;
pub mod contender;
pub mod fabric;
pub mod fair;
pub mod invocation;
pub mod iperf;
pub mod limits;
pub mod machine;
pub mod measure;
pub mod ping;
pub mod plan;
pub mod report;
pub mod runner;
pub mod stages;
pub mod statistics;
pub mod system;
pub mod two_pods;
pub mod usage;
pub mod yardstick;
