//! A steady `ping` between two pods, by the program of that name, and when it was answered.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Pod, command, process::Process};
use rustix::process::Signal;

use crate::traffic::address;

/// How long ping may take to end.
const END_MAX: Duration = Duration::from_secs(5);

/// `ping -i 0.05` in a pod. Ends when dropped.
#[derive(Debug)]
pub struct Pings {
    /// From whom to whom.
    pub name: String,
    child: Child,
    output: tempfile::NamedTempFile,
    since: SystemTime,
}

impl Pings {
    /// Begins to ping a pod from another.
    ///
    /// # Errors
    ///
    /// The programs are missing.
    pub fn start(from: &Pod, to: &Pod, ipv6: bool) -> anyhow::Result<Self> {
        let target = address(to, ipv6)?.to_string();
        let output = tempfile::NamedTempFile::new()?;
        let stdout: File = output.reopen()?;
        let mut program = Command::new("nsenter");
        let netns = format!("--net={}", from.netns.display());
        program.args([&netns, "ping", "-n", "-D", "-i", "0.05", &target]);
        program.stdin(Stdio::null()).stdout(stdout);
        Ok(Self {
            name: format!("{} -> {target}", from.name),
            since: SystemTime::now(),
            child: program.spawn().context("cannot start nsenter")?,
            output,
        })
    }

    /// When it was answered.
    ///
    /// # Errors
    ///
    /// What ping prints cannot be read.
    pub fn answers(&self) -> anyhow::Result<Vec<SystemTime>> {
        let text = fs::read_to_string(self.output.path())?;
        // "[1700000000.123456] 64 bytes from 10.244.1.2: icmp_seq=1 ttl=62 time=0.1 ms"
        let answers = text.lines().filter(|line| line.contains(" bytes from "));
        let times = answers
            .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
            .map(|seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds));
        Ok(times.collect())
    }

    /// Ends it; the longest time without an answer, from its start to its end.
    ///
    /// # Errors
    ///
    /// It has ended by itself, or does not end.
    pub fn longest_gap(self) -> anyhow::Result<Duration> {
        let process = Process::open(self.child.id()).context("ping has ended by itself")?;
        process.signal(Signal::INT);
        let end = SystemTime::now();
        ensure!(process.wait(END_MAX), "{} does not end", self.name);
        let times = self.answers()?;
        let (mut last, mut longest) = (self.since, Duration::ZERO);
        for time in times.into_iter().chain([end]) {
            longest = longest.max(time.duration_since(last).unwrap_or_default());
            last = time;
        }
        Ok(longest)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        command::end(&mut self.child);
    }
}
