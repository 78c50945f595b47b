//! What the product asks of the kernel: TUN devices, addresses and routes, and nothing else. Daemon
//! and plugin run under strace, in a lab whose scenery does not.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
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
    stage::Stage,
    trace::{Call, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, parse, tracer},
};

/// How long one ping, or the end of the tracers, may take.
const LIMIT: Duration = Duration::from_secs(20);

/// From the first daemon to the last DEL, with traffic and a restart in between, daemon and plugin
/// ask for TUN devices, addresses and routes alone: no veth, bridge, vxlan, wireguard, netfilter,
/// bpf, kernel module or program of others.
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
    for verb in ["ADD", "DEL"] {
        let wanted = format!("CNI_COMMAND={verb}");
        assert_eq!(count(&plugin, "execve", &wanted), pods, "{verb}");
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
