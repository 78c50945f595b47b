//! A program inside a network namespace that ends with the value that stands for it, or with this
//! process, whatever comes first and however it comes.

use std::{
    io::{self, Read},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sys::{
    child::end_with_thread,
    netns::{Netns, NetnsThread},
};

/// A running program.
#[derive(Debug)]
pub struct Running {
    /// Of this process alone, also when its pid is handed out again.
    process: OwnedFd,
    /// The thread that started it waits for it: the kernel kills the program when the thread ends.
    keeper: Option<NetnsThread<()>>,
}

/// What a program says.
#[derive(Debug)]
pub struct Pipes<O, E> {
    /// Its standard output.
    pub stdout: O,
    /// Its standard error.
    pub stderr: E,
}

impl Running {
    /// Starts `command` in `netns`, with no input and its output in pipes. A program that has ended by
    /// then was started all the same: what it said is in the pipes.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered or the program cannot be started.
    pub fn start(
        netns: &Netns,
        mut command: Command,
    ) -> anyhow::Result<(
        Self,
        Pipes<impl Read + Send + use<>, impl Read + Send + use<>>,
    )> {
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A Ctrl-C in the terminal is for this process, which ends its programs in order.
        command.process_group(0);
        end_with_thread(&mut command);
        let (started, start) = mpsc::sync_channel(1);
        let keeper = netns.spawn("keeper", move || {
            let begun = command.spawn().and_then(hold);
            let (child, held) = match begun {
                Ok((child, held)) => (Some(child), Ok(held)),
                Err(error) => (None, Err(error)),
            };
            // The receiver waits for exactly this message.
            let _ = started.send(held);
            if let Some(mut child) = child {
                let _ = child.wait();
            }
        })?;
        let begun = start
            .recv()
            .map_err(|_| anyhow!("its thread ended"))
            .and_then(|result| Ok(result?));
        let held = begun.with_context(|| format!("cannot start {program}"))?;
        let running = Self {
            process: held.process,
            keeper: Some(keeper),
        };
        let (Some(stdout), Some(stderr)) = (held.stdout, held.stderr) else {
            return Err(anyhow!("{program} has no output"));
        };
        Ok((running, Pipes { stdout, stderr }))
    }

    /// Whether the program has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.keeper.as_ref().is_none_or(NetnsThread::is_finished)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs no signal.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        if let Some(keeper) = self.keeper.take() {
            // It waits for the program alone, which has been killed.
            let _ = keeper.join();
        }
    }
}

/// What is kept of a program by whoever did not start it.
struct Held {
    process: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

/// Takes hold of a program that nobody has collected yet, so that its pid is its own, whether it runs
/// or has ended. One that cannot be held is ended: nobody could do that later.
fn hold(mut child: Child) -> io::Result<(Child, Held)> {
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(process) => {
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            let held = Held {
                process,
                stdout,
                stderr,
            };
            Ok((child, held))
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}

/// Reads a pipe to its end on a thread of its own, at most `limit` bytes; the rest is read, too, and
/// forgotten, because a full pipe would stop the program.
pub fn collect(mut pipe: impl Read + Send + 'static, limit: u64) -> mpsc::Receiver<String> {
    let (done, text) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(limit).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
        // Nobody may be waiting any more.
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{path::Path, time::Duration};

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    const NEEDS_ROOT: &str = "this test makes network namespaces: run it as root";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// What the program says can be read, up to the limit, and its end is noticed.
    #[test]
    fn output_and_end_are_noticed() {
        let netns = Netns::create().expect(NEEDS_ROOT);
        let (running, pipes) = Running::start(&netns, shell("echo hello; echo no >&2")).unwrap();
        let told = |pipe: mpsc::Receiver<String>| pipe.recv_timeout(Duration::from_secs(10));
        assert_eq!(told(collect(pipes.stdout, 3)).unwrap(), "hel");
        assert_eq!(told(collect(pipes.stderr, 100)).unwrap(), "no\n");
        while !running.has_ended() {
            thread::yield_now();
        }
    }

    /// A program that has ended before anybody takes hold of it is held like any other: what it said can
    /// be read.
    #[test]
    fn a_program_may_have_ended_before_it_is_held() {
        let child = shell("echo gone").stdout(Stdio::piped()).spawn().unwrap();
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&child)), ended).unwrap();
        let (mut child, held) = hold(child).unwrap();
        let mut said = String::new();
        held.stdout.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "gone\n");
        assert!(child.wait().unwrap().success());
        // A signal to it does no harm when nothing is left of it.
        assert!(pidfd_send_signal(&held.process, Signal::KILL).is_err());
    }

    /// A program that would run for ever ends with its value, and nobody has to collect it.
    #[test]
    fn a_program_ends_with_its_value() {
        let netns = Netns::create().expect(NEEDS_ROOT);
        let (running, pipes) =
            Running::start(&netns, shell("echo $$; exec cat /dev/zero >/dev/null")).unwrap();
        let mut pid = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(pipes.stdout), &mut pid).unwrap();
        let folder = format!("/proc/{}", pid.trim());
        assert!(Path::new(&folder).exists());
        drop(running);
        assert!(!Path::new(&folder).exists());
    }

    /// A program that is not there is named.
    #[test]
    fn a_missing_program_is_named() {
        let netns = Netns::create().expect(NEEDS_ROOT);
        let Err(error) = Running::start(&netns, Command::new("/no/such/program")) else {
            panic!("it was started");
        };
        assert!(
            format!("{error:#}").contains("/no/such/program"),
            "{error:#}"
        );
    }
}
