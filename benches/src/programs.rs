//! Where the programs are that a benchmark starts: comes in what the user said, goes out a folder.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The folder `given`, or that of the running program: Cargo puts all of them into one.
///
/// # Errors
///
/// There is no such folder.
pub fn folder(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        Some(dir) => dir
            .canonicalize()
            .with_context(|| format!("no folder {}", dir.display())),
        None => Ok(std::env::current_exe()?
            .parent()
            .context("this program is in no folder")?
            .to_owned()),
    }
}
