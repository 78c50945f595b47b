//! The corpus: one file per input in `tests/fuzz/corpus/TARGET`, in the order of the names.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};

use crate::stage::workspace;

/// Largest file of the corpus (bytes): it is in the repository.
const CORPUS_FILE_BYTES_MAX: usize = 16 * 1024;

/// The folder of all targets.
#[must_use]
pub fn root() -> PathBuf {
    workspace().join("tests/fuzz/corpus")
}

/// The folder of a target.
#[must_use]
pub fn folder(target: &str) -> PathBuf {
    root().join(target)
}

/// All inputs of a target with the names of their files.
///
/// # Errors
///
/// There are none, or one is too large.
pub fn read(target: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = folder(target);
    let mut inputs = Vec::new();
    let entries = fs::read_dir(&folder).with_context(|| format!("no corpus in {folder:?}"))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let input = fs::read(&path)?;
        ensure!(
            input.len() <= CORPUS_FILE_BYTES_MAX,
            "{path:?} has {} bytes: at most {CORPUS_FILE_BYTES_MAX}",
            input.len()
        );
        inputs.push((name.into_owned(), input));
    }
    inputs.sort();
    ensure!(!inputs.is_empty(), "no input in {folder:?}");
    Ok(inputs)
}
