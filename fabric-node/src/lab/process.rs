//! Processes of a lab: found by what `/proc` says of them, stopped by signal, awaited by pidfd.
//!
//! A pid alone is never trusted: the kernel hands it out again. Only a process whose program and
//! arguments are the lab's is signalled.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid},
};

/// A running process, immune against its pid being handed out again.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    /// The process with this pid, if it runs.
    #[must_use]
    pub fn open(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let process = Self { pid, fd };
        (!process.wait(Duration::ZERO)).then_some(process)
    }

    /// The process with this pid, if it runs `program` with `argument` among its arguments.
    #[must_use]
    pub fn open_checked(pid: u32, program: &Path, argument: &Path) -> Option<Self> {
        // Opened first: what /proc says afterwards is of this process or of none.
        let process = Self::open(pid)?;
        (runs(pid, program) && mentions(pid, argument)).then_some(process)
    }

    /// Sends a signal; a process that is gone is left in peace.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Waits until the process has ended, at most `timeout`; whether it has.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&left)) {
                Ok(0) => return false,
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        // A child of ours stays listed until somebody asks how it ended.
        let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        true
    }
}

/// Asks all to end, waits for all together at most `grace`, then ends the rest; how many had to
/// be killed.
pub fn stop_all(processes: &[Process], grace: Duration) -> usize {
    for process in processes {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + grace;
    let mut killed = 0;
    for process in processes {
        if !process.wait(deadline.saturating_duration_since(Instant::now())) {
            process.signal(Signal::KILL);
            let _ = process.wait(grace);
            killed += 1;
        }
    }
    killed
}

/// Pids of all running processes that have `argument`, or a path beneath it, in an argument;
/// without this one and its ancestors.
///
/// To root a path means something in its own mount namespace only: a process in another one, such as
/// a container's, is not meant, whatever it says. An ordinary user's labs are in mount namespaces of
/// their own, and only his own processes can be his labs'.
#[must_use]
pub fn mentioning(argument: &Path) -> Vec<u32> {
    let is_root = rustix::process::geteuid().is_root();
    let own = mount_namespace("self");
    others()
        .filter(|&pid| mentions(pid, argument))
        .filter(|&pid| !is_root || mount_namespace(&pid.to_string()) == own)
        .collect()
}

/// Whether the process runs one of the lab's own programs, by the name of its file.
#[must_use]
pub fn is_of_the_lab(pid: u32) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    matches!(
        name.trim_end_matches(" (deleted)"),
        "fabric" | "fabric-node"
    )
}

fn mount_namespace(process: &str) -> Option<(u64, u64)> {
    let namespace = fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?;
    Some((namespace.dev(), namespace.ino()))
}

/// Pids of all processes in one of the network namespaces (device, inode); without this one and
/// its ancestors.
#[must_use]
pub fn inside(namespaces: &[(u64, u64)]) -> Vec<u32> {
    others()
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|ns| namespaces.contains(&(ns.dev(), ns.ino())))
        })
        .collect()
}

fn runs(pid: u32, program: &Path) -> bool {
    let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
        return false;
    };
    // The kernel appends this when the file was replaced, as a compiler does.
    let exe = exe
        .to_string_lossy()
        .trim_end_matches(" (deleted)")
        .to_owned();
    fs::canonicalize(program).is_ok_and(|program| program == Path::new(&exe))
        || program == Path::new(&exe)
}

fn mentions(pid: u32, argument: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments
        .split(|byte| *byte == 0)
        .any(|text| Path::new(&*String::from_utf8_lossy(text)).starts_with(argument))
}

/// All processes but this one and its ancestors.
fn others() -> impl Iterator<Item = u32> {
    let mut own = vec![std::process::id()];
    while let Some(parent) = own
        .last()
        .and_then(|&pid| parent(pid))
        .filter(|&pid| pid > 0)
    {
        own.push(parent);
    }
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(move |pid| !own.contains(pid))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, second, is in parentheses and may hold anything; the parent is fourth (proc(5)).
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Command, Stdio};

    use super::*;

    fn cat(argument: &Path) -> std::process::Child {
        // `-` first: it reads the pipe, and never comes to the argument.
        Command::new("cat")
            .arg("-")
            .arg(argument)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A process is taken for the lab's only with the lab's program and argument; then stopping
    /// ends it and leaves no zombie.
    #[test]
    fn only_the_right_process_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let argument = dir.path().join("node.toml");
        let mut child = cat(&argument);
        let pid = child.id();
        // During the exec, the kernel shows the new program before its arguments.
        while !mentions(pid, &argument) || runs(pid, &std::env::current_exe().unwrap()) {
            std::thread::yield_now();
        }
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert!(Process::open_checked(pid, Path::new("/bin/other"), &argument).is_none());
        assert!(Process::open_checked(pid, &program, Path::new("/elsewhere")).is_none());
        assert_eq!(mentioning(dir.path()), [pid]);
        let process = Process::open_checked(pid, &program, &argument).unwrap();
        assert!(!process.wait(Duration::ZERO));
        assert_eq!(stop_all(&[process], Duration::from_secs(5)), 0);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(Process::open(pid).is_none());
        assert!(child.wait().is_err(), "somebody else has collected it");
    }

    /// This process and its ancestors are never among the processes found in a namespace.
    #[test]
    fn own_ancestors_are_spared() {
        let own = fs::metadata("/proc/self/ns/net").unwrap();
        let found = inside(&[(own.dev(), own.ino())]);
        let own = std::process::id();
        assert!(!found.contains(&own) && !found.contains(&parent(own).unwrap()));
    }
}
