//! Who gets how much when several pods of one node send at once, and how long a ping takes beside
//! them.
//!
//! Comes in: a lab of two workers with five pods each. Goes out: the share of each sender, round-trip
//! times, what is left of TCP beside a flood of UDP: samples, medians, a verdict for each promise.
//! Never done here: judging throughput.
//!
//! [`measure`] runs one case, with [`flood`] and [`rtt`]; [`report`] sums up.

pub mod flood;
pub mod measure;
pub mod report;
pub mod rtt;
