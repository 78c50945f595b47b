//! The record of attachments and released addresses, which survives crashes of daemon and machine.
//!
//! One file per attachment, replaced whole: written beside its place and renamed. So for whoever comes
//! after a crash of the daemon a file is either the old or the new version. A file's name carries the
//! addresses and the boot, and [`Store::put_new`] returns only when that name is on the disk. The rest is
//! left to the kernel to write: a crash of the machine ends all pods, after which every version of a file,
//! also an empty one, says the same, namely which addresses must rest.
//!
//! Never done here: deciding what a record means.

mod file;
mod sync;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use fabric_proto::cni::{AttachmentKey, PodIdentity};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use super::clock::Moment;
use crate::sys::netns::NetnsId;
use file::{FileName, Name};
use sync::FolderSync;

/// What a probe writes (bytes): more than most records have, and a block of most file systems.
const PROBE_BYTES: usize = 4_096;

/// Folder beneath the state directory.
pub const ATTACHMENTS_DIR: &str = "attachments";

/// Why the record cannot be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The disk or the permissions.
    #[error(
        "cannot {action} {path}: {source}; check that the state directory is writable and the disk not full"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Two daemons.
    #[error(
        "{path} is locked by another process: is a second fabric-node running with the same state directory?"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

/// How far an attachment has come. A state is on record before the next step begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase")]
pub enum State {
    /// The addresses are taken; any of the steps of ADD may have been done.
    Planned,
    /// All steps of ADD are done.
    Attached {
        /// The plugin has been sent its result.
        answered: bool,
    },
    /// Detached; the addresses rest.
    Released {
        /// Since when.
        at: Moment,
    },
}

/// One attachment from its ADD until its addresses have rested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Unique among all records of this state directory.
    pub id: u64,
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// Who the pod is.
    pub pod: PodIdentity,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Identity of that namespace, within the boot of `attached_at`.
    pub netns_id: StoredNetnsId,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// When ADD began.
    pub attached_at: Moment,
    /// How far it has come.
    pub state: State,
}

/// [`NetnsId`] as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredNetnsId {
    dev: u64,
    ino: u64,
}

impl From<NetnsId> for StoredNetnsId {
    fn from(NetnsId { dev, ino }: NetnsId) -> Self {
        Self { dev, ino }
    }
}

impl From<StoredNetnsId> for NetnsId {
    fn from(StoredNetnsId { dev, ino }: StoredNetnsId) -> Self {
        Self { dev, ino }
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// All readable records, oldest first.
    pub records: Vec<Record>,
    /// Addresses of unreadable records of this boot: a pod may still have them. They stay out of
    /// use until the machine restarts or the file is removed by hand.
    pub withheld: Vec<IpAddr>,
    /// Addresses of unreadable records of an earlier boot, whose pods are gone: they need to rest.
    pub recovered: Vec<IpAddr>,
}

/// The folder of records. One process at a time has it open.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    sync: FolderSync,
    next_id: AtomicU64,
    /// Holds the lock for as long as it is open.
    _lock: OwnedFd,
}

impl Store {
    /// Opens the record beneath `state_dir`, making the folder where it is missing, and reads it.
    /// Files that cannot be read are named in the log and set aside with the suffix `.corrupt`.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; a damaged file is none.
    pub fn open(state_dir: &Path, now: &Moment) -> Result<(Self, Loaded), StoreError> {
        let folder = state_dir.join(ATTACHMENTS_DIR);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(at("create", &folder))?;
        // So that files in the folder have a name on the disk when the folder's sync says so.
        for parent in folder.ancestors().skip(1).take(2) {
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(at("sync", parent))?;
        }
        let lock = lock(&folder)?;
        let (loaded, next_id) = load(&folder, now)?;
        let store = Self {
            sync: FolderSync::new(&folder).map_err(at("open", &folder))?,
            folder,
            next_id: AtomicU64::new(next_id),
            _lock: lock,
        };
        Ok((store, loaded))
    }

    /// The readable records beneath `state_dir`, oldest first, for whoever only looks: no lock, and nothing is
    /// changed. What a daemon writes at the same time may or may not be among them.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn look(state_dir: &Path) -> Result<Vec<Record>, StoreError> {
        let folder = state_dir.join(ATTACHMENTS_DIR);
        let mut records = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at("list", &folder))? {
            let path = entry.map_err(at("list", &folder))?.path();
            if let Name::Record(name) = Name::parse(&path)
                && let Ok(bytes) = fs::read(&path)
            {
                records.extend(record_in(&bytes, &name));
            }
        }
        records.sort_by_key(|record| record.id);
        Ok(records)
    }

    /// A number for a new record.
    #[must_use]
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes the first version of a record; on return its name is on the disk.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`]; there is no record then.
    pub fn put_new(&self, record: &Record) -> Result<(), StoreError> {
        self.put(record)?;
        self.sync.sync().map_err(|source| {
            let path = self.folder.join(FileName::of(record).to_string());
            let _ = fs::remove_file(&path);
            at("write", &path)(source)
        })
    }

    /// Writes a later version of a record, in place of the earlier one; on return it survives the
    /// daemon. The addresses of a record never change.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`]; the earlier version stands then.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        let name = FileName::of(record).to_string();
        let path = self.folder.join(&name);
        let unfinished = self
            .folder
            .join(format!("{name}{}", file::UNFINISHED_SUFFIX));
        file::encode(record)
            .map_err(io::Error::from)
            .and_then(|bytes| write(&unfinished, &bytes))
            .and_then(|()| fs::rename(&unfinished, &path))
            .map_err(|source| {
                let _ = fs::remove_file(&unfinished);
                at("write", &path)(source)
            })
    }

    /// Removes a record. One that is not there is no error. If the machine crashes, it may be back: its
    /// addresses then rest once more.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn remove(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.folder.join(FileName::of(record).to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(at("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether a record could be written now: writes one's worth of bytes and removes them.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn probe(&self) -> Result<(), StoreError> {
        let name = format!("probe-{}{}", self.new_id(), file::UNFINISHED_SUFFIX);
        let path = self.folder.join(name);
        // Not synced: a file system that has promised room for the bytes keeps its word.
        let written = write(&path, &[0; PROBE_BYTES]);
        let removed = fs::remove_file(&path);
        written.map_err(at("write in", &self.folder))?;
        removed.map_err(at("remove a file in", &self.folder))
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

fn lock(folder: &Path) -> Result<OwnedFd, StoreError> {
    let path = folder.join(".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.into()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path }),
        Err(errno) => Err(at("lock", &path)(errno.into())),
    }
}

fn load(folder: &Path, now: &Moment) -> Result<(Loaded, u64), StoreError> {
    let mut loaded = Loaded::default();
    let mut next_id = 1;
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let path = entry.map_err(at("list", folder))?.path();
        match Name::parse(&path) {
            Name::Record(name) => {
                next_id = next_id.max(name.id.saturating_add(1));
                let bytes = match fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        warn!(file = %path.display(), %error, "a record of an attachment cannot be read for the time being; its addresses stay out of use");
                        loaded.withheld.extend(&name.addresses);
                        continue;
                    }
                };
                match record_in(&bytes, &name) {
                    Ok(record) => loaded.records.push(record),
                    Err(reason) => {
                        set_aside(&path, &reason);
                        loaded.withhold(&name, now, &file::corrupt(&path));
                    }
                }
            }
            Name::Corrupt(name) => {
                next_id = next_id.max(name.id.saturating_add(1));
                loaded.withhold(&name, now, &path);
            }
            Name::Unfinished => fs::remove_file(&path).map_err(at("remove", &path))?,
            Name::Other => {}
        }
    }
    loaded.records.sort_by_key(|record| record.id);
    Ok((loaded, next_id))
}

fn record_in(bytes: &[u8], name: &FileName) -> Result<Record, String> {
    let record = file::decode(bytes).map_err(|error| error.to_string())?;
    if FileName::of(&record) == *name {
        Ok(record)
    } else {
        Err("its content belongs to another file name".to_owned())
    }
}

fn set_aside(path: &Path, reason: &str) {
    let aside = file::corrupt(path);
    let renamed = fs::rename(path, &aside);
    warn!(
        file = %path.display(), set_aside = %aside.display(), renamed = renamed.is_ok(), reason,
        "a record of an attachment cannot be read; its addresses stay out of use until the machine restarts or the file is removed"
    );
}

impl Loaded {
    fn withhold(&mut self, name: &FileName, now: &Moment, path: &Path) {
        if name.is_of_boot(&now.boot) {
            self.withheld.extend(&name.addresses);
            return;
        }
        // No pod outlives a boot, so nobody has the addresses any more.
        self.recovered.extend(&name.addresses);
        if let Err(error) = fs::remove_file(path) {
            warn!(file = %path.display(), %error, "cannot remove an unreadable record of an earlier boot");
        }
    }
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
pub(super) mod tests;
