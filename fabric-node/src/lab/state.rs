//! `lab.json`: what a lab consists of, written before anything of it is made.
//!
//! Because the file names everything first, a half-built lab can be taken down by any later command.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{offloads::Offloads, outside::OutsideConfig};

/// Layout of the file; a file with another number is refused.
pub const STATE_VERSION: u32 = 1;
/// Name of the file in the lab's folder.
pub const STATE_FILE: &str = "lab.json";
/// Name of the network in the CNI configuration.
pub const CNI_NETWORK: &str = "fabric";

/// A lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Name of the lab.
    pub name: String,
    /// The lab's folder; everything on disk is beneath it, but for the namespace files.
    pub folder: PathBuf,
    /// Folder of `fabric-node` and `fabric-cni`.
    pub bin_dir: PathBuf,
    /// Commands that the programs are run under.
    #[serde(default, skip_serializing_if = "Wrappers::is_empty")]
    pub wrappers: Wrappers,
    /// Namespace of the bridge between the workers.
    pub underlay_netns: PathBuf,
    /// MTU of the underlay (bytes).
    pub underlay_mtu: u32,
    /// Offloads that the daemons use.
    #[serde(default, skip_serializing_if = "Offloads::are_all")]
    pub offloads: Offloads,
    /// What becomes of packets that nobody in the fabric is meant by.
    #[serde(default, skip_serializing_if = "OutsideConfig::is_none")]
    pub outside: OutsideConfig,
    /// Whether the mount that holds the namespace files was made for this lab.
    pub netns_dir_made: bool,
    /// Process that keeps the user and mount namespace of an ordinary user's lab alive.
    pub holder: Option<u32>,
    /// The workers, in order.
    pub workers: Vec<Worker>,
    /// The pods, in order of their workers.
    pub pods: Vec<Pod>,
}

/// Commands that the product's programs are run under, as for tracing: the program and its arguments
/// follow the words given here. Empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wrappers {
    /// For `fabric-node`. Must become the daemon's process, as `strace -D` does: the lab stops the
    /// process it started.
    #[serde(default)]
    pub daemon: Vec<String>,
    /// For `fabric-cni`. Must leave standard input, standard output and exit status alone.
    #[serde(default)]
    pub plugin: Vec<String>,
}

impl Wrappers {
    fn is_empty(&self) -> bool {
        self.daemon.is_empty() && self.plugin.is_empty()
    }
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Worker {
    /// Node name.
    pub name: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its daemon, once started.
    pub pid: Option<u32>,
    /// Addresses on the underlay, the one that carries the tunnels first.
    pub underlay_addresses: Vec<IpAddr>,
    /// Ranges of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Its folder.
    pub folder: PathBuf,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Worker it is attached to.
    pub worker: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// Addresses the plugin answered with, IPv4 first; empty until attached.
    pub addresses: Vec<IpAddr>,
}

impl LabState {
    /// Reads the file in `folder`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is not one of this version.
    pub fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(STATE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let state: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a lab's state", path.display()))?;
        ensure!(
            state.version == STATE_VERSION,
            "{} has version {}, this program knows {STATE_VERSION}: take the lab down with the \
             program that made it",
            path.display(),
            state.version
        );
        Ok(Some(state))
    }

    /// Replaces the file as a whole.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self) -> anyhow::Result<()> {
        let path = self.folder.join(STATE_FILE);
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)
            .with_context(|| format!("cannot write into {}", self.folder.display()))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.persist(&path)
            .with_context(|| format!("cannot replace {}", path.display()))?;
        Ok(())
    }

    /// Paths of all namespaces.
    pub fn netns_paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.underlay_netns)
            .chain(self.workers.iter().map(|w| &w.netns))
            .chain(self.pods.iter().map(|p| &p.netns))
            .map(PathBuf::as_path)
    }

    /// The worker called `name`.
    ///
    /// # Errors
    ///
    /// There is none; the message lists those there are.
    pub fn worker(&self, name: &str) -> anyhow::Result<&Worker> {
        match self.workers.iter().find(|w| w.name == name) {
            Some(worker) => Ok(worker),
            None => bail!(
                "no worker {name:?} in lab {}: it has {}",
                self.name,
                self.members()
            ),
        }
    }

    /// The pod called `name`.
    ///
    /// # Errors
    ///
    /// There is none; the message lists those there are.
    pub fn pod(&self, name: &str) -> anyhow::Result<&Pod> {
        match self.pods.iter().find(|p| p.name == name) {
            Some(pod) => Ok(pod),
            None => bail!(
                "no pod {name:?} in lab {}: it has {}",
                self.name,
                self.members()
            ),
        }
    }

    /// Namespace of the pod or worker called `name`.
    ///
    /// # Errors
    ///
    /// There is none; the message lists those there are.
    pub fn netns_of(&self, name: &str) -> anyhow::Result<&Path> {
        if let Some(worker) = self.workers.iter().find(|w| w.name == name) {
            return Ok(&worker.netns);
        }
        match self.pods.iter().find(|p| p.name == name) {
            Some(pod) => Ok(&pod.netns),
            None => {
                bail!(
                    "no pod or worker {name:?} in lab {}: it has {}",
                    self.name,
                    self.members()
                )
            }
        }
    }

    fn members(&self) -> String {
        let workers = self.workers.iter().map(|w| w.name.as_str());
        workers
            .chain(self.pods.iter().map(|p| p.name.as_str()))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Worker {
    /// Path of the worker's network namespace.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The daemon's configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    /// What the daemon wrote to its standard output and error.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Folder of the daemon's sockets.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Folder of the daemon's records.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir().join("admin.sock")
    }

    /// The CNI socket.
    #[must_use]
    pub fn cni_socket(&self) -> PathBuf {
        self.run_dir().join("cni.sock")
    }

    /// Folder of the CNI network configuration.
    #[must_use]
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.folder.join("cni")
    }
}

impl Pod {
    /// Path of the pod's network namespace.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.netns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::lab::{
        place::Place,
        plan::{LabOptions, lay_out},
    };

    fn sample(folder: &Path) -> LabState {
        let options = LabOptions::new("lab".parse().unwrap(), 2, 2, PathBuf::from("/bin"));
        let mut state = lay_out(&options, &Place::root()).unwrap();
        state.folder = folder.to_owned();
        state.workers[0].pid = Some(4711);
        state.pods[0].addresses = vec![
            "10.244.1.2".parse().unwrap(),
            "fd44:0:0:1::2".parse().unwrap(),
        ];
        state
    }

    /// What was written is read back, and a second write replaces the first without leftovers.
    #[test]
    fn the_file_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = sample(dir.path());
        state.write().unwrap();
        assert_eq!(LabState::read(dir.path()).unwrap(), Some(state.clone()));
        state.holder = Some(1);
        state.write().unwrap();
        assert_eq!(LabState::read(dir.path()).unwrap(), Some(state));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// No file is no lab; a damaged or foreign one is an error that names the file.
    #[test]
    fn a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LabState::read(dir.path()).unwrap(), None);
        let foreign = LabState {
            version: STATE_VERSION + 1,
            ..sample(dir.path())
        };
        foreign.write().unwrap();
        let error = LabState::read(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("lab.json") && error.contains("version"),
            "{error}"
        );
        fs::write(dir.path().join(STATE_FILE), "{").unwrap();
        let error = LabState::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("lab.json"), "{error}");
    }

    /// An unknown member is refused with the list of those there are.
    #[test]
    fn an_unknown_member_is_answered_with_the_list() {
        let state = sample(Path::new("/nowhere"));
        assert!(state.netns_of("pod-b-2").is_ok() && state.netns_of("worker-b").is_ok());
        let error = state.netns_of("pod-c-1").unwrap_err().to_string();
        assert!(
            error.contains("pod-c-1") && error.contains("worker-a, worker-b, pod-a-1"),
            "{error}"
        );
    }
}
