//! A cluster that stays for a person until they take it down.
//!
//! `up` starts the sandbox with a process in it that holds the cluster, and tells what that process says until the
//! cluster is ready. All that a person needs is in one folder: kubeconfig, programs, log. `down` ends the sandbox, and
//! with it everything.

use std::{
    env, fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::{Interrupt, process::Process};
use rustix::process::Signal;

use super::{
    pki::{Credentials, kubeconfig_text},
    plan::{API_PORT, CONTROL_PLANE},
    realm::found,
    relay::Relay,
    steps::Steps,
    whole::{Cluster, Options},
};
use crate::{gotools::Tool, stage::workspace};

/// How long the end of a sandbox may take.
const DOWN_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at the log, or at whether the cluster is to end.
const INTERVAL: Duration = Duration::from_millis(200);

/// The folder of a standing cluster.
#[derive(Clone, Debug)]
pub struct Standing {
    folder: PathBuf,
}

impl Standing {
    /// The one of this checkout: `cluster` in the folder for what is built.
    #[must_use]
    pub fn of_this_checkout() -> Self {
        let target = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty());
        let target = target.map_or_else(|| workspace().join("target"), PathBuf::from);
        Self {
            folder: target.join("cluster"),
        }
    }

    /// The kubeconfig, for use on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Starts a cluster by `program hold WORDS` in a sandbox, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// One stands already, or it cannot be brought up; then nothing is left of it but the log.
    pub fn up(
        &self,
        program: &Path,
        words: &[String],
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        if let Some(pid) = self.pid() {
            bail!("a cluster stands already (process {pid}): `make cluster-down` takes it down");
        }
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder)?;
        let log = fs::File::create(self.log())?;
        let mut sandbox = Command::new(found("setsid")?)
            .arg(workspace().join("scripts/sandbox"))
            .arg(program)
            .arg("hold")
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the sandbox")?;
        fs::write(self.folder.join("pid"), sandbox.id().to_string())?;
        let ready = self.follow(&mut sandbox, interrupt);
        if ready.is_err() {
            end(sandbox.id())?;
            let _ = sandbox.wait();
            let _ = fs::remove_file(self.folder.join("pid"));
        }
        ready
    }

    /// Takes the cluster down; whether there was one.
    ///
    /// # Errors
    ///
    /// It does not end within a minute.
    pub fn down(&self) -> anyhow::Result<bool> {
        let pid = self.pid();
        if let Some(pid) = pid {
            end(pid)?;
        }
        let _ = fs::remove_dir_all(&self.folder);
        Ok(pid.is_some())
    }

    /// What the process in the sandbox does: brings the cluster up, and holds it until it is interrupted.
    ///
    /// # Errors
    ///
    /// It cannot be brought up, or one of its daemons ends.
    pub fn hold(&self, options: &Options, interrupt: &Interrupt) -> anyhow::Result<()> {
        let steps = Steps::new(false);
        let mut cluster = Cluster::up(options, &steps)?;
        let api = SocketAddr::from((CONTROL_PLANE.v4(), API_PORT));
        let netns = cluster.control_plane().realm().netns().to_owned();
        let relay = Relay::start(0, &netns, api)?;
        self.write_kubeconfig(&cluster, relay.address())?;
        self.link_programs()?;
        fs::write(self.folder.join("ready"), "")?;
        while !interrupt.is_set() {
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// What to type next.
    #[must_use]
    pub fn next_steps(&self) -> String {
        let folder = self.folder.display();
        format!(
            "
The cluster stands. Next:

  export KUBECONFIG={folder}/kubeconfig PATH={folder}/bin:$PATH
  kubectl get nodes -o wide
  kubectl run pod-a --image=busybox --restart=Never -- sleep 3600
  kubectl get pods -A -o wide
  nsenter -m -u -n -t $(pgrep -f -- '--hostname-override=n1 ') sh    # as root on node n1

Images there are: busybox, registry.k8s.io/e2e-test-images/agnhost. Its log: {folder}/log
`make cluster-down` takes it down."
        )
    }

    /// The process of the sandbox, if it runs.
    fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.folder.join("pid")).ok()?;
        let pid: u32 = text.trim().parse().ok()?;
        let sandbox = workspace().join("scripts/sandbox");
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_ours = arguments
            .split(|byte| *byte == 0)
            .any(|word| Path::new(&*String::from_utf8_lossy(word)) == sandbox);
        is_ours.then_some(pid)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Tells what is written to the log, until the cluster is ready.
    fn follow(&self, sandbox: &mut Child, interrupt: &Interrupt) -> anyhow::Result<()> {
        let ready = self.folder.join("ready");
        let mut told = 0;
        loop {
            let is_ready = ready.exists();
            let ended = sandbox.try_wait()?;
            told = self.tell_from(told)?;
            if is_ready {
                return Ok(());
            }
            interrupt.check()?;
            ensure!(
                ended.is_none(),
                "the cluster is not there; its log: {}",
                self.log().display()
            );
            thread::sleep(INTERVAL);
        }
    }

    fn tell_from(&self, told: u64) -> anyhow::Result<u64> {
        let mut log = fs::File::open(self.log())?;
        log.seek(SeekFrom::Start(told))?;
        let mut more = Vec::new();
        log.read_to_end(&mut more)?;
        // A reader that has gone must not end the work half-way.
        let _ = std::io::stderr().write_all(&more);
        Ok(told + u64::try_from(more.len())?)
    }

    /// Copies what the kubeconfig names, which is in the sandbox only.
    fn write_kubeconfig(&self, cluster: &Cluster, api: SocketAddr) -> anyhow::Result<()> {
        let copy = |name: &str| {
            let to = self.folder.join(name);
            fs::copy(cluster.pki().file(name), &to)
                .with_context(|| format!("cannot write {}", to.display()))?;
            anyhow::Ok(to)
        };
        let credentials = Credentials {
            certificate: copy("admin.crt")?,
            key: copy("admin.key")?,
        };
        let text = kubeconfig_text(&format!("https://{api}"), &copy("ca.crt")?, &credentials);
        Ok(fs::write(self.kubeconfig(), text)?)
    }

    fn link_programs(&self) -> anyhow::Result<()> {
        let folder = self.folder.join("bin");
        fs::create_dir_all(&folder)?;
        let kubectl = Tool::Kubectl;
        Ok(symlink(kubectl.program()?, folder.join(kubectl.name()))?)
    }
}

/// Ends the sandbox whose first process is `pid`.
fn end(pid: u32) -> anyhow::Result<()> {
    let Some(sandbox) = Process::open(pid) else {
        return Ok(());
    };
    sandbox.signal(Signal::TERM);
    ensure!(
        sandbox.wait(DOWN_MAX),
        "the sandbox (process {pid}) does not end within {} s",
        DOWN_MAX.as_secs()
    );
    Ok(())
}
