//! The network list as the daemon puts it in place, without anybody to ask.
//!
//! Comes in: the runtime's folder, and the daemon's own paths. Goes out: the same list as `fabric install-cni`
//! writes, under the same rules: whole or not at all, and never in place of one that somebody changed or that
//! is not ours. Never done here: waiting until pods can be attached, and taking the list away.

use std::path::{Path, PathBuf};

use super::{
    LIST_NAME, files_before,
    folder::{Changes, Folder},
    list::{self, Decision, Wanted},
};
use crate::cli::cni_dir::NETWORK_BYTES_MAX;

/// What became of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenList {
    /// Its file.
    pub path: PathBuf,
    /// What was done.
    pub outcome: Outcome,
    /// Files that runtimes read before it, so that it is not in force.
    pub before: Vec<PathBuf>,
}

/// What was done about the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was written.
    Written,
    /// It was there already.
    Unchanged,
    /// It is ours, and somebody changed it: it stays.
    Kept,
}

/// Writes the list into `dir` for a daemon that has `socket` for the plugin and keeps its state in `state_dir`.
///
/// # Errors
///
/// The folder is not safe, a file of the list's name is not ours or names other paths, or the system refuses.
pub fn write_list(dir: &Path, socket: &Path, state_dir: &Path) -> anyhow::Result<WrittenList> {
    let wanted = Wanted::new(Some(socket), Some(state_dir))?;
    let folder = Folder::make(dir, Changes::Made)?;
    let name = format!("{LIST_NAME}.conflist");
    let path = folder.file(&name);
    let there = folder.look(&name, NETWORK_BYTES_MAX)?;
    let decision = wanted.decide(&path, there.as_ref(), false)?;
    folder.clear()?;
    let outcome = match decision {
        Decision::Write(content) => {
            folder.stage(&name, &content, list::MODE)?.place()?;
            Outcome::Written
        }
        Decision::Leave => Outcome::Unchanged,
        Decision::Keep => Outcome::Kept,
    };
    let before = files_before(dir, &path)?;
    Ok(WrittenList {
        before: before.into_iter().map(|file| file.path).collect(),
        path,
        outcome,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    const SOCKET: &str = "/run/fabric/cni.sock";
    const STATE: &str = "/var/lib/fabric";

    fn write(dir: &Path) -> anyhow::Result<WrittenList> {
        write_list(dir, Path::new(SOCKET), Path::new(STATE))
    }

    /// The list is that of the repository, appears whole, and a second start leaves it alone; files that
    /// runtimes read before it are named.
    #[test]
    fn a_list_of_the_daemons_own() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("net.d");
        let first = write(&folder).unwrap();
        assert_eq!(first.outcome, Outcome::Written);
        assert_eq!(first.path, folder.join("10-fabric.conflist"));
        assert_eq!(fs::read_to_string(&first.path).unwrap(), list::DEFAULT);
        assert_eq!(first.before, [] as [&Path; 0]);
        let other = folder.join("05-other.conf");
        fs::write(&other, r#"{"name":"x","type":"bridge"}"#).unwrap();
        let second = write(&folder).unwrap();
        assert_eq!(second.outcome, Outcome::Unchanged);
        assert_eq!(second.before, [other]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    /// What a person changed is kept, and what is not ours is refused; both stay byte by byte.
    #[test]
    fn a_persons_list_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("10-fabric.conflist");
        let chained = list::DEFAULT.replace(
            "\"type\": \"fabric-cni\"\n    }",
            "\"type\": \"fabric-cni\"\n    }, {\"type\": \"tuning\"}",
        );
        assert_ne!(chained, list::DEFAULT);
        fs::write(&file, &chained).unwrap();
        assert_eq!(write(dir.path()).unwrap().outcome, Outcome::Kept);
        assert_eq!(fs::read_to_string(&file).unwrap(), chained);
        let foreign = r#"{"name":"x","plugins":[{"type":"bridge"}]}"#;
        fs::write(&file, foreign).unwrap();
        assert!(write(dir.path()).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), foreign);
    }
}
