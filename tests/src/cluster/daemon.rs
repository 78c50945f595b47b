//! A program of the cluster that runs until it is stopped, with its output in a file.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::process::Process;
use rustix::process::Signal;

use super::realm::Realm;

/// How long a program that was asked to end may take before it is killed.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Lines of a log that an error tells.
const TAIL_LINES: usize = 15;
/// Time between two looks at something that costs a process each.
const INTERVAL: Duration = Duration::from_millis(100);

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct Program {
    /// What people call it.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// What it is told.
    pub arguments: Vec<OsString>,
    /// Where it runs.
    pub realm: Realm,
    /// Folder of its own: its working folder, and that of its log.
    pub folder: PathBuf,
}

/// Such a program, running or stopped. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    child: Option<Child>,
}

impl Daemon {
    /// Starts `program`.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(program: Program) -> anyhow::Result<Self> {
        let mut daemon = Self::stopped(program);
        daemon.start_again()?;
        Ok(daemon)
    }

    /// `program`, which does not run yet.
    #[must_use]
    pub fn stopped(program: Program) -> Self {
        Self {
            program,
            child: None,
        }
    }

    /// Starts it, for the first time or again after [`Daemon::stop`] or [`Daemon::kill`]. One that runs is left as it is.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.runs() {
            return Ok(());
        }
        let program = &self.program;
        fs::create_dir_all(&program.folder)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = program.realm.command(&program.file, &program.folder)?;
        command
            .args(&program.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // What a terminal sends to the foreground is for who drives the cluster.
            .process_group(0);
        let child = command.spawn();
        self.child = Some(child.with_context(|| format!("cannot start {}", program.name))?);
        Ok(())
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Asks it to end, and kills it if it does not within 15 s; whether it had to be killed.
    ///
    /// # Errors
    ///
    /// It cannot be collected.
    pub fn stop(&mut self) -> anyhow::Result<bool> {
        self.end(Signal::TERM)
    }

    /// Kills it.
    ///
    /// # Errors
    ///
    /// It cannot be collected.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::KILL).map(drop)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<bool> {
        let Some(mut child) = self.child.take() else {
            return Ok(false);
        };
        if let Some(process) = Process::open(child.id()) {
            process.signal(signal);
            if !process.wait(STOP_MAX) {
                process.signal(Signal::KILL);
            }
        }
        // Whoever waited for the process may have collected it.
        let status = child.wait().ok();
        Ok(status.is_some_and(|status| status.signal() == Some(9)))
    }

    /// Asks until `look` succeeds; how long that took.
    ///
    /// # Errors
    ///
    /// The program ended, or `look` did not succeed within `limit`: with its last error and the end of the log.
    pub fn await_that<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let begin = Instant::now();
        loop {
            let error = match look() {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            if !self.runs() {
                bail!("{} has ended; {}", self.program.name, self.tail());
            }
            if begin.elapsed() >= limit {
                bail!(
                    "{what}: not within {} s: {error:#}; {}",
                    limit.as_secs(),
                    self.tail()
                );
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Goes on if it runs.
    ///
    /// # Errors
    ///
    /// It has ended; with the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.runs(),
            "{} has ended; {}",
            self.program.name,
            self.tail()
        );
        Ok(())
    }

    /// The file of its output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.program.folder.join("log")
    }

    /// The end of its output, for people.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.program.name, &self.log())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The end of a log, for people.
pub(super) fn tail(name: &str, log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let mut tail = format!("{name} said at last ({}):", log.display());
    for line in lines
        .get(lines.len().saturating_sub(TAIL_LINES)..)
        .unwrap_or_default()
    {
        let _ = write!(tail, "\n  {line}");
    }
    tail
}
