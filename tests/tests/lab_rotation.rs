//! Identities change under traffic: nobody in a pod notices, and no connection outlives a certificate.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, Pod, Worker},
    measure::iperf,
    node_id::NodeId,
    pki::{
        authority::{self, Authority},
        files::{NodeFiles, Overwrite, load_authority, save_node},
        validity::unix_now,
    },
    sys::netns::Netns,
};
use fabric_proto::admin::{Document, Status};
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    operator::{LogMark, dropped, fabric, peer},
    probe::Probe,
    stage::Stage,
    traffic::address,
};

/// Longest pause of a steady echo (one every 10 ms) that counts as none on a busy machine.
const UNDISTURBED_MAX: Duration = Duration::from_millis(250);
/// New files are in use within this.
const FOLLOWED_MAX: Duration = Duration::from_secs(10);
const PORT: u16 = 5201;

/// Certificates with keys of their own replace each other on both sides under ping-like and TCP traffic: each
/// is in use within seconds, no pause, no packet without an account, nothing lost in front of a connection.
#[test]
fn identities_change_under_traffic() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("rotate", 2, 1)?;
    let (a, b) = (lab.state().pod("pod-a-1")?, lab.state().pod("pod-b-1")?);
    let authority = load_authority(&lab.state().folder.join("pki"))?;
    let probes = [Probe::start(a, b, false)?, Probe::start(b, a, true)?];
    for probe in &probes {
        probe.answered_after(Instant::now(), FOLLOWED_MAX)?;
    }
    let lost = lost(&stage, &lab)?;
    let load = Iperf::start(a, b, 24)?;
    let begin = Instant::now();
    for round in 0..3 {
        for worker in ["worker-a", "worker-b"] {
            let mark = LogMark::at_end(lab.state().worker(worker)?);
            replace(&lab, &authority, worker, 3_600)?;
            eventually("the new files are in use", FOLLOWED_MAX, || {
                mark.line(lab.state().worker(worker)?, &["identity replaced"])
            })?;
            println!("round {round}: {worker} shows a new certificate");
            thread::sleep(Duration::from_secs(2));
        }
    }
    let words = load.finish()?;
    println!("iperf3 meanwhile: {words}");
    for probe in &probes {
        let gap = probe.longest_gap(begin);
        println!("longest pause of an echo every 10 ms: {gap:?}");
        ensure!(gap < UNDISTURBED_MAX, "a pause of {gap:?}");
    }
    let connections = peer(&stage, lab.state().worker("worker-a")?, "worker-b")?;
    let connections = connections.context("no such peer")?;
    ensure!(connections.state == "Connected", "{connections:?}");
    let now = self::lost(&stage, &lab)?;
    println!("packets lost with connections: {}", now - lost);
    for worker in lab.workers() {
        check_conserved(worker)?;
        ensure!(problems(&stage, worker)?.is_empty(), "{}", worker.name);
    }
    Ok(())
}

/// Certificates of half a minute, renewed in time, twice over: connections are replaced before each end and
/// no echo is missed. When renewal stops, the connection ends with the certificate, both sides say so, and a
/// new one mends it.
#[test]
fn no_connection_outlives_its_certificate() -> anyhow::Result<()> {
    const LIFE: i64 = 30;
    let stage = Stage::enter()?;
    let lab = stage.lab("outlive", 2, 1)?;
    let (a, b) = (lab.state().pod("pod-a-1")?, lab.state().pod("pod-b-1")?);
    let authority = load_authority(&lab.state().folder.join("pki"))?;
    let probe = Probe::start(a, b, false)?;
    probe.answered_after(Instant::now(), FOLLOWED_MAX)?;
    let begin = Instant::now();
    let mut end = 0;
    for _ in 0..3 {
        for worker in ["worker-a", "worker-b"] {
            replace(&lab, &authority, worker, LIFE)?;
        }
        end = unix_now() + LIFE;
        thread::sleep(Duration::from_secs(LIFE as u64 / 2));
    }
    let gap = probe.longest_gap(begin);
    println!(
        "certificates of {LIFE} s, renewed every {} s: longest pause {gap:?}",
        LIFE / 2
    );
    ensure!(gap < UNDISTURBED_MAX, "a pause of {gap:?}");
    let marks: Vec<LogMark> = lab.workers().iter().map(LogMark::at_end).collect();
    while unix_now() <= end + 1 {
        thread::sleep(Duration::from_millis(100));
    }
    let over = Instant::now();
    thread::sleep(Duration::from_secs(2));
    ensure!(
        probe.count_after(over) == 0,
        "traffic goes on after the end of the certificates"
    );
    for (worker, mark) in lab.workers().iter().zip(&marks) {
        // Whichever side is the first tells the other.
        mark.line(worker, &["a certificate has expired"])?;
        let problems = problems(&stage, worker)?;
        ensure!(problems.contains("certificate expired at"), "{problems}");
    }
    for worker in ["worker-a", "worker-b"] {
        replace(&lab, &authority, worker, 3_600)?;
    }
    let mended = Instant::now();
    let took = probe.answered_after(mended, FOLLOWED_MAX)?;
    println!("new certificates after the end: traffic after {took:?}");
    Ok(())
}

/// A bad file keeps the identity in use, and the status says what is wrong until it is mended.
#[test]
fn a_bad_file_is_named() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("badfile", 2, 1)?;
    let worker = lab.state().worker("worker-a")?;
    let probe = Probe::start(
        lab.state().pod("pod-a-1")?,
        lab.state().pod("pod-b-1")?,
        false,
    )?;
    probe.answered_after(Instant::now(), FOLLOWED_MAX)?;
    let begin = Instant::now();
    let files = files(&lab, "worker-a")?;
    let good = fs::read(&files.certificate)?;
    fs::write(&files.certificate, "hello")?;
    eventually("the bad file is named", FOLLOWED_MAX, || {
        let problems = problems(&stage, worker)?;
        ensure!(
            problems.contains("worker-a.pem") && problems.contains("stays"),
            "{problems}"
        );
        println!("{problems}");
        Ok(())
    })?;
    fs::write(&files.certificate, good)?;
    eventually("nothing is wrong", FOLLOWED_MAX, || {
        let problems = problems(&stage, worker)?;
        ensure!(problems.is_empty(), "{problems}");
        Ok(())
    })?;
    let gap = probe.longest_gap(begin);
    ensure!(gap < UNDISTURBED_MAX, "a pause of {gap:?}");
    Ok(())
}

/// What `fabric status` says is not in order; it ends with 1 if anything is.
fn problems(stage: &Stage, worker: &Worker) -> anyhow::Result<String> {
    let socket = worker.admin_socket();
    let socket = socket.to_str().context("the socket's path is no text")?;
    let answer = fabric(stage, &["status", "--socket", socket, "-o", "json"])?;
    let document: Document<Status> = serde_json::from_str(&answer.stdout)?;
    Ok(document.content.reasons.join(" "))
}

/// What was lost in front of connections, on both sides.
fn lost(stage: &Stage, lab: &Lab) -> anyhow::Result<u64> {
    lab.workers()
        .iter()
        .map(|worker| dropped(stage, worker, &["PEER_DISCONNECTED", "PEER_UNREACHABLE"]))
        .sum()
}

fn files(lab: &Lab, worker: &str) -> anyhow::Result<NodeFiles> {
    let node = NodeId::new(worker).map_err(anyhow::Error::msg)?;
    let folder = lab.state().worker(worker)?.folder.join("pki");
    Ok(NodeFiles::within(&folder, &node))
}

fn replace(lab: &Lab, authority: &Authority, worker: &str, seconds: i64) -> anyhow::Result<()> {
    let node = NodeId::new(worker).map_err(anyhow::Error::msg)?;
    let credentials = authority::issue_for_seconds(authority, &node, seconds)?;
    let folder = lab.state().worker(worker)?.folder.join("pki");
    save_node(&credentials, &folder, Overwrite::Yes)?;
    Ok(())
}

/// TCP from one pod to another for a while.
struct Iperf {
    client: std::process::Child,
    _server: iperf::Server,
}

impl Iperf {
    fn start(from: &Pod, to: &Pod, seconds: u32) -> anyhow::Result<Self> {
        let program = iperf::find().context("install iperf3")?;
        let netns = Netns::open(&to.netns)?;
        let server = iperf::Server::start(&program, &netns, None, PORT, iperf::Serve::Once)?;
        let target = address(to, false)?.to_string();
        let client = Netns::open(&from.netns)?.run(|| {
            std::process::Command::new(&program)
                .args(["--client", &target, "--port", &PORT.to_string()])
                .args([
                    "--time",
                    &seconds.to_string(),
                    "--interval",
                    "0.25",
                    "--bitrate",
                    "500M",
                    "--json",
                ])
                .stdout(std::process::Stdio::piped())
                .spawn()
        })??;
        Ok(Self {
            client,
            _server: server,
        })
    }

    /// Waits for its end: the rate, retransmissions, and the slowest quarter of a second.
    fn finish(self) -> anyhow::Result<String> {
        let answer = self.client.wait_with_output()?;
        let report: serde_json::Value = serde_json::from_slice(&answer.stdout)?;
        let sum = &report["end"]["sum_sent"];
        let rate = sum["bits_per_second"].as_f64().context("no rate")?;
        let intervals = report["intervals"].as_array().context("no intervals")?;
        let rates = intervals
            .iter()
            .filter_map(|i| i["sum"]["bits_per_second"].as_f64());
        let slowest = rates.fold(f64::INFINITY, f64::min);
        ensure!(rate > 0.0, "{report}");
        Ok(format!(
            "{:.0} Mbit/s of 500, {} retransmissions, slowest quarter of a second {:.0} Mbit/s",
            rate / 1e6,
            sum["retransmits"],
            slowest / 1e6
        ))
    }
}
