//! Calls of the real plugin, one process each, against daemons that lie, stall and break off.
//!
//! Comes in: the program, a seed. Goes out: a [`Report`] as for any target. Each call has its own
//! environment, a configuration whose `socket` and `stateDir` lead to a folder of this run, and one
//! of [`Daemon`]. Never done here: a call that could reach the host's own daemon, state or network.

pub const NAME: &str = "exec";
use super::campaign::Report;
pub struct Execs {
    pub seed: u64,
    pub calls: u64,
    pub threads: usize,
    pub plugin: std::path::PathBuf,
    pub findings: std::path::PathBuf,
}
impl Execs {
    pub fn run(&self) -> anyhow::Result<Report> {
        anyhow::bail!("none")
    }
}
