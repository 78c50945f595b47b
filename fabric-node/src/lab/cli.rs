//! Arguments of `fabric lab`.

use std::process::ExitCode;

/// Arguments of `fabric lab`.
#[derive(Debug, clap::Args)]
pub struct LabArgs {}

/// Runs `fabric lab`.
///
/// # Errors
///
/// Always: this build has no lab.
pub fn run(_args: LabArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no lab")
}
