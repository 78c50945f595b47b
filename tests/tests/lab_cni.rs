//! The real plugin against the real daemon: what goes wrong has a code, a number and a cure, and
//! nothing is left behind or handed out twice.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, Worker, plugin::POD_IFNAME, underlay::inside},
    sys::{netlink::Netlink, netns::Netns},
};
use fabric_proto::cni::code;
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    operator::pods,
    plugin::{Container, addresses, call, call_under},
    probe::Probe,
    sources,
    stage::Stage,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(3);
/// Codes of the specification, which [`code`] must agree with.
const TRY_AGAIN: u64 = 11;
const NOT_AVAILABLE: u64 = 50;

fn code(ours: u32) -> u64 {
    u64::from(ours)
}

/// A range of four addresses has one for pods: the second ADD fails with code 11 and the numbers,
/// STATUS says so beforehand, and the address rests after DEL before it is anybody's again.
#[test]
fn a_full_range() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = narrow_lab(&stage, "10.200.0.0/30")?;
    let worker = lab.state().worker("worker-a")?;
    let (first, second) = (
        Container::make(&lab, worker, 1)?,
        Container::make(&lab, worker, 2)?,
    );
    let ready = call(&stage, worker, "STATUS", None, json!({}))?;
    assert_eq!(ready.done()?, Value::Null);
    let result = first.call(&stage, worker, "ADD")?.done()?;
    assert_eq!(addresses(&result)[0], "10.200.0.2");

    let numbers = ["10.200.0.0/30", "1 used", "0 cooling down of 1"];
    let told = second
        .call(&stage, worker, "ADD")?
        .failed(TRY_AGAIN, &numbers)?;
    println!("{told}");
    call(&stage, worker, "STATUS", None, json!({}))?.failed(NOT_AVAILABLE, &numbers)?;
    assert_eq!(pods(&stage, worker)?.items.len(), 1);
    assert!(eth0(&second)?.is_none(), "a failed ADD left an interface");

    for _ in 0..2 {
        assert_eq!(first.call(&stage, worker, "DEL")?.done()?, Value::Null);
    }
    assert!(eth0(&first)?.is_none(), "DEL left an interface");
    let numbers = ["10.200.0.0/30", "0 used", "1 cooling down of 1"];
    second
        .call(&stage, worker, "ADD")?
        .failed(TRY_AGAIN, &numbers)?;
    Ok(())
}

/// A range of eight addresses serves five pods, each with another address, and not a sixth.
#[test]
fn every_address_of_a_range_is_used_once() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = narrow_lab(&stage, "10.200.0.0/29")?;
    let worker = lab.state().worker("worker-a")?;
    let mut given = Vec::new();
    for number in 1..=5 {
        let container = Container::make(&lab, worker, number)?;
        let result = container.call(&stage, worker, "ADD")?.done()?;
        given.push(addresses(&result)[0].clone());
    }
    given.sort();
    let expected: Vec<String> = (2..=6).map(|last| format!("10.200.0.{last}")).collect();
    assert_eq!(given, expected);
    Container::make(&lab, worker, 6)?
        .call(&stage, worker, "ADD")?
        .failed(TRY_AGAIN, &["5 used and 0 cooling down of 5"])?;
    Ok(())
}

/// A second ADD of the same container fails without a change to the first; CHECK agrees with the
/// result of the first, disagrees with another, and sees an interface that was tampered with; DEL of
/// what never was succeeds.
#[test]
fn add_twice_check_and_unknown_del() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("twice", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let pod = Container::make(&lab, worker, 1)?;
    let result = pod.call(&stage, worker, "ADD")?.done()?;
    let told = pod
        .call(&stage, worker, "ADD")?
        .failed(code(code::INTERFACE_EXISTS), &["eth0"])?;
    println!("{told}");
    pod.check(&stage, worker, &result)?.done()?;
    assert_eq!(pods(&stage, worker)?.items.len(), 1);

    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.244.1.77/32");
    pod.check(&stage, worker, &other)?
        .failed(code(code::CHECK_FAILED), &["prevResult lacks"])?;
    Netns::open(&pod.netns)?.run(|| -> anyhow::Result<()> {
        let netlink = Netlink::connect()?;
        let index = netlink.link(POD_IFNAME)?.context("no eth0")?.index;
        let address = netlink.addresses(index)?[0];
        Ok(netlink.delete_address(index, address)?)
    })??;
    let told = pod
        .check(&stage, worker, &result)?
        .failed(code(code::CHECK_FAILED), &["eth0"])?;
    println!("{told}");

    let unknown = Container {
        id: "never-was".into(),
        netns: "/run/netns/fabric-nowhere".into(),
    };
    assert_eq!(unknown.call(&stage, worker, "DEL")?.done()?, Value::Null);
    let told = unknown
        .call(&stage, worker, "ADD")?
        .failed(code(code::INVALID_NETNS), &["/run/netns/fabric-nowhere"])?;
    println!("{told}");
    Ok(())
}

/// A second interface of a container has addresses of its own and leaves the first one's default routes
/// alone, also when it goes; alone in the container it has the default routes itself.
#[test]
fn a_second_interface() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("second", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let pod = Container::make(&lab, worker, 1)?;
    let second = ["env".to_owned(), "CNI_IFNAME=net1".to_owned()];
    let of_second = |verb: &str, more: Value| -> anyhow::Result<Value> {
        call_under(&second, &stage, worker, verb, Some(&pod), more)?.done()
    };
    let first = pod.call(&stage, worker, "ADD")?.done()?;
    let other = of_second("ADD", json!({}))?;
    assert!(
        addresses(&first)
            .iter()
            .all(|address| !addresses(&other).contains(address)),
        "{first} {other}"
    );
    assert_eq!(default_routes_in_force(&pod)?, ["eth0", "eth0"]);
    pod.check(&stage, worker, &first)?.done()?;
    of_second("CHECK", json!({ "prevResult": other }))?;

    of_second("DEL", json!({}))?;
    assert_eq!(default_routes_in_force(&pod)?, ["eth0", "eth0"]);
    pod.check(&stage, worker, &first)?.done()?;
    of_second("ADD", json!({}))?;
    assert_eq!(pod.call(&stage, worker, "DEL")?.done()?, Value::Null);
    assert_eq!(default_routes_in_force(&pod)?, ["net1", "net1"]);
    of_second("DEL", json!({}))?;
    assert_eq!(pods(&stage, worker)?.items, []);
    Ok(())
}

/// The interfaces by which a packet to the outside leaves, IPv4 first, as the kernel says.
fn default_routes_in_force(pod: &Container) -> anyhow::Result<Vec<String>> {
    ["198.51.100.1", "2001:db8::1"]
        .iter()
        .map(|destination| {
            let answer = Command::new("nsenter")
                .arg(format!("--net={}", pod.netns.display()))
                .args(["ip", "-json", "route", "get", destination])
                .output()?;
            let routes: Value = serde_json::from_slice(&answer.stdout)
                .with_context(|| String::from_utf8_lossy(&answer.stderr).into_owned())?;
            let device = routes[0]["dev"].as_str();
            Ok(device.context("no interface in the answer")?.to_owned())
        })
        .collect()
}

/// Runtimes that speak an older CNI version get results in that version from ADD, their CHECK
/// agrees, and DEL frees the pod.
#[test]
fn older_cni_versions() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("versions", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    for (number, version) in [(1, "1.0.0"), (2, "0.4.0")] {
        let pod = Container::make(&lab, worker, number)?;
        let speak = |verb: &str, mut more: Value| {
            more["cniVersion"] = json!(version);
            call(&stage, worker, verb, Some(&pod), more)
        };
        let result = speak("ADD", json!({}))?.done()?;
        assert_eq!(result["cniVersion"], version);
        // Up to 0.4.0 an address names its family; since 1.1.0 an interface names its MTU.
        let families: Vec<&Value> = result["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| &ip["version"])
            .collect();
        if version == "0.4.0" {
            assert_eq!(families, ["4", "6"], "{result}");
        } else {
            assert_eq!(families, [&Value::Null; 2], "{result}");
        }
        assert!(result["interfaces"][0].get("mtu").is_none(), "{result}");
        assert!(eth0(&pod)?.is_some(), "{version}: no interface");

        let previous = json!({ "prevResult": result });
        assert_eq!(speak("CHECK", previous.clone())?.done()?, Value::Null);
        let mut other = previous.clone();
        other["prevResult"]["ips"][0]["address"] = json!("10.244.1.77/32");
        speak("CHECK", other)?.failed(code(code::CHECK_FAILED), &["prevResult lacks"])?;
        assert_eq!(speak("DEL", previous)?.done()?, Value::Null);
        assert!(eth0(&pod)?.is_none(), "{version}: DEL left an interface");
        assert_eq!(pods(&stage, worker)?.items, []);
    }
    Ok(())
}

/// While the daemon is dead ADD and STATUS say so and how to mend it, and DEL succeeds; the next
/// start carries it out, and the address rests.
#[test]
fn without_a_daemon() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = narrow_lab(&stage, "10.200.0.0/30")?;
    let worker = lab.state().worker("worker-a")?.clone();
    let (gone, fresh) = (
        Container::make(&lab, &worker, 1)?,
        Container::make(&lab, &worker, 2)?,
    );
    gone.call(&stage, &worker, "ADD")?.done()?;
    lab.kill_daemon("worker-a")?;
    let words = ["cannot connect", "cni.sock", "start the fabric-node daemon"];
    let told = fresh
        .call(&stage, &worker, "ADD")?
        .failed(TRY_AGAIN, &words)?;
    println!("{told}");
    call(&stage, &worker, "STATUS", None, json!({}))?.failed(NOT_AVAILABLE, &words)?;
    assert_eq!(gone.call(&stage, &worker, "DEL")?.done()?, Value::Null);

    lab.start_daemon("worker-a")?;
    assert_eq!(pods(&stage, &worker)?.items, []);
    assert!(eth0(&gone)?.is_none(), "the DEL left an interface");
    fresh
        .call(&stage, &worker, "ADD")?
        .failed(TRY_AGAIN, &["0 used and 1 cooling down of 1"])?;
    std::fs::remove_file(worker.cni_socket())?;
    fresh
        .call(&stage, &worker, "ADD")?
        .failed(TRY_AGAIN, &words)?;
    Ok(())
}

/// A pod whose namespace was deleted behind the daemon's back is freed by GC, and by a restart; a pod
/// that lives is left alone even if GC was not told of it.
#[test]
fn namespaces_that_vanish() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("vanish", 2, 1)?;
    let worker = lab.state().worker("worker-a")?.clone();
    let living = Probe::start(
        lab.state().pod("pod-a-1")?,
        lab.state().pod("pod-b-1")?,
        false,
    )?;
    living.answered_after(Instant::now(), SOON)?;
    let begin = Instant::now();
    for (number, by_restart) in [(7, false), (8, true)] {
        let pod = Container::make(&lab, &worker, number)?;
        pod.call(&stage, &worker, "ADD")?.done()?;
        assert_eq!(pods(&stage, &worker)?.items.len(), 2);
        Netns::remove_named(&pod.netns)?;
        if by_restart {
            let gap = living.longest_gap(begin);
            ensure!(
                gap < Duration::from_millis(500),
                "the others had a pause of {gap:?}"
            );
            lab.kill_daemon("worker-a")?;
            lab.start_daemon("worker-a")?;
        } else {
            let nothing_valid = json!({ "cni.dev/valid-attachments": [] });
            let freed = call(&stage, &worker, "GC", None, nothing_valid)?;
            assert_eq!(freed.done()?, Value::Null);
        }
        eventually("it is freed", SOON, || {
            let left = pods(&stage, &worker)?.items;
            ensure!(left.len() == 1 && left[0].name == "pod-a-1", "{left:?}");
            Ok(())
        })?;
        assert_eq!(pod.call(&stage, &worker, "DEL")?.done()?, Value::Null);
    }
    living.answered_after(Instant::now(), SOON)?;
    Ok(())
}

/// A pod that deletes its own eth0 disturbs nobody; it is shown as detached, its CHECK fails, its DEL
/// works, and its name can be attached again.
#[test]
fn a_pod_deletes_its_interface() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("vandal", 2, 1)?;
    let worker = lab.state().worker("worker-a")?;
    let living = Probe::start(
        lab.state().pod("pod-a-1")?,
        lab.state().pod("pod-b-1")?,
        false,
    )?;
    living.answered_after(Instant::now(), SOON)?;
    let vandal = Container::make(&lab, worker, 7)?;
    let result = vandal.call(&stage, worker, "ADD")?.done()?;
    let begin = Instant::now();
    inside(&vandal.netns, || {
        let netlink = Netlink::connect()?;
        let index = netlink.link(POD_IFNAME)?.context("no eth0")?.index;
        Ok(netlink.delete_link(index)?)
    })?;
    vandal
        .check(&stage, worker, &result)?
        .failed(code(code::CHECK_FAILED), &["eth0"])?;
    eventually("it is shown as detached", SOON, || {
        let items = pods(&stage, worker)?.items;
        let shown = items.iter().find(|pod| pod.container_id == vandal.id);
        ensure!(
            shown.is_some_and(|pod| pod.state == "Detached"),
            "{items:?}"
        );
        Ok(())
    })?;
    assert_eq!(vandal.call(&stage, worker, "DEL")?.done()?, Value::Null);
    assert_eq!(pods(&stage, worker)?.items.len(), 1);
    let again = vandal.call(&stage, worker, "ADD")?.done()?;
    assert!(addresses(&again) != addresses(&result), "no rest: {again}");
    vandal.check(&stage, worker, &again)?.done()?;
    let gap = living.longest_gap(begin);
    ensure!(
        gap < Duration::from_millis(500),
        "the others had a pause of {gap:?}"
    );
    check_conserved(worker)
}

/// A lab with one worker, whose pods get IPv4 addresses from `range`.
fn narrow_lab(stage: &Stage, range: &str) -> anyhow::Result<Lab> {
    let lab = stage.lab("narrow", 1, 0)?;
    let text = sources::node_text("worker-a", &["10.90.0.1:7946"], &[range, "fd44:0:0:1::/64"]);
    sources::replace(lab.state(), "worker-a", &text)?;
    let worker: &Worker = lab.state().worker("worker-a")?;
    eventually("the range is in force", SOON, || {
        ensure!(
            fabric_tests::operator::has_route(stage, worker, range)?,
            "no route"
        );
        Ok(())
    })?;
    Ok(lab)
}

fn eth0(container: &Container) -> anyhow::Result<Option<u32>> {
    inside(&container.netns, || {
        Ok(Netlink::connect()?.link(POD_IFNAME)?.map(|link| link.index))
    })
}
