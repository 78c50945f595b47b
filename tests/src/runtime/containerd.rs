//! A containerd of a test's own: its root, state, socket and configuration are in a [`Place`], and it runs in the
//! network namespace of that place's worker.
//!
//! Comes in: a list of CNI plugins. Goes out: a socket. Never done here: a registry, a control group outside of
//! the place's, anything that another containerd could see.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{
    command::{self, Answer},
    process::{self, Process},
};
use rustix::process::Signal;
use serde_json::Value;

use super::{image::Image, place::Place};
use crate::eventually::eventually;

/// Its name, and that of its tool.
const CONTAINERD: &str = "containerd";
const CTR: &str = "ctr";
/// Starts it as a session of its own, as a service is: the kernel shares the processors out by session, and
/// the daemons must not have to share theirs with all containers.
const SETSID: &str = "setsid";
/// How long it may take to answer after its start.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to end.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How long a small question may take.
const ASK_MAX: Duration = Duration::from_secs(10);
/// Lines of its log that are shown beside a failure.
const LOG_LINES_MAX: usize = 25;

/// See the module's documentation. Dropping it ends it, its shims and its containers.
#[derive(Debug)]
pub struct Containerd<'p> {
    /// Its socket, for containerd's own API and for CRI.
    pub socket: PathBuf,
    /// Where it keeps images and what it knows of containers.
    pub root: PathBuf,
    place: &'p Place,
    child: Option<Child>,
}

impl<'p> Containerd<'p> {
    /// Starts it with `networks` as the only network configuration, and waits until it answers.
    ///
    /// # Errors
    ///
    /// A file cannot be written, a program is missing, or it does not answer; with the end of its log.
    pub fn start(place: &'p Place, networks: &Value) -> anyhow::Result<Self> {
        let folder = place.folder();
        let mut containerd = Self {
            socket: folder.join("c.sock"),
            root: folder.join("root"),
            place,
            child: None,
        };
        let list = place.networks().join("10-fabric.conflist");
        fs::write(list, serde_json::to_vec_pretty(networks)?)?;
        fs::write(folder.join("config.toml"), containerd.configuration())?;
        containerd.launch()?;
        Ok(containerd)
    }

    /// The place it runs in.
    #[must_use]
    pub fn place(&self) -> &'p Place {
        self.place
    }

    /// Ends it at once, as a crash does. Shims and containers go on.
    ///
    /// # Errors
    ///
    /// It does not run or does not end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("containerd does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts it again after [`Containerd::kill`], and waits until it answers.
    ///
    /// # Errors
    ///
    /// It runs, or as [`Containerd::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "containerd runs already");
        self.launch()
    }

    /// Runs `ctr` with `arguments` in the worker's network namespace; its output.
    ///
    /// # Errors
    ///
    /// It does not end within `limit`, or fails; with what it said and the end of containerd's log.
    pub fn ctr(&self, arguments: &[&str], limit: Duration) -> anyhow::Result<String> {
        let answer = self.ctr_answer(arguments, limit)?;
        ensure!(
            answer.status.success(),
            "ctr {arguments:?} ended with {}: {}{}\n{}",
            answer.status,
            answer.stdout,
            answer.stderr,
            self.log_tail()
        );
        Ok(answer.stdout)
    }

    /// As [`Containerd::ctr`], however it ends.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not end within `limit`.
    pub fn ctr_answer(&self, arguments: &[&str], limit: Duration) -> anyhow::Result<Answer> {
        let mut ctr = Command::new(found(CTR)?);
        ctr.arg("--address").arg(&self.socket).args(arguments);
        self.place.run(ctr, limit)
    }

    /// The end of its log: what was more than information, then the last lines.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(self.log_file()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let grave = |line: &&&str| !line.contains("level=info") && !line.contains("level=debug");
        let grave: Vec<&str> = lines.iter().filter(grave).copied().collect();
        let mut tail = format!("containerd on {} said\n", self.place.worker());
        for line in last(&grave).iter().chain(last(&lines)) {
            let _ = writeln!(tail, "  {line}");
        }
        tail
    }

    /// Its log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.place.folder().join("log")
    }

    /// The processes that containerd has left beside its containers, and that answer to this containerd.
    #[must_use]
    pub fn shims(&self) -> Vec<Process> {
        let own = self.child.as_ref().map(Child::id);
        let pids = process::mentioning(&self.socket).into_iter();
        pids.filter(|&pid| Some(pid) != own)
            .filter_map(Process::open)
            .collect()
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut program = Command::new(found(SETSID)?);
        program
            .arg(found(CONTAINERD)?)
            .arg("--config")
            .arg(self.place.folder().join("config.toml"))
            // Where it looks for runc and its shim.
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(self.place.spawn(program)?);
        eventually("containerd answers", START_MAX, || {
            ensure!(self.runs()?, "it has ended");
            self.ctr(&["version"], ASK_MAX)
        })
        .map(drop)
    }

    fn runs(&mut self) -> anyhow::Result<bool> {
        let child = self.child.as_mut().context("it was not started")?;
        Ok(child.try_wait()?.is_none())
    }

    /// Its configuration, of version 2: containerd 1.5 to 1.7.
    fn configuration(&self) -> String {
        let text = |path: &Path| format!("{:?}", path.to_string_lossy());
        format!(
            r#"version = 2
root = {root}
state = {state}
# It makes a folder in /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = {socket}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Lowering a score needs CAP_SYS_RESOURCE, which root of a container has not.
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins}
conf_dir = {networks}
max_conf_num = 1

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
            root = text(&self.root),
            state = text(&self.place.folder().join("run")),
            socket = text(&self.socket),
            pause = Image::Pause.name(),
            plugins = text(&self.place.plugins()),
            networks = text(&self.place.networks()),
        )
    }
}

impl Drop for Containerd<'_> {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            if let Some(process) = Process::open(child.id()) {
                process.signal(Signal::TERM);
                if !process.wait(STOP_MAX) {
                    process.signal(Signal::KILL);
                }
            }
            let _ = child.wait();
        }
        self.place.kill_containers();
        process::stop_all(&self.shims(), Duration::ZERO);
    }
}

fn last<T>(lines: &[T]) -> &[T] {
    lines
        .get(lines.len().saturating_sub(LOG_LINES_MAX)..)
        .unwrap_or_default()
}

fn found(program: &str) -> anyhow::Result<PathBuf> {
    command::find(program).with_context(|| {
        format!("there is no program {program}: `scripts/install-deps test` installs it")
    })
}
