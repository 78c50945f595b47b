//! Names of new files put on the disk, by one sync of their folder for all who wait at the same time.
//!
//! Pods start in bursts, and a sync takes milliseconds on a disk that others keep busy: those who come
//! while one runs share the next.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A folder whose entries are to be on the disk.
#[derive(Debug)]
pub(super) struct FolderSync {
    folder: File,
    /// How many have asked.
    asked: AtomicU64,
    done: Mutex<Done>,
}

/// Which of those who asked have their answer.
#[derive(Debug, Default)]
struct Done {
    /// All up to this one are served, but for those that failed.
    served: u64,
    /// All up to this one that have not returned yet have failed. The kernel tells an error once, and forgets
    /// what it could not write: a second sync that succeeds says nothing about the first.
    failed: u64,
}

impl FolderSync {
    /// # Errors
    ///
    /// The folder cannot be opened.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: File::open(folder)?,
            asked: AtomicU64::new(0),
            done: Mutex::default(),
        })
    }

    /// Returns when every change that the caller has made to the folder's entries is on the disk.
    ///
    /// # Errors
    ///
    /// What the disk says, to all who share the sync.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.sync_by(File::sync_all)
    }

    fn sync_by(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.failed >= ticket {
            return Err(io::Error::other(
                "the sync that was shared with others failed",
            ));
        }
        if done.served >= ticket {
            return Ok(());
        }
        // Whoever has a ticket has made the changes before.
        let included = self.asked.load(Ordering::SeqCst);
        let synced = sync(&self.folder);
        match &synced {
            Ok(()) => done.served = included,
            Err(_) => done.failed = included,
        }
        synced
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::Barrier, thread};

    use super::*;

    const WAITING: u64 = 8;

    /// Those who come during a sync share one that begins after they came, with its success or failure;
    /// who comes later has one of its own.
    #[test]
    fn waiting_is_shared() {
        for fails in [false, true] {
            let state = tempfile::tempdir().unwrap();
            let folder = FolderSync::new(state.path()).unwrap();
            let syncs = AtomicU64::new(0);
            let count = |_: &File| match syncs.fetch_add(1, Ordering::SeqCst) {
                0 if fails => Err(io::Error::other("the disk")),
                _ => Ok(()),
            };
            let (started, all_wait) = (Barrier::new(2), Barrier::new(2));
            thread::scope(|scope| {
                let first = scope.spawn(|| {
                    folder.sync_by(|_| {
                        started.wait();
                        all_wait.wait();
                        Ok(())
                    })
                });
                started.wait();
                let others: Vec<_> = (0..WAITING)
                    .map(|_| scope.spawn(|| folder.sync_by(count)))
                    .collect();
                while folder.asked.load(Ordering::SeqCst) < 1 + WAITING {
                    thread::yield_now();
                }
                all_wait.wait();
                first.join().unwrap().unwrap();
                for other in others {
                    assert_eq!(other.join().unwrap().is_err(), fails);
                }
            });
            assert_eq!(syncs.load(Ordering::SeqCst), 1);
            folder.sync_by(count).unwrap();
            assert_eq!(syncs.load(Ordering::SeqCst), 2);
        }
    }
}
