//! stub
use std::{path::{Path}, process::ExitCode};
use super::{exit::Failure, output::Output};
/// Args
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {}
/// run
pub fn run(_: &Path, _: Output, _: &DoctorArgs) -> Result<ExitCode, Failure> { Ok(ExitCode::SUCCESS) }
