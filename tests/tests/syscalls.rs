//! What the product asks of the kernel: TUN devices, addresses and routes, and nothing else. Daemon
//! and plugin run under strace, in a lab whose scenery does not.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::{
    lab::{Lab, Wrappers, command, process, underlay::inside},
    sys::netns::Netns,
};
use fabric_tests::{
    eventually::eventually,
    plugin::{Container, call_under},
    sources,
    stage::Stage,
    trace::{Call, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, parse, tracer},
    traffic::{address, echo_through, pattern, tcp, tcp_echo},
};
use serde_json::{Value, json};

/// How long one ping, or the end of the tracers, may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Sent over each TCP connection, there and back.
const TCP_BYTES: usize = 60_000;
/// First address of the range of a node that comes and goes.
const NEW_NODE: [u8; 4] = [10, 244, 4, 0];

/// From the first daemon to the last DEL, with all verbs, traffic of pods and host, a node that comes
/// and goes, and restarts in between, daemon and plugin ask for TUN devices, addresses and routes
/// alone: no veth, bridge, vxlan, wireguard, netfilter, bpf, io_uring, kernel module or program of
/// others.
#[test]
fn only_tun_addresses_and_routes_are_asked_for() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let files = |program: &str| folder.path().join(program);
    let stage = Stage::enter()?;
    let mut options = stage.options("syscalls", 2, 2)?;
    options.wrappers = Wrappers {
        daemon: tracer(&files("daemon"), true),
        plugin: tracer(&files("plugin"), false),
    };
    let mut lab = Lab::up(&options)?;
    ping_all(&lab)?;
    echo_all(&lab)?;
    all_verbs(&stage, &lab)?;
    a_node_comes_and_goes(&lab)?;
    lab.stop_daemon("worker-a")?;
    lab.start_daemon("worker-a")?;
    lab.kill_daemon("worker-b")?;
    lab.start_daemon("worker-b")?;
    ping_all(&lab)?;
    let pods = lab.pods().len();
    lab.down()?;

    let daemon = calls(folder.path(), "daemon.")?;
    let plugin = calls(folder.path(), "plugin.")?;
    let found: Vec<String> = daemon
        .iter()
        .chain(&plugin)
        .flat_map(Call::violations)
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));

    // The trace must hold what the product does do, or its silence proves nothing.
    let count = |calls: &[Call], name: &str, part: &str| {
        let wanted = |call: &&Call| call.name == name && call.text.contains(part);
        calls.iter().filter(wanted).count()
    };
    // One device for each pod and one for each worker, made once or more.
    assert!(count(&daemon, "ioctl", "TUNSETIFF") >= pods + 2);
    assert!(count(&daemon, "setns", "CLONE_NEWNET") >= pods);
    assert_eq!(count(&daemon, "execve", "fabric-node"), 4);
    assert!(count(&daemon, "sendmsg", "<UDP") > 0);
    assert!(count(&daemon, "write", "/dev/net/tun") + count(&daemon, "writev", "/dev/net/tun") > 0);
    for (verb, times) in [
        ("ADD", pods + 1),
        ("DEL", pods + 1),
        ("CHECK", 1),
        ("STATUS", 1),
        ("GC", 1),
    ] {
        let wanted = format!("CNI_COMMAND={verb}");
        assert_eq!(count(&plugin, "execve", &wanted), times, "{verb}");
    }
    for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
        let requests = daemon.iter().filter_map(Call::requests).flatten();
        let made = requests.filter(|request| request.kind == kind && request.holds(&NEW_NODE));
        assert!(made.count() >= 2, "a worker made no request of type {kind}");
    }
    for kind in [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE] {
        let requests = daemon.iter().filter_map(Call::requests).flatten();
        let made = requests.filter(|request| request.kind == kind).count();
        assert!(made >= pods, "{made} requests of type {kind}");
    }
    Ok(())
}

/// The same check, on the trace of a program that makes such devices, finds each of them.
#[test]
fn the_check_finds_what_it_looks_for() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let netns = Netns::create()?;
    let ip = command::find("ip").context("there is no program ip: install iproute2")?;
    let cases: [(&str, &[&str]); 4] = [
        (
            "veth",
            &["link", "add", "f0", "type", "veth", "peer", "name", "f1"],
        ),
        ("bridge", &["link", "add", "f2", "type", "bridge"]),
        (
            "vxlan",
            &[
                "link", "add", "f3", "type", "vxlan", "id", "1", "dstport", "4789",
            ],
        ),
        ("wireguard", &["link", "add", "f4", "type", "wireguard"]),
    ];
    for (kind, arguments) in cases {
        let words = tracer(&folder.path().join(kind), false);
        let (strace, options) = words.split_first().context("no tracer")?;
        let mut traced = Command::new(strace);
        traced.args(options).arg(&ip).args(arguments);
        // Where the kernel has no such device, the request was made nevertheless.
        netns.run(|| command::run(traced, b"", LIMIT))??;
        let found: Vec<String> = calls(folder.path(), &format!("{kind}."))?
            .iter()
            .flat_map(Call::violations)
            .collect();
        let wanted = format!("a link of kind {kind}");
        assert!(found.contains(&wanted), "{kind}: {found:?}");
        assert!(
            found.iter().any(|line| line.starts_with("execve")),
            "{found:?}"
        );
    }
    Ok(())
}

/// What else must not be asked for is found in the trace of a program that asks for it: netfilter,
/// links requested by writing to a socket, io_uring.
#[test]
fn the_check_finds_other_ways_too() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let netns = Netns::create()?;
    let perl = command::find("perl").context("there is no program perl: install perl-base")?;
    let cases = [
        (
            "netfilter",
            "socket(my $s, 16, 3, 12);",
            "NETLINK_NETFILTER",
        ),
        (
            "written",
            // A header, `struct ifinfomsg` of zeros, and the kind within IFLA_LINKINFO.
            r#"socket(my $s, 16, 3, 0) or die;
               syswrite($s, pack("LSSLLx16SSSSa8", 48, 16, 0x605, 1, 0, 16, 18, 11, 1, "bridge"));"#,
            "a link of kind bridge",
        ),
        (
            "uring",
            // The same number on all architectures.
            "syscall(425, 8, my $room = chr(0) x 120);",
            "io_uring_setup(",
        ),
    ];
    for (name, program, wanted) in cases {
        let words = tracer(&folder.path().join(name), false);
        let (strace, options) = words.split_first().context("no tracer")?;
        let mut traced = Command::new(strace);
        traced.args(options).arg(&perl).args(["-e", program]);
        let answer = netns.run(|| command::run(traced, b"", LIMIT))??;
        let found: Vec<String> = calls(folder.path(), &format!("{name}."))?
            .iter()
            .flat_map(Call::violations)
            .filter(|line| !line.starts_with("execve"))
            .collect();
        assert!(
            found.len() == 1 && found.iter().all(|line| line.contains(wanted)),
            "{name}: {found:?} {}",
            answer.stderr
        );
    }
    Ok(())
}

/// TCP between pods of two workers, neighbours, and from the hosts to all pods, over both families.
fn echo_all(lab: &Lab) -> anyhow::Result<()> {
    let pods = lab.pods();
    for ipv6 in [false, true] {
        for from in pods {
            for to in pods.iter().filter(|to| to.name != from.name) {
                tcp_echo(from, to, ipv6, &[TCP_BYTES])
                    .with_context(|| format!("{} -> {}", from.name, to.name))?;
            }
        }
        for worker in lab.workers() {
            for pod in pods {
                let (mut host, mut end) = tcp(&worker.netns, &pod.netns, address(pod, ipv6)?)?;
                echo_through(&mut host, &mut end, &pattern(TCP_BYTES, 1))
                    .with_context(|| format!("{} -> {}", worker.name, pod.name))?;
            }
        }
    }
    Ok(())
}

/// One container through all verbs of the traced plugin.
fn all_verbs(stage: &Stage, lab: &Lab) -> anyhow::Result<()> {
    let worker = lab.state().worker("worker-a")?;
    let container = Container::make(lab, worker, 7)?;
    let wrapper = &lab.state().wrappers.plugin;
    let call = |verb: &str, container: Option<&Container>, more: Value| {
        call_under(wrapper, stage, worker, verb, container, more)?
            .done()
            .with_context(|| verb.to_owned())
    };
    call("STATUS", None, json!({}))?;
    let result = call("ADD", Some(&container), json!({}))?;
    call("CHECK", Some(&container), json!({ "prevResult": result }))?;
    call("GC", None, json!({ "cni.dev/valid-attachments": [] }))?;
    call("DEL", Some(&container), json!({}))?;
    Ok(())
}

/// A node is added to the directory and taken away again; each worker's host has its route meanwhile.
fn a_node_comes_and_goes(lab: &Lab) -> anyhow::Result<()> {
    let range = format!("{}/24", Ipv4Addr::from(NEW_NODE));
    let text = sources::node_text("worker-d", &["10.90.0.4:7946"], &[&range]);
    for is_there in [true, false] {
        if is_there {
            sources::replace(lab.state(), "worker-d", &text)?;
        } else {
            sources::remove(lab.state(), "worker-d")?;
        }
        for worker in lab.workers() {
            eventually("the route of the host", LIMIT, || {
                let mut ip = Command::new("ip");
                ip.args(["route", "show", &range]);
                let answer = inside(&worker.netns, || command::run(ip, b"", LIMIT))?;
                ensure!(
                    answer.stdout.trim().is_empty() != is_there,
                    "{}: {:?}",
                    worker.name,
                    answer.stdout
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Every pod reaches every other, with small packets and with large ones.
fn ping_all(lab: &Lab) -> anyhow::Result<()> {
    for from in lab.pods() {
        for to in lab.pods().iter().filter(|to| to.name != from.name) {
            for address in &to.addresses {
                for size in ["56", "8000"] {
                    // Asked again each second until one answer has come.
                    let mut ping = Command::new("ping");
                    ping.args(["-c", "1", "-w", "15", "-s", size, &address.to_string()]);
                    let answer = inside(&from.netns, || command::run(ping, b"", LIMIT))?;
                    ensure!(
                        answer.status.success(),
                        "{} does not reach {address} with {size} bytes: {}",
                        from.name,
                        answer.stdout
                    );
                }
            }
        }
    }
    Ok(())
}

/// All calls in the files of `folder` that begin with `prefix`, once their tracers have ended.
fn calls(folder: &Path, prefix: &str) -> anyhow::Result<Vec<Call>> {
    let deadline = Instant::now() + LIMIT;
    while !process::mentioning(folder).is_empty() {
        if Instant::now() > deadline {
            bail!("a tracer does not end");
        }
        std::thread::yield_now();
    }
    let mut calls = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            calls.extend(parse(&String::from_utf8_lossy(&fs::read(entry.path())?)));
        }
    }
    ensure!(!calls.is_empty(), "nothing was traced into {prefix}*");
    Ok(calls)
}
