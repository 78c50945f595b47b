//! `fabric bench` on a real lab: what it says agrees with what the kernel counted on the pods' own
//! interfaces, and nothing is left behind, however it ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::{Lab, Pod, command, underlay::inside};
use fabric_tests::{eventually::eventually, operator::fabric, stage::Stage};
use serde_json::Value;

/// How long a program may take to start, to notice that the other end is there, or to end.
const SOON: Duration = Duration::from_secs(20);
/// Ports that `fabric bench` uses unless told otherwise.
const PORTS: [u16; 2] = [5201, 5202];

/// Bytes and packets that a pod's `eth0` has received and sent, as the kernel counts them.
#[derive(Clone, Copy, Debug)]
struct Counted {
    received: (u64, u64),
    sent: (u64, u64),
}

fn counted(pod: &Pod) -> anyhow::Result<Counted> {
    let table = inside(&pod.netns, || {
        Ok(fs::read_to_string("/proc/thread-self/net/dev")?)
    })?;
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"));
    let fields: Vec<u64> = line
        .context("the pod has no eth0")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Counted {
        received: (fields[0], fields[1]),
        sent: (fields[8], fields[9]),
    })
}

/// A lab of two workers with a pod each, whose names begin as this test's labs do.
fn lab(stage: &Stage, purpose: &str) -> anyhow::Result<Lab> {
    stage.lab(&format!("bench-{purpose}"), 2, 1)
}

fn name(lab: &Lab) -> &str {
    &lab.state().name
}

/// Runs `fabric bench` in a lab; its document.
fn bench(stage: &Stage, lab: &Lab, arguments: &[&str]) -> anyhow::Result<Value> {
    let fixed = ["bench", "-o", "json", "--lab", name(lab)];
    let answer = fabric(stage, &[&fixed, arguments].concat())?;
    ensure!(
        answer.status.success(),
        "{arguments:?}: {}: {}\n{}",
        answer.status,
        answer.stderr,
        answer.stdout
    );
    Ok(serde_json::from_str(&answer.stdout)?)
}

fn number(value: &Value, path: &str) -> anyhow::Result<f64> {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.with_context(|| format!("no number at {path} in {value:#}"))
}

/// Nothing runs in any pod, and the ports are free again.
fn nothing_is_left(lab: &Lab) -> anyhow::Result<()> {
    eventually("nothing is left", SOON, || {
        let left = running(lab)?;
        ensure!(left.is_empty(), "{left:?} still run in the pods");
        for pod in lab.pods() {
            inside(&pod.netns, || {
                for port in PORTS {
                    TcpListener::bind(("::", port)).with_context(|| format!("TCP {port}"))?;
                    UdpSocket::bind(("::", port)).with_context(|| format!("UDP {port}"))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
    .map(drop)
}

/// Processes with a thread in a pod's network namespace.
fn running(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let namespaces: BTreeSet<u64> = lab
        .pods()
        .iter()
        .map(|pod| Ok(fs::metadata(&pod.netns)?.ino()))
        .collect::<anyhow::Result<_>>()?;
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let tasks = process?.path().join("task");
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            // A task may end while it is looked at.
            let task = task.path();
            if fs::metadata(task.join("ns/net")).is_ok_and(|ns| namespaces.contains(&ns.ino())) {
                let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                found.push(name.trim().to_owned());
            }
        }
    }
    Ok(found)
}

/// With iperf3 and with the built-in meter, over TCP, what is said to have been sent and received is what
/// the interfaces of both pods carried; round trips are measured idle and loaded; the picture is drawn.
#[test]
fn tcp_is_what_the_interfaces_counted() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    ensure!(command::find("iperf3").is_some(), "install iperf3");
    let lab = lab(&stage, "tcp")?;
    let [a, b] = lab.pods() else {
        bail!("{:?}", lab.pods())
    };
    let folder = tempfile::tempdir()?;
    let svg = folder.path().join("pair.svg");
    for (meter, version) in [("iperf3", "iperf 3"), ("builtin", "fabric ")] {
        let before = (counted(a)?, counted(b)?);
        let arguments = [
            &a.name, &b.name, "--meter", meter, "--udp", "none", "-t", "2",
        ];
        let svg_argument = ["--svg", svg.to_str().unwrap()];
        let told = bench(
            &stage,
            &lab,
            &[&arguments.map(AsRef::as_ref)[..], &svg_argument].concat(),
        )?;
        let after = (counted(a)?, counted(b)?);

        assert_eq!(told["kind"], "Bench");
        assert_eq!(
            (&told["path"], &told["meter"]),
            (&"across".into(), &meter.into())
        );
        let said = told["start"]["version"].as_str().unwrap();
        assert!(said.starts_with(version), "{said}");
        assert_eq!(told["udp"], serde_json::json!([]));
        let arrived = number(&told, "/end/sum_received/bytes")?;
        assert!(arrived > 10e6, "{arrived} bytes arrived");
        let rate = arrived * 8.0 / number(&told, "/end/sum_received/seconds")?;
        let difference = (rate / number(&told, "/end/sum_received/bits_per_second")? - 1.0).abs();
        assert!(difference < 0.01, "{told:#}");
        // Headers and round trips come on top; segments that were sent again are few.
        let carried = (after.1.received.0 - before.1.received.0) as f64;
        assert!(
            (1.0..1.1).contains(&(carried / arrived)),
            "{meter}: {arrived} of {carried}"
        );
        let sent = number(&told, "/end/sum_sent/bytes")?;
        let carried = (after.0.sent.0 - before.0.sent.0) as f64;
        assert!(
            (0.95..1.1).contains(&(carried / sent)),
            "{meter}: {sent} of {carried}"
        );
        let intervals = told["intervals"].as_array().unwrap();
        assert!((3..=6).contains(&intervals.len()), "{intervals:?}");

        for trips in ["idle", "loaded"] {
            let of = |what| number(&told, &format!("/rtt/{trips}/{what}"));
            assert!(of("answered")? >= 20.0, "{told:#}");
            let (min, p50, p99, max) = (of("min_ms")?, of("p50_ms")?, of("p99_ms")?, of("max_ms")?);
            assert!(
                0.0 < min && min <= p50 && p50 <= p99 && p99 <= max,
                "{told:#}"
            );
        }
        let drawn = fs::read_to_string(&svg)?;
        let title = format!("/{} to lab-{}/{}: ", a.name, name(&lab), b.name);
        assert!(
            drawn.contains(&title) && drawn.contains("Gbit/s over TCP"),
            "{drawn}"
        );
        fs::remove_file(&svg)?;
        nothing_is_left(&lab)?;
    }
    Ok(())
}

/// With both meters, over UDP at a rate that the way carries, the datagrams that are said to have arrived
/// did so by the count of the receiver's interface, and those lost are the others.
#[test]
fn udp_is_what_the_interfaces_counted() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = lab(&stage, "udp")?;
    let [a, b] = lab.pods() else {
        bail!("{:?}", lab.pods())
    };
    for meter in ["iperf3", "builtin"] {
        for (direction, receiver) in [(&["-P", "2"][..], b), (&["-P", "2", "--reverse"], a)] {
            let before = counted(receiver)?;
            let fixed = [
                &a.name, &b.name, "-6", "-t", "1", "--udp", "200", "-b", "1600K", "--meter", meter,
            ];
            let told = bench(
                &stage,
                &lab,
                &[&fixed.map(AsRef::as_ref)[..], direction].concat(),
            )?;
            let after = counted(receiver)?;
            let udp = &told["udp"][0];
            assert_eq!(udp["size"], 200);
            let arrived = number(udp, "/end/sum_received/bytes")? / 200.0;
            // Two streams of 1000 datagrams per second.
            assert!((1500.0..2500.0).contains(&arrived), "{meter}: {udp:#}");
            assert!(number(udp, "/lostPercent")? < 20.0, "{meter}: {udp:#}");
            assert!(number(udp, "/end/sum_received/jitter_ms")? >= 0.0);
            let rate = number(udp, "/receivedPerSecond")?;
            assert!((rate / arrived - 1.0).abs() < 0.2, "{meter}: {udp:#}");
            // TCP and round trips were received, too: the interface has at least as many.
            assert!(after.received.1 - before.received.1 >= arrived as u64);
            assert_eq!(
                told["start"]["test_start"]["reverse"],
                u8::from(receiver.name == a.name)
            );
        }
    }
    nothing_is_left(&lab)
}

/// All ordered pairs are measured and drawn; who is not there is answered with who is, and wrong usage has
/// its exit code.
#[test]
fn all_pairs_and_wrong_ones() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("bench-all", 2, 2)?;
    let folder = tempfile::tempdir()?;
    let svg = folder.path().join("all.svg");
    let arguments = [
        "--all",
        "-t",
        "1",
        "--udp",
        "none",
        "--svg",
        svg.to_str().unwrap(),
    ];
    let told = bench(&stage, &lab, &arguments)?;
    assert_eq!(told["kind"], "BenchList");
    let items = told["items"].as_array().unwrap();
    let pairs: BTreeSet<(&str, &str)> = items
        .iter()
        .filter_map(|it| Some((it["from"]["name"].as_str()?, it["to"]["name"].as_str()?)))
        .collect();
    assert_eq!((items.len(), pairs.len()), (12, 12), "{pairs:?}");
    for item in items {
        let is_across = item["from"]["node"] != item["to"]["node"];
        assert_eq!(item["path"], if is_across { "across" } else { "same-node" });
        assert!(
            number(item, "/end/sum_received/bits_per_second")? > 1e7,
            "{item:#}"
        );
    }
    let drawn = fs::read_to_string(&svg)?;
    for pod in lab.pods() {
        assert!(drawn.contains(&pod.name), "{drawn}");
    }

    for (arguments, code, word) in [
        (&["pod-a-1", "nobody"][..], 1, "pod-b-2"),
        (&["pod-a-1", "pod-a-1"], 1, "same network namespace"),
        (&["pod-a-1"], 2, "name two pods"),
        (
            &["pod-a-1", "pod-b-1", "--svg", "/nowhere/x.svg"],
            1,
            "/nowhere",
        ),
        (&["pod-a-1", "pod-b-1", "--meter", "none"], 2, "builtin"),
    ] {
        let fixed = ["bench", "--lab", name(&lab)];
        let answer = fabric(&stage, &[&fixed, arguments].concat())?;
        assert_eq!(
            answer.status.code(),
            Some(code),
            "{arguments:?}: {}",
            answer.stderr
        );
        let said = format!("{}{}", answer.stderr, answer.stdout);
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
    nothing_is_left(&lab)
}

/// A server in one pod serves a client that knows its address alone, through either meter, and a plain
/// `iperf3 -s` does too; Ctrl-C ends the server with 0 and leaves nothing.
#[test]
fn a_server_on_another_node() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = lab(&stage, "serve")?;
    let [a, b] = lab.pods() else {
        bail!("{:?}", lab.pods())
    };
    // With its port, the address stands for a server that runs already, though the pod is known here.
    let target = format!("{}:{}", b.addresses[0], PORTS[0]);
    let fixed = [a.name.as_str(), &target, "-t", "1", "--udp", "200"];
    let check = |meter: &str, method: &str| -> anyhow::Result<()> {
        let told = bench(&stage, &lab, &[&fixed[..], &["--meter", meter]].concat())?;
        assert_eq!(told["path"], "across");
        assert_eq!(told["to"]["node"], "worker-b");
        assert!(number(&told, "/end/sum_received/bytes")? > 1e6);
        assert!(number(&told, "/udp/0/receivedPerSecond")? > 0.0);
        assert_eq!(told["rtt"]["loaded"]["method"], method);
        Ok(())
    };
    let mut server =
        Background::start(&stage, &["bench", "--lab", name(&lab), "--serve", &b.name])?;
    server.says("Ctrl-C ends it")?;
    check("iperf3", "udp-echo")?;
    check("builtin", "udp-echo")?;
    server.signal("INT")?;
    assert_eq!(server.end()?.code(), Some(0));
    nothing_is_left(&lab)?;

    let iperf = command::find("iperf3").context("install iperf3")?;
    let mut alone = Command::new(iperf);
    alone.args(["-s", "--forceflush"]).stdout(Stdio::piped());
    let mut alone = Background(inside(&b.netns, move || Ok(alone.spawn()?))?);
    let words = alone.0.stdout.take().context("no output")?;
    read_until(words, "Server listening")?;
    check("auto", "tcp-connect")?;
    drop(alone);
    nothing_is_left(&lab)
}

/// A run that is interrupted in the middle, or killed, leaves no program and no port behind.
#[test]
fn nothing_outlives_it() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = lab(&stage, "end")?;
    let [a, b] = lab.pods() else {
        bail!("{:?}", lab.pods())
    };
    for (meter, signal, code) in [
        ("iperf3", "INT", Some(1)),
        ("iperf3", "KILL", None),
        ("builtin", "TERM", Some(1)),
    ] {
        let before = counted(b)?;
        let arguments = [
            "bench",
            "--lab",
            name(&lab),
            &a.name,
            &b.name,
            "-t",
            "600",
            "--meter",
            meter,
        ];
        let mut run = Background::start(&stage, &arguments)?;
        // It is in the middle once much has arrived.
        eventually("traffic", SOON, || {
            let bytes = counted(b)?.received.0 - before.received.0;
            ensure!(bytes > 10_000_000, "{bytes} bytes");
            Ok(())
        })?;
        run.signal(signal)?;
        assert_eq!(run.end()?.code(), code, "{meter} {signal}");
        nothing_is_left(&lab)?;
    }
    Ok(())
}

/// A program beside the test; killed with this value.
struct Background(Child);

impl Background {
    fn start(stage: &Stage, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut program = Command::new(stage.program("fabric"));
        program
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Ok(Self(program.spawn()?))
    }

    /// Waits for a line with `words` on standard error.
    fn says(&mut self, words: &str) -> anyhow::Result<()> {
        let stderr = self.0.stderr.take().context("it was heard before")?;
        read_until(stderr, words)
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let mut kill = Command::new("/bin/sh");
        kill.args(["-c", &format!("kill -s {signal} {}", self.0.id())]);
        let answer = command::run(kill, b"", SOON)?;
        ensure!(answer.status.success(), "{}", answer.stderr);
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = || self.0.try_wait()?.context("it still runs");
        Ok(eventually("its end", SOON, ended)?.0)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        command::end(&mut self.0);
    }
}

/// Reads lines until one has `words`; then goes on reading, so that the pipe stays empty.
fn read_until(pipe: impl std::io::Read + Send + 'static, words: &str) -> anyhow::Result<()> {
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Nobody listens after the words.
            let _ = said.send(line);
        }
    });
    let mut lines = Vec::new();
    while let Ok(line) = heard.recv_timeout(SOON) {
        if line.contains(words) {
            return Ok(());
        }
        lines.push(line);
    }
    bail!("no {words:?} in {lines:?}")
}
