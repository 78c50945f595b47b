//! Where the programs of contenders come from: built by Go or by cargo at pinned versions and kept in
//! a folder, or found on the system, which then says their version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;

use super::TOOL_MAX;

/// How long a build may take on a small machine, downloads included.
const BUILD_MAX: Duration = Duration::from_secs(900);

/// Folders.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `go.mod` files that pin Go programs.
    pub pins: PathBuf,
    /// What is built goes here, and stays.
    pub built: PathBuf,
    /// Programs of this source tree.
    pub own: PathBuf,
}

/// A program at a known version.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Its file.
    pub(super) path: PathBuf,
    /// As its authors write it.
    pub(super) version: String,
}

/// A program of a Go module.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoProgram {
    /// Folder of the `go.mod` that pins it, beneath [`Programs::pins`].
    pub(super) pins: &'static str,
    /// The module.
    pub(super) module: &'static str,
    /// The package to build.
    pub(super) package: &'static str,
    /// What the program is called.
    pub(super) name: &'static str,
}

impl Programs {
    /// A Go program; built if it is not there yet.
    pub(super) fn go(&self, wanted: GoProgram) -> anyhow::Result<Program> {
        let pins = self.pins.join(wanted.pins);
        let go_mod = fs::read_to_string(pins.join("go.mod"))
            .with_context(|| format!("cannot read {}/go.mod", pins.display()))?;
        let version = pinned(&go_mod, wanted.module)
            .with_context(|| format!("go.mod does not name {}", wanted.module))?;
        self.kept(wanted.name, version, |unfinished| {
            let file = unfinished.join(wanted.name);
            let mut build = Command::new(command::find("go").context("Go is not installed")?);
            build
                .args(["build", "-trimpath", "-o"])
                .args([file.as_os_str(), wanted.package.as_ref()])
                .current_dir(&pins);
            run_build(build, "go build")?;
            Ok(file)
        })
    }

    /// The program that a crate of the same name has, with the dependencies its authors chose;
    /// built if it is not there yet.
    pub(super) fn of_crate(&self, name: &str, version: &str) -> anyhow::Result<Program> {
        self.kept(name, version, |unfinished| {
            let mut build = Command::new(command::find("cargo").context("cargo is not installed")?);
            build
                .args(["install", "--locked", "--no-track", "--version", version])
                .arg("--root")
                .arg(unfinished)
                .arg(name)
                // Where this source tree says which compiler to use.
                .current_dir(&self.pins)
                .env_remove("CARGO_TARGET_DIR");
            run_build(build, "cargo install")?;
            Ok(unfinished.join("bin").join(name))
        })
    }

    /// A program of this source tree.
    pub(super) fn own(&self, name: &str) -> anyhow::Result<Program> {
        let path = self.own.join(name);
        ensure!(
            command::is_program(&path),
            "there is no program {name} in {}",
            self.own.display()
        );
        Ok(Program {
            path,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn kept(
        &self,
        name: &str,
        version: &str,
        build: impl FnOnce(&Path) -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<Program> {
        let program = Program {
            path: self.built.join(format!("{name}-{version}")),
            version: version.to_owned(),
        };
        if !command::is_program(&program.path) {
            fs::create_dir_all(&self.built)?;
            // Beside its place: what is moved there is whole.
            let unfinished = tempfile::Builder::new()
                .prefix("unfinished-")
                .tempdir_in(&self.built)?;
            fs::rename(build(unfinished.path())?, &program.path)?;
        }
        Ok(program)
    }
}

/// A program that the distribution's `package` has.
pub(super) fn installed(name: &str, package: &str) -> anyhow::Result<Program> {
    let path = command::find(name)
        .with_context(|| format!("{name} is not installed: apt-get install {package}"))?;
    let mut ask = Command::new(&path);
    ask.arg("--version");
    // Not all end well after they have told it.
    let answer = command::run(ask, b"", TOOL_MAX)?;
    let version = version_in(&answer.stdout)
        .with_context(|| format!("{name} does not tell its version: {}", answer.last_line()))?;
    Ok(Program {
        version: version.to_owned(),
        path,
    })
}

/// The running kernel, as what carries packets without a program.
///
/// # Errors
///
/// There is no `/proc`.
pub fn kernel() -> anyhow::Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("Linux {}", release.trim()))
}

/// The version of `module` in the text of a `go.mod`.
#[must_use]
pub fn pinned<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .trim_start()
            .trim_start_matches("require ")
            .split_whitespace();
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
            .filter(|version| version.starts_with('v'))
    })
}

/// The first word that is a number with dots.
fn version_in(text: &str) -> Option<&str> {
    text.split_whitespace()
        .find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()) && word.contains('.'))
}

fn run_build(build: Command, what: &str) -> anyhow::Result<()> {
    let answer = command::run(build, b"", BUILD_MAX)?;
    ensure!(
        answer.status.success(),
        "{what} failed: {}",
        answer.last_line()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A module is found in both forms of a requirement, and not where it is only a tool or the
    /// beginning of another's name.
    #[test]
    fn pins_are_read() {
        let block = "require (\n\texample.org/tunnel/extra v2.0.0\n\texample.org/tunnel v1.2.3 // indirect\n)";
        assert_eq!(pinned(block, "example.org/tunnel"), Some("v1.2.3"));
        let line = "require example.org/tunnel v1.2.3";
        assert_eq!(pinned(line, "example.org/tunnel"), Some("v1.2.3"));
        assert_eq!(
            pinned("tool example.org/tunnel", "example.org/tunnel"),
            None
        );
    }

    /// Versions are found in what the programs of the distribution say.
    #[test]
    fn versions_are_found() {
        let openvpn = "OpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)]\nlibrary versions: 3.0";
        assert_eq!(version_in(openvpn), Some("2.6.14"));
        assert_eq!(version_in("tinc version 1.0.36\n"), Some("1.0.36"));
        assert_eq!(version_in("usage: x"), None);
    }

    /// What is built once is not built again; what could not be built leaves nothing that looks as
    /// if it had been.
    #[test]
    fn programs_are_kept() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let programs = Programs {
            pins: PathBuf::new(),
            built: folder.path().join("bin"),
            own: PathBuf::new(),
        };
        let failed = programs.kept("x", "1", |_| anyhow::bail!("no compiler"));
        assert_eq!(failed.unwrap_err().to_string(), "no compiler");
        assert_eq!(fs::read_dir(&programs.built).unwrap().count(), 0);
        let built = programs.kept("x", "1", |unfinished| {
            let file = unfinished.join("out");
            fs::write(&file, "#!/bin/sh\n")?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            Ok(file)
        });
        assert_eq!(built.unwrap().path, programs.built.join("x-1"));
        let kept = programs.kept("x", "1", |_| anyhow::bail!("built twice"));
        assert_eq!(kept.unwrap().version, "1");
        assert_eq!(fs::read_dir(&programs.built).unwrap().count(), 1);
    }
}
