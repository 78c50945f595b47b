//! The directory of nodes, changed as an operator or a tool does: by renaming whole files.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use fabric_node::lab::{LabState, daemon};

/// The file that describes `node`.
#[must_use]
pub fn file_of(state: &LabState, node: &str) -> PathBuf {
    daemon::nodes_dir(state).join(format!("{node}.toml"))
}

/// The text of a file with one node.
#[must_use]
pub fn node_text(id: &str, underlay: &[&str], pod_cidrs: &[&str]) -> String {
    format!("[[node]]\nid = {id:?}\nunderlay = {underlay:?}\npod_cidrs = {pod_cidrs:?}\n")
}

/// Puts a file with `text` in the place of the one that describes `node`, in one step.
///
/// # Errors
///
/// The file system refuses.
pub fn replace(state: &LabState, node: &str, text: &str) -> anyhow::Result<()> {
    let unfinished = state.folder.join(format!("{node}.unfinished"));
    fs::write(&unfinished, text)?;
    fs::rename(&unfinished, file_of(state, node))
        .with_context(|| format!("cannot replace the file of {node}"))
}

/// Takes the file of `node` away; its text.
///
/// # Errors
///
/// The file system refuses.
pub fn remove(state: &LabState, node: &str) -> anyhow::Result<String> {
    let file = file_of(state, node);
    let text = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    Ok(text)
}
