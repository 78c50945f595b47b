//! Throughput of TCP and UDP, by iperf3: one server for one measurement, the receiver's figures.

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
/// What iperf3 takes for "as fast as you can" (it sends 1 Mbit/s of UDP otherwise).
const UNLIMITED: &str = "0";

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

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Forth,
    /// The server.
    Back,
    /// Both at once.
    Both,
}

/// How much TCP and how.
#[derive(Clone, Copy, Debug)]
pub struct TcpLoad<'a> {
    /// Parallel streams, in each direction.
    pub streams: u32,
    /// Who sends.
    pub direction: Direction,
    /// How long is sent (seconds).
    pub seconds: u32,
    /// Congestion control of the sender; the machine's default if `None`.
    pub congestion: Option<&'a str>,
}

/// How much UDP.
#[derive(Clone, Copy, Debug)]
pub struct UdpLoad {
    /// Of one packet (bytes).
    pub payload_bytes: u32,
    /// How long is sent (seconds).
    pub seconds: u32,
}

/// What the receivers of TCP streams got.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Rate, of all streams together.
    pub gbit_per_second: f64,
    /// Sum of all streams.
    pub bytes: u64,
    /// Congestion control that the sender used.
    pub congestion: String,
}

/// What became of UDP packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packets {
    /// What the receiver got (1000 packets per second).
    pub delivered_kpps: f64,
    /// What the sender sent (1000 packets per second).
    pub offered_kpps: f64,
    /// Part of the packets sent that did not arrive (percent).
    pub lost_percent: f64,
}

/// Sends TCP once.
///
/// # Errors
///
/// iperf3 is missing, refuses, or takes too long, or nothing arrived.
pub fn tcp(ends: Ends<'_>, load: TcpLoad<'_>) -> anyhow::Result<Transfer> {
    let streams = load.streams.to_string();
    let mut arguments = vec!["--parallel", &streams];
    match load.direction {
        Direction::Forth => {}
        Direction::Back => arguments.push("--reverse"),
        Direction::Both => arguments.push("--bidir"),
    }
    if let Some(congestion) = load.congestion {
        arguments.extend(["--congestion", congestion]);
    }
    let json = client(ends, load.seconds, &arguments)?;
    transfer(&json, load.direction).with_context(|| format!("iperf3 to {}", ends.address))
}

/// Sends UDP once, as fast as the sender can.
///
/// # Errors
///
/// As [`tcp`].
pub fn udp(ends: Ends<'_>, load: UdpLoad) -> anyhow::Result<Packets> {
    let length = load.payload_bytes.to_string();
    let arguments = ["--udp", "--bitrate", UNLIMITED, "--length", &length];
    let json = client(ends, load.seconds, &arguments)?;
    packets(&json, load.payload_bytes).with_context(|| format!("iperf3 to {}", ends.address))
}

/// What a client says in JSON, to a server of its own.
fn client(ends: Ends<'_>, seconds: u32, arguments: &[&str]) -> anyhow::Result<String> {
    let program = command::find("iperf3").context("iperf3 is not installed")?;
    let server = serve(Command::new(&program), ends)?;
    let mut client = Command::new(&program);
    client
        .args(["--client", &ends.address.to_string(), "--port", PORT])
        .args(["--json", "--time", &seconds.to_string()])
        .args(arguments);
    let limit = Duration::from_secs(seconds.into()) + EXTRA_MAX;
    let answer = ends
        .client
        .run(move || command::run(client, b"", limit))??;
    drop(server);
    Ok(answer.stdout)
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

/// The part of iperf3's JSON that is of use.
#[derive(Deserialize)]
struct Output {
    error: Option<String>,
    #[serde(default)]
    end: End,
}

#[derive(Default, Deserialize)]
struct End {
    sum_sent: Option<Sum>,
    sum_received: Option<Sum>,
    /// What the client got when both send.
    sum_received_bidir_reverse: Option<Sum>,
    sender_tcp_congestion: Option<String>,
}

#[derive(Deserialize)]
struct Sum {
    bits_per_second: f64,
    bytes: u64,
    seconds: f64,
}

fn end(json: &str) -> anyhow::Result<End> {
    let output: Output = serde_json::from_str(json).context("its answer is no JSON")?;
    if let Some(error) = output.error {
        bail!("{error}");
    }
    Ok(output.end)
}

fn transfer(json: &str, direction: Direction) -> anyhow::Result<Transfer> {
    let end = end(json)?;
    let received = end
        .sum_received
        .context("its answer has no sum of what was received")?;
    let back = match direction {
        Direction::Forth | Direction::Back => None,
        Direction::Both => Some(
            end.sum_received_bidir_reverse
                .context("its answer has no sum of what came back")?,
        ),
    };
    let sums = || [Some(&received), back.as_ref()].into_iter().flatten();
    ensure!(sums().all(|sum| sum.bytes > 0), "nothing arrived");
    Ok(Transfer {
        gbit_per_second: sums().map(|sum| sum.bits_per_second).sum::<f64>() / 1e9,
        bytes: sums().map(|sum| sum.bytes).sum(),
        congestion: end.sender_tcp_congestion.unwrap_or_default(),
    })
}

/// Bytes are counted, not the packets that iperf3 lists with its receiver: those are the ones the
/// receiver knows of, the lost ones included.
fn packets(json: &str, payload_bytes: u32) -> anyhow::Result<Packets> {
    let end = end(json)?;
    let sent = end
        .sum_sent
        .context("its answer has no sum of what was sent")?;
    let received = end
        .sum_received
        .context("its answer has no sum of what was received")?;
    ensure!(received.bytes > 0, "nothing arrived");
    let kpps = |sum: &Sum| {
        let packets = sum.bytes as f64 / f64::from(payload_bytes);
        packets / sum.seconds / 1000.0
    };
    Ok(Packets {
        delivered_kpps: kpps(&received),
        offered_kpps: kpps(&sent),
        lost_percent: 100.0 * (1.0 - received.bytes as f64 / sent.bytes as f64),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As iperf3 3.12 answers: two seconds each way, and what it adds when both send.
    const TCP: &str = r#"{"intervals": [], "end": {
        "sum_sent": {"bytes": 9, "bits_per_second": 9.9e9, "seconds": 2},
        "sum_received": {"bytes": 5, "bits_per_second": 4.25e9, "seconds": 2},
        "sum_sent_bidir_reverse": {"bytes": 8, "bits_per_second": 8.8e9, "seconds": 2},
        "sum_received_bidir_reverse": {"bytes": 3, "bits_per_second": 1.5e9, "seconds": 2},
        "sender_tcp_congestion": "cubic"}}"#;

    fn expected(gbit_per_second: f64, bytes: u64) -> Transfer {
        Transfer {
            gbit_per_second,
            bytes,
            congestion: "cubic".to_owned(),
        }
    }

    /// The receiver's figures are taken, not the sender's, which count what waits in buffers.
    #[test]
    fn the_receivers_figures_are_taken() {
        assert_eq!(transfer(TCP, Direction::Forth).unwrap(), expected(4.25, 5));
        assert_eq!(transfer(TCP, Direction::Back).unwrap(), expected(4.25, 5));
    }

    /// When both send, what both got is added up, and one direction alone is an error.
    #[test]
    fn both_directions_are_added_up() {
        assert_eq!(transfer(TCP, Direction::Both).unwrap(), expected(5.75, 8));
        let one = TCP.replace("bidir_reverse", "other");
        let error = transfer(&one, Direction::Both).unwrap_err();
        assert!(error.to_string().contains("came back"));
    }

    /// Packets delivered are what the receiver's bytes make, over its own time; the others are lost.
    #[test]
    fn delivered_packets_are_counted_by_bytes() {
        let json = r#"{"end": {
            "sum": {"bytes": 640000, "bits_per_second": 1, "seconds": 2, "packets": 10000},
            "sum_sent": {"bytes": 640000, "bits_per_second": 1, "seconds": 2, "packets": 10000},
            "sum_received": {"bytes": 256000, "bits_per_second": 1, "seconds": 2.5,
                "packets": 10000, "lost_packets": 6000}}}"#;
        let packets = packets(json, 64).unwrap();
        assert_eq!((packets.delivered_kpps, packets.offered_kpps), (1.6, 5.0));
        assert!((packets.lost_percent - 60.0).abs() < 1e-9);
    }

    /// iperf3's own error is told; no bytes, no sum and no JSON are errors, too.
    #[test]
    fn errors_are_told() {
        let told = |json: &str| format!("{:#}", transfer(json, Direction::Forth).unwrap_err());
        assert_eq!(told(r#"{"end": {}, "error": "refused"}"#), "refused");
        assert!(told(r#"{"end": {}}"#).contains("no sum"));
        let nothing =
            r#"{"end": {"sum_received": {"bytes": 0, "bits_per_second": 0, "seconds": 1}}}"#;
        assert!(told(nothing).contains("nothing"));
        assert!(told("usage").contains("no JSON"));
        let sent = r#"{"end": {"sum_sent": {"bytes": 9, "bits_per_second": 9, "seconds": 1}}}"#;
        assert!(packets(sent, 64).is_err());
    }
}
