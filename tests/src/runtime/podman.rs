//! A podman of a test's own, with the CNI backend: its storage, configuration and networks are in a [`Place`],
//! and it runs in the network namespace of that place's worker.
//!
//! Comes in: a list of CNI plugins, then words as a user writes them after `podman`. Goes out: what podman said.
//! Never done here: a registry, the storage or the locks of another podman, a control group outside of the place's.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{
    command::{self, Answer},
    state::CNI_NETWORK,
};
use serde_json::Value;

use super::{
    image::{self, Image},
    place::Place,
};
use crate::eventually::eventually;

/// How long one command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// See the module's documentation. Dropping it removes its containers.
#[derive(Debug)]
pub struct Podman<'p> {
    place: &'p Place,
    program: PathBuf,
}

impl<'p> Podman<'p> {
    /// A podman that knows one network, `networks`, beside the one that it makes up itself.
    ///
    /// # Errors
    ///
    /// There is no podman, or a file cannot be written.
    pub fn new(place: &'p Place, networks: &Value) -> anyhow::Result<Self> {
        let program = command::find("podman")
            .context("there is no program podman: `scripts/install-deps test` installs it")?;
        let list = place.networks().join("10-fabric.conflist");
        fs::write(list, serde_json::to_vec_pretty(networks)?)?;
        let podman = Self { place, program };
        fs::write(podman.configuration_file(), podman.configuration())?;
        Ok(podman)
    }

    /// Makes `image` and puts it into podman's storage.
    ///
    /// # Errors
    ///
    /// A program is missing or fails.
    pub fn load(&self, image: Image) -> anyhow::Result<()> {
        let folder = tempfile::tempdir_in(self.place.folder())?;
        let archive = image::archive(image, folder.path())?;
        let archive = archive.to_str().context("the archive's path is no text")?;
        self.done(&["load", "--quiet", "--input", archive])?;
        Ok(())
    }

    /// `podman run` on the network, with more options, an image and a command; what it printed.
    ///
    /// # Errors
    ///
    /// As [`Podman::done`].
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        self.done(&self.run_words(words))
    }

    /// As [`Podman::run`], however it ends.
    ///
    /// # Errors
    ///
    /// As [`Podman::answer`].
    pub fn run_answer(&self, words: &[&str]) -> anyhow::Result<Answer> {
        self.answer(&self.run_words(words))
    }

    /// Removes containers, running or not. Ones that are not there are no error.
    ///
    /// # Errors
    ///
    /// It does not succeed within a time; with podman's words.
    pub fn remove(&self, names: &[&str]) -> anyhow::Result<()> {
        let words = [&["rm", "--force", "--ignore", "--time", "0"], names].concat();
        // A container's monitor cleans up behind it at the same moment, and podman then finds a folder busy.
        eventually("containers are removed", COMMAND_MAX, || self.done(&words)).map(drop)
    }

    /// Runs podman with `words`; what it printed.
    ///
    /// # Errors
    ///
    /// It fails, with its words; or as [`Podman::answer`].
    pub fn done(&self, words: &[&str]) -> anyhow::Result<String> {
        let answer = self.answer(words)?;
        ensure!(
            answer.status.success(),
            "podman {words:?} ended with {}: {}{}",
            answer.status,
            answer.stdout,
            answer.stderr
        );
        Ok(answer.stdout)
    }

    /// Runs podman with `words`, however it ends.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not end in time.
    pub fn answer(&self, words: &[&str]) -> anyhow::Result<Answer> {
        let folder = self.place.folder();
        let mut podman = Command::new(&self.program);
        podman
            .env("CONTAINERS_CONF", self.configuration_file())
            .arg("--root")
            .arg(folder.join("storage"))
            .arg("--runroot")
            .arg(folder.join("podman"))
            .arg("--tmpdir")
            .arg(folder.join("libpod"))
            .args(["--storage-driver", "overlay"])
            // Otherwise it mounts its folder on itself, and takes that away or not when a command ends.
            .args(["--storage-opt", "overlay.skip_mount_home=true"])
            .args(words);
        self.place.run(podman, COMMAND_MAX)
    }

    /// The addresses that podman shows for a container on the network, IPv4 first.
    ///
    /// # Errors
    ///
    /// As [`Podman::done`], or it shows none.
    pub fn addresses(&self, container: &str) -> anyhow::Result<Vec<IpAddr>> {
        let text = self.done(&["inspect", "--type", "container", container])?;
        let shown: Value = serde_json::from_str(&text)?;
        let network = shown
            .pointer(&format!("/0/NetworkSettings/Networks/{CNI_NETWORK}"))
            .with_context(|| format!("{container} is not on the network: {text}"))?;
        ["IPAddress", "GlobalIPv6Address"]
            .iter()
            .filter_map(|key| network.get(key)?.as_str())
            .map(|address| Ok(address.parse()?))
            .collect()
    }

    fn run_words<'w>(&'w self, words: &[&'w str]) -> Vec<&'w str> {
        let mut all = vec!["run", "--network", CNI_NETWORK];
        all.extend(["--cgroup-parent", self.place.cgroup()]);
        all.extend(words);
        all
    }

    fn configuration_file(&self) -> PathBuf {
        self.place.folder().join("containers.conf")
    }

    fn configuration(&self) -> String {
        let text = |path: &Path| format!("{:?}", path.to_string_lossy());
        format!(
            r#"[network]
network_backend = "cni"
cni_plugin_dirs = [{plugins}]
network_config_dir = {networks}

[engine]
# crun refuses a machine that has control groups of both versions.
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
# The other kind is one memory segment for all podmans of the machine.
lock_type = "file"

[containers]
# Raising a limit needs CAP_SYS_RESOURCE, which root of a container has not.
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"#,
            plugins = text(&self.place.plugins()),
            networks = text(&self.place.networks()),
        )
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // What withstands this ends with the place.
        let _ = self.remove(&["--all"]);
    }
}
