//! Programs of others that the tests drive, built by the Go toolchain at pinned versions.
//!
//! A folder with `go.mod` and `go.sum` says what is built: `tests/tools` and those below it. The programs come out, in a folder that is named after those two files and the toolchain, and stay there for the next run of this
//! checkout or another. Never changes the pins, and never falls back to a program that happens to be installed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;

use crate::stage::workspace;

/// How long one build may take on a small machine that does other things too, downloads included: seven minutes of
/// processor time for those of Kubernetes.
const BUILD_MAX: Duration = Duration::from_secs(2700);
/// How long the toolchain may take to answer a question.
const ASK_MAX: Duration = Duration::from_secs(60);
/// How programs are built.
const BUILD_WORDS: [&str; 3] = ["-mod=readonly", "-buildvcs=false", "-trimpath"];
/// How they are linked: without symbols.
const LINK_WORDS: &str = "-ldflags=-s -w";
/// The package that tells the version of Kubernetes, which its programs are given when they are released.
const VERSION_PACKAGE: &str = "k8s.io/component-base/version";
/// Names the folder for the programs; default: `fabric-tests/go-tools` in the user's folder of caches.
const FOLDER_VARIABLE: &str = "FABRIC_GO_TOOLS_DIR";

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// Calls CNI plugins as a runtime does, through the reference library.
    Cnitool,
    /// Speaks CRI to a runtime, for people.
    Crictl,
    /// The conformance suite of container runtimes.
    Critest,
    /// The daemons of Kubernetes, in one program that is called by their names.
    Kubernetes,
    /// The command line of Kubernetes.
    Kubectl,
    /// Servers and clients of Kubernetes' own tests.
    Agnhost,
    /// The DNS server of clusters.
    Coredns,
    /// Renders and checks the product's chart.
    Helm,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Cnitool,
        Self::Crictl,
        Self::Critest,
        Self::Kubernetes,
        Self::Kubectl,
        Self::Agnhost,
        Self::Coredns,
        Self::Helm,
    ];

    /// What its file is called: as its package is.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cnitool => "cnitool",
            Self::Crictl => "crictl",
            Self::Critest => "critest",
            Self::Kubernetes => "daemons",
            Self::Kubectl => "kubectl",
            Self::Agnhost => "agnhost",
            Self::Coredns => "coredns",
            Self::Helm => "helm",
        }
    }

    /// The Go module that has it.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Cnitool => "github.com/containernetworking/cni",
            Self::Crictl | Self::Critest => "sigs.k8s.io/cri-tools",
            Self::Kubernetes | Self::Kubectl | Self::Agnhost => "k8s.io/kubernetes",
            Self::Coredns => "github.com/coredns/coredns",
            Self::Helm => "helm.sh/helm/v4",
        }
    }

    /// The version of its module in the `go.mod` that pins it, as `v1.2.3`.
    ///
    /// # Errors
    ///
    /// The file cannot be read or does not name the module.
    pub fn version(self) -> anyhow::Result<String> {
        let file = self.pins().join("go.mod");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        pinned(&text, self.module())
            .map(str::to_owned)
            .with_context(|| format!("{} does not pin {}", file.display(), self.module()))
    }

    /// Its file; built if it is not there yet, which takes minutes for the first.
    ///
    /// # Errors
    ///
    /// There is no Go, or the build failed; with its last words.
    pub fn program(self) -> anyhow::Result<PathBuf> {
        build(&[self])?;
        self.file()
    }

    fn file(self) -> anyhow::Result<PathBuf> {
        Ok(folder(&self.pins())?.join(self.name()))
    }

    /// Folder of the files that pin it.
    fn pins(self) -> PathBuf {
        let folder = match self {
            Self::Cnitool | Self::Crictl | Self::Critest => "tests/tools",
            Self::Kubernetes | Self::Kubectl | Self::Agnhost | Self::Coredns => {
                "tests/tools/kubernetes"
            }
            Self::Helm => "tests/tools/helm",
        };
        workspace().join(folder)
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Cnitool => "github.com/containernetworking/cni/cnitool",
            Self::Crictl => "sigs.k8s.io/cri-tools/cmd/crictl",
            Self::Critest => "sigs.k8s.io/cri-tools/cmd/critest",
            Self::Kubernetes => "./daemons",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Agnhost => "k8s.io/kubernetes/test/images/agnhost",
            Self::Coredns => "./coredns",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
        }
    }

    /// The suite is a package of tests, which only `go test` makes a program of.
    const fn is_suite(self) -> bool {
        matches!(self, Self::Critest)
    }
}

/// Builds those of `tools` that are not there yet. All of one `go.mod` in one go, so that one is linked while the next
/// is compiled.
///
/// # Errors
///
/// There is no Go, or a build failed; with its last words.
pub fn build(tools: &[Tool]) -> anyhow::Result<()> {
    let mut batches: BTreeMap<(PathBuf, bool), BTreeSet<Tool>> = BTreeMap::new();
    for &tool in tools {
        if !command::is_program(&tool.file()?) {
            let batch = batches.entry((tool.pins(), tool.is_suite())).or_default();
            batch.insert(tool);
        }
    }
    for ((pins, is_suite), batch) in batches {
        let names: Vec<&str> = batch.iter().map(|tool| tool.name()).collect();
        let names = names.join(", ");
        build_batch(&pins, is_suite, &batch, &names)
            .with_context(|| format!("cannot build {names}"))?;
    }
    Ok(())
}

#[allow(
    clippy::print_stderr,
    reason = "a test that is silent for minutes looks hung"
)]
fn build_batch(
    pins: &Path,
    is_suite: bool,
    batch: &BTreeSet<Tool>,
    names: &str,
) -> anyhow::Result<()> {
    let folder = folder(pins)?;
    fs::create_dir_all(&folder)?;
    // Beside its place: what is moved there is whole.
    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .tempdir_in(&folder)?;
    eprintln!("building {names}: minutes for the first time");
    let begin = Instant::now();
    let words: &[&str] = if is_suite {
        &["test", "-c"]
    } else {
        &["build"]
    };
    let mut build = go(pins)?;
    build
        .args(words)
        .args(BUILD_WORDS)
        .args([&link_words(batch)?, "-o"])
        // A folder: each program gets the name of its package.
        .arg(unfinished.path().join(""))
        .args(batch.iter().map(|tool| tool.package()))
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off");
    let answer = command::run(build, b"", BUILD_MAX)?;
    ensure!(
        answer.status.success(),
        "go ended with {}: {}",
        answer.status,
        answer.stderr.trim()
    );
    for tool in batch {
        // `go test -c` calls a suite `critest.test`.
        let suffix = if is_suite { ".test" } else { "" };
        let made = unfinished.path().join(format!("{}{suffix}", tool.name()));
        ensure!(command::is_program(&made), "go has made no {}", tool.name());
        fs::rename(made, folder.join(tool.name()))?;
    }
    eprintln!("built {names} in {} s", begin.elapsed().as_secs());
    Ok(())
}

/// [`LINK_WORDS`], with the version of Kubernetes for its programs: charts look at what the API server says.
fn link_words(batch: &BTreeSet<Tool>) -> anyhow::Result<String> {
    let mut words = LINK_WORDS.to_owned();
    let is_kubernetes = |tool: &&Tool| tool.module() == Tool::Kubernetes.module();
    if let Some(tool) = batch.iter().find(is_kubernetes) {
        let version = tool.version()?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next(), numbers.next());
        for (name, value) in [
            ("gitVersion", Some(version.as_str())),
            ("gitMajor", major),
            ("gitMinor", minor),
        ] {
            let value = value.with_context(|| format!("{version} is no version"))?;
            words += &format!(" -X {VERSION_PACKAGE}.{name}={value}");
        }
    }
    Ok(words)
}

/// The toolchain, where the pins are.
fn go(pins: &Path) -> anyhow::Result<Command> {
    let program = command::find("go")
        .context("Go is not installed: scripts/install-deps says which is needed")?;
    let mut go = Command::new(program);
    go.current_dir(pins);
    Ok(go)
}

/// Where the programs of these pins and this toolchain are kept.
fn folder(pins: &Path) -> anyhow::Result<PathBuf> {
    let mut ask = go(pins)?;
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
    (BUILD_WORDS, LINK_WORDS, VERSION_PACKAGE).hash(&mut hasher);
    for path in sources(pins)? {
        path.strip_prefix(pins)?.hash(&mut hasher);
        fs::read(&path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .hash(&mut hasher);
    }
    let name = format!("{toolchain}-{:016x}", hasher.finish());
    Ok(cache().join(name))
}

/// What decides how the programs of a folder of pins come out: the pins, and programs of ours in folders beside them.
fn sources(pins: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![pins.join("go.mod"), pins.join("go.sum")];
    for entry in fs::read_dir(pins).with_context(|| format!("cannot read {}", pins.display()))? {
        let program = entry?.path().join("main.go");
        if program.is_file() {
            found.push(program);
        }
    }
    found.sort();
    Ok(found)
}

/// The folder for programs of all pins.
fn cache() -> PathBuf {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let home = || Some(PathBuf::from(variable("HOME")?).join(".cache"));
    let caches = || variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    variable(FOLDER_VARIABLE)
        .map(PathBuf::from)
        .or_else(|| Some(caches()?.join("fabric-tests/go-tools")))
        .unwrap_or_else(|| workspace().join("target/go-tools"))
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
        for tool in Tool::ALL {
            let text = fs::read_to_string(tool.pins().join("go.mod")).unwrap();
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
        let kept = Tool::Crictl.file().unwrap();
        assert_eq!(kept, Tool::Crictl.file().unwrap());
        let folder = |tool: Tool| tool.file().unwrap().parent().unwrap().to_owned();
        assert_eq!(folder(Tool::Crictl), folder(Tool::Cnitool));
        assert_ne!(folder(Tool::Crictl), folder(Tool::Kubectl));
        let name = folder(Tool::Kubectl);
        let name = name.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("go1."), "{name}");
    }
}
