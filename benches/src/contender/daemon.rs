//! A program of a contender while it runs. What it says goes to a file, so that it can be told why it
//! does not run.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::End;
use crate::child::Guard;

/// Pause between two looks whether something has come true.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A running program; ended when this value is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    guard: Guard,
    name: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` at `end`; what it says goes to a file in `folder`.
    pub(super) fn start(
        end: &End<'_>,
        mut command: Command,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let program = Path::new(command.get_program());
        let name = program.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let log = folder.join(format!("{}.log", end.ifname));
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // The last line of a panic is to be its message, not the end of a trace.
            .env("RUST_BACKTRACE", "0")
            // A Ctrl-C in the terminal is for this program, which ends its contenders in order.
            .process_group(0);
        Ok(Self {
            guard: Guard::start(end.netns, command)?,
            name,
            log,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.guard.pid()
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let line = log
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty() && !line.starts_with("note: "));
        let line = line.unwrap_or("it said nothing");
        line.chars().filter(|letter| !letter.is_control()).collect()
    }
}

/// Waits until `condition` holds: what `daemons` are waited for to do is `what`.
///
/// # Errors
///
/// One of them has ended, or it takes longer than `limit`; with the last that each said.
pub(super) fn wait_until(
    limit: Duration,
    daemons: &mut [Daemon],
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !condition() {
        for daemon in &mut *daemons {
            if daemon.guard.has_ended() {
                bail!("{} has ended: {}", daemon.name, daemon.last_words());
            }
        }
        if Instant::now() >= deadline {
            let words: Vec<String> = daemons.iter().map(Daemon::last_words).collect();
            bail!(
                "it does not {what} within {} s: {}",
                limit.as_secs(),
                words.join(" | ")
            );
        }
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}
