//! Watching the directory: a thread that reads it again when something happens there.
//!
//! Comes in: inotify events, and the clock, because events can be lost. Goes out: one
//! [`SourceEvent`] per change of what the directory says. Never done here: keeping the state in
//! force; a state that is not good is reported and nothing else happens.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use super::{SourceError, read_directory};
use crate::control::desired::DesiredState;

/// What happened to the source.
#[derive(Debug)]
pub enum SourceEvent {
    /// There is another good state; it follows a [`SourceEvent::Failed`] as its recovery.
    Changed(DesiredState),
    /// The source cannot be used; what is in force stays. Once per distinct error.
    Failed(SourceError),
    /// The source can be used again and says what it said before it failed.
    Recovered,
}

/// The watch; it ends when this is dropped.
#[derive(Debug)]
pub struct FileWatch {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

/// Watches the directory `path` on a thread of its own and calls `on_event` there. `in_force` is the
/// state that the caller has: a first reading that says the same is no event.
///
/// Changes that come together are read together, after 100 ms of quiet and at most 1 s. Without
/// events the directory is read every 30 s, and every second while it cannot be used.
///
/// # Errors
///
/// [`SourceError::Watch`] if the thread cannot be started. A directory that is not there is an event,
/// not an error; one that cannot be watched is read by the clock.
pub fn watch(
    path: &Path,
    in_force: DesiredState,
    on_event: impl FnMut(SourceEvent) + Send + 'static,
) -> Result<FileWatch, SourceError> {
    watch_with(TIMING, path, in_force, on_event)
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// This much quiet ends a burst of events.
    pub(super) quiet: Duration,
    /// A burst is not waited for any longer than this.
    pub(super) burst_max: Duration,
    /// Between readings without any event.
    pub(super) reread: Duration,
    /// Between readings while the source cannot be used.
    pub(super) retry: Duration,
}

const TIMING: Timing = Timing {
    quiet: Duration::from_millis(100),
    burst_max: Duration::from_secs(1),
    reread: Duration::from_secs(30),
    retry: Duration::from_secs(1),
};

pub(super) fn watch_with(
    timing: Timing,
    path: &Path,
    in_force: DesiredState,
    on_event: impl FnMut(SourceEvent) + Send + 'static,
) -> Result<FileWatch, SourceError> {
    let (wake, woken) = mpsc::channel();
    let mut reader = Reader {
        path: path.to_owned(),
        last: in_force,
        failure: None,
        watcher: None,
        blind: false,
        wake: wake.clone(),
        on_event,
    };
    let thread = thread::Builder::new()
        .name("state-source".to_owned())
        .spawn(move || reader.run(timing, &woken))
        .map_err(|source| SourceError::Watch {
            path: path.to_owned(),
            source: notify::Error::io(source),
        })?;
    Ok(FileWatch {
        wake,
        thread: Some(thread),
    })
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        // The thread may have ended by a panic of the callback.
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

enum Wake {
    Touched,
    Stop,
}

struct Reader<F> {
    path: PathBuf,
    /// The last good state that was read.
    last: DesiredState,
    /// The error last reported; none while the source is good.
    failure: Option<String>,
    watcher: Option<RecommendedWatcher>,
    /// The directory is there and cannot be watched.
    blind: bool,
    wake: Sender<Wake>,
    on_event: F,
}

impl<F: FnMut(SourceEvent)> Reader<F> {
    fn run(&mut self, timing: Timing, woken: &Receiver<Wake>) {
        loop {
            self.arm();
            let read = read_directory(&self.path);
            self.report(read);
            let pause = if self.failure.is_some() {
                timing.retry
            } else {
                timing.reread
            };
            match woken.recv_timeout(pause) {
                Ok(Wake::Touched) => {
                    if settle(timing, woken).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Watches whatever directory has the path at this moment: it may have been removed and made
    /// again, even with the same inode number. To be done before reading, so that what changes
    /// meanwhile is an event.
    fn arm(&mut self) {
        let wake = self.wake.clone();
        let watch = || {
            let mut watcher = notify::recommended_watcher(move |event| {
                if matters(&event) {
                    // The reader may just be ending.
                    let _ = wake.send(Wake::Touched);
                }
            })?;
            watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        };
        let trouble = match watch() {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                None
            }
            Err(source) => {
                self.watcher = None;
                Some(SourceError::Watch {
                    path: self.path.clone(),
                    source,
                })
            }
        };
        // A directory that is not there is reported by reading it.
        let blind = trouble.filter(|_| self.path.is_dir());
        if let Some(error) = &blind
            && !self.blind
        {
            tracing::warn!(%error, "changes are found by the clock alone");
        }
        self.blind = blind.is_some();
    }

    fn report(&mut self, read: Result<DesiredState, SourceError>) {
        match read {
            Ok(state) => {
                let failed = self.failure.take().is_some();
                if failed {
                    tracing::info!(path = %self.path.display(), "the state source can be used again");
                }
                if state != self.last {
                    self.last = state.clone();
                    (self.on_event)(SourceEvent::Changed(state));
                } else if failed {
                    (self.on_event)(SourceEvent::Recovered);
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.failure.as_ref() != Some(&text) {
                    tracing::error!(%error, "the state source cannot be used; the last good state stays in force");
                    self.failure = Some(text);
                    (self.on_event)(SourceEvent::Failed(error));
                }
            }
        }
    }
}

/// Waits for the end of a burst of events; an error means to stop.
fn settle(timing: Timing, woken: &Receiver<Wake>) -> Result<(), RecvTimeoutError> {
    let deadline = Instant::now() + timing.burst_max;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match woken.recv_timeout(timing.quiet.min(left)) {
            Ok(Wake::Touched) if !left.is_zero() => {}
            Ok(Wake::Touched) | Err(RecvTimeoutError::Timeout) => return Ok(()),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => {
                return Err(RecvTimeoutError::Disconnected);
            }
        }
    }
}

/// Whether an event can change what the directory says. Opening and reading cannot: the reader
/// would wake itself. An error can stand for events that were lost.
fn matters(event: &notify::Result<Event>) -> bool {
    event.as_ref().map_or(true, |event| match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    })
}
