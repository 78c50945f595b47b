//! Whether a program is a CNI plugin that runs on this machine.
//!
//! Comes in: the program. Goes out: the versions of CNI that it says to speak, or why it is none. It is executed as
//! a runtime executes it, with VERSION, which changes nothing.

use std::{
    io,
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use serde_json::Value;
use thiserror::Error;

use crate::lab::command::{self, Answer};

/// How long the program may take to say its versions.
const VERSION_MAX: Duration = Duration::from_secs(10);

/// Why a program is no plugin. It does not name the program: that may have another name where it is executed.
#[derive(Debug, Error)]
pub(super) enum Refused {
    #[error(
        "it does not run here ({0}): is it built for this machine, and may programs run there?"
    )]
    NotStarted(io::Error),
    #[error(
        "it is no CNI plugin, or does not run here: asked for its versions it did not end within {0:?}"
    )]
    Endless(Duration),
    #[error(
        "it is no CNI plugin, or does not run here: asked for its versions it ended with {status}, {said}"
    )]
    NoVersions { status: ExitStatus, said: String },
}

/// Asks `program` for its versions.
///
/// # Errors
///
/// It does not answer as a CNI plugin does.
pub(super) fn ask(program: &Path) -> Result<Vec<String>, Refused> {
    ask_within(program, VERSION_MAX)
}

fn ask_within(program: &Path, limit: Duration) -> Result<Vec<String>, Refused> {
    let mut version = Command::new(program);
    version.env_clear().env("CNI_COMMAND", "VERSION");
    let answer =
        command::run(version, b"", limit).map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => Refused::NotStarted(error),
            Err(_) => Refused::Endless(limit),
        })?;
    let versions = answer.status.success().then(|| versions_in(&answer.stdout));
    versions.flatten().ok_or_else(|| Refused::NoVersions {
        status: answer.status,
        said: first_line(&answer).to_owned(),
    })
}

/// `supportedVersions` of an answer; none where it has no such list.
fn versions_in(answer: &str) -> Option<Vec<String>> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let versions = answer.get("supportedVersions")?.as_array()?;
    let versions = versions.iter().filter_map(Value::as_str);
    Some(versions.map(str::to_owned).collect())
}

/// The first line it said, of standard error if there is one: what follows is mostly how to use it.
fn first_line(answer: &Answer) -> &str {
    let mut lines = answer.stderr.lines().chain(answer.stdout.lines());
    lines
        .find(|line| !line.trim().is_empty())
        .map_or("it said nothing", str::trim)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{ffi::OsStr, os::unix::process::ExitStatusExt as _};

    use super::*;

    /// A program that is none says so in the first line of its errors, not in the last of its help.
    #[test]
    fn what_a_program_said() {
        let said = |stdout: &str, stderr: &str| {
            let answer = Answer {
                status: ExitStatus::from_raw(0),
                stdout: stdout.to_owned(),
                stderr: stderr.to_owned(),
            };
            first_line(&answer).to_owned()
        };
        assert_eq!(
            said("out", "\n error: what\n\nUsage: help\n"),
            "error: what"
        );
        assert_eq!(said("\nout\nmore", " \n"), "out");
        assert_eq!(said("", ""), "it said nothing");
    }

    /// Versions are taken from a list only.
    #[test]
    fn what_a_plugin_answers() {
        let versions = versions_in(r#"{"supportedVersions":["0.4.0","1.1.0"]}"#);
        assert_eq!(versions.unwrap(), ["0.4.0", "1.1.0"]);
        for text in ["", "hello", "{}", r#"{"supportedVersions":"1.1.0"}"#] {
            assert_eq!(versions_in(text), None, "{text}");
        }
    }

    /// Each way of being no plugin has its own words, none of which is the program's path.
    #[test]
    fn what_is_no_plugin() {
        for (program, words) in [
            ("/nonexistent", "does not run here (No such file"),
            ("/bin/false", "exit status: 1, it said nothing"),
            ("/bin/true", "exit status: 0, it said nothing"),
        ] {
            let told = ask(Path::new(program)).unwrap_err().to_string();
            assert!(told.contains(words) && !told.contains(program), "{told}");
        }
    }

    /// A program that does not end is not waited for longer than the limit.
    #[test]
    fn a_program_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("endless");
        // Another process writes it: a child of another test could hold our descriptor, and nobody may execute a
        // file that is open for writing.
        let script = "printf '#!/bin/sh\\nexec sleep 600\\n' > \"$0\"; chmod 755 \"$0\"";
        let mut shell = Command::new("/bin/sh");
        shell.args([OsStr::new("-c"), OsStr::new(script), program.as_os_str()]);
        assert!(shell.status().unwrap().success());
        let told = ask_within(&program, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(told, Refused::Endless(_)), "{told}");
        assert!(told.to_string().contains("did not end within 100ms"));
    }
}
