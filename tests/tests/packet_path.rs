//! The way of a packet within a node takes no lock: none is named where it leads, and the kernel is
//! never asked to wait for one.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Pod, Worker, Wrappers, ready, underlay::inside};
use fabric_proto::admin::Status;
use fabric_tests::{
    stage::{Stage, workspace},
    traffic::{address, udp},
};

/// Where a packet passes, and the loop around it: folders and files.
const ON_THE_WAY: [&str; 13] = [
    "fabric-core/src",
    "fabric-node/src/dataplane/deliver.rs",
    "fabric-node/src/dataplane/epoll.rs",
    "fabric-node/src/dataplane/joining.rs",
    "fabric-node/src/dataplane/mailbox.rs",
    "fabric-node/src/dataplane/outbound.rs",
    "fabric-node/src/dataplane/path.rs",
    "fabric-node/src/dataplane/polling.rs",
    "fabric-node/src/dataplane/port.rs",
    "fabric-node/src/dataplane/published.rs",
    "fabric-node/src/dataplane/worker.rs",
    "fabric-node/src/sys/tun.rs",
    "fabric-node/src/tunnel/buffers.rs",
];
/// What is named there all the same, as often as it may be: where, the words, and why.
const ALLOWED: [(&str, &[&str], &str); 2] = [
    (
        "fabric-node/src/dataplane/worker.rs",
        // Its import, the field, the argument it comes by, and the one place where it is taken.
        &["Mutex", "Mutex", "Mutex", "lock"],
        "one uncontended lock a turn, none per packet: the account is handed to who reads it",
    ),
    (
        "fabric-node/src/dataplane/mailbox.rs",
        &["mpsc"],
        "commands of the control plane: asked without waiting, and only after a wake-up",
    ),
];
/// What takes a lock, or waits for another thread.
const LOCKS: [&str; 11] = [
    "Mutex", "RwLock", "Condvar", "OnceLock", "LazyLock", "Once", "DashMap", "mpsc", "Barrier",
    "park", "lock",
];
/// Packets of the burst.
const PACKETS: u64 = 100_000;
/// Sent before the account is read again; more at once than the device's queue holds are lost.
const BURST: usize = 100;
/// How long the burst may take under the tracer.
const BURST_MAX: Duration = Duration::from_secs(60);
/// Calls for a lock per packet that this test tolerates: a lock that is taken once a turn, and now
/// and then met by the reader of the account.
const CALLS_PER_PACKET_MAX: f64 = 0.001;

/// Nothing on the way of a packet names a lock or a way to wait for a thread, but for what is allowed
/// once a turn, no more of it and no less.
#[test]
fn no_lock_is_named_on_the_way_of_a_packet() {
    let mut files = Vec::new();
    for place in ON_THE_WAY {
        collect(&workspace().join(place), &mut files);
    }
    assert!(files.len() > 20, "only {files:?} are found");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let allowed = ALLOWED
            .iter()
            .find(|(place, ..)| file.ends_with(place))
            .map_or(&[][..], |(_, words, _)| words);
        assert_eq!(locks(&text), allowed, "{}", file.display());
    }
}

/// The check finds locks, and is not led astray by comments, longer words and tests.
#[test]
fn locks_are_recognised() {
    assert_eq!(locks("let x = self.report.lock();"), ["lock"]);
    assert_eq!(locks("use std::sync::{Arc, Mutex};"), ["Mutex"]);
    assert_eq!(locks("fn f(x: &RwLock<u8>) {}"), ["RwLock"]);
    for text in [
        "// takes a Mutex",
        "/// lock",
        "let block = blocked;",
        "io::ErrorKind::WouldBlock",
        "#[cfg(test)]\nmod tests {\n    use std::sync::Mutex;",
    ] {
        assert_eq!(locks(text), Vec::<&str>::new(), "{text}");
    }
}

/// While a hundred thousand packets pass from pod to pod within a node, the thread that carries them
/// does not once in a thousand packets ask the kernel to wait for a lock or to wake who waits for one.
#[test]
fn no_lock_is_waited_for() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let stage = Stage::enter()?;
    let mut options = stage.options("locks", 1, 2)?;
    options.wrappers = Wrappers {
        daemon: tracer(&folder.path().join("daemon")),
        ..Wrappers::default()
    };
    let lab = Lab::up(&options)?;
    let ([worker], [from, to]) = (lab.workers(), lab.pods()) else {
        anyhow::bail!("the lab has another shape than asked for")
    };
    let trace = folder.path().join(format!("daemon.{}", carrier(worker)?));
    let (before, delivered_before) = (calls(&trace)?, delivered(worker)?);
    send(worker, from, to, delivered_before + PACKETS)?;
    let (after, delivered) = (calls(&trace)?, delivered(worker)?);
    lab.down()?;

    let packets = delivered - delivered_before;
    let waits = after.waits - before.waits;
    let turns = after.turns - before.turns;
    eprintln!("{packets} packets in {turns} turns: {waits} calls for a lock");
    // The tracer sees this thread: it ends its turns in calls that are traced.
    ensure!(turns > 0, "no turn was traced into {}", trace.display());
    ensure!(
        (waits as f64) < packets as f64 * CALLS_PER_PACKET_MAX,
        "{waits} calls for a lock while {packets} packets passed"
    );
    Ok(())
}

/// The command that traces what follows it: waits for locks, and waits for packets.
fn tracer(files: &Path) -> Vec<String> {
    // With a filter in the kernel, all other calls run at full speed.
    let words = ["strace", "-D", "-ff", "--seccomp-bpf", "-e"];
    let mut words: Vec<String> = words.map(str::to_owned).into();
    words.extend(["trace=futex,epoll_wait,epoll_pwait,epoll_pwait2", "-o"].map(str::to_owned));
    words.push(files.display().to_string());
    words
}

/// The thread of the daemon that reads the pods.
fn carrier(worker: &Worker) -> anyhow::Result<String> {
    let pid = worker.pid.context("the daemon has no process")?;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("comm"))?.trim() == "fabric-data-0" {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    anyhow::bail!("the daemon has no thread fabric-data-0")
}

/// Sends from pod to pod until the account has `wanted` packets.
fn send(worker: &Worker, from: &Pod, to: &Pod, wanted: u64) -> anyhow::Result<()> {
    let target = address(to, false)?;
    let receiver = udp(&to.netns, target)?;
    let sender: UdpSocket = inside(&from.netns, || {
        Ok(UdpSocket::bind(SocketAddr::new(address(from, false)?, 0))?)
    })?;
    sender.connect(receiver.local_addr()?)?;
    receiver.set_nonblocking(true)?;
    let deadline = Instant::now() + BURST_MAX;
    let mut bytes = [7; 64];
    while delivered(worker)? < wanted {
        ensure!(Instant::now() < deadline, "the packets do not arrive");
        for _ in 0..10 {
            for _ in 0..BURST {
                sender.send(&bytes)?;
            }
            while receiver.recv(&mut bytes).is_ok() {}
        }
    }
    Ok(())
}

/// Packets delivered to pods so far.
fn delivered(worker: &Worker) -> anyhow::Result<u64> {
    let status: Status = ready::document(&worker.admin_socket(), "/v1/status")?;
    Ok(status.packets.delivered_pods.packets)
}

/// What one thread has called so far.
struct Calls {
    waits: usize,
    turns: usize,
}

fn calls(trace: &Path) -> anyhow::Result<Calls> {
    let text =
        fs::read_to_string(trace).with_context(|| format!("no trace {}", trace.display()))?;
    let count = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    Ok(Calls {
        waits: count("futex("),
        turns: count("epoll_"),
    })
}

/// Words of a source, without comments and tests, that are locks.
fn locks(text: &str) -> Vec<&str> {
    text.lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|word| LOCKS.contains(word))
        .collect()
}

/// Sources at or beneath `place`, but for those that hold nothing but tests.
fn collect(place: &Path, files: &mut Vec<PathBuf>) {
    if place.is_dir() {
        for entry in fs::read_dir(place).unwrap() {
            collect(&entry.unwrap().path(), files);
        }
        return;
    }
    let name = place.to_string_lossy();
    let is_test = ["/tests/", "/testing/", "/tests.rs", "_tests.rs"];
    if name.ends_with(".rs") && !is_test.iter().any(|part| name.contains(part)) {
        files.push(place.to_owned());
    }
}
