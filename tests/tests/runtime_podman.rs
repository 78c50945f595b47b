//! podman attaches its containers with the real plugin to the real daemon.
//!
//! `FABRIC_CHURN_CONTAINERS` says how many come and go. From [`LONG`] on the time of an ADD is judged too:
//!
//! ```console
//! # FABRIC_CHURN_CONTAINERS=100 scripts/sandbox cargo test -p fabric-tests --test runtime_podman -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{collections::BTreeSet, env, fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, plugin::network_list};
use fabric_tests::{
    eventually::eventually,
    operator::{pods, status},
    runtime::{
        image::Image,
        leaks::{self, Inventory},
        place::{LabsOnDisk, Place},
        podman::Podman,
    },
    stage::Stage,
};

/// How many containers are to come and go.
const COUNT_VARIABLE: &str = "FABRIC_CHURN_CONTAINERS";
/// How many it are unless that says otherwise.
const SHORT: usize = 6;
/// Containers of a run whose times mean something.
const LONG: usize = 100;
/// How many of them live at the same time.
const AT_ONCE: usize = 3;
/// How long what a container had may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);
/// What 99 of 100 ADDs may take in the daemon (ms).
const P99_MS_MAX: f64 = 20.0;
/// A container that does nothing.
const BUSYBOX: &str = "localhost/busybox:1";
const SLEEP: [&str; 3] = [BUSYBOX, "sleep", "1000"];

/// `podman run --network fabric` on two workers: containers reach each other on one worker and across
/// both, over IPv4 and IPv6, with the addresses that the daemon and podman agree on; removing them
/// frees all.
#[test]
fn containers_of_two_workers_ping() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("podman", 2, 0)?;
    let places = [Place::new(&lab, "worker-a")?, Place::new(&lab, "worker-b")?];
    let [a, b] = [podman(&lab, &places[0])?, podman(&lab, &places[1])?];
    let one = start(&a, "one", &[])?;
    let two = start(&a, "two", &[])?;
    let three = start(&b, "three", &[])?;
    for (shown, worker) in [
        (one, "worker-a"),
        (two.clone(), "worker-a"),
        (three.clone(), "worker-b"),
    ] {
        ensure!(
            shown.len() == 2 && shown[0].is_ipv4() && shown[1].is_ipv6(),
            "{shown:?}"
        );
        let known = pods(&stage, lab.state().worker(worker)?)?.items;
        let texts: Vec<String> = shown.iter().map(IpAddr::to_string).collect();
        ensure!(
            known.iter().any(|pod| pod.addresses == texts),
            "{texts:?} are not in {known:?}"
        );
    }
    for address in two.iter().chain(&three) {
        ping(&a, "one", *address)?;
    }
    a.remove(&["one", "two"])?;
    b.remove(&["three"])?;
    for worker in lab.workers() {
        assert_eq!(pods(&stage, worker)?.items, [], "{}", worker.name);
    }
    Ok(())
}

/// `--ip` gives the address that was asked for; one that is taken, or not of this node, fails the start
/// with the reason, and leaves nothing.
#[test]
fn an_address_is_asked_for() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("podman", 1, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    let podman = podman(&lab, &place)?;
    let worker = lab.state().worker("worker-a")?;
    let shown = start(&podman, "chosen", &["--ip", "10.244.1.77"])?;
    assert_eq!(shown[0], "10.244.1.77".parse::<IpAddr>()?);
    let network = "fabric:ip=10.244.1.78,ip=fd44:0:0:1::78";
    podman.done(
        &[
            &[
                "run",
                "--detach",
                "--name",
                "both",
                "--network",
                network,
                "--cgroup-parent",
                place.cgroup(),
            ],
            &SLEEP[..],
        ]
        .concat(),
    )?;
    let both: [IpAddr; 2] = ["10.244.1.78".parse()?, "fd44:0:0:1::78".parse()?];
    assert_eq!(podman.addresses("both")?, both);

    let before = leaks::snapshot(&stage, &lab, &[&place])?;
    for (address, reason) in [("10.244.1.77", "in use"), ("10.99.0.1", "10.99.0.1")] {
        let words = [&["--rm", "--ip", address], &[BUSYBOX, "true"][..]].concat();
        let answer = podman.run_answer(&words)?;
        ensure!(!answer.status.success(), "{address} was given again");
        ensure!(
            answer.stderr.contains(reason),
            "{address}: {}",
            answer.stderr
        );
        println!("{}", answer.stderr.trim());
    }
    leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    assert_eq!(pods(&stage, worker)?.items.len(), 2);
    Ok(())
}

/// A container whose user namespace is not the node's, so that root in it is nobody on the node, has the
/// same network as any other.
#[test]
fn a_user_namespace_of_its_own() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("podman", 1, 1)?;
    let place = Place::new(&lab, "worker-a")?;
    let podman = podman(&lab, &place)?;
    start(&podman, "mapped", &["--uidmap", "0:100000:5000"])?;
    let map = podman.done(&["exec", "mapped", "cat", "/proc/self/uid_map"])?;
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "5000"]
    );
    for address in lab.state().pod("pod-a-1")?.addresses.clone() {
        ping(&podman, "mapped", address)?;
    }
    podman.remove(&["mapped"])?;
    assert_eq!(
        pods(&stage, lab.state().worker("worker-a")?)?.items.len(),
        1
    );
    Ok(())
}

/// A container that is restarted has another address at once, because its own rests; one that insists on its address
/// is told so.
#[test]
fn a_restart_takes_another_address() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("podman", 1, 1)?;
    let place = Place::new(&lab, "worker-a")?;
    let podman = podman(&lab, &place)?;
    let first = start(&podman, "any", &[])?;
    podman.done(&["restart", "--time", "0", "any"])?;
    let second = podman.addresses("any")?;
    ensure!(
        second.len() == 2 && second != first,
        "{first:?}, then {second:?}"
    );
    ping(&podman, "any", lab.state().pod("pod-a-1")?.addresses[0])?;

    start(&podman, "chosen", &["--ip", "10.244.1.77"])?;
    let answer = podman.answer(&["restart", "--time", "0", "chosen"])?;
    ensure!(
        !answer.status.success() && answer.stderr.contains("rests for another"),
        "{}",
        answer.stderr
    );
    podman.remove(&["any", "chosen"])?;
    assert_eq!(
        pods(&stage, lab.state().worker("worker-a")?)?.items.len(),
        1
    );
    Ok(())
}

/// Containers that are started, pinged and removed leave nothing behind: no addresses, namespaces, devices,
/// descriptors, records or cached results, no mounts, control groups or processes. Of a long run, 99 of 100 ADDs
/// take at most 20 ms in the daemon, whose records are on a disk.
#[test]
fn containers_come_and_go() -> anyhow::Result<()> {
    let count = match env::var(COUNT_VARIABLE) {
        Ok(text) => text.parse().context(COUNT_VARIABLE)?,
        Err(_) => SHORT,
    };
    let stage = Stage::enter()?;
    let _on_disk = LabsOnDisk::mount()?;
    let lab = stage.lab("podman", 1, 1)?;
    let place = Place::new(&lab, "worker-a")?;
    let podman = podman(&lab, &place)?;
    let pod: Vec<IpAddr> = lab.state().pod("pod-a-1")?.addresses.clone();
    // What podman makes once and keeps is there from here on.
    come_and_go(&podman, &pod, AT_ONCE, "first")?;
    let before = quiet(&stage, &lab, &place)?;
    let names_before = names()?;
    for round in 0..count.div_ceil(AT_ONCE) {
        let these = AT_ONCE.min(count - round * AT_ONCE);
        come_and_go(&podman, &pod, these, &format!("c{round}"))?;
    }
    let took = leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    assert_eq!(names()?, names_before);
    println!(
        "nothing is left of {count} containers after {} ms",
        took.as_millis()
    );
    let attach = status(&stage, lab.state().worker("worker-a")?)?.attach;
    println!(
        "ADD in the daemon, {} of them: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        attach.adds, attach.p50_ms, attach.p99_ms, attach.max_ms
    );
    // And those of the lab's pod and of the first round.
    assert_eq!(attach.adds, u64::try_from(count + AT_ONCE + 1)?);
    if count >= LONG {
        assert!(attach.p99_ms <= P99_MS_MAX, "p99 is {} ms", attach.p99_ms);
    }
    Ok(())
}

/// What there is once the monitors of removed containers have ended.
fn quiet(stage: &Stage, lab: &Lab, place: &Place) -> anyhow::Result<Inventory> {
    let look = || {
        let found = leaks::snapshot(stage, lab, &[place])?;
        let busy = found.count("process conmon") + found.count("process podman");
        ensure!(busy == 0, "{busy} processes run");
        Ok(found)
    };
    eventually("podman is quiet", GONE_MAX, look).map(|(found, _)| found)
}

/// Named namespaces, and results that libcni keeps.
fn names() -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for folder in ["/run/netns", "/var/lib/cni/results"] {
        for entry in fs::read_dir(folder)? {
            found.insert(entry?.path());
        }
    }
    Ok(found)
}

/// Starts `count` containers, pings from each, removes all.
fn come_and_go(
    podman: &Podman<'_>,
    pod: &[IpAddr],
    count: usize,
    name: &str,
) -> anyhow::Result<()> {
    let names: Vec<String> = (0..count)
        .map(|number| format!("{name}-{number}"))
        .collect();
    for name in &names {
        start(podman, name, &[])?;
    }
    for name in &names {
        for address in pod {
            ping(podman, name, *address)?;
        }
    }
    podman.remove(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A podman on the place's worker that has the image.
fn podman<'p>(lab: &Lab, place: &'p Place) -> anyhow::Result<Podman<'p>> {
    let list = network_list(lab.state().worker(place.worker())?);
    let podman = Podman::new(place, &list)?;
    podman.load(Image::Busybox)?;
    Ok(podman)
}

/// Starts a container that sleeps; the addresses that podman shows for it.
fn start(podman: &Podman<'_>, name: &str, options: &[&str]) -> anyhow::Result<Vec<IpAddr>> {
    podman.run(&[&["--detach", "--name", name], options, &SLEEP[..]].concat())?;
    podman.addresses(name)
}

fn ping(podman: &Podman<'_>, from: &str, to: IpAddr) -> anyhow::Result<()> {
    let to = to.to_string();
    let said = podman.done(&["exec", from, "ping", "-c", "1", "-W", "5", &to])?;
    ensure!(
        said.contains("1 packets received"),
        "{from} to {to}: {said}"
    );
    Ok(())
}
