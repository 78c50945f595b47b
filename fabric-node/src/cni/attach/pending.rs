//! DELs that the plugin left on disk because the daemon did not take them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use fabric_proto::cni::{PENDING_DELETES_DIR, PendingDelete};
use thiserror::Error;
use tracing::{info, warn};

use super::{AttachError, Attacher, Turn};
use crate::cni::links::Links;

/// What the name of a request ends with that a plugin is writing.
const UNFINISHED_SUFFIX: &str = ".tmp";
/// A plugin that has not finished its file after this was killed: it writes a few hundred bytes.
const UNFINISHED_MAX: Duration = Duration::from_secs(60);

impl<L: Links> Attacher<L> {
    /// Carries out all DELs on disk; how many there were. One that cannot be carried out stays and
    /// is in the log.
    pub(super) fn drain_all_pending(&self) -> usize {
        let folder = self.pending_folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return 0,
            Err(error) => {
                warn!(folder = %folder.display(), %error, "cannot read the DEL requests left by the plugin");
                return 0;
            }
        };
        let mut drained = 0;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.ends_with(PendingDelete::SUFFIX)) {
                drained += usize::from(self.drain_file(&path));
            } else if name.is_some_and(|name| name.ends_with(UNFINISHED_SUFFIX)) {
                remove_if_stale(&path);
            }
        }
        drained
    }

    /// Whether the file held a DEL that is now carried out.
    fn drain_file(&self, path: &Path) -> bool {
        match read(path) {
            Ok(pending) => {
                let claim = self.keys.claim(pending.key);
                // Whoever is busy with the attachment may be for long, and the next to have it carries
                // this out first.
                let Some(turn) = claim.try_turn() else {
                    return false;
                };
                self.drain_pending(&turn)
                    .inspect_err(|error| {
                        warn!(file = %path.display(), %error, "a DEL request left by the plugin waits for the next sweep");
                    })
                    .is_ok()
            }
            // An ADD or DEL of the same key has carried it out meanwhile.
            Err(_) if !path.exists() => false,
            Err(error @ (Unreadable::Io(_) | Unreadable::Version(_))) => {
                warn!(file = %path.display(), %error, "a DEL request left by the plugin stays until it can be read");
                false
            }
            Err(error @ Unreadable::Damaged(_)) => {
                // Written whole or not at all by the plugin: this is damage or foreign.
                warn!(file = %path.display(), %error, "unreadable DEL request removed");
                let _ = fs::remove_file(path);
                false
            }
        }
    }

    /// Carries out the DEL on disk for one key, if there is one. It came before whatever has the
    /// key's turn: the plugin writes it only when its own call has ended.
    pub(super) fn drain_pending(&self, turn: &Turn<'_>) -> Result<(), AttachError> {
        let path = self
            .pending_folder()
            .join(PendingDelete::file_name(turn.key()));
        // Looking costs less than removing, and nearly always there is none.
        if !path.exists() {
            return Ok(());
        }
        self.detach(turn)?;
        // Left behind after a crash it would be carried out again, without effect.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(file = %path.display(), %error, "cannot remove a DEL request that was carried out");
        }
        Ok(())
    }

    fn pending_folder(&self) -> PathBuf {
        self.state_dir.join(PENDING_DELETES_DIR)
    }
}

/// Unfinished files count among those that the plugin lets pile up, so they must not stay.
fn remove_if_stale(path: &Path) {
    let age = fs::symlink_metadata(path)
        .and_then(|metadata| metadata.modified())
        .map(|modified| modified.elapsed().unwrap_or_default());
    if age.is_ok_and(|age| age >= UNFINISHED_MAX) {
        match fs::remove_file(path) {
            Ok(()) => {
                info!(file = %path.display(), "removed a DEL request that its plugin never finished");
            }
            Err(error) => {
                warn!(file = %path.display(), %error, "cannot remove an unfinished DEL request");
            }
        }
    }
}

/// Why a DEL request is not carried out.
#[derive(Debug, Error)]
enum Unreadable {
    /// It may be in order: another time it can be read.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// Another release of the plugin wrote it, and the daemon of that release knows what it says.
    #[error("its version {0} is unknown: it is of another release")]
    Version(u64),
    /// Nobody will ever know what it was.
    #[error("{0}")]
    Damaged(String),
}

fn read(path: &Path) -> Result<PendingDelete, Unreadable> {
    let limit = u64::try_from(PendingDelete::FILE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    let damaged = |error: serde_json::Error| Unreadable::Damaged(error.to_string());
    let content: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    if let Some(version) = content.get("version").and_then(serde_json::Value::as_u64)
        && version != u64::from(PendingDelete::VERSION)
    {
        return Err(Unreadable::Version(version));
    }
    let pending: PendingDelete = serde_json::from_value(content).map_err(damaged)?;
    let own_name = PendingDelete::file_name(&pending.key);
    if path.file_name().and_then(|name| name.to_str()) != Some(&own_name) {
        return Err(Unreadable::Damaged(format!(
            "its name should be {own_name}"
        )));
    }
    Ok(pending)
}
