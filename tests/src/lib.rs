//! What the integration tests share: labs made of the real release binaries, traffic inside of them,
//! and questions to the daemons; and a fabric simulated in memory. The tests themselves are in
//! `tests/`; the programs `soak` and `churn` are for what takes too long for every change, the program
//! `impair` is the bad cable in some of these labs.

pub mod account;
pub mod churn;
pub mod cluster;
pub mod eventually;
pub mod fuzz;
pub mod gotools;
pub mod impair;
pub mod installer;
pub mod load;
pub mod machine;
pub mod matrix;
pub mod operator;
pub mod outside;
pub mod page;
pub mod pings;
pub mod plugin;
pub mod probe;
pub mod runtime;
pub mod sim;
pub mod sources;
pub mod stage;
pub mod stream;
pub mod threads;
pub mod trace;
pub mod traffic;
