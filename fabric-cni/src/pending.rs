//! A DEL that the daemon could not take, put on disk so that it survives everything but the disk.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use fabric_proto::cni::{AttachmentKey, PENDING_DELETES_DIR, PendingDelete};
use thiserror::Error;

/// Why the request could not be kept.
#[derive(Debug, Error)]
pub(crate) enum PendingError {
    #[error("cannot keep the DEL request in {path}: {source}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path} already holds {max} DEL requests that no daemon has taken",
        max = PendingDelete::FILES_MAX
    )]
    Full { path: String },
}

/// Writes the request beneath `state_dir`; on return it is on stable storage.
pub(crate) fn write(state_dir: &Path, key: &AttachmentKey) -> Result<(), PendingError> {
    let folder = state_dir.join(PENDING_DELETES_DIR);
    let at = |source| PendingError::Io {
        path: folder.display().to_string(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(at)?;
    let file_name = PendingDelete::file_name(key);
    let path = folder.join(&file_name);
    let room = path.exists() || count_below_limit(&folder).map_err(at)?;
    if !room {
        return Err(PendingError::Full {
            path: folder.display().to_string(),
        });
    }
    // The process id keeps two plugins with the same DEL apart.
    let unfinished = folder.join(format!("{file_name}.{}.tmp", std::process::id()));
    write_durably(&folder, &unfinished, &path, key).map_err(|source| {
        let _ = fs::remove_file(&unfinished);
        at(source)
    })
}

fn write_durably(
    folder: &Path,
    unfinished: &Path,
    path: &Path,
    key: &AttachmentKey,
) -> io::Result<()> {
    let json = serde_json::to_vec(&PendingDelete::new(key.clone()))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(unfinished)?;
    file.write_all(&json)?;
    file.sync_all()?;
    fs::rename(unfinished, path)?;
    File::open(folder)?.sync_all()
}

fn count_below_limit(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(folder)?.take(PendingDelete::FILES_MAX).count() < PendingDelete::FILES_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn key(container_id: &str) -> AttachmentKey {
        AttachmentKey {
            network: "fabric".into(),
            container_id: container_id.into(),
            ifname: "eth0".into(),
        }
    }

    /// The file holds the whole key, and the same DEL again takes no second file.
    #[test]
    fn repeats_share_one_file() {
        let state = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            write(state.path(), &key("c1")).unwrap();
        }
        let files: Vec<_> = fs::read_dir(state.path().join(PENDING_DELETES_DIR))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1);
        let kept: PendingDelete = serde_json::from_slice(&fs::read(&files[0]).unwrap()).unwrap();
        assert_eq!(kept, PendingDelete::new(key("c1")));
    }

    /// At the limit a new DEL is refused, and one that is already there still succeeds.
    #[test]
    fn files_are_bounded() {
        let state = tempfile::tempdir().unwrap();
        write(state.path(), &key("c1")).unwrap();
        let folder = state.path().join(PENDING_DELETES_DIR);
        for index in 1..PendingDelete::FILES_MAX {
            File::create(folder.join(format!("{index}.delete"))).unwrap();
        }
        assert!(matches!(
            write(state.path(), &key("c2")),
            Err(PendingError::Full { .. })
        ));
        write(state.path(), &key("c1")).unwrap();
    }
}
