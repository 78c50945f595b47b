//! Whom a folder must be safe from.
//!
//! Comes in: a path. Goes out: nothing, or who else than root could change what is there. Never done here:
//! a change of permissions; what got in while they were wrong has to be looked at by a person.

use std::{fmt::Display, fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, ensure};

/// Write permission of the group and of others.
const WRITE_GROUP: u32 = 0o020;
const WRITE_OTHERS: u32 = 0o002;
/// Only owners may rename what is in such a folder.
const STICKY: u32 = 0o1000;

/// Refuses a folder whose files others than root may change or exchange: what runtimes find there they
/// execute as root. `existing` is the part of `path` that is there, `is_all` whether it is all of it.
///
/// # Errors
///
/// Somebody else owns it or a folder above it, or may write there; the message has the cure.
pub(in crate::cli) fn require_trusted(
    path: &Path,
    existing: &Path,
    is_all: bool,
) -> anyhow::Result<()> {
    // Links are allowed on the way, so the way is looked at without them.
    let real = existing
        .canonicalize()
        .with_context(|| format!("cannot find {}", existing.display()))?;
    ensure!(real.is_dir(), "{} is not a folder", existing.display());
    for place in real.ancestors() {
        let metadata = fs::symlink_metadata(place)
            .with_context(|| format!("cannot examine {}", place.display()))?;
        let (mode, shown) = (metadata.mode(), place.display());
        let refuse = |what: &dyn Display, cure: &str| {
            anyhow::anyhow!(
                "{} is not safe: {shown} {what}, and runtimes execute as root what they find there; \
                 `{cure} {shown}`, once what is in it has been looked at",
                path.display()
            )
        };
        if metadata.uid() != 0 {
            let what = format!("belongs to user {} and not to root", metadata.uid());
            return Err(refuse(&what, "chown root:root"));
        }
        // Who may write to a sticky folder above cannot exchange root's folders in it.
        if mode & STICKY != 0 && (place != real || !is_all) {
            continue;
        }
        if mode & WRITE_OTHERS != 0 {
            return Err(refuse(&"is writable by everybody", "chmod go-w"));
        }
        if mode & WRITE_GROUP != 0 && metadata.gid() != 0 {
            let what = format!("is writable by group {}", metadata.gid());
            return Err(refuse(&what, "chmod g-w"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::{
        super::folder::{Changes, Folder},
        *,
    };

    /// A folder that others than root may write to, by itself or by one above it, is refused with a
    /// cure. Needs root, to have folders of others.
    #[test]
    fn folders_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (above, path) = (dir.path().join("above"), dir.path().join("above/folder"));
        fs::create_dir_all(&path).unwrap();
        let set = |place: &Path, mode: u32, user: u32, group: u32| {
            fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap();
            chown(place, Some(user), Some(group)).unwrap();
        };
        let refused = |words: &[&str]| {
            for path in [path.clone(), path.join("not/yet")] {
                let error = format!("{:#}", Folder::make(&path, Changes::Made).unwrap_err());
                assert!(words.iter().all(|word| error.contains(word)), "{error}");
            }
            assert!(!path.join("not").exists());
        };
        for place in [&above, &path] {
            set(place, 0o757, 0, 0);
            refused(&["writable by everybody", "chmod go-w"]);
            set(place, 0o775, 0, 1000);
            refused(&["writable by group 1000", "chmod g-w"]);
            set(place, 0o755, 1000, 0);
            refused(&["belongs to user 1000", "chown root:root"]);
            set(place, 0o775, 0, 0);
            drop(Folder::make(&path, Changes::Made).unwrap());
            set(place, 0o755, 0, 0);
        }
        set(&path, 0o1777, 0, 0);
        let error = Folder::make(&path, Changes::Made).unwrap_err();
        assert!(error.to_string().contains("writable by everybody"));
        set(&path, 0o755, 0, 0);
        set(&above, 0o1777, 0, 0);
        drop(Folder::make(&path, Changes::Made).unwrap());
    }
}
