//! Who reaches whom: addresses, and pings between pods, from hosts to pods, from pods to hosts.

use std::{collections::HashSet, net::IpAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, bail, ensure};

use super::{Plan, Scene, address, report::Finding};
use crate::{
    lab::{Family, Pod, Worker, command, plugin::POD_IFNAME, underlay::inside},
    sys::netlink::Netlink,
};

/// Echo requests in one measurement.
const PINGS: u32 = 3;
/// How long one reply may take (seconds).
const REPLY_SECONDS_MAX: u32 = 2;
/// How long a whole measurement may take.
const PING_MAX: Duration = Duration::from_secs(20);

/// All addresses are different, from their worker's ranges, and on the pod's interface.
pub(super) fn addresses(scene: &Scene<'_>) -> anyhow::Result<Finding> {
    let mut seen = HashSet::new();
    let mut list = Vec::new();
    for pod in scene.lab.pods() {
        let worker = scene.lab.state().worker(&pod.worker)?;
        ensure!(
            pod.addresses.len() == scene.families.len(),
            "{} has {} addresses, not {}",
            pod.name,
            pod.addresses.len(),
            scene.families.len()
        );
        let on_interface = interface_addresses(pod)?;
        for &address in &pod.addresses {
            ensure!(seen.insert(address), "{address} is given to two pods");
            ensure!(
                worker
                    .pod_cidrs
                    .iter()
                    .any(|range| range.contains(&address)),
                "{address} of {} is in no range of {}",
                pod.name,
                worker.name
            );
            ensure!(
                on_interface.contains(&address),
                "{address} is not on {POD_IFNAME} of {}",
                pod.name
            );
            list.push(address.to_string());
        }
    }
    Ok(Finding::new(list.join(", ")))
}

fn interface_addresses(pod: &Pod) -> anyhow::Result<Vec<IpAddr>> {
    inside(&pod.netns, || {
        let netlink = Netlink::connect()?;
        let link = netlink
            .link(POD_IFNAME)?
            .with_context(|| format!("no {POD_IFNAME}"))?;
        Ok(netlink
            .addresses(link.index)?
            .iter()
            .map(|network| network.addr())
            .collect())
    })
    .with_context(|| format!("cannot look into {}", pod.name))
}

/// The pings, one proof for each direction and family.
pub(super) fn plans<'a>(scene: &'a Scene<'a>) -> Vec<Plan<'a>> {
    let Scene {
        pod,
        neighbour,
        remote,
        workers: [a, b],
        ..
    } = *scene;
    let mut plans = Vec::new();
    for (id, target) in [("ping", remote), ("ping-neighbour", neighbour)] {
        for &family in scene.families {
            let title = format!("{} pings {} over {}", pod.name, target.name, family.title());
            plans.push(Plan::new(
                format!("{id}-{}", lower(family)),
                title,
                move || ping(scene, &pod.netns, address(target, family)?),
            ));
        }
    }
    for target in [pod, remote] {
        let title = format!("the host of {} pings {}", a.name, target.name);
        plans.push(Plan::new(
            format!("host-to-{}", target.name),
            title,
            move || ping_all(scene, &a.netns, &target.addresses),
        ));
    }
    for target in [a, b] {
        let title = format!("{} pings the host of {}", pod.name, target.name);
        plans.push(Plan::new(
            format!("pod-to-{}", target.name),
            title,
            move || ping_all(scene, &pod.netns, &host_addresses(scene, target)),
        ));
    }
    plans
}

/// Host addresses that a pod can reach: those of a family the pods have.
fn host_addresses(scene: &Scene<'_>, worker: &Worker) -> Vec<IpAddr> {
    let has = |address: &IpAddr| scene.families.iter().any(|family| family.has(*address));
    worker
        .underlay_addresses
        .iter()
        .copied()
        .filter(has)
        .collect()
}

fn lower(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

fn ping_all(scene: &Scene<'_>, from: &Path, targets: &[IpAddr]) -> anyhow::Result<Finding> {
    if targets.is_empty() {
        return Ok(Finding::new(
            "not applicable: the host has no address of the pods' family",
        ));
    }
    let mut values = Vec::new();
    for &target in targets {
        let milliseconds = round_trip(scene, from, target)?;
        values.push(format!("{target} in {milliseconds} ms"));
    }
    Ok(Finding::new(values.join(", ")))
}

fn ping(scene: &Scene<'_>, from: &Path, target: IpAddr) -> anyhow::Result<Finding> {
    let milliseconds = round_trip(scene, from, target)?;
    Ok(Finding::new(format!(
        "{PINGS} of {PINGS} replies from {target}, {milliseconds} ms"
    ))
    .with("milliseconds", milliseconds))
}

/// Pings from a namespace; the mean round-trip time in milliseconds. Every request must be
/// answered.
pub(super) fn round_trip(scene: &Scene<'_>, from: &Path, target: IpAddr) -> anyhow::Result<f64> {
    let Some((program, first)) = scene.tools.ping.split_first() else {
        bail!("no ping")
    };
    let mut ping = Command::new(program);
    ping.args(first)
        .args([
            "-c",
            &PINGS.to_string(),
            "-W",
            &REPLY_SECONDS_MAX.to_string(),
        ])
        .arg(target.to_string())
        .env("LC_ALL", "C");
    let answer = inside(from, move || command::run(ping, b"", PING_MAX))?;
    let measured = parse(&answer.stdout)
        .with_context(|| format!("ping {target} said: {}", answer.last_line()))?;
    ensure!(
        measured.received == PINGS,
        "{} of {PINGS} requests to {target} were answered",
        measured.received
    );
    measured
        .milliseconds
        .with_context(|| format!("ping {target} gave no time"))
}

#[derive(Debug, PartialEq)]
struct Measured {
    received: u32,
    /// Mean round-trip time.
    milliseconds: Option<f64>,
}

/// Reads the summary of iputils' or BusyBox's ping.
fn parse(output: &str) -> Option<Measured> {
    let summary = output
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    // "3 packets transmitted, 3 received, 0% packet loss", or "..., 3 packets received, ...".
    let received = summary
        .split(", ")
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    // "rtt min/avg/max/mdev = 0.030/0.041/0.055/0.010 ms", or "round-trip min/avg/max = ...".
    let milliseconds = output
        .lines()
        .find(|line| line.contains("min/avg/max"))
        .and_then(|line| line.split(" = ").nth(1)?.split('/').nth(1)?.parse().ok());
    Some(Measured {
        received,
        milliseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The summaries of both common pings are read; a lost reply is seen.
    #[test]
    fn summaries_are_read() {
        let iputils = "PING 10.244.2.2 (10.244.2.2) 56(84) bytes of data.\n\n--- 10.244.2.2 ping statistics ---\n\
            3 packets transmitted, 3 received, 0% packet loss, time 2003ms\n\
            rtt min/avg/max/mdev = 0.300/0.412/0.550/0.101 ms\n";
        assert_eq!(
            parse(iputils),
            Some(Measured {
                received: 3,
                milliseconds: Some(0.412)
            })
        );
        let busybox = "--- ::1 ping statistics ---\n\
            3 packets transmitted, 2 packets received, 33% packet loss\n\
            round-trip min/avg/max = 0.030/0.041/0.055 ms\n";
        assert_eq!(
            parse(busybox),
            Some(Measured {
                received: 2,
                milliseconds: Some(0.041)
            })
        );
        let lost = "3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 2040ms\n";
        assert_eq!(
            parse(lost),
            Some(Measured {
                received: 0,
                milliseconds: None
            })
        );
        assert_eq!(parse("ping: connect: Network is unreachable"), None);
    }
}
