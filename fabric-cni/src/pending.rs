//! A DEL that the daemon could not take, put on disk so that it survives everything but the disk.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
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
    create_durably(&folder).map_err(at)?;
    let path = folder.join(PendingDelete::file_name(key));
    let finished = clean_and_count(&folder).map_err(at)?;
    if finished >= PendingDelete::FILES_MAX && !path.exists() {
        return Err(PendingError::Full {
            path: folder.display().to_string(),
        });
    }
    write_durably(&folder, &path, key).map_err(at)
}

/// Makes the folder and those above it; on return their names are on stable storage. Others may be
/// making them at the same time.
fn create_durably(folder: &Path) -> io::Result<()> {
    let create = || match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        other => other,
    };
    if let Err(error) = create() {
        // Nothing is above the root, and nothing can be made above a relative name.
        let above = folder.parent().filter(|above| *above != Path::new(""));
        match above {
            Some(above) if error.kind() == io::ErrorKind::NotFound => create_durably(above)?,
            _ => return Err(error),
        }
        create()?;
    }
    // Also when the folder was there: the plugin that made it may have been killed before this step.
    match folder.parent() {
        Some(above) => File::open(above)?.sync_all(),
        None => Ok(()),
    }
}

/// How many finished files the folder holds, once those that killed plugins left unfinished are gone.
fn clean_and_count(folder: &Path) -> io::Result<usize> {
    let mut finished = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if has_suffix(&name, PendingDelete::SUFFIX) {
            finished += 1;
        } else if has_suffix(&name, PendingDelete::UNFINISHED_SUFFIX) && is_old(&entry) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(finished)
}

fn has_suffix(name: &OsStr, suffix: &str) -> bool {
    name.as_encoded_bytes().ends_with(suffix.as_bytes())
}

/// A file from the future, after the clock was set back, waits until the clock has caught up.
fn is_old(entry: &fs::DirEntry) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| {
        modified
            .elapsed()
            .is_ok_and(|age| age > PendingDelete::UNFINISHED_AGE)
    })
}

/// The unfinished file has a name that nobody else uses (`O_EXCL`, mode 0600), and goes away with
/// every failure.
fn write_durably(folder: &Path, path: &Path, key: &AttachmentKey) -> io::Result<()> {
    let json = serde_json::to_vec(&PendingDelete::new(key.clone()))?;
    let mut unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .suffix(PendingDelete::UNFINISHED_SUFFIX)
        .tempfile_in(folder)?;
    unfinished.write_all(&json)?;
    unfinished.as_file().sync_all()?;
    unfinished.persist(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, SystemTime};

    use super::*;

    fn key(container_id: &str) -> AttachmentKey {
        AttachmentKey {
            network: "fabric".into(),
            container_id: container_id.into(),
            ifname: "eth0".into(),
        }
    }

    fn names_in(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The file holds the whole key, and the same DEL again takes no second file.
    #[test]
    fn repeats_share_one_file() {
        let state = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            write(state.path(), &key("c1")).unwrap();
        }
        let folder = state.path().join(PENDING_DELETES_DIR);
        let names = names_in(&folder);
        assert_eq!(names, [PendingDelete::file_name(&key("c1"))]);
        let kept = fs::read(folder.join(&names[0])).unwrap();
        let kept: PendingDelete = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept, PendingDelete::new(key("c1")));
    }

    /// Folders that are missing are made, however many; a file in their place is an error.
    #[test]
    fn folders_are_made() {
        let state = tempfile::tempdir().unwrap();
        write(&state.path().join("a/b/c"), &key("c1")).unwrap();
        assert_eq!(
            names_in(&state.path().join("a/b/c").join(PENDING_DELETES_DIR)).len(),
            1
        );
        File::create(state.path().join("file")).unwrap();
        assert!(matches!(
            write(&state.path().join("file"), &key("c1")),
            Err(PendingError::Io { .. })
        ));
    }

    /// At the limit a new DEL is refused, and one that is already there still succeeds; only finished
    /// files count.
    #[test]
    fn files_are_bounded() {
        let state = tempfile::tempdir().unwrap();
        write(state.path(), &key("c1")).unwrap();
        let folder = state.path().join(PENDING_DELETES_DIR);
        for index in 0..20 {
            File::create(folder.join(format!("{index}.tmp"))).unwrap();
            File::create(folder.join(format!("{index}.foreign"))).unwrap();
        }
        for index in 1..PendingDelete::FILES_MAX - 1 {
            File::create(folder.join(format!("{index}.delete"))).unwrap();
        }
        write(state.path(), &key("c2")).unwrap();
        assert!(matches!(
            write(state.path(), &key("c3")),
            Err(PendingError::Full { .. })
        ));
        write(state.path(), &key("c1")).unwrap();
    }

    /// Unfinished files go once they are a minute old; younger ones may be somebody's work, and others
    /// are not the plugin's.
    #[test]
    fn unfinished_files_go() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join(PENDING_DELETES_DIR);
        fs::create_dir(&folder).unwrap();
        let minute_ago = SystemTime::now() - PendingDelete::UNFINISHED_AGE;
        let second = Duration::from_secs(1);
        for (name, modified) in [
            ("old.tmp", minute_ago - second),
            ("young.tmp", minute_ago + 20 * second),
            ("future.tmp", SystemTime::now() + 1000 * second),
            ("old.foreign", minute_ago - second),
        ] {
            let file = File::create(folder.join(name)).unwrap();
            file.set_modified(modified).unwrap();
        }
        write(state.path(), &key("c1")).unwrap();
        let mut names = names_in(&folder);
        names.retain(|name| !has_suffix(OsStr::new(name), PendingDelete::SUFFIX));
        names.sort();
        assert_eq!(names, ["future.tmp", "old.foreign", "young.tmp"]);
    }
}
