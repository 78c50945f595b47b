//! State source `file`: a directory of TOML files, watched.
//!
//! Comes in: a directory. Goes out: a complete [`DesiredState`] that passed every check, or one
//! error with file, line, column and key. Never done here: putting a state in force.
//!
//! Each file `*.toml` holds one or more nodes:
//!
//! ```toml
//! [[node]]
//! id = "worker-a"
//! underlay = ["192.0.2.1:7946", "[2001:db8::1]:7946"]
//! pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"]
//! host_addresses = ["198.51.100.1"]   # optional: further addresses of the host
//! ```
//!
//! Of several ranges of one family the first is used for allocation; all are routed to the node.

mod claims;
mod watch;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use self::claims::Claims;
pub use self::watch::{FileWatch, SourceEvent, watch};
use super::{
    desired::{DesiredState, NodeSpec},
    value,
};
use crate::config::place::{Misplaced, Source};
use crate::node_id::NodeId;

/// Largest file that is read (bytes): thousands of nodes; a larger one is a mistake.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most nodes in one fabric.
pub const NODES_MAX: usize = 10_000;

/// Why the directory is no desired state.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The directory cannot be read; that is never an empty fabric.
    #[error("cannot read the nodes directory {path}: {source}; check source.path")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file in it cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is too large.
    #[error("{path} has {found} bytes: expected at most {FILE_BYTES_MAX}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size (bytes).
        found: u64,
    },
    /// No file names a node; that is never an empty fabric.
    #[error("no node in {path}: expected at least one [[node]] in a file named *.toml")]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A file says something that it must not.
    #[error("{0}")]
    Invalid(Misplaced),
    /// The directory cannot be watched.
    #[error(
        "cannot watch {path}: {source}; check fs.inotify.max_user_instances and fs.inotify.max_user_watches"
    )]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the watcher said.
        source: notify::Error,
    },
}

/// Reads all `*.toml` files of `path`, in the order of their names, into one state.
///
/// Hidden files and those that editors write beside the real ones are left out.
///
/// # Errors
///
/// [`SourceError`] for the first fault found; there is no partial state.
pub fn read_directory(path: &Path) -> Result<DesiredState, SourceError> {
    let mut texts = Vec::new();
    for file in files(path)? {
        let text = read_file(&file)?;
        texts.push((file, text));
    }
    let mut state = DesiredState::default();
    let mut claims = Claims::default();
    for (path, text) in &texts {
        let source = Source { path, text };
        if text.trim().is_empty() {
            // Most likely a file that is just being written: its nodes must not vanish meanwhile.
            let problem = "the file is empty: expected [[node]], or no such file";
            return Err(SourceError::Invalid(source.at(0, problem.to_owned())));
        }
        let document: Document = source.parse().map_err(SourceError::Invalid)?;
        for table in &document.node {
            let (id, spec) = node(&source, table, &mut claims).map_err(SourceError::Invalid)?;
            if state.nodes.len() == NODES_MAX {
                let problem = format!("node {id} is one too many: expected at most {NODES_MAX}");
                let misplaced = source.at(table.id.span().start, problem);
                return Err(SourceError::Invalid(misplaced));
            }
            state.nodes.insert(id, spec);
        }
    }
    if state.nodes.is_empty() {
        return Err(SourceError::Empty {
            path: path.to_owned(),
        });
    }
    claims.check_overlaps().map_err(SourceError::Invalid)?;
    Ok(state)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    node: Vec<NodeTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeTable {
    id: Spanned<String>,
    underlay: Spanned<Vec<Spanned<String>>>,
    pod_cidrs: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    host_addresses: Vec<Spanned<String>>,
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let failed = |source| SourceError::Directory {
        path: dir.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".toml") && !name.starts_with(['.', '#']) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<String, SourceError> {
    let failed = |source| SourceError::File {
        path: path.to_owned(),
        source,
    };
    let found = fs::metadata(path).map_err(failed)?.len();
    if found > FILE_BYTES_MAX {
        return Err(SourceError::TooLarge {
            path: path.to_owned(),
            found,
        });
    }
    fs::read_to_string(path).map_err(failed)
}

fn node<'a>(
    source: &Source<'a>,
    table: &NodeTable,
    claims: &mut Claims<'a>,
) -> Result<(NodeId, NodeSpec), Misplaced> {
    let id = NodeId::new(table.id.get_ref())
        .map_err(|problem| source.at(table.id.span().start, problem))?;
    claims.name(source, &id, table.id.span().start)?;

    for (list, wanted) in [
        (
            &table.underlay,
            "an address and port, such as \"192.0.2.1:7946\"",
        ),
        (&table.pod_cidrs, "a range, such as \"10.244.1.0/24\""),
    ] {
        if list.get_ref().is_empty() {
            let problem = format!("the list is empty: expected at least {wanted}");
            return Err(source.at(list.span().start, problem));
        }
    }
    let mut spec = NodeSpec {
        underlay: Vec::new(),
        pod_cidrs: Vec::new(),
        host_addresses: Vec::new(),
        identity_keys: Vec::new(),
    };
    for text in table.underlay.get_ref() {
        let offset = text.span().start;
        let address = value::underlay(text.get_ref()).map_err(|p| source.at(offset, p))?;
        claims.address(source, &id, address.ip(), offset);
        spec.underlay.push(address);
    }
    for text in table.pod_cidrs.get_ref() {
        let offset = text.span().start;
        let range = value::pod_cidr(text.get_ref()).map_err(|p| source.at(offset, p))?;
        claims.range(source, &id, range, offset);
        spec.pod_cidrs.push(range);
    }
    for text in &table.host_addresses {
        let offset = text.span().start;
        let address = value::host_address(text.get_ref()).map_err(|p| source.at(offset, p))?;
        claims.address(source, &id, address, offset);
        spec.host_addresses.push(address);
    }
    Ok((id, spec))
}

#[cfg(test)]
mod tests;
