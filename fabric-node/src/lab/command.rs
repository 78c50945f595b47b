//! Running other programs with a limit on their time, so that a hanging one cannot hang the lab.

use std::{
    io::{Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

/// What a program answered.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Answer {
    /// The last line it said, of standard error if there is one.
    #[must_use]
    pub fn last_line(&self) -> &str {
        let last = |text: &'_ str| text.trim().lines().next_back().map(str::len);
        let text = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let text = text.trim();
        last(text)
            .and_then(|len| text.get(text.len() - len..))
            .unwrap_or("it said nothing")
    }
}

/// Runs `command` with `stdin` and collects its answer.
///
/// # Errors
///
/// It cannot be started, or did not end within `limit`; then it was killed.
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> anyhow::Result<Answer> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read its input says why in its own words.
        let _ = pipe.write_all(stdin);
    }
    let (done, outputs) = mpsc::channel();
    collect(child.stdout.take(), 0, &done);
    collect(child.stderr.take(), 1, &done);
    drop(done);
    let mut texts = [String::new(), String::new()];
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match outputs.recv_timeout(left) {
            Ok((index, text)) => {
                if let Some(slot) = texts.get_mut(index) {
                    *slot = text;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                end(&mut child);
                bail!("{program} did not end within {} s", limit.as_secs());
            }
        }
    }
    let status = child.wait()?;
    let [stdout, stderr] = texts;
    Ok(Answer {
        status,
        stdout,
        stderr,
    })
}

/// Kills a child and collects it.
pub fn end(child: &mut Child) {
    // Both fail only for a child that has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn collect(
    pipe: Option<impl Read + Send + 'static>,
    index: usize,
    done: &mpsc::Sender<(usize, String)>,
) {
    let Some(mut pipe) = pipe else { return };
    let done = done.clone();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        // Nobody listens after the time limit.
        let _ = done.send((index, String::from_utf8_lossy(&bytes).into_owned()));
    });
}

/// Where `program` is found along PATH, and in the folders where Debian keeps system programs.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
}

/// Whether `file` is a file that can be executed.
#[must_use]
pub fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Input goes in; output, error and status come back.
    #[test]
    fn input_and_answer_are_carried() {
        let answer = run(
            shell("cat; echo one >&2; echo two >&2; exit 3"),
            b"hello",
            Duration::from_secs(10),
        );
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status.code(), answer.stdout.as_str()),
            (Some(3), "hello")
        );
        assert_eq!(answer.last_line(), "two");
    }

    /// A program that does not end is killed at the limit and named.
    #[test]
    fn a_hanging_program_is_killed() {
        let error = run(
            shell("exec cat /dev/zero >/dev/null"),
            b"",
            Duration::from_millis(50),
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("/bin/sh did not end")
        );
    }
}
