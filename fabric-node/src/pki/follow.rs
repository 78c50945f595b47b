//! Identity from files that are replaced while the daemon runs.
//!
//! Comes in: inotify events of the files' folders, and the clock, because events can be lost and a
//! certificate becomes valid without one. Goes out: a replaced [`LiveIdentity`], or what is wrong with the
//! new files. Never done here: writing. Files that are not good change nothing but the problem that is
//! shown: the identity in use goes on.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use super::{
    files::{NodeFiles, read_limited},
    identity::NodeIdentity,
    live::LiveIdentity,
};

/// This much quiet ends a burst of events: certificate and key are replaced one after the other.
const QUIET: Duration = Duration::from_millis(300);
/// A burst is not waited for any longer than this.
const BURST_MAX: Duration = Duration::from_secs(2);
/// Between looks without any event.
const REREAD: Duration = Duration::from_secs(30);
/// Between looks while the files are not good.
const RETRY: Duration = Duration::from_secs(2);

/// The watch; it ends when this is dropped.
#[derive(Debug)]
pub struct IdentityWatch {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Wake {
    Touched,
    Stop,
}

/// Follows `files` on a thread of its own: whatever good identity they hold becomes the one in use, and
/// `on_replaced` is called then.
///
/// # Errors
///
/// The thread cannot be started. Folders that cannot be watched are looked into by the clock.
pub fn follow(
    files: NodeFiles,
    live: Arc<LiveIdentity>,
    on_replaced: impl FnMut() + Send + 'static,
) -> io::Result<IdentityWatch> {
    let (wake, woken) = mpsc::channel();
    let mut reader = Reader {
        in_use: Contents::read(&files),
        files,
        live,
        watched: BTreeSet::new(),
        watcher: watcher(wake.clone()),
        problem: None,
        on_replaced,
    };
    let thread = thread::Builder::new()
        .name("identity".to_owned())
        .spawn(move || reader.run(&woken))?;
    Ok(IdentityWatch {
        wake,
        thread: Some(thread),
    })
}

impl Drop for IdentityWatch {
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

/// What the files hold; equal contents are no news.
#[derive(PartialEq, Eq)]
struct Contents([Option<Vec<u8>>; 3]);

impl Contents {
    fn read(files: &NodeFiles) -> Self {
        Self([&files.ca, &files.certificate, &files.key].map(|path| read_limited(path).ok()))
    }
}

struct Reader<F> {
    files: NodeFiles,
    live: Arc<LiveIdentity>,
    /// What was taken into use last.
    in_use: Contents,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// The problem that is shown; none while the files are good.
    problem: Option<String>,
    on_replaced: F,
}

impl<F: FnMut()> Reader<F> {
    fn run(&mut self, woken: &Receiver<Wake>) {
        loop {
            self.arm();
            self.look();
            let pause = if self.problem.is_some() {
                RETRY
            } else {
                REREAD
            };
            match woken.recv_timeout(pause) {
                Ok(Wake::Touched) => {
                    if settle(woken).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Watches the folders of the files, as far as they are there.
    fn arm(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for file in [&self.files.ca, &self.files.certificate, &self.files.key] {
            let folder = file.parent().unwrap_or_else(|| Path::new("/"));
            if self.watched.contains(folder) {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(folder.to_owned());
                }
                Err(error) => {
                    tracing::debug!(folder = %folder.display(), %error, "not watched; looked into by the clock");
                }
            }
        }
    }

    fn look(&mut self) {
        let contents = Contents::read(&self.files);
        if contents == self.in_use {
            // Whoever put the files in use back has mended what was wrong.
            self.show(None);
            return;
        }
        let NodeFiles {
            ca,
            certificate,
            key,
        } = &self.files;
        let replaced = NodeIdentity::load(ca, certificate, key)
            .map_err(|error| error.to_string())
            .and_then(|next| {
                let end = next.validity().not_after;
                self.live.replace(next).map_err(|error| error.to_string())?;
                Ok(end)
            });
        match replaced {
            Ok(not_after) => {
                let until = super::validity::Rfc3339(not_after);
                tracing::info!(%until, certificate = %certificate.display(), "identity replaced");
                self.in_use = contents;
                self.problem = None;
                (self.on_replaced)();
            }
            Err(error) => self.show(Some(format!(
                "the identity in use stays, the new files are not used: {error}"
            ))),
        }
    }

    /// Shows a problem, or that there is none, and logs it once.
    fn show(&mut self, problem: Option<String>) {
        if problem == self.problem {
            return;
        }
        match &problem {
            Some(problem) => tracing::error!("{problem}"),
            None => tracing::info!("the identity's files are as they were"),
        }
        self.live.set_problem(problem.clone());
        self.problem = problem;
    }
}

/// Waits for the end of a burst; an error says that the watch has ended.
fn settle(woken: &Receiver<Wake>) -> Result<(), ()> {
    let latest = Instant::now() + BURST_MAX;
    while Instant::now() < latest {
        match woken.recv_timeout(QUIET) {
            Ok(Wake::Touched) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(()),
        }
    }
    Ok(())
}

fn watcher(wake: Sender<Wake>) -> Option<RecommendedWatcher> {
    let touched = move |event: notify::Result<Event>| {
        let is_read = |kind: EventKind| match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Access(_) => true,
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => false,
        };
        // Our own reading is no event. An error may have swallowed one.
        if event.map_or(true, |event| !is_read(event.kind)) {
            // The thread has ended, and with it the watch.
            let _ = wake.send(Wake::Touched);
        }
    };
    match RecommendedWatcher::new(touched, notify::Config::default()) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "the identity's files are looked at by the clock only");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::{
        node_id::NodeId,
        pki::{
            authority::{self, Authority},
            files::{self, Overwrite},
        },
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    fn issue(authority: &Authority, name: &str, dir: &Path) -> NodeFiles {
        let node = NodeId::new(name).unwrap();
        let credentials = authority::issue(authority, &node, 1).unwrap();
        files::save_node(&credentials, dir, Overwrite::Yes).unwrap()
    }

    fn load(files: &NodeFiles) -> NodeIdentity {
        NodeIdentity::load(&files.ca, &files.certificate, &files.key).unwrap()
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// New files are in use soon, bad ones are not and are named until good ones are there, and another
    /// node's are bad ones.
    #[test]
    fn good_files_replace_and_bad_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority::init("fabric", 2).unwrap();
        let files = issue(&authority, "a", dir.path());
        let live = LiveIdentity::of(load(&files));
        let first = live.current().key();
        let (told, telling) = mpsc::channel();
        let watch = follow(files.clone(), live.clone(), move || told.send(()).unwrap()).unwrap();

        issue(&authority, "a", dir.path());
        telling.recv_timeout(PATIENCE).unwrap();
        let second = live.current().key();
        assert_ne!(first, second);
        assert_eq!(live.keys(), [second]);

        fs::write(&files.certificate, "hello").unwrap();
        eventually("the bad file is named", || {
            live.noted()
                .is_some_and(|problem| problem.contains("a.pem") && problem.contains("stays"))
        });
        assert_eq!(live.current().key(), second);

        let other = tempfile::tempdir().unwrap();
        let foreign = issue(&authority, "b", other.path());
        fs::copy(&foreign.certificate, &files.certificate).unwrap();
        fs::copy(&foreign.key, &files.key).unwrap();
        eventually("the other node is named", || {
            live.noted()
                .is_some_and(|problem| problem.contains("/node/b"))
        });
        assert_eq!(live.current().key(), second);

        issue(&authority, "a", dir.path());
        telling.recv_timeout(PATIENCE).unwrap();
        eventually("nothing is wrong", || live.noted().is_none());
        assert_ne!(live.current().key(), second);
        drop(watch);
    }

    /// A second CA certificate in the file is trusted without a restart, and one that is taken out is not.
    #[test]
    fn authorities_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (
            authority::init("fabric", 2).unwrap(),
            authority::init("fabric", 2).unwrap(),
        );
        let files = issue(&old, "a", dir.path());
        let live = LiveIdentity::of(load(&files));
        let before = live.current();
        let (told, telling) = mpsc::channel();
        let _watch = follow(files.clone(), live.clone(), move || told.send(()).unwrap()).unwrap();
        let both = [old.certificate_pem(), new.certificate_pem()].concat();
        fs::write(&files.ca, both).unwrap();
        telling.recv_timeout(PATIENCE).unwrap();
        let after = live.current();
        assert!(!after.trusts_the_same(&before));
        assert_eq!(after.key(), before.key());
        // Its own certificate is of the CA that goes: that is refused.
        fs::write(&files.ca, new.certificate_pem()).unwrap();
        eventually("its own certificate is named", || {
            live.noted()
                .is_some_and(|problem| problem.contains("not accepted by the CA"))
        });
        assert!(live.current().trusts_the_same(&after));
    }
}
