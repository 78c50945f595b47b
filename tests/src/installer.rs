//! The folders of a container runtime, and `fabric install-cni` and `uninstall-cni` at work on them.

use std::{
    collections::BTreeMap,
    fs,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Worker, command};
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tempfile::TempDir;

use crate::stage::Stage;

/// How long one command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// The list, by its usual name.
pub const LIST: &str = "10-fabric.conflist";

/// Folders that a runtime would look into, gone with this value.
#[derive(Debug)]
pub struct Machine {
    folder: TempDir,
}

/// What two looks at a file must have in common if nothing touched it in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    inode: u64,
    /// Kind and permissions, as stat(2) has them.
    pub mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Of a file its bytes, of a link where it leads.
    pub content: Vec<u8>,
}

impl Machine {
    /// A machine on which the folders are missing.
    ///
    /// # Errors
    ///
    /// There is no room for it.
    pub fn bare() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        Ok(Self { folder })
    }

    /// A machine on which both folders are there and empty.
    ///
    /// # Errors
    ///
    /// As [`Machine::bare`].
    pub fn new() -> anyhow::Result<Self> {
        let machine = Self::bare()?;
        fs::create_dir(machine.bin())?;
        fs::create_dir(machine.conf())?;
        Ok(machine)
    }

    /// The folder of plugins.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// The folder of networks.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.folder.path().join("net.d")
    }

    /// The list in it.
    #[must_use]
    pub fn list(&self) -> PathBuf {
        self.conf().join(LIST)
    }

    /// A path beside both folders.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `fabric VERB` on these folders, as a command that is yet to be run under `wrapper`.
    #[must_use]
    pub fn command(&self, wrapper: &[String], stage: &Stage, verb: &str) -> Command {
        let fabric = stage.program("fabric");
        let mut command = match wrapper.split_first() {
            None => Command::new(fabric),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(fabric);
                command
            }
        };
        command
            .env_remove("FABRIC_SOCKET")
            // Cargo's, in which the loader would look for every library.
            .env_remove("LD_LIBRARY_PATH")
            .arg(verb)
            .arg("--bin-dir")
            .arg(self.bin())
            .arg("--conf-dir")
            .arg(self.conf());
        command
    }

    /// `fabric install-cni` with further arguments.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end.
    pub fn install(&self, stage: &Stage, arguments: &[&str]) -> anyhow::Result<command::Answer> {
        let mut command = self.command(&[], stage, "install-cni");
        command.args(arguments);
        command::run(command, b"", COMMAND_MAX)
    }

    /// `fabric install-cni` for the daemon of a worker, with further arguments.
    ///
    /// # Errors
    ///
    /// As [`Machine::install`].
    pub fn install_for(
        &self,
        stage: &Stage,
        worker: &Worker,
        arguments: &[&str],
    ) -> anyhow::Result<command::Answer> {
        let mut command = self.command(&[], stage, "install-cni");
        command.args(daemon_of(worker)).args(arguments);
        command::run(command, b"", COMMAND_MAX)
    }

    /// `fabric uninstall-cni`, asking the daemon at `socket`, with further arguments.
    ///
    /// # Errors
    ///
    /// As [`Machine::install`].
    pub fn uninstall(
        &self,
        stage: &Stage,
        socket: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<command::Answer> {
        let mut command = self.command(&[], stage, "uninstall-cni");
        command.arg("--socket").arg(socket).args(arguments);
        command::run(command, b"", COMMAND_MAX)
    }

    /// Everything in both folders, by name.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn files(&self) -> anyhow::Result<BTreeMap<String, Trace>> {
        let mut files = BTreeMap::new();
        for folder in [self.bin(), self.conf()] {
            let entries =
                fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                files.insert(name, Trace::of(&entry.path())?);
            }
        }
        Ok(files)
    }

    /// Names of everything in both folders, sorted.
    ///
    /// # Errors
    ///
    /// As [`Machine::files`].
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.files()?.into_keys().collect())
    }
}

impl Trace {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        let content = if metadata.is_symlink() {
            fs::read_link(path)?.into_os_string().into_encoded_bytes()
        } else {
            fs::read(path)?
        };
        Ok(Self {
            inode: metadata.ino(),
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            content,
        })
    }
}

/// The options that name a worker's daemon to `install-cni`.
#[must_use]
pub fn daemon_of(worker: &Worker) -> [PathBuf; 4] {
    [
        "--cni-socket".into(),
        worker.cni_socket(),
        "--state-dir".into(),
        worker.state_dir(),
    ]
}

/// Checks that a command ended with `code` and said all of `words`, on stdout or stderr.
///
/// # Errors
///
/// It did not.
pub fn expect(answer: &command::Answer, code: i32, words: &[&str]) -> anyhow::Result<()> {
    let said = format!("{}{}", answer.stdout, answer.stderr);
    ensure!(
        answer.status.code() == Some(code) && words.iter().all(|word| said.contains(word)),
        "expected exit code {code} and {words:?}, but it is {}: {said}",
        answer.status
    );
    Ok(())
}

/// Sees what happens to the folders of a machine, as a runtime that watches them does.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    /// What the kernel calls each folder, and its name here.
    folders: [(i32, &'static str); 2],
}

/// Something that happened to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `bin/NAME` or `net.d/NAME`.
    pub path: String,
    /// `created`, `written`, `changed`, `moved from`, `moved to`, `deleted`; `the folder itself`.
    pub what: &'static str,
    /// The same in both halves of a rename, else 0.
    pub cookie: u32,
}

impl Watch {
    /// Watches both folders from here on.
    ///
    /// # Errors
    ///
    /// They are not there.
    pub fn on(machine: &Machine) -> anyhow::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mask = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let folders = [
            (inotify::add_watch(&inotify, machine.bin(), mask)?, "bin"),
            (inotify::add_watch(&inotify, machine.conf(), mask)?, "net.d"),
        ];
        Ok(Self { inotify, folders })
    }

    /// What happened since the last call, in order.
    ///
    /// # Errors
    ///
    /// The kernel's list cannot be read, or has overflowed.
    pub fn events(&self) -> anyhow::Result<Vec<Event>> {
        let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(events),
                Err(error) => return Err(error).context("inotify"),
            };
            let folder = self.folders.iter().find(|(watch, _)| *watch == event.wd());
            let (_, folder) = folder.context("the kernel dropped events")?;
            let name = event.file_name().map(|name| name.to_string_lossy());
            events.push(Event {
                path: format!("{folder}/{}", name.unwrap_or_default()),
                what: word(event.events()),
                cookie: event.cookie(),
            });
        }
    }
}

fn word(flags: ReadFlags) -> &'static str {
    let words = [
        (ReadFlags::CREATE, "created"),
        (ReadFlags::MODIFY, "written"),
        (ReadFlags::CLOSE_WRITE, "written"),
        (ReadFlags::ATTRIB, "changed"),
        (ReadFlags::MOVED_FROM, "moved from"),
        (ReadFlags::MOVED_TO, "moved to"),
        (ReadFlags::DELETE, "deleted"),
    ];
    words
        .iter()
        .find(|(flag, _)| flags.contains(*flag))
        .map_or("the folder itself", |(_, word)| word)
}
