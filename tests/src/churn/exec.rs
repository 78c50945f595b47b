//! Execs of the real plugin for containers, to the end or until SIGKILL.

use std::{
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{LabName, LabState, Worker, command, underlay::inside},
    sys::{
        netlink::{Netlink, enable_ipv6},
        netns::Netns,
    },
};
use serde_json::json;

use crate::{
    plugin::{Answer, Container, addresses, parse, prepared},
    stage::Stage,
};

/// How long one call may take: longer than the plugin itself waits for the daemon.
const CALL_MAX: Duration = Duration::from_secs(90);

/// How a call ended.
#[derive(Debug)]
pub enum Ended {
    /// The plugin answered.
    Answered(Answer),
    /// It was killed first.
    Killed,
}

/// One worker's containers: makes them, and calls the plugin for them.
#[derive(Debug)]
pub struct Runtime<'a> {
    stage: &'a Stage,
    worker: Worker,
    lab: LabName,
    folder: PathBuf,
    made: AtomicUsize,
}

impl<'a> Runtime<'a> {
    /// The runtime of `worker`.
    ///
    /// # Errors
    ///
    /// The lab's state names no folder of namespaces.
    pub fn new(stage: &'a Stage, lab: &LabState, worker: &str) -> anyhow::Result<Self> {
        let worker = lab.worker(worker)?.clone();
        let folder = worker.netns.parent().context("a namespace in no folder")?;
        Ok(Self {
            stage,
            lab: lab.name.parse().map_err(anyhow::Error::msg)?,
            folder: folder.to_owned(),
            worker,
            // Behind those of the lab's own pods.
            made: AtomicUsize::new(lab.pods.len()),
        })
    }

    /// The worker.
    #[must_use]
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// A container with a namespace of its own, which goes at the latest with the lab.
    ///
    /// # Errors
    ///
    /// The namespace cannot be made.
    pub fn container(&self) -> anyhow::Result<Container> {
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let letter = self.worker.name.trim_start_matches("worker-");
        let id = self.lab.netns(&format!("pod-{letter}-{number}"));
        let netns = self.folder.join(&id);
        Netns::create_named(&netns)?.run(|| -> anyhow::Result<()> {
            Netlink::connect()?.set_loopback_up()?;
            Ok(enable_ipv6("lo")?)
        })??;
        Ok(Container { id, netns })
    }

    /// Namespaces that containers of this runtime have.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn namespaces(&self) -> anyhow::Result<Vec<PathBuf>> {
        let letter = self.worker.name.trim_start_matches("worker-");
        let begin = self.lab.netns(&format!("pod-{letter}-"));
        let mut found = Vec::new();
        for entry in self.folder.read_dir()? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&begin) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Calls the plugin and waits for its answer.
    ///
    /// # Errors
    ///
    /// It cannot be started, does not end, or breaks the protocol.
    pub fn call(&self, verb: &str, pod: &str, container: &Container) -> anyhow::Result<Answer> {
        self.call_under(&[], verb, pod, container)
            .and_then(|ended| match ended {
                Ended::Answered(answer) => Ok(answer),
                Ended::Killed => anyhow::bail!("{verb} of {}: killed by others", container.id),
            })
    }

    /// As [`Runtime::call`], with the plugin run under `wrapper`, which may kill it.
    ///
    /// # Errors
    ///
    /// As [`Runtime::call`].
    pub fn call_under(
        &self,
        wrapper: &[String],
        verb: &str,
        pod: &str,
        container: &Container,
    ) -> anyhow::Result<Ended> {
        let (mut program, config) = prepared(
            wrapper,
            self.stage,
            &self.worker,
            verb,
            Some(container),
            json!({}),
        );
        program.env("CNI_ARGS", arguments(pod));
        let answer = inside(&self.worker.netns, move || {
            command::run(program, config.as_bytes(), CALL_MAX)
        })?;
        ended(verb, &answer)
    }

    /// Calls the plugin and kills it after `patience`, if it has not ended by then.
    ///
    /// # Errors
    ///
    /// As [`Runtime::call`].
    pub fn call_impatiently(
        &self,
        verb: &str,
        pod: &str,
        container: &Container,
        patience: Duration,
    ) -> anyhow::Result<Ended> {
        let (mut program, config) = prepared(
            &[],
            self.stage,
            &self.worker,
            verb,
            Some(container),
            json!({}),
        );
        program.env("CNI_ARGS", arguments(pod));
        let begin = Instant::now();
        let mut child = inside(&self.worker.netns, move || {
            let program = program
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            Ok(program.spawn()?)
        })?;
        if let Some(mut pipe) = child.stdin.take() {
            // Less than a pipe holds: nobody waits here.
            let _ = pipe.write_all(config.as_bytes());
        }
        thread::sleep(patience.saturating_sub(begin.elapsed()));
        // One that has ended is not collected yet, so this hits no other process.
        child.kill()?;
        let output = child.wait_with_output()?;
        let answer = command::Answer {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        ended(verb, &answer)
    }

    /// Calls the plugin for a DEL that must succeed, as every DEL must.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn del(&self, pod: &str, container: &Container) -> anyhow::Result<()> {
        let result = self.call("DEL", pod, container)?.done();
        let result = result.with_context(|| format!("DEL of {}", container.id))?;
        ensure!(result.is_null(), "DEL of {} printed {result}", container.id);
        Ok(())
    }
}

/// Addresses of a result of ADD.
///
/// # Errors
///
/// It has none, or one is none.
pub fn given(result: &serde_json::Value) -> anyhow::Result<Vec<IpAddr>> {
    let texts = addresses(result);
    ensure!(!texts.is_empty(), "no address in {result}");
    texts
        .iter()
        .map(|text| text.parse().with_context(|| format!("address {text}")))
        .collect()
}

fn arguments(pod: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=churn;K8S_POD_NAME={pod};K8S_POD_UID=uid-of-{pod}")
}

fn ended(verb: &str, answer: &command::Answer) -> anyhow::Result<Ended> {
    use std::os::unix::process::ExitStatusExt as _;
    const SIGKILL: i32 = 9;
    if answer.status.signal() == Some(SIGKILL) {
        return Ok(Ended::Killed);
    }
    Ok(Ended::Answered(parse(verb, answer)?))
}
