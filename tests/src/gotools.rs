//! Programs of others that the tests drive, built by the Go toolchain at pinned versions.
//!
//! `tests/tools/go.mod` and `go.sum` say what is built; the programs come out, in a folder of the target
//! folder that is named after those two files and the toolchain, and stay there for the next run. Never
//! changes the pins, and never falls back to a program that happens to be installed.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;

use crate::stage::workspace;

/// How long one build may take on a small machine, downloads included.
const BUILD_MAX: Duration = Duration::from_secs(900);
/// How long the toolchain may take to answer a question.
const ASK_MAX: Duration = Duration::from_secs(60);

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Calls CNI plugins as a runtime does, through the reference library.
    Cnitool,
    /// Speaks CRI to a runtime, for people.
    Crictl,
    /// The conformance suite of container runtimes.
    Critest,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cnitool, Self::Crictl, Self::Critest];

    /// What its file is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cnitool => "cnitool",
            Self::Crictl => "crictl",
            Self::Critest => "critest",
        }
    }

    /// The Go module that has it.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Cnitool => "github.com/containernetworking/cni",
            Self::Crictl | Self::Critest => "sigs.k8s.io/cri-tools",
        }
    }

    /// The version of its module in `tests/tools/go.mod`, as `v1.2.3`.
    ///
    /// # Errors
    ///
    /// The file cannot be read or does not name the module.
    pub fn version(self) -> anyhow::Result<String> {
        let file = pins().join("go.mod");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        pinned(&text, self.module())
            .map(str::to_owned)
            .with_context(|| format!("{} does not pin {}", file.display(), self.module()))
    }

    /// Its file; built if it is not there yet, which takes one to two minutes for the first.
    ///
    /// # Errors
    ///
    /// There is no Go, or the build failed; with its last words.
    pub fn program(self) -> anyhow::Result<PathBuf> {
        let folder = folder()?;
        let file = folder.join(self.name());
        if !command::is_program(&file) {
            self.build_into(&folder)
                .with_context(|| format!("cannot build {}", self.name()))?;
        }
        Ok(file)
    }

    #[allow(
        clippy::print_stderr,
        reason = "a test that is silent for minutes looks hung"
    )]
    fn build_into(self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        // Beside its place: what is moved there is whole.
        let unfinished = tempfile::Builder::new()
            .prefix("unfinished-")
            .tempdir_in(folder)?;
        let file = unfinished.path().join(self.name());
        eprintln!("building {} {}", self.name(), self.version()?);
        let begin = Instant::now();
        let mut build = go()?;
        build
            .args(self.build_words())
            .args(["-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o"])
            .args([file.as_os_str(), self.package().as_ref()])
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off");
        let answer = command::run(build, b"", BUILD_MAX)?;
        ensure!(
            answer.status.success() && command::is_program(&file),
            "go ended with {}: {}",
            answer.status,
            answer.stderr.trim()
        );
        fs::rename(&file, folder.join(self.name()))?;
        eprintln!("built {} in {} s", self.name(), begin.elapsed().as_secs());
        Ok(())
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Cnitool => "github.com/containernetworking/cni/cnitool",
            Self::Crictl => "sigs.k8s.io/cri-tools/cmd/crictl",
            Self::Critest => "sigs.k8s.io/cri-tools/cmd/critest",
        }
    }

    /// The suite is a package of tests, which only `go test` makes a program of.
    const fn build_words(self) -> &'static [&'static str] {
        match self {
            Self::Cnitool | Self::Crictl => &["build"],
            Self::Critest => &["test", "-c"],
        }
    }
}

/// Folder of the files that pin the programs.
fn pins() -> PathBuf {
    workspace().join("tests/tools")
}

/// The toolchain, where the pins are.
fn go() -> anyhow::Result<Command> {
    let program = command::find("go")
        .context("Go is not installed: scripts/install-deps says which is needed")?;
    let mut go = Command::new(program);
    go.current_dir(pins());
    Ok(go)
}

/// Where the programs of these pins and this toolchain are kept.
fn folder() -> anyhow::Result<PathBuf> {
    let mut ask = go()?;
    ask.args(["env", "GOVERSION"]);
    let answer = command::run(ask, b"", ASK_MAX)?;
    let toolchain = answer.stdout.trim();
    ensure!(
        answer.status.success() && toolchain.starts_with("go"),
        "`go env GOVERSION` ended with {}: {}",
        answer.status,
        answer.last_line()
    );
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        let path = pins().join(file);
        fs::read(&path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .hash(&mut hasher);
    }
    let target = env::var_os("CARGO_TARGET_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    let name = format!("{toolchain}-{:016x}", hasher.finish());
    Ok(target.join("go-tools").join(name))
}

/// The version of `module` in the text of a `go.mod`.
fn pinned<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let line = line.trim_start();
        let mut words = line
            .strip_prefix("require ")
            .unwrap_or(line)
            .split_whitespace();
        (words.next()? == module)
            .then(|| words.next())
            .flatten()
            .filter(|version| version.starts_with('v'))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Every program has a version in the pins, and its module is required directly: nothing else
    /// decides which one is built.
    #[test]
    fn every_program_is_pinned() {
        let text = fs::read_to_string(pins().join("go.mod")).unwrap();
        for tool in Tool::ALL {
            let version = tool.version().unwrap();
            let line = format!("{} {version}", tool.module());
            let required = text.lines().find(|found| found.contains(&line)).unwrap();
            assert!(!required.contains("indirect"), "{required}");
        }
        assert_eq!(pinned("require a.org/b v1.2.3", "a.org/b"), Some("v1.2.3"));
        assert_eq!(
            pinned("\ta.org/b/c v2.0.0\n\ta.org/b v1.2.3", "a.org/b"),
            Some("v1.2.3")
        );
        assert_eq!(pinned("tool a.org/b", "a.org/b"), None);
    }

    /// The names of the folder change with the pins and the toolchain alone.
    #[test]
    fn programs_are_kept_by_pins_and_toolchain() {
        let kept = folder().unwrap();
        assert_eq!(kept, folder().unwrap());
        let name = kept.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("go1."), "{name}");
    }
}
