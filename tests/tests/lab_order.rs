//! The packets of a flow arrive in the order in which they were sent, with several data-plane threads
//! and beside loads that keep all of them busy.
#![allow(clippy::print_stdout)]

use std::{thread, time::Duration};

use anyhow::{bail, ensure};
use fabric_node::lab::{Lab, Pod};
use fabric_tests::{
    account::check_conserved,
    load::{
        datagrams::{Flood, Plan},
        kernel::tcp_reorderings,
        streams::{Streams, criss_cross},
    },
    stage::Stage,
    threads,
    traffic::address,
};

/// Data-plane threads of each daemon.
const THREADS: u32 = 2;
/// How long the load lasts.
const LOAD: Duration = Duration::from_secs(6);
/// TCP streams, both ways and over both families.
const STREAMS: u64 = 8;
/// Datagrams per second of each UDP flow: several to each turn of a thread, and less than the node can
/// carry.
const RATE: u32 = 10_000;
/// Datagrams of each UDP flow that must have arrived for its order to say something.
const DATAGRAMS_MIN: u64 = 5_000;

/// Beside eight TCP streams, no datagram of a UDP flow arrives behind a later one of that flow, small or
/// large, within a node or across; and no TCP sender finds that a segment of its was overtaken.
#[test]
fn flows_keep_their_order_with_two_threads() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("order", 2, 2)?;
    threads::start_with(&mut lab, THREADS)?;
    let before = reorderings(lab.pods())?;
    let mut plans = criss_cross(lab.pods(), STREAMS, None)?;
    for plan in &mut plans {
        plan.congestion = Some("cubic".to_owned());
    }
    let streams = Streams::start(&plans)?;
    let floods = floods(&lab)?;
    thread::sleep(LOAD);
    let flooded = floods
        .into_iter()
        .map(Flood::stop)
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = streams.cut()?;
    let overtaken = reorderings(lab.pods())? - before;
    println!("{flooded:?}; {bytes} bytes over TCP, {overtaken} segments overtaken");
    for flow in flooded {
        ensure!(flow.overtaken == 0, "datagrams were overtaken: {flow:?}");
        ensure!(flow.received >= DATAGRAMS_MIN, "too few: {flow:?}");
    }
    ensure!(bytes > 0, "nothing came over TCP");
    ensure!(overtaken == 0, "{overtaken} segments were overtaken");
    for worker in lab.workers() {
        let worked = threads::check_all_worked(worker, THREADS as usize)?;
        println!("{}: its threads worked {worked:?}", worker.name);
        check_conserved(worker)?;
    }
    lab.down()
}

/// One UDP flow each way and within a node, from ports that different threads read.
fn floods(lab: &Lab) -> anyhow::Result<Vec<Flood>> {
    let [a1, a2, b1, b2] = lab.pods() else {
        bail!("four pods")
    };
    let flows = [
        (a1, b1, false, 200),
        (a2, b2, true, 1_200),
        (b2, a1, false, 1_200),
        (b1, b2, true, 200),
    ];
    let floods = (0..).zip(flows).map(|(number, (from, to, ipv6, size))| {
        Flood::start(&Plan {
            number,
            from: &from.netns,
            to: Some(&to.netns),
            target: address(to, ipv6)?,
            size,
            rate: Some(RATE),
        })
    });
    floods.collect()
}

fn reorderings(pods: &[Pod]) -> anyhow::Result<u64> {
    pods.iter().map(|pod| tcp_reorderings(&pod.netns)).sum()
}
