//! Every pod reaches every other pod, in every kind of lab: ping, TCP and UDP, small and large,
//! always with its own address.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    collections::HashSet,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Families, Family, Lab, LabOptions, Pod};
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    matrix::{SIZES, matrix},
    operator::{fabric, peer, status},
    plugin::{Container, addresses},
    stage::Stage,
};
use serde_json::Value;

/// How long the whole matrix of the largest lab may take.
const MATRIX_MAX: Duration = Duration::from_secs(60);
/// How long the workers of two daemons may take to connect after a restart of both.
const CONNECTIONS_MAX: Duration = Duration::from_secs(5);

/// A lab built by the command line serves all ordered pairs of its pods over both families, tells
/// its state as JSON, passes on exit statuses, and leaves nothing behind.
#[test]
fn three_workers_built_by_the_command_line() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let name = stage.name("cli")?;
    let run = |arguments: &[&str]| {
        let arguments: Vec<&str> = [&["lab"], arguments, &["--name", name.as_str()]].concat();
        fabric(&stage, &arguments)
    };
    let up = run(&["up", "--workers", "3", "--pods", "2"])?;
    ensure!(up.status.success(), "lab up: {}", up.stderr);
    // From here on the end of this value takes the lab down, whatever fails.
    let lab = Lab::open(&name)?;
    let down = TakeDown(&stage, name.as_str());

    let told: Value = serde_json::from_str(&run(&["status", "-o", "json"])?.stdout)?;
    let names = |list: &str| -> Vec<String> {
        let items = told.get(list).and_then(Value::as_array);
        let name_of = |item: &Value| item.get("name")?.as_str().map(str::to_owned);
        items.into_iter().flatten().filter_map(name_of).collect()
    };
    assert_eq!(names("workers"), ["worker-a", "worker-b", "worker-c"]);
    assert_eq!(
        names("pods"),
        [
            "pod-a-1", "pod-a-2", "pod-b-1", "pod-b-2", "pod-c-1", "pod-c-2"
        ]
    );
    let unique: HashSet<_> = lab.pods().iter().flat_map(|pod| &pod.addresses).collect();
    assert_eq!(unique.len(), 12, "{unique:?}");

    for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)] {
        let exec = ["lab", "exec", "--name", name.as_str(), "pod-b-1", "--"];
        let ended = fabric(&stage, &[&exec[..], &["sh", "-c", script]].concat())?;
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        let code = ended
            .status
            .code()
            .or_else(|| by_signal.map(|signal| 128 + signal));
        assert_eq!(code, Some(status), "{script}: {}", ended.stderr);
    }

    let begin = Instant::now();
    matrix(lab.pods(), &[false, true], &SIZES)?;
    let took = begin.elapsed();
    println!("30 pairs, 2 families in {took:?}");
    assert!(took < MATRIX_MAX, "{took:?}");
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    drop(down);
    let left = run(&["status"])?;
    assert!(
        !left.status.success() && left.stderr.contains("no lab \""),
        "{}",
        left.stderr
    );
    Ok(())
}

/// Pods with IPv4 alone reach each other, and have no IPv6 address.
#[test]
fn ipv4_alone() -> anyhow::Result<()> {
    one_kind("v4", &[false], |options| options.families = Families::Ipv4)
}

/// Pods with IPv6 alone reach each other, and have no IPv4 address.
#[test]
fn ipv6_alone() -> anyhow::Result<()> {
    one_kind("v6", &[true], |options| options.families = Families::Ipv6)
}

/// Both families cross an underlay on which the tunnels run over IPv6.
#[test]
fn dual_over_an_ipv6_underlay() -> anyhow::Result<()> {
    one_kind("over6", &[false, true], |options| {
        options.underlay = Some(Family::Ipv6);
    })
}

/// Pods with IPv4 alone cross an underlay that has IPv6 alone.
#[test]
fn ipv4_over_an_ipv6_underlay() -> anyhow::Result<()> {
    one_kind("4over6", &[false], |options| {
        options.families = Families::Ipv4;
        options.underlay = Some(Family::Ipv6);
    })
}

/// Jumbo frames underneath change nothing for the pods.
#[test]
fn jumbo_underlay() -> anyhow::Result<()> {
    one_kind("jumbo", &[false, true], |options| {
        options.underlay_mtu = 9000;
    })
}

/// Pods keep their MTU of 1500 over an underlay with less than that, and lose nothing by it.
#[test]
fn narrow_underlay() -> anyhow::Result<()> {
    one_kind("narrow", &[false, true], |options| {
        options.underlay_mtu = 1400;
    })
}

/// The narrowest underlay that IPv6 allows is enough.
#[test]
fn narrowest_underlay() -> anyhow::Result<()> {
    one_kind("narrowest", &[false, true], |options| {
        options.underlay_mtu = 1280;
        options.underlay = Some(Family::Ipv6);
    })
}

/// With two workers in each daemon, every pod reaches every other, attached before the daemons were
/// told so or afterwards.
#[test]
fn two_workers_in_each_daemon() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("workers", 2, 2)?;
    let names: Vec<String> = lab.workers().iter().map(|w| w.name.clone()).collect();
    for name in &names {
        lab.stop_daemon(name)?;
        let file = lab.state().worker(name)?.config_file();
        let config = fs::read_to_string(&file)? + "\n[dataplane]\nworkers = 2\n";
        fs::write(&file, config)?;
    }
    for name in &names {
        lab.start_daemon(name)?;
    }
    for (worker, other) in lab.workers().iter().zip(names.iter().rev()) {
        let (_, took) = eventually("a connection of each worker", CONNECTIONS_MAX, || {
            let seen = peer(&stage, worker, other)?.context("no peer")?;
            ensure!(seen.connections == 2, "{seen:?}");
            Ok(())
        })?;
        println!("{} has both connections after {took:?}", worker.name);
    }
    let mut pods = lab.pods().to_vec();
    for worker in lab.workers() {
        assert_eq!(status(&stage, worker)?.workers, 2, "{}", worker.name);
        let container = Container::make(&lab, worker, 7)?;
        let result = container.call(&stage, worker, "ADD")?.done()?;
        let given = addresses(&result)
            .iter()
            .map(|ip| ip.parse())
            .collect::<Result<_, _>>()?;
        pods.push(Pod {
            name: container.id.clone(),
            worker: worker.name.clone(),
            netns: container.netns,
            container_id: container.id,
            addresses: given,
        });
    }
    matrix(&pods, &[false, true], &SIZES)?;
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    lab.down()
}

fn one_kind(
    purpose: &str,
    families: &[bool],
    change: impl FnOnce(&mut LabOptions),
) -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut options = stage.options(purpose, 2, 2)?;
    // A neighbour on one side is enough to see the way within a node.
    options.pods = vec![2, 1];
    change(&mut options);
    let lab = Lab::up(&options)?;
    for pod in lab.pods() {
        let has: Vec<bool> = pod.addresses.iter().map(|ip| ip.is_ipv6()).collect();
        assert_eq!(has, families, "{} has {:?}", pod.name, pod.addresses);
    }
    let sizes = [&SIZES[..], &[1472, 1473, 1452, 1453]].concat();
    matrix(lab.pods(), families, &sizes)?;
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    lab.down()
}

struct TakeDown<'a>(&'a Stage, &'a str);

impl Drop for TakeDown<'_> {
    fn drop(&mut self) {
        let down = fabric(self.0, &["lab", "down", "--name", self.1]);
        // Another panic during one would hide the first.
        if !thread::panicking() {
            let down = down.unwrap();
            assert!(down.status.success(), "lab down: {}", down.stderr);
        }
    }
}
