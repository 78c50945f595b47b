//! Crashed daemons, restarted daemons and cut cables: traffic resumes by itself within 3 s, and what
//! was lost meanwhile has a name.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, Pod, plugin::POD_IFNAME, ready, underlay::inside},
    sys::netlink::Netlink,
};
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    operator::{dropped, pods, status},
    probe::Probe,
    stage::Stage,
    traffic::{address, echo_through, pattern, ping, tcp},
};

/// Traffic must resume this soon after the cause of its loss has gone.
const RESUME_MAX: Duration = Duration::from_secs(3);
/// How long a daemon is away in these tests: longer than the idle timeout of 5 s in one case, shorter
/// in the others.
const SHORT_ABSENCE: Duration = Duration::from_millis(700);
const LONG_ABSENCE: Duration = Duration::from_secs(7);
/// How long a cable is out.
const CABLE_OUT: Duration = Duration::from_secs(10);
/// Why packets towards a peer that is not there may be dropped.
const PEER_REASONS: [&str; 3] = ["PEER_UNREACHABLE", "PEER_QUEUE_FULL", "PEER_DISCONNECTED"];
/// How long a long-lived TCP connection may take to move again. Its sender doubles its waits while
/// the way is cut (RFC 6298 section 5.5), so this is a matter of the pods' kernel and not of ours.
const TCP_RESUME_MAX: Duration = Duration::from_secs(20);

/// Traffic both ways between the pods of worker-a and worker-b.
struct Traffic {
    probes: Vec<Probe>,
}

impl Traffic {
    fn start(lab: &Lab) -> anyhow::Result<Self> {
        let (a, b) = (pod(lab, "pod-a-1")?, pod(lab, "pod-b-1")?);
        let mut probes = Vec::new();
        for ipv6 in [false, true] {
            probes.push(Probe::start(a, b, ipv6)?);
            probes.push(Probe::start(b, a, ipv6)?);
        }
        let traffic = Self { probes };
        traffic.resumed_after(Instant::now(), RESUME_MAX)?;
        Ok(traffic)
    }

    /// How long after `since` the last of all directions was answered.
    fn resumed_after(&self, since: Instant, limit: Duration) -> anyhow::Result<Duration> {
        let mut longest = Duration::ZERO;
        for probe in &self.probes {
            longest = longest.max(probe.answered_after(since, limit)?);
        }
        Ok(longest)
    }

    /// Checks that no direction was answered from `since` on: the way is cut for all of them.
    fn check_silent(&self, since: Instant) -> anyhow::Result<()> {
        let answers: Vec<usize> = self
            .probes
            .iter()
            .map(|probe| probe.count_after(since))
            .collect();
        ensure!(
            answers.iter().all(|count| *count == 0),
            "{answers:?} answers while the way was cut"
        );
        Ok(())
    }
}

/// After a crash of the side that accepts connections pods keep their addresses and old TCP
/// connections, traffic resumes within 3 s of the restart, and no packet vanished on either side.
#[test]
fn crash_of_the_accepting_side() -> anyhow::Result<()> {
    crashes("worker-b", 5)
}

/// As above for the side that dials.
#[test]
fn crash_of_the_dialling_side() -> anyhow::Result<()> {
    crashes("worker-a", 5)
}

/// A daemon that was away for longer than the idle timeout, after a crash or a stop, serves again
/// within 3 s; the other side counts what it could not send as PEER_UNREACHABLE.
#[test]
fn long_absence() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("absent", 2, 1)?;
    let traffic = Traffic::start(&lab)?;
    for (worker, other) in [("worker-b", "worker-a"), ("worker-a", "worker-b")] {
        let before = dropped(&stage, lab.state().worker(other)?, &["PEER_UNREACHABLE"])?;
        lab.kill_daemon(worker)?;
        // What the daemon had handed on before is with the pods by then.
        let dead = Instant::now() + SHORT_ABSENCE / 2;
        let limit = LONG_ABSENCE + RESUME_MAX;
        let peer = lab.state().worker(other)?;
        eventually("PEER_UNREACHABLE is counted", limit, || {
            let count = dropped(&stage, peer, &["PEER_UNREACHABLE"])?;
            ensure!(count > before + 10, "{count} after {before}");
            Ok(())
        })?;
        check_conserved(peer)?;
        ensure!(Instant::now() > dead, "nothing was seen of the absence");
        traffic.check_silent(dead)?;
        let gap = restart(&mut lab, worker, &traffic)?;
        println!("{worker} away for longer than the idle timeout: resumed after {gap:?}");
        check_conserved(lab.state().worker(other)?)?;
    }
    Ok(())
}

/// A daemon that is stopped in order and started again serves within 3 s, whichever side it is; the
/// other side knows at once that it has gone and counts PEER_UNREACHABLE.
#[test]
fn stop_and_start() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("stop", 2, 1)?;
    let traffic = Traffic::start(&lab)?;
    for (worker, other) in [("worker-b", "worker-a"), ("worker-a", "worker-b")] {
        let addresses = eth0(&lab)?;
        let peer = lab.state().worker(other)?.clone();
        let before = dropped(&stage, &peer, &["PEER_UNREACHABLE"])?;
        lab.stop_daemon(worker)?;
        eventually(
            "PEER_UNREACHABLE is counted",
            Duration::from_secs(1),
            || {
                let count = dropped(&stage, &peer, &["PEER_UNREACHABLE"])?;
                ensure!(count > before + 10, "{count} after {before}");
                Ok(())
            },
        )?;
        let gap = restart(&mut lab, worker, &traffic)?;
        println!("{worker} stopped and started: resumed after {gap:?}");
        assert_eq!(eth0(&lab)?, addresses);
    }
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    Ok(())
}

/// Both daemons crash and start again: traffic resumes within 3 s of the second start.
#[test]
fn both_at_once() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("both", 2, 1)?;
    let traffic = Traffic::start(&lab)?;
    for _ in 0..2 {
        lab.kill_daemon("worker-a")?;
        lab.kill_daemon("worker-b")?;
        lab.start_daemon("worker-a")?;
        let gap = restart(&mut lab, "worker-b", &traffic)?;
        println!("both restarted: resumed after {gap:?}");
    }
    Ok(())
}

/// A cable that was out for 10 s works within 3 s of being back, whichever side it was on; the other
/// workers are not disturbed and both sides name what they dropped.
#[test]
fn cable_out() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("cable", 3, 1)?;
    let traffic = Traffic::start(&lab)?;
    for (cut, whole) in [("worker-b", "pod-a-1"), ("worker-a", "pod-b-1")] {
        let bystander = Probe::start(pod(&lab, whole)?, pod(&lab, "pod-c-1")?, false)?;
        bystander.answered_after(Instant::now(), RESUME_MAX)?;
        let before: Vec<u64> = drops_of_pair(&stage, &lab)?;
        let out = Instant::now();
        lab.set_underlay_link(cut, false)?;
        eventually("both sides count drops with a reason", CABLE_OUT, || {
            let counts = drops_of_pair(&stage, &lab)?;
            ensure!(
                counts
                    .iter()
                    .zip(&before)
                    .all(|(now, before)| *now > before + 10),
                "{counts:?} after {before:?}"
            );
            Ok(())
        })?;
        for worker in lab.workers() {
            check_conserved(worker)?;
        }
        std::thread::sleep(CABLE_OUT.saturating_sub(out.elapsed()));
        let gap = bystander.longest_gap(out);
        ensure!(
            gap < Duration::from_secs(1),
            "the bystanders had a gap of {gap:?}"
        );
        // A second after the cut nothing of before it is on its way.
        traffic.check_silent(out + Duration::from_secs(1))?;
        lab.set_underlay_link(cut, true)?;
        let gap = traffic.resumed_after(Instant::now(), RESUME_MAX)?;
        println!("cable of {cut} back after 10 s: resumed after {gap:?}");
    }
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    Ok(())
}

/// A cable that was out for less than the idle timeout, or for about as long, works within 3 s too:
/// connections that were kept do not wait longer than those that are made anew, however often it
/// happens to them.
#[test]
fn cable_out_for_a_moment() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("moment", 2, 1)?;
    let traffic = Traffic::start(&lab)?;
    for absence_ms in [4000, 300, 2200, 4000, 2200, 300, 2200, 4000, 5500] {
        lab.set_underlay_link("worker-b", false)?;
        std::thread::sleep(Duration::from_millis(absence_ms));
        lab.set_underlay_link("worker-b", true)?;
        let gap = traffic
            .resumed_after(Instant::now(), RESUME_MAX)
            .with_context(|| logs(&lab))?;
        println!("cable back after {absence_ms} ms: resumed after {gap:?}");
    }
    Ok(())
}

/// A pod whose daemon is dead keeps its interface, its addresses and its routes; its kernel sees a
/// link without carrier and its sockets see silence, not errors.
#[test]
fn a_pod_without_its_daemon() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("orphan", 2, 1)?;
    let before = eth0(&lab)?;
    let (from, to) = (pod(&lab, "pod-a-1")?.clone(), pod(&lab, "pod-b-1")?.clone());
    let (mut client, mut server) = tcp(&from.netns, &to.netns, address(&to, false)?)?;
    echo_through(&mut client, &mut server, &pattern(1000, 1))?;
    lab.kill_daemon("worker-a")?;
    assert_eq!(eth0(&lab)?, before);
    assert!(!has_carrier(&from)? && has_carrier(&to)?);
    let silence = ping(&from.netns, address(&to, false)?, Duration::from_secs(1));
    let error = silence.unwrap_err().to_string();
    assert!(
        error.contains("100% packet loss") && !error.contains("nreachable"),
        "{error}"
    );
    lab.start_daemon("worker-a")?;
    assert!(has_carrier(&from)?);
    echo_through(&mut client, &mut server, &pattern(100_000, 2))?;
    Ok(())
}

/// Nothing is said of the drops of the other side: an absence this short ends before the idle timeout,
/// and what was handed to the dead peer's connection meanwhile is on the wire and nobody's drop.
fn crashes(worker: &str, times: usize) -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("crash", 2, 1)?;
    let traffic = Traffic::start(&lab)?;
    let (a, b) = (pod(&lab, "pod-a-1")?.clone(), pod(&lab, "pod-b-1")?.clone());
    let addresses = eth0(&lab)?;
    let mut old_connections = Vec::new();
    for (from, to, ipv6) in [(&a, &b, false), (&b, &a, true)] {
        let (mut client, mut server) = tcp(&from.netns, &to.netns, address(to, ipv6)?)?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(TCP_RESUME_MAX))?;
        }
        echo_through(&mut client, &mut server, &pattern(10_000, 1))?;
        old_connections.push((client, server));
    }
    for turn in 0..times {
        let killed = Instant::now();
        lab.kill_daemon(worker)?;
        std::thread::sleep(SHORT_ABSENCE);
        traffic.check_silent(Instant::now() - SHORT_ABSENCE / 2)?;
        let gap = restart(&mut lab, worker, &traffic)?;
        println!("crash {turn} of {worker}: resumed after {gap:?}");
        assert_eq!(eth0(&lab)?, addresses);
        for (client, server) in &mut old_connections {
            echo_through(client, server, &pattern(100_000, turn as u64))
                .context("a TCP connection from before the crash")?;
        }
        let since = killed.elapsed();
        println!("crash {turn} of {worker}: old TCP connections moved again {since:?} after it");
        for (from, to, ipv6) in [(&a, &b, false), (&b, &a, true)] {
            ping(&from.netns, address(to, ipv6)?, Duration::from_secs(1))?;
        }
    }
    for worker in lab.workers() {
        check_conserved(worker)?;
        assert_eq!(pods(&stage, worker)?.items.len(), 1);
        eventually("the peer is shown as connected", RESUME_MAX, || {
            let connected = status(&stage, worker)?.peers_connected;
            ensure!(connected == 1, "{connected} are");
            Ok(())
        })?;
    }
    Ok(())
}

fn logs(lab: &Lab) -> String {
    let logs = lab
        .workers()
        .iter()
        .map(|worker| ready::log_tail(&worker.log_file()));
    logs.collect::<Vec<_>>().join("\n")
}

/// Packets that worker-a and worker-b dropped because of their peers.
fn drops_of_pair(stage: &Stage, lab: &Lab) -> anyhow::Result<Vec<u64>> {
    ["worker-a", "worker-b"]
        .into_iter()
        .map(|name| dropped(stage, lab.state().worker(name)?, &PEER_REASONS))
        .collect()
}

/// Starts a daemon; how long after that all traffic flows.
fn restart(lab: &mut Lab, worker: &str, traffic: &Traffic) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    lab.start_daemon(worker)?;
    traffic.resumed_after(begin, RESUME_MAX).with_context(|| {
        let logs = lab
            .workers()
            .iter()
            .map(|worker| ready::log_tail(&worker.log_file()));
        format!(
            "after the restart of {worker}; {}",
            logs.collect::<Vec<_>>().join("\n")
        )
    })
}

/// Addresses and routes of all pods' eth0, as the kernel has them.
fn eth0(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for pod in lab.pods() {
        all.push(inside(&pod.netns, || {
            let netlink = Netlink::connect()?;
            let link = netlink.link(POD_IFNAME)?.context("no eth0")?;
            Ok(format!(
                "{} {:?} {:?}",
                link.index,
                netlink.addresses(link.index)?,
                netlink.routes(link.index)?
            ))
        })?);
    }
    Ok(all)
}

fn has_carrier(pod: &Pod) -> anyhow::Result<bool> {
    inside(&pod.netns, || {
        let link = Netlink::connect()?.link(POD_IFNAME)?;
        Ok(link.context("no eth0")?.carrier)
    })
}

fn pod<'a>(lab: &'a Lab, name: &str) -> anyhow::Result<&'a Pod> {
    lab.state().pod(name)
}
