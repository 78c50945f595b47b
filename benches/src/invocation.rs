//! What every benchmark is told on the command line, and how it ends.
//!
//! Comes in: options, and what a run found. Goes out: folders, a progress display, both forms of the
//! report in files and on standard output, an exit code. Never done here: measuring.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{ExitCode, Termination},
};

use anyhow::Context as _;
use clap::Args;
use fabric_node::lab::Progress;
use serde::Serialize;

/// Options of every benchmark. Those of its own, and the name of its lab, are in its program.
#[derive(Clone, Debug, Args)]
pub struct Invocation {
    /// Folder for the reports
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the programs fabric-node and fabric-cni [default: where this program is]
    #[arg(long, env = "FABRIC_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
}

impl Invocation {
    /// Where progress is shown, if at all.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress::new(self.quiet)
    }

    /// The folder of the programs: the one that was named, or that of the running program, as Cargo
    /// puts all of them into one.
    ///
    /// # Errors
    ///
    /// There is no such folder.
    pub fn programs(&self) -> anyhow::Result<PathBuf> {
        match &self.bin_dir {
            Some(dir) => dir
                .canonicalize()
                .with_context(|| format!("no folder {}", dir.display())),
            None => Ok(std::env::current_exe()?
                .parent()
                .context("this program is in no folder")?
                .to_owned()),
        }
    }

    /// The folder for what the benchmark writes, made if it is not there. To be called before anything
    /// takes long.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn folder(&self) -> anyhow::Result<&Path> {
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make {}", self.out.display()))?;
        Ok(&self.out)
    }

    /// Writes the report to `NAME.json` and `NAME.md`, and the latter's `text` to standard output.
    ///
    /// # Errors
    ///
    /// A file or standard output cannot be written.
    pub fn deliver(&self, name: &str, document: &impl Serialize, text: &str) -> anyhow::Result<()> {
        let folder = self.folder()?;
        let file = |extension: &str| folder.join(format!("{name}.{extension}"));
        fs::write(file("json"), serde_json::to_vec_pretty(document)?)?;
        fs::write(file("md"), text)?;
        Ok(io::stdout().write_all(text.as_bytes())?)
    }
}

/// How a program ends: as it says itself, or with 1 and one line on standard error.
pub fn exit_code(result: anyhow::Result<impl Termination>) -> ExitCode {
    match result {
        Ok(end) => end.report(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        invocation: Invocation,
    }

    fn told(options: &[&str]) -> Invocation {
        let words = ["program"].iter().chain(options);
        Program::try_parse_from(words).unwrap().invocation
    }

    /// Both forms of a report are in the folder that was asked for, which need not have been there.
    #[test]
    fn reports_are_where_they_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("made/for/this");
        let invocation = told(&["--quiet", "--out", out.to_str().unwrap()]);
        assert!(invocation.quiet);
        invocation.deliver("some", &[1, 2], "").unwrap();
        let document: Vec<u32> =
            serde_json::from_slice(&fs::read(out.join("some.json")).unwrap()).unwrap();
        assert_eq!(document, [1, 2]);
        assert_eq!(fs::read_to_string(out.join("some.md")).unwrap(), "");
    }

    /// Programs are where the user says, which must exist.
    #[test]
    fn programs_are_where_they_are_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let programs = told(&["--bin-dir", path]).programs();
        assert_eq!(programs.unwrap(), dir.path().canonicalize().unwrap());
        let absent = told(&["--bin-dir", &format!("{path}/absent")]).programs();
        assert!(absent.unwrap_err().to_string().contains("absent"));
    }

    /// What a program says itself is how it ends; an error ends it with 1.
    #[test]
    fn errors_end_a_program() {
        let code = |code: ExitCode| format!("{code:?}");
        assert_eq!(code(exit_code(Ok(()))), code(ExitCode::SUCCESS));
        assert_eq!(code(exit_code(Ok(ExitCode::from(7)))), code(7.into()));
        let error: anyhow::Result<()> = Err(anyhow::anyhow!(
            "wanted by a test of how errors end a program"
        ));
        assert_eq!(code(exit_code(error)), code(ExitCode::FAILURE));
    }
}
