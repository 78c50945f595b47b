//! A folder of the machine in which a container runtime trusts every file.
//!
//! Comes in: a path, then files to put in place or to take away. Goes out: the same names with new
//! content, never half of it: written beside under a name that no runtime reads, fsynced, renamed, and
//! the folder fsynced. Never done here: a folder removed, and anything in a folder that others than
//! root may write to. One command at a time works on a folder.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
};

use super::trust::require_trusted;

/// End of the names under which files are written before they get their own. Runtimes read only names
/// that end on `conf`, `conflist` or `json`, and execute only the plugins that those name.
const TEMPORARY: &str = ".fabric-tmp";
/// Mode of folders that are made.
const FOLDER_MODE: u32 = 0o755;
/// How long a command waits for another one to let go of a folder.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Whether anything may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// Yes.
    Made,
    /// No: it is only said what would be done.
    Rehearsed,
}

/// A folder that only root can change, held by this process.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    changes: Changes,
    /// None where it does not exist, in a rehearsal.
    descriptor: Option<OwnedFd>,
}

/// What has a name in a folder.
#[derive(Debug)]
pub(super) enum Entry {
    /// A file.
    File {
        /// Its content, up to the limit that was given.
        content: Vec<u8>,
        /// Its permissions.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// A symbolic link, with what it says.
    Link(Vec<u8>),
    /// A folder, a device and so on.
    Other,
}

/// A file that is on disk whole, under a name that nobody reads. Dropped before it is placed, it is gone; a
/// command that is killed leaves it to the next one.
#[derive(Debug)]
#[must_use]
pub(super) struct Staged<'a> {
    folder: &'a Folder,
    name: &'a str,
    is_placed: bool,
}

impl Entry {
    /// Whether it is a file with this content that belongs to root and has these permissions.
    pub(super) fn is(&self, wanted: &[u8], wanted_mode: u32) -> bool {
        match self {
            Self::File {
                content,
                mode,
                owner,
            } => content == wanted && *mode == wanted_mode && *owner == 0,
            Self::Link(_) | Self::Other => false,
        }
    }
}

impl Folder {
    /// Opens the folder at `path`, and makes it where it is missing.
    ///
    /// # Errors
    ///
    /// Others than root may write to it or to a folder above it, another command works on it, or the
    /// system refuses.
    pub(super) fn make(path: &Path, changes: Changes) -> anyhow::Result<Self> {
        ensure!(
            path.is_absolute(),
            "{} is not an absolute path",
            path.display()
        );
        let mut missing = Vec::new();
        let mut existing = path;
        while !existing.exists() {
            missing.push(existing.to_owned());
            existing = existing.parent().unwrap_or_else(|| Path::new("/"));
        }
        require_trusted(path, existing, missing.is_empty())?;
        if changes == Changes::Rehearsed && !missing.is_empty() {
            return Ok(Self {
                path: path.to_owned(),
                changes,
                descriptor: None,
            });
        }
        for folder in missing.iter().rev() {
            make_folder(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Self::hold(path, changes)
    }

    /// Opens the folder at `path`; none where it does not exist.
    ///
    /// # Errors
    ///
    /// As [`Folder::make`].
    pub(super) fn open(path: &Path, changes: Changes) -> anyhow::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        require_trusted(path, path, true)?;
        Self::hold(path, changes).map(Some)
    }

    fn hold(path: &Path, changes: Changes) -> anyhow::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", path.display()))?;
        lock(&descriptor, path)?;
        Ok(Self {
            path: path.to_owned(),
            changes,
            descriptor: Some(descriptor),
        })
    }

    /// Whether anything in it may be changed.
    pub(super) fn changes(&self) -> Changes {
        self.changes
    }

    /// Path of the file `name` in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What has this name, with at most `bytes_max` of its content; none where there is nothing.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub(super) fn look(&self, name: &str, bytes_max: u64) -> anyhow::Result<Option<Entry>> {
        let Some(descriptor) = &self.descriptor else {
            return Ok(None);
        };
        let looked = || -> io::Result<Option<Entry>> {
            let stat = match rustix::fs::statat(descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Symlink {
                let target = rustix::fs::readlinkat(descriptor, name, Vec::new())?;
                return Ok(Some(Entry::Link(target.into_bytes())));
            }
            if kind != FileType::RegularFile {
                return Ok(Some(Entry::Other));
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(descriptor, name, flags, Mode::empty())?);
            let mut content = Vec::new();
            file.take(bytes_max).read_to_end(&mut content)?;
            Ok(Some(Entry::File {
                content,
                mode: permissions(&stat),
                owner: stat.st_uid,
            }))
        };
        looked().with_context(|| self.cannot("read", name))
    }

    /// Writes a file under a name that nobody reads.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn stage<'a>(
        &'a self,
        name: &'a str,
        content: &[u8],
        mode: u32,
    ) -> anyhow::Result<Staged<'a>> {
        let Some(descriptor) = self.changed() else {
            return Ok(Staged::new(self, name));
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(descriptor, temporary(name), flags, Mode::RUSR)
            .with_context(|| self.cannot("make", &temporary(name)))?;
        // From here on what is written is taken back if the rest fails.
        let staged = Staged::new(self, name);
        let write = |mut file: File| -> io::Result<()> {
            file.write_all(content)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file.sync_all()
        };
        write(File::from(opened)).with_context(|| self.cannot("write", &temporary(name)))?;
        Ok(staged)
    }

    /// Makes a symbolic link to `target`, in place of what had the name.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn link(&self, name: &str, target: &str) -> anyhow::Result<()> {
        let Some(descriptor) = self.changed() else {
            return Ok(());
        };
        rustix::fs::symlinkat(target, descriptor, temporary(name))
            .with_context(|| self.cannot("make", &temporary(name)))?;
        Staged::new(self, name).place()
    }

    /// Takes a file's name away, and keeps the file under one that no runtime reads: whoever comes after a
    /// crash sees what was being removed. The folder knows before this returns.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn set_aside(&self, name: &str) -> anyhow::Result<()> {
        let Some(descriptor) = self.changed() else {
            return Ok(());
        };
        rustix::fs::renameat(descriptor, name, descriptor, temporary(name))
            .and_then(|()| rustix::fs::fsync(descriptor))
            .with_context(|| self.cannot("set aside", name))
    }

    /// Whether a file of this name was set aside, or written and not placed.
    ///
    /// # Errors
    ///
    /// It cannot be looked at.
    pub(super) fn is_set_aside(&self, name: &str) -> anyhow::Result<bool> {
        Ok(self.look(&temporary(name), 0)?.is_some())
    }

    /// Removes a file that was set aside.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn remove_set_aside(&self, name: &str) -> anyhow::Result<()> {
        self.remove(&temporary(name))
    }

    /// Removes a file or link; the folder knows before this returns.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let Some(descriptor) = self.changed() else {
            return Ok(());
        };
        rustix::fs::unlinkat(descriptor, name, AtFlags::empty())
            .and_then(|()| rustix::fs::fsync(descriptor))
            .with_context(|| self.cannot("remove", name))
    }

    /// Removes what commands that were cut short have left; the names.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn clear(&self) -> anyhow::Result<Vec<String>> {
        let Some(descriptor) = &self.descriptor else {
            return Ok(Vec::new());
        };
        let mut left = Vec::new();
        let entries = rustix::fs::Dir::read_from(descriptor)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", self.path.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                left.push(name);
            }
        }
        left.sort();
        for name in &left {
            self.remove(name)?;
        }
        Ok(left)
    }

    /// The descriptor, where there are changes to be made.
    fn changed(&self) -> Option<&OwnedFd> {
        match self.changes {
            Changes::Made => self.descriptor.as_ref(),
            Changes::Rehearsed => None,
        }
    }

    fn cannot(&self, action: &str, name: &str) -> String {
        format!("cannot {action} {}", self.file(name).display())
    }
}

impl<'a> Staged<'a> {
    fn new(folder: &'a Folder, name: &'a str) -> Self {
        Self {
            folder,
            name,
            is_placed: false,
        }
    }

    /// Where the file is until it is placed.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.file(&temporary(self.name))
    }

    /// Gives the file its name, in place of what had it; the folder knows before this returns.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn place(mut self) -> anyhow::Result<()> {
        let Some(descriptor) = self.folder.changed() else {
            return Ok(());
        };
        rustix::fs::renameat(descriptor, temporary(self.name), descriptor, self.name)
            .inspect(|()| self.is_placed = true)
            .and_then(|()| rustix::fs::fsync(descriptor))
            .with_context(|| self.folder.cannot("put in place", self.name))
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(descriptor) = self.folder.changed().filter(|_| !self.is_placed) {
            // Told is why it was not placed; what cannot be removed now, the next command removes.
            let _ = rustix::fs::unlinkat(descriptor, temporary(self.name), AtFlags::empty());
        }
    }
}

/// The name under which a file is written.
fn temporary(name: &str) -> String {
    format!(".{name}{TEMPORARY}")
}

fn permissions(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(FOLDER_MODE).create(folder)?;
    match folder.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Keeps other commands away: two at once would clear each other's files away. A command that was killed
/// has let go as soon as the program that it was about to start has begun or ended.
fn lock(folder: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => bail!(
                "another command works on {}: wait for its end, then try again",
                path.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::mem;

    use super::*;

    fn folder(dir: &Path) -> Folder {
        Folder::make(dir, Changes::Made).unwrap()
    }

    /// A file is invisible under its own name until it is placed, and then whole, with its mode,
    /// whatever was there before.
    #[test]
    fn files_appear_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        for content in [&b"one"[..], b"", b"three"] {
            let before = fs::read(dir.path().join("x")).ok();
            let staged = folder.stage("x", content, 0o755).unwrap();
            assert_eq!(fs::read(dir.path().join("x")).ok(), before);
            assert_eq!(fs::read(staged.path()).unwrap(), content);
            staged.place().unwrap();
            let entry = folder.look("x", 10).unwrap().unwrap();
            assert!(entry.is(content, 0o755), "{entry:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// What is not put in place, or cannot be, leaves nothing behind, whether a file or a link.
    #[test]
    fn nothing_is_left_of_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        // No file takes the name of a folder.
        fs::create_dir(dir.path().join("x")).unwrap();
        let staged = folder.stage("x", b"new", 0o600).unwrap();
        let error = format!("{:#}", staged.place().unwrap_err());
        assert!(error.contains("cannot put in place"), "{error}");
        assert!(folder.link("x", "y").is_err());
        drop(folder.stage("y", b"new", 0o600).unwrap());
        let names = fs::read_dir(dir.path()).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["x"]);
    }

    /// A file that is set aside has no name that runtimes read, and is found again until it is removed.
    #[test]
    fn files_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        fs::write(dir.path().join("x"), "old").unwrap();
        assert!(!folder.is_set_aside("x").unwrap());
        folder.set_aside("x").unwrap();
        assert!(folder.is_set_aside("x").unwrap() && folder.look("x", 0).unwrap().is_none());
        folder.remove_set_aside("x").unwrap();
        assert!(!folder.is_set_aside("x").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// What was never placed is cleared away, and nothing else.
    #[test]
    fn leftovers_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        for name in ["a", "b.conflist"] {
            // As if this process were killed here.
            mem::forget(folder.stage(name, b"half", 0o600).unwrap());
        }
        let others = [".hidden", "c.fabric-tmp", ".d.tmp"];
        for name in others {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(
            folder.clear().unwrap(),
            [".a.fabric-tmp", ".b.conflist.fabric-tmp"]
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len());
    }

    /// In a rehearsal nothing is made, changed or removed.
    #[test]
    fn a_rehearsal_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "old").unwrap();
        let folder = Folder::make(dir.path(), Changes::Rehearsed).unwrap();
        folder.stage("x", b"new", 0o600).unwrap().place().unwrap();
        folder.link("y", "x").unwrap();
        folder.remove("x").unwrap();
        folder.set_aside("x").unwrap();
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let absent = dir.path().join("a/b");
        let rehearsed = Folder::make(&absent, Changes::Rehearsed).unwrap();
        assert!(rehearsed.look("x", 10).unwrap().is_none());
        assert!(!dir.path().join("a").exists());
        assert!(Folder::open(&absent, Changes::Made).unwrap().is_none());
    }

    /// Two commands do not work on one folder at the same time.
    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = folder(dir.path());
        let error = Folder::make(dir.path(), Changes::Made).unwrap_err();
        assert!(error.to_string().contains("another command"), "{error}");
        drop(first);
        drop(folder(dir.path()));
    }
}
