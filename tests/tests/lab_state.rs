//! The state source changes while the fabric runs: nodes come and go without a restart, and what is
//! invalid is refused by file, line and key while traffic goes on.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Pod, daemon::nodes_dir};
use fabric_proto::admin::RouteList;
use fabric_tests::{
    eventually::eventually,
    operator::{LogMark, ask, has_route, peer},
    probe::Probe,
    sources,
    stage::Stage,
    traffic::{address, ping, tcp_echo},
};

/// A change of the directory is in force within this.
const CHANGE_MAX: Duration = Duration::from_secs(3);
/// Longest pause of a steady echo that counts as undisturbed.
const UNDISTURBED_MAX: Duration = Duration::from_millis(500);

/// A node whose file is taken away loses its routes and connections at once, and has them again when
/// the file is renamed into place, without a restart and without a pause for the others.
#[test]
fn nodes_come_and_go() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("nodes", 3, 1)?;
    let (a, c) = (pod(&lab, "pod-a-1")?, pod(&lab, "pod-c-1")?);
    let (worker_a, worker_c) = (
        lab.state().worker("worker-a")?,
        lab.state().worker("worker-c")?,
    );
    tcp_echo(a, c, false, &[1000])?;
    let others = steady(&lab)?;
    let begin = Instant::now();
    for turn in 0..2 {
        let text = sources::remove(lab.state(), "worker-c")?;
        let (_, took) = eventually("the routes and the peer are gone", CHANGE_MAX, || {
            for prefix in ["10.244.3.0/24", "fd44:0:0:3::/64", "10.90.0.3/32"] {
                ensure!(!has_route(&stage, worker_a, prefix)?, "{prefix} is routed");
            }
            ensure!(peer(&stage, worker_a, "worker-c")?.is_none(), "a peer");
            let seen = peer(&stage, worker_c, "worker-a")?.context("no longer a peer")?;
            ensure!(seen.connections == 0, "{seen:?}");
            Ok(())
        })?;
        println!("turn {turn}: worker-c was gone after {took:?}");
        ping(&a.netns, address(c, false)?, Duration::from_secs(1)).unwrap_err();

        sources::replace(lab.state(), "worker-c", &text)?;
        let (_, took) = eventually("traffic flows again", CHANGE_MAX, || {
            ensure!(has_route(&stage, worker_a, "10.244.3.0/24")?, "no route");
            ping(&a.netns, address(c, false)?, Duration::from_millis(200))
        })?;
        println!("turn {turn}: worker-c was back after {took:?}");
        tcp_echo(c, a, true, &[60_000])?;
    }
    let gap = others.longest_gap(begin);
    ensure!(gap < UNDISTURBED_MAX, "the others had a pause of {gap:?}");
    Ok(())
}

/// A file with overlapping ranges, a wrong value, an unknown key or no TOML in it is refused with
/// file, line and key in a log without colours; everything that was in force stays, and what was
/// mended is in force.
#[test]
fn invalid_files_are_refused() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("invalid", 2, 1)?;
    let others = steady(&lab)?;
    let begin = Instant::now();
    let worker = lab.state().worker("worker-a")?;
    let good = |cidr: &str| sources::node_text("worker-d", &["10.90.0.4:7946"], &[cidr]);
    let cases: [(&str, String, &[&str]); 5] = [
        (
            "overlapping ranges",
            good("10.244.2.128/25"),
            &[
                "worker-d.toml:4:",
                "pod_cidrs",
                "overlaps",
                "worker-b.toml:4;",
            ],
        ),
        (
            "no range",
            good("10.244.4.0/33"),
            &["worker-d.toml:4:", "pod_cidrs", "10.244.4.0/33"],
        ),
        (
            "an unknown key",
            format!("{}podcidrs = []\n", good("10.244.4.0/24")),
            &["worker-d.toml:5:", "podcidrs"],
        ),
        (
            "the name of another node",
            good("10.244.4.0/24").replace("worker-d", "worker-b"),
            &["worker-d.toml:2:", "id", "worker-b", "second time"],
        ),
        ("no TOML", "[[node]\n".into(), &["worker-d.toml:1:"]),
    ];
    for (what, text, words) in cases {
        let before: RouteList = ask(&stage, worker, "routes")?;
        let log = LogMark::at_end(worker);
        sources::replace(lab.state(), "worker-d", &text)?;
        let (line, _) = eventually(what, CHANGE_MAX, || log.line(worker, words))?;
        println!("{what}: {line}");
        assert!(line.contains("last good state"), "{line}");
        assert_eq!(
            ask::<RouteList>(&stage, worker, "routes")?,
            before,
            "{what}"
        );

        let log = LogMark::at_end(worker);
        sources::replace(lab.state(), "worker-d", &good("10.244.4.0/24"))?;
        eventually("mended", CHANGE_MAX, || {
            log.line(worker, &["the state source can be used again"])?;
            ensure!(has_route(&stage, worker, "10.244.4.0/24")?, "no route");
            Ok(())
        })?;
    }
    let gap = others.longest_gap(begin);
    ensure!(gap < UNDISTURBED_MAX, "traffic had a pause of {gap:?}");
    let log = fs::read_to_string(worker.log_file())?;
    assert!(!log.contains('\u{1b}'), "colours in a file");
    Ok(())
}

/// A daemon that starts while the source is broken, or is not there at all, serves with the last
/// good state and says so; what changed meanwhile is in force once the source is mended.
#[test]
fn a_restart_with_a_broken_source() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("lastgood", 2, 1)?;
    let (a, b) = (pod(&lab, "pod-a-1")?.clone(), pod(&lab, "pod-b-1")?.clone());
    let dir = nodes_dir(lab.state());
    let away = dir.with_extension("away");
    let good = fs::read_to_string(sources::file_of(lab.state(), "worker-b"))?;
    for (what, broken) in [("a broken file", true), ("no directory", false)] {
        if broken {
            sources::replace(lab.state(), "worker-b", "id = 1\n")?;
        } else {
            fs::rename(&dir, &away)?;
        }
        lab.kill_daemon("worker-a")?;
        let log = LogMark::at_end(lab.state().worker("worker-a")?);
        lab.start_daemon("worker-a")?;
        let worker = lab.state().worker("worker-a")?;
        let place = if broken {
            "worker-b.toml:1:"
        } else {
            "nodes.d"
        };
        log.line(worker, &["the last good state is in force", place])?;
        eventually(what, CHANGE_MAX, || {
            ping(&a.netns, address(&b, false)?, Duration::from_millis(200))
        })?;
        tcp_echo(&b, &a, true, &[60_000])?;

        if broken {
            sources::replace(lab.state(), "worker-b", &good)?;
        } else {
            fs::rename(&away, &dir)?;
        }
        let more = sources::node_text("worker-d", &["10.90.0.4:7946"], &["10.244.4.0/24"]);
        sources::replace(lab.state(), "worker-d", &more)?;
        eventually("mended", CHANGE_MAX, || {
            ensure!(has_route(&stage, worker, "10.244.4.0/24")?, "no route");
            Ok(())
        })?;
        sources::remove(lab.state(), "worker-d")?;
        eventually("removed", CHANGE_MAX, || {
            ensure!(!has_route(&stage, worker, "10.244.4.0/24")?, "a route");
            Ok(())
        })?;
    }
    Ok(())
}

/// A steady echo between worker-a and worker-b.
fn steady(lab: &Lab) -> anyhow::Result<Probe> {
    let probe = Probe::start(pod(lab, "pod-a-1")?, pod(lab, "pod-b-1")?, false)?;
    probe.answered_after(Instant::now(), CHANGE_MAX)?;
    Ok(probe)
}

fn pod<'a>(lab: &'a Lab, name: &str) -> anyhow::Result<&'a Pod> {
    lab.state().pod(name)
}
