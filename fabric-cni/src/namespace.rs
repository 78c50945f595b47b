//! Network namespaces by path.
//!
//! Comes in: the path of a runtime. Goes out: a [`Namespace`], looked at before it is opened, and
//! used by descriptor from then on. Never done here: making or removing one.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{FsWord, Mode, OFlags, fstat, fstatfs, open, stat},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use thiserror::Error;

/// `NSFS_MAGIC` (linux/magic.h).
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// Why a namespace cannot be used.
#[derive(Debug, Error)]
pub(crate) enum NamespaceError {
    /// Nothing that can be opened is there.
    #[error("cannot open network namespace {path:?}: {source}")]
    Open { path: String, source: io::Error },
    /// Something else is there.
    #[error("{path:?} is not a network namespace")]
    NotANamespace { path: String },
    /// The kernel refused the way in.
    #[error("cannot enter network namespace {path:?}: {source}")]
    Enter { path: String, source: io::Error },
}

/// A namespace, found by its path once.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Opened with `O_PATH`.
    place: OwnedFd,
    path: String,
}

impl Namespace {
    /// Finds the namespace at `path`. What is there is not opened, for opening a device or a pipe has
    /// effects, unless it is a file of the kernel's namespaces.
    pub(crate) fn find(path: &str) -> Result<Self, NamespaceError> {
        let failed = |source: rustix::io::Errno| NamespaceError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        let place = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        if fstatfs(&place).map_err(failed)?.f_type != NSFS_MAGIC {
            return Err(NamespaceError::NotANamespace {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            place,
            path: path.to_owned(),
        })
    }

    /// Whether it is the namespace that this program runs in.
    pub(crate) fn is_own(&self) -> bool {
        match (fstat(&self.place), stat("/proc/self/ns/net")) {
            (Ok(theirs), Ok(own)) => (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino),
            _ => false,
        }
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<(), NamespaceError> {
        let link = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        let enter = || {
            let namespace = open(link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        };
        enter().map_err(|errno| match errno {
            // A namespace of another kind.
            rustix::io::Errno::INVAL => NamespaceError::NotANamespace {
                path: self.path.clone(),
            },
            errno => NamespaceError::Enter {
                path: self.path.clone(),
                source: errno.into(),
            },
        })
    }
}

/// A path that cannot be examined is not ours: those who use it say what is wrong with it.
pub(crate) fn is_own_netns(path: &str) -> bool {
    Namespace::find(path).is_ok_and(|namespace| namespace.is_own())
}
