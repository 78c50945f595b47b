//! TCP throughput, by iperf3: one server for one measurement, the receiver's figures.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::{lab::command, sys::netns::Netns};
use serde::Deserialize;

use crate::child::Guard;

/// How long a measurement may take beyond the time it sends.
const EXTRA_MAX: Duration = Duration::from_secs(15);
/// How long the server may take until it listens.
const LISTEN_MAX: Duration = Duration::from_secs(10);
/// Port of the server.
const PORT: &str = "5201";

/// Between whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Where the client runs; it sends, unless told otherwise.
    pub client: &'a Netns,
    /// Where the server runs.
    pub server: &'a Netns,
    /// An address of the server that the client reaches.
    pub address: IpAddr,
}

/// How much and how.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Parallel TCP streams.
    pub streams: u32,
    /// The server sends.
    pub reverse: bool,
    /// How long is sent (seconds).
    pub seconds: u32,
    /// TCP congestion control of the sender; the machine's default if `None`.
    pub congestion: Option<&'a str>,
}

/// What the receiver got.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Rate.
    pub gbit_per_second: f64,
    /// Sum of all streams.
    pub bytes: u64,
    /// Congestion control that the sender used.
    pub congestion: String,
}

/// Measures once.
///
/// # Errors
///
/// iperf3 is missing, refuses, or takes too long.
pub fn measure(ends: Ends<'_>, load: Load<'_>) -> anyhow::Result<Transfer> {
    let program = command::find("iperf3").context("iperf3 is not installed")?;
    let server = serve(Command::new(&program), ends)?;
    let mut client = Command::new(&program);
    client
        .args(["--client", &ends.address.to_string(), "--port", PORT])
        .args(["--json", "--time", &load.seconds.to_string()])
        .args(["--parallel", &load.streams.to_string()]);
    if load.reverse {
        client.arg("--reverse");
    }
    if let Some(congestion) = load.congestion {
        client.args(["--congestion", congestion]);
    }
    let limit = Duration::from_secs(load.seconds.into()) + EXTRA_MAX;
    let answer = ends
        .client
        .run(move || command::run(client, b"", limit))??;
    drop(server);
    transfer(&answer.stdout).with_context(|| format!("iperf3 to {}", ends.address))
}

fn serve(mut command: Command, ends: Ends<'_>) -> anyhow::Result<Guard> {
    command
        .args(["--server", "--one-off", "--forceflush", "--port", PORT])
        .args(["--bind", &ends.address.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut server = Guard::start(ends.server, command)?;
    let output = server.child().stdout.take();
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
    if heard.recv_timeout(LISTEN_MAX).is_err() {
        bail!("the iperf3 server does not listen on {}", ends.address);
    }
    Ok(server)
}

/// Reads iperf3's JSON.
fn transfer(json: &str) -> anyhow::Result<Transfer> {
    #[derive(Deserialize)]
    struct Output {
        error: Option<String>,
        #[serde(default)]
        end: End,
    }
    #[derive(Default, Deserialize)]
    struct End {
        sum_received: Option<Sum>,
        sender_tcp_congestion: Option<String>,
    }
    #[derive(Deserialize)]
    struct Sum {
        bits_per_second: f64,
        bytes: u64,
    }
    let output: Output = serde_json::from_str(json).context("its answer is no JSON")?;
    if let Some(error) = output.error {
        bail!("{error}");
    }
    let sum = output
        .end
        .sum_received
        .context("its answer has no sum of what was received")?;
    ensure!(sum.bytes > 0, "nothing arrived");
    Ok(Transfer {
        gbit_per_second: sum.bits_per_second / 1e9,
        bytes: sum.bytes,
        congestion: output.end.sender_tcp_congestion.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The receiver's figures are taken, not the sender's, which count what waits in buffers.
    #[test]
    fn the_receivers_figures_are_taken() {
        let json = r#"{"intervals": [], "end": {
            "sum_sent": {"bytes": 9, "bits_per_second": 9.9e9},
            "sum_received": {"bytes": 5, "bits_per_second": 4.25e9},
            "sender_tcp_congestion": "cubic"}}"#;
        let expected = Transfer {
            gbit_per_second: 4.25,
            bytes: 5,
            congestion: "cubic".to_owned(),
        };
        assert_eq!(transfer(json).unwrap(), expected);
    }

    /// iperf3's own error is told; no bytes, no sum and no JSON are errors, too.
    #[test]
    fn errors_are_told() {
        let told = |json: &str| format!("{:#}", transfer(json).unwrap_err());
        assert_eq!(told(r#"{"end": {}, "error": "refused"}"#), "refused");
        assert!(told(r#"{"end": {}}"#).contains("no sum"));
        let nothing = r#"{"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}}"#;
        assert!(told(nothing).contains("nothing"));
        assert!(told("usage").contains("no JSON"));
    }
}
