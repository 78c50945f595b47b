//! podman attaches its containers with the real plugin to the real daemon.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{env, net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Worker, plugin::network_list};
use fabric_tests::{
    operator::{pods, status},
    runtime::{image::Image, leaks, place::Place, podman::Podman},
    stage::Stage,
};

/// How many containers come and go; `make churn` sets it to 100.
const CHURN_VARIABLE: &str = "FABRIC_PODMAN_CHURN";
const CHURN: usize = 6;
/// How many of them live at the same time.
const AT_ONCE: usize = 3;
/// How long what a container had may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);
/// What 99 of 100 ADDs may take the daemon.
const ADD_P99_MAX_MS: f64 = 20.0;
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

/// Containers that are started, pinged and removed leave nothing behind: no addresses, namespaces,
/// devices, descriptors or records, no mounts, control groups or processes. An ADD takes the daemon at
/// most 20 ms in 99 of 100 cases.
#[test]
fn containers_come_and_go() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("podman", 1, 1)?;
    let place = Place::new(&lab, "worker-a")?;
    let podman = podman(&lab, &place)?;
    let worker = lab.state().worker("worker-a")?;
    let pod: Vec<IpAddr> = lab.state().pod("pod-a-1")?.addresses.clone();
    // What podman makes once and keeps is there from here on.
    come_and_go(&podman, &pod, AT_ONCE, "first")?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;
    let count = churn()?;
    for round in 0..count.div_ceil(AT_ONCE) {
        let now = AT_ONCE.min(count - round * AT_ONCE);
        come_and_go(&podman, &pod, now, &format!("c{round}"))?;
    }
    let took = leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    println!(
        "{count} containers left nothing behind, after {} ms",
        took.as_millis()
    );
    adds_take_little(&stage, worker, count.try_into()?)
}

/// What the daemon says of the ADDs since its start.
fn adds_take_little(stage: &Stage, worker: &Worker, at_least: u64) -> anyhow::Result<()> {
    let attach = status(stage, worker)?.attach;
    println!(
        "{} ADDs: 50 of 100 within {} ms, 99 within {} ms, the longest {} ms",
        attach.adds, attach.p50_ms, attach.p99_ms, attach.max_ms
    );
    ensure!(
        attach.adds >= at_least,
        "the daemon counted {}",
        attach.adds
    );
    ensure!(attach.p99_ms <= ADD_P99_MAX_MS, "an ADD takes too long");
    Ok(())
}

fn churn() -> anyhow::Result<usize> {
    match env::var(CHURN_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{CHURN_VARIABLE} is a number of containers, not {text:?}")),
        Err(_) => Ok(CHURN),
    }
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
