//! Network namespaces by descriptor.
//!
//! Comes in: a path. Goes out: a [`Netns`] checked once and used by descriptor from then on, so
//! that the path may change meanwhile without effect. Never done here: moving a thread that
//! anybody else uses; each entry has an OS thread of its own, which ends inside the namespace.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    panic,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode},
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use thiserror::Error;

/// Why a namespace cannot be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error(
        "cannot open network namespace {path}: {source}; check that the pod still exists and that the path is visible in this mount namespace"
    )]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path is something else.
    #[error(
        "{path} is {found}, not a network namespace; give a path such as /run/netns/NAME or /proc/PID/ns/net"
    )]
    NotANamespace {
        /// Where it was looked for.
        path: PathBuf,
        /// What was found there.
        found: &'static str,
    },
    /// The kernel refused the way in.
    #[error(
        "cannot enter network namespace {netns}: {source}; CAP_SYS_ADMIN is needed in the user namespace that owns it"
    )]
    Enter {
        /// Which one.
        netns: NetnsId,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread to enter with.
    #[error(
        "cannot start a thread for network namespace {netns}: {source}; check the limits on tasks and memory (TasksMax=, ulimit -u)"
    )]
    Thread {
        /// Which one.
        netns: NetnsId,
        /// What the kernel said.
        source: io::Error,
    },
    /// No new namespace.
    #[error(
        "cannot create a network namespace: {source}; CAP_SYS_ADMIN is needed, and user.max_net_namespaces must allow one more"
    )]
    Create {
        /// What the kernel said.
        source: io::Error,
    },
    /// The name of a namespace cannot be made or removed.
    #[error(
        "cannot {action} {path}: {source}; the folder must exist and be writable, and CAP_SYS_ADMIN is needed in this mount namespace"
    )]
    Name {
        /// Which step failed.
        action: &'static str,
        /// The name.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Identity of a namespace for as long as it exists: two descriptors with the same identity are the
/// same namespace. A number may come back after the namespace has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device of the namespace file system.
    pub dev: u64,
    /// Inode on it.
    pub ino: u64,
}

impl NetnsId {
    /// Device and inode of the file at `path`, which are the identity of a namespace if it is one:
    /// to be compared with one that is known. Opens nothing.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
        })
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace at `path` (a bind mount or a link below `/proc/PID/ns`).
    ///
    /// What is at the path is found out by a descriptor that opens nothing (`O_PATH`), and only a
    /// namespace is opened, by way of that descriptor: a device, a FIFO or a socket that somebody
    /// puts there is left alone, whenever it is put there.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Open`], or [`NetnsError::NotANamespace`] for any other kind of file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let failed = |errno: Errno| NetnsError::Open {
            path: path.to_owned(),
            source: errno.into(),
        };
        let other = |found| NetnsError::NotANamespace {
            path: path.to_owned(),
            found,
        };
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        if rustix::fs::fstatfs(&place).map_err(failed)?.f_type != NSFS_MAGIC {
            return Err(other("a file of another kind"));
        }
        let by_descriptor = format!("{OWN_DESCRIPTORS}/{}", place.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // "Not found" would say that there is no namespace, while it is /proc that is missing.
        let fd = rustix::fs::open(&by_descriptor, flags, Mode::empty()).map_err(|errno| {
            let problem = format!("cannot open it by {by_descriptor}: {errno}");
            NetnsError::Open {
                path: path.to_owned(),
                source: io::Error::other(problem),
            }
        })?;
        // SAFETY: the descriptor is on nsfs, where NS_GET_NSTYPE takes no argument.
        if unsafe { ioctl(&fd, NamespaceType) }.map_err(failed)? != libc::CLONE_NEWNET {
            return Err(other("a namespace of another type"));
        }
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let id = NetnsId {
            dev: stat.st_dev,
            ino: stat.st_ino,
        };
        Ok(Self { fd, id })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Open`] where `/proc` is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(CALLING_THREAD)
    }

    /// A new, empty namespace without a name: it goes away with the last descriptor and device user.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Create`] without the privilege.
    pub fn create() -> Result<Self, NetnsError> {
        create_and(Self::current)
    }

    /// A new, empty namespace that stays at `path` until [`Netns::remove_named`].
    ///
    /// # Errors
    ///
    /// [`NetnsError::Name`] if the path exists or cannot be made, [`NetnsError::Create`] without
    /// the privilege. Nothing is left behind then.
    pub fn create_named(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let failed = |action| {
            move |source: io::Error| NetnsError::Name {
                action,
                path: path.to_owned(),
                source,
            }
        };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(failed("create"))?;
        let made = create_and(|| {
            mount_bind(CALLING_THREAD, path)
                .map_err(io::Error::from)
                .map_err(failed("mount a namespace on"))?;
            Self::open(path)
        });
        if made.is_err() {
            // The first error is the one worth telling.
            let _ = Self::remove_named(path);
        }
        made
    }

    /// Takes the name `path` from its namespace, which goes away when nothing else uses it. A name
    /// that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Name`].
    pub fn remove_named(path: impl AsRef<Path>) -> Result<(), NetnsError> {
        let path = path.as_ref();
        let failed = |action| {
            move |source: io::Error| NetnsError::Name {
                action,
                path: path.to_owned(),
                source,
            }
        };
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // INVAL: a file without a mount.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(failed("unmount")(errno.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
            _ => Ok(()),
        }
    }

    /// Identity of this namespace.
    #[must_use]
    pub fn identity(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` inside the namespace, on a thread that is started for it and ends with it, and
    /// waits for its result. The calling thread stays where it is.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if `f` could not be run; then it has not been called.
    ///
    /// # Panics
    ///
    /// If `f` panics, with the same payload.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name(THREAD_NAME.to_owned())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    Ok(f())
                })
                .map_err(|source| self.no_thread(source))?;
            worker
                .join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Starts a thread named `name` that runs `f` inside the namespace; returns once it is inside.
    ///
    /// # Errors
    ///
    /// [`NetnsError`] if `f` could not be run; then it has not been called.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<NetnsThread<T>, NetnsError> {
        let inside = self.try_clone().map_err(|source| self.no_thread(source))?;
        let (entered, entry) = mpsc::sync_channel(1);
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let way_in = inside.enter();
                // The thread must not keep the namespace alive by more than being inside it.
                drop(inside);
                let ok = way_in.is_ok();
                // The receiver waits for exactly this message.
                let _ = entered.send(way_in);
                ok.then(f)
            })
            .map_err(|source| self.no_thread(source))?;
        match entry.recv() {
            Ok(Ok(())) => Ok(NetnsThread { handle }),
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvError) => {
                Err(self.no_thread(io::Error::other("it ended before it began")))
            }
        }
    }

    /// Another descriptor of the same namespace.
    ///
    /// # Errors
    ///
    /// What the kernel said: no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            id: self.id,
        })
    }

    /// Moves the calling thread, for good: only for threads that end inside.
    fn enter(&self) -> Result<(), NetnsError> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |errno| NetnsError::Enter {
                netns: self.id,
                source: errno.into(),
            },
        )
    }

    fn no_thread(&self, source: io::Error) -> NetnsError {
        NetnsError::Thread {
            netns: self.id,
            source,
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A thread inside a namespace.
#[derive(Debug)]
pub struct NetnsThread<T> {
    handle: JoinHandle<Option<T>>,
}

impl<T> NetnsThread<T> {
    /// Waits for the thread's end.
    ///
    /// # Errors
    ///
    /// The panic's payload if the thread panicked.
    pub fn join(self) -> thread::Result<T> {
        match self.handle.join()? {
            Some(value) => Ok(value),
            None => Err(Box::new("the thread ended outside the namespace")),
        }
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// Magic link of the calling thread's own namespace, which `/proc/self` is not: that is the main
/// thread's.
const CALLING_THREAD: &str = "/proc/thread-self/ns/net";

/// Links to what this process has open; the descriptor table is the same for all its threads.
const OWN_DESCRIPTORS: &str = "/proc/self/fd";

/// As `top -H` shows it (15 bytes at most).
const THREAD_NAME: &str = "netns";

/// `NSFS_MAGIC` (linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// `NS_GET_NSTYPE` (linux/nsfs.h): returns the `CLONE_NEW*` flag of the namespace.
struct NamespaceType;

// SAFETY: the opcode carries no data, the result is the return value, no memory is touched.
unsafe impl Ioctl for NamespaceType {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xb7, 3)
    }

    fn as_ptr(&mut self) -> *mut libc::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut libc::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(out)
    }
}

/// Runs `f` on a new thread inside a new namespace.
fn create_and<T: Send>(f: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn_scoped(scope, || {
                // SAFETY: without CLONE_FILES the descriptor table stays shared; the thread ends
                // with this closure, so nobody else finds itself in the new namespace.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|errno| {
                    NetnsError::Create {
                        source: errno.into(),
                    }
                })?;
                f()
            })
            .map_err(|source| NetnsError::Create { source })?;
        worker
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

#[cfg(test)]
mod tests;
