//! How fast one TCP stream is, by iperf3, across workers and between neighbours.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::{Plan, Scene, address, report::Finding};
use crate::lab::{Pod, command, underlay::inside};

/// How long one measurement sends (seconds).
const SECONDS: u32 = 3;
/// How long one measurement may take in all.
const IPERF_MAX: Duration = Duration::from_secs(20);
/// How long the server may take until it listens.
const LISTEN_MAX: Duration = Duration::from_secs(10);
/// Port of the server.
const PORT: &str = "5201";

pub(super) fn plans<'a>(scene: &'a Scene<'a>) -> Vec<Plan<'a>> {
    [
        ("iperf3-across", scene.remote, "across workers"),
        ("iperf3-neighbour", scene.neighbour, "on one worker"),
    ]
    .into_iter()
    .map(|(id, target, where_to)| {
        let title = format!(
            "iperf3 from {} to {}, {where_to}",
            scene.pod.name, target.name
        );
        Plan::new(id, title, move || measure(scene, target))
    })
    .collect()
}

fn measure(scene: &Scene<'_>, target: &Pod) -> anyhow::Result<Finding> {
    let family = scene
        .families
        .first()
        .copied()
        .context("the pods have no family")?;
    let address = address(target, family)?;
    let server = Server::start(scene, target, address)?;
    let mut client = Command::new(&scene.tools.iperf3);
    client
        .args(["--client", &address.to_string(), "--port", PORT, "--json"])
        .args(["--time", &SECONDS.to_string()]);
    let answer = inside(&scene.pod.netns, move || {
        command::run(client, b"", IPERF_MAX)
    })?;
    drop(server);
    let gbit = gbit_per_second(&answer.stdout).with_context(|| format!("iperf3 to {address}"))?;
    ensure!(gbit > 0.0, "nothing arrived");
    Ok(Finding::new(format!("{gbit:.2} Gbit/s"))
        .with("gbitPerSecond", (gbit * 1000.0).round() / 1000.0))
}

/// A server for one measurement; ends with this value.
struct Server(Child);

impl Server {
    fn start(scene: &Scene<'_>, pod: &Pod, address: IpAddr) -> anyhow::Result<Self> {
        let mut server = Command::new(&scene.tools.iperf3);
        server
            .args(["--server", "--one-off", "--forceflush", "--port", PORT])
            .args(["--bind", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child =
            inside(&pod.netns, move || Ok(server.spawn()?)).context("cannot start iperf3")?;
        let output = child.stdout.take();
        let server = Self(child);
        let (listening, heard) = mpsc::channel();
        thread::spawn(move || {
            // Read to its end: a full pipe would stop the server.
            for line in output
                .into_iter()
                .flat_map(|pipe| BufReader::new(pipe).lines())
            {
                let Ok(line) = line else { break };
                if line.contains("Server listening") {
                    // Nobody listens after the first.
                    let _ = listening.send(());
                }
            }
        });
        match heard.recv_timeout(LISTEN_MAX) {
            Ok(()) => Ok(server),
            Err(_) => bail!(
                "the iperf3 server in {} does not listen on {address}",
                pod.name
            ),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        command::end(&mut self.0);
    }
}

/// What the receiver got, from iperf3's JSON, in Gbit/s.
fn gbit_per_second(json: &str) -> anyhow::Result<f64> {
    #[derive(Deserialize)]
    struct Output {
        error: Option<String>,
        #[serde(default)]
        end: End,
    }
    #[derive(Default, Deserialize)]
    struct End {
        sum_received: Option<Sum>,
    }
    #[derive(Deserialize)]
    struct Sum {
        bits_per_second: f64,
    }
    let output: Output = serde_json::from_str(json).context("its answer is no JSON")?;
    match output {
        Output {
            error: Some(error), ..
        } => bail!("{error}"),
        Output {
            end: End {
                sum_received: Some(sum),
            },
            ..
        } => Ok(sum.bits_per_second / 1e9),
        Output { .. } => bail!("its answer has no sum of what was received"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The receiver's rate is taken, not the sender's, which counts what waits in buffers.
    #[test]
    fn the_receivers_rate_is_taken() {
        let json = r#"{"start": {"version": "iperf 3.12"}, "intervals": [],
            "end": {"streams": [], "sum_sent": {"bytes": 1, "bits_per_second": 9.9e9, "retransmits": 0},
                    "sum_received": {"start": 0, "end": 3.0, "bytes": 1, "bits_per_second": 4.25e9}}}"#;
        assert!((gbit_per_second(json).unwrap() - 4.25).abs() < 1e-9);
    }

    /// iperf3's own error is told; an answer without a sum or without JSON is an error, too.
    #[test]
    fn errors_are_told() {
        let told = |json: &str| format!("{:#}", gbit_per_second(json).unwrap_err());
        let refused = r#"{"start": {}, "intervals": [], "end": {}, "error": "unable to connect to server: Connection refused"}"#;
        assert_eq!(
            told(refused),
            "unable to connect to server: Connection refused"
        );
        assert!(told(r#"{"end": {}}"#).contains("no sum"));
        assert!(told("iperf3: usage").contains("no JSON"));
    }
}
