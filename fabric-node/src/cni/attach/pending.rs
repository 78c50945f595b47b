//! DELs that the plugin left on disk because the daemon did not take them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use fabric_proto::cni::{PENDING_DELETES_DIR, PendingDelete};
use tracing::warn;

use super::{AttachError, Attacher, Turn};
use crate::cni::links::Links;

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
            let finished = path
                .to_str()
                .is_some_and(|path| path.ends_with(PendingDelete::SUFFIX));
            if !finished {
                continue;
            }
            match read(&path) {
                Ok(pending) => {
                    let claim = self.keys.claim(pending.key);
                    match self.drain_pending(&claim.turn()) {
                        Ok(()) => drained += 1,
                        Err(error) => {
                            warn!(file = %path.display(), %error, "a DEL request left by the plugin waits for the next sweep");
                        }
                    }
                }
                Err(reason) => {
                    // Written whole or not at all by the plugin: this is damage or foreign.
                    warn!(file = %path.display(), reason, "unreadable DEL request removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        drained
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

fn read(path: &Path) -> Result<PendingDelete, String> {
    let limit = u64::try_from(PendingDelete::FILE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    let pending: PendingDelete =
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let own_name = PendingDelete::file_name(&pending.key);
    if pending.version != PendingDelete::VERSION {
        Err(format!("its version {} is unknown", pending.version))
    } else if path.file_name().and_then(|name| name.to_str()) != Some(&own_name) {
        Err(format!("its name should be {own_name}"))
    } else {
        Ok(pending)
    }
}
