//! A node of the cluster: namespaces that are a machine to what runs in them, and there containerd, kubelet and
//! kube-proxy.
//!
//! A node boots, joins the cluster and is there until it is dropped, which is as when a machine loses its power: all its
//! processes are killed at once and nothing is told to anybody. Another one may then boot under the same name.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::process::{self, Process};

use super::{
    cgroups::Cgroup,
    containerd,
    daemon::{Daemon, tail},
    kubelet::{self, Who},
    pki::{Credentials, Pki},
    plan::Machine,
    programs::Programs,
    proxy::{self, Mode},
    realm::{Realm, found},
    site::Site,
};
use crate::eventually::eventually;

/// What the process does that holds a node's namespaces.
const HOLDER: &str = include_str!("holder.sh");
/// How long the namespaces may take to be made.
const NAMESPACES_MAX: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);
/// Folder of the distribution's CNI plugins, which every node has.
const PLUGINS: &str = "/usr/lib/cni";

/// See the module's documentation.
#[derive(Debug)]
pub struct Node {
    name: String,
    machine: Machine,
    folder: PathBuf,
    disk: PathBuf,
    realm: Realm,
    mode: Mode,
    kubelet: Option<Daemon>,
    proxy: Option<Daemon>,
    containerd: Option<Daemon>,
    holder: Child,
    cgroup: Cgroup,
}

impl Node {
    /// Makes the machine in the network namespace `netns`, and starts containerd.
    ///
    /// # Errors
    ///
    /// A part cannot be made, or containerd does not answer within 30 s.
    pub fn boot(name: &str, netns: &Path, site: &Site) -> anyhow::Result<Self> {
        let machine = Machine::of_node(name)?;
        let (folder, disk) = (site.folder().join(name), site.disk().join(name));
        for folder in [&folder, &disk] {
            fs::create_dir_all(folder)?;
        }
        let cgroup = Cgroup::make(&format!("{}/{name}", site.cgroup()))?;
        let holder = hold(name, netns, &folder, &disk)?;
        let realm = Realm::of_machine(netns, holder.id());
        let mut node = Self {
            name: name.to_owned(),
            machine,
            folder,
            disk,
            realm,
            mode: Mode::Iptables,
            kubelet: None,
            proxy: None,
            containerd: None,
            holder,
            cgroup,
        };
        node.await_namespaces()?;
        node.add_plugins()?;
        let folder = node.folder.join("containerd");
        let mut started = containerd::start(name, &node.realm, &folder)?;
        containerd::await_ready(&mut started, &node.realm)?;
        node.containerd = Some(started);
        Ok(node)
    }

    /// Starts the kubelet, which makes the node known, and kube-proxy in `mode`.
    ///
    /// # Errors
    ///
    /// One cannot be started.
    pub fn join(
        &mut self,
        mode: Mode,
        pki: &Pki,
        proxies: &Credentials,
        programs: &Programs,
    ) -> anyhow::Result<()> {
        let kubelet = kubelet::start(self.who(), self.cgroup.name(), pki, programs)?;
        self.kubelet = Some(kubelet);
        self.proxy = Some(proxy::start(self.who(), mode, pki, proxies, programs)?);
        self.mode = mode;
        Ok(())
    }

    /// Changes the mode of kube-proxy as an operator does: it is stopped, its rules are taken away, and it is started in
    /// `mode`.
    ///
    /// # Errors
    ///
    /// One of these fails.
    pub fn set_proxy_mode(
        &mut self,
        mode: Mode,
        pki: &Pki,
        proxies: &Credentials,
        programs: &Programs,
    ) -> anyhow::Result<()> {
        if let Some(mut proxy) = self.proxy.take() {
            proxy.stop()?;
        }
        proxy::clean_up(self.who(), programs)?;
        self.proxy = Some(proxy::start(self.who(), mode, pki, proxies, programs)?);
        self.mode = mode;
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Its namespaces: for a command as root on the node.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The process that holds its namespaces.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Mode of its kube-proxy.
    #[must_use]
    pub fn proxy_mode(&self) -> Mode {
        self.mode
    }

    /// The kubelet.
    ///
    /// # Errors
    ///
    /// The node has not joined.
    pub fn kubelet(&mut self) -> anyhow::Result<&mut Daemon> {
        let name = &self.name;
        let found = self.kubelet.as_mut();
        found.with_context(|| format!("{name} has not joined the cluster"))
    }

    /// The containerd.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn containerd(&mut self) -> anyhow::Result<&mut Daemon> {
        self.containerd.as_mut().context("no containerd")
    }

    /// The folder that the node has at `/etc/cni/net.d`.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// The folder that the node has at `/opt/cni/bin`.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("cni-bin")
    }

    /// Gives the node the images of an archive, as `ctr images import` does.
    ///
    /// # Errors
    ///
    /// There is no such archive, or containerd refuses it.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        containerd::import(&self.realm, archive)
            .with_context(|| format!("cannot import {} on {}", archive.display(), self.name))
    }

    /// Goes on if all its daemons run.
    ///
    /// # Errors
    ///
    /// One has ended; with the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let daemons = [&mut self.containerd, &mut self.kubelet, &mut self.proxy];
        daemons
            .into_iter()
            .flatten()
            .try_for_each(|daemon| daemon.check())
    }

    fn who(&self) -> Who<'_> {
        Who {
            name: &self.name,
            machine: self.machine,
            realm: &self.realm,
            folder: &self.folder,
        }
    }

    fn await_namespaces(&mut self) -> anyhow::Result<()> {
        let ready = self.folder.join("ready");
        let log = self.folder.join("holder.log");
        let name = format!("the holder of {}", self.name);
        let holder = &mut self.holder;
        let made = eventually("namespaces", NAMESPACES_MAX, || {
            if matches!(holder.try_wait(), Ok(Some(_))) {
                return Ok(false);
            }
            ensure!(ready.exists(), "they are not ready");
            Ok(true)
        });
        let (made, _) = made.with_context(|| tail(&name, &log))?;
        ensure!(made, "it has ended; {}", tail(&name, &log));
        Ok(())
    }

    /// What every node has from its distribution.
    fn add_plugins(&self) -> anyhow::Result<()> {
        let installed = fs::read_dir(PLUGINS).with_context(|| {
            format!(
                "there are no CNI plugins in {PLUGINS}: `scripts/install-deps test` installs them"
            )
        })?;
        for entry in installed {
            let entry = entry?;
            let to = self.plugins().join(entry.file_name());
            fs::copy(entry.path(), &to)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
        Ok(())
    }

    /// All processes in the node's mount namespace: its daemons, and what containerd has left beside containers.
    fn processes(&self) -> Vec<Process> {
        let namespace = |pid: &str| {
            let found = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
            Some((found.dev(), found.ino()))
        };
        let own = namespace(&self.holder.id().to_string());
        if own.is_none() || own == namespace("self") {
            return Vec::new();
        }
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|pid| namespace(pid) == own)
            .filter_map(|pid| Process::open(pid.parse().ok()?))
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Daemons first, which would start again what ends.
        for daemon in [&mut self.kubelet, &mut self.proxy, &mut self.containerd] {
            drop(daemon.take());
        }
        let processes = self.processes();
        process::stop_all(&processes, Duration::ZERO);
        for process in &processes {
            let _ = process.wait(GONE_MAX);
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = self.cgroup.kill();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.disk);
    }
}

/// Starts the process that makes and holds the namespaces.
fn hold(name: &str, netns: &Path, folder: &Path, disk: &Path) -> anyhow::Result<Child> {
    let log = fs::File::create(folder.join("holder.log"))?;
    let mut net = std::ffi::OsString::from("--net=");
    net.push(netns);
    Command::new(found("nsenter")?)
        .arg(net)
        .arg(found("unshare")?)
        .args(["--mount", "--uts", "--propagation", "private", "/bin/sh"])
        .args(["-c", HOLDER, "holder", name])
        .args([folder, disk])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the holder of a node's namespaces")
}
