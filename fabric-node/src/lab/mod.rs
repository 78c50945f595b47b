//! lab
pub mod cli;
