//! The program `impair` between the two workers of a lab: started, and asked for its report.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use fabric_node::lab::{Lab, Worker, command};

use super::{Impairment, Report};
use crate::{
    eventually::eventually,
    traffic::{address, ping},
};

/// What the program says when the cable lies.
pub const READY: &str = "ready";
/// How long QUIC may take to notice that there is another cable: the longest silence it bears, and
/// another connection.
const CONNECTED_MAX: Duration = Duration::from_secs(15);
/// How long one answer may take: one that is lost is not sent again.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A running `impair`. When this value goes, the program ends and the workers have no cable at all.
#[derive(Debug)]
pub struct Impairer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Impairer {
    /// Replaces the bridge between the first two workers of `lab` by `program`, and waits until a
    /// pod of one reaches a pod of the other over it.
    ///
    /// # Errors
    ///
    /// The lab has not two workers with IPv4 and a pod each, the program fails, or nothing crosses it.
    pub fn start(program: &Path, lab: &Lab, impairment: Impairment) -> anyhow::Result<Self> {
        let [one, other, ..] = lab.workers() else {
            bail!("a cable has two ends, and the lab has fewer workers");
        };
        let mut command = Command::new(program);
        command
            .arg("--underlay")
            .arg(&lab.state().underlay_netns)
            .args(["--mtu", &lab.state().underlay_mtu.to_string()])
            .args(["--settings", &serde_json::to_string(&impairment)?])
            .args([plug(one)?, plug(other)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("no pipe")?;
        let mut impairer = Self {
            child,
            output: BufReader::new(output),
        };
        let mut line = String::new();
        impairer.output.read_line(&mut line)?;
        if line.trim() != READY {
            bail!("impair did not begin; it said {line:?} and what is on standard error");
        }
        let pod = |worker: &Worker| {
            let mut pods = lab.pods().iter();
            pods.find(|pod| pod.worker == worker.name)
                .with_context(|| format!("{} has no pod to try the cable with", worker.name))
        };
        let (from, target) = (pod(one)?, address(pod(other)?, false)?);
        eventually("a ping over the cable", CONNECTED_MAX, || {
            ping(&from.netns, target, ANSWER_MAX)
        })?;
        Ok(impairer)
    }

    /// Ends the program, and with it the cable; what it did.
    ///
    /// # Errors
    ///
    /// It failed, or its report cannot be read.
    pub fn stop(mut self) -> anyhow::Result<Report> {
        // The end of its input is its end.
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("impair ended with {status}");
        }
        serde_json::from_str(&text).with_context(|| format!("impair reported {text:?}"))
    }
}

impl Drop for Impairer {
    fn drop(&mut self) {
        command::end(&mut self.child);
    }
}

/// `INTERFACE=ADDRESS`.
fn plug(worker: &Worker) -> anyhow::Result<String> {
    let mut addresses = worker.underlay_addresses.iter();
    let address = addresses.find(|address| address.is_ipv4());
    let address = address.context("a worker without IPv4 on the underlay")?;
    Ok(format!("{}={address}", worker.name))
}
