//! Pods of one node that send at once all get something: `make bench-fair` measures how much.
#![allow(clippy::print_stdout)]

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Pod};
use fabric_tests::{
    account::check_conserved,
    load::{
        datagrams::{self, Flood},
        streams::{self, Streams},
    },
    stage::Stage,
    traffic::address,
};

/// Pods that send at once.
const SENDERS: usize = 4;
/// How often each is tried: the middle one of the results counts.
const REPETITIONS: usize = 3;
/// Until all have found their pace.
const WARM_UP: Duration = Duration::from_millis(1_000);
/// How long is measured.
const TIME: Duration = Duration::from_millis(2_500);
/// The least that each must get, in parts of a fair share: what is promised. A queue that is not fair
/// between ports gave medians of 0.15 to 0.53 here.
const LEAST_SHARE: f64 = 0.7;
/// Payload of a flood's datagrams (bytes).
const FLOOD_BYTES: usize = 1_200;

/// Of four pods that send TCP at once, with the congestion control that fills queues most, each gets
/// a part of what the node can send.
#[test]
fn no_sender_starves_beside_others() -> anyhow::Result<()> {
    nobody_starves("fair", |lab| {
        let streams = Streams::start(&tcp(lab, 0)?)?;
        let rates = rates(|| streams.received());
        streams.stop()?;
        Ok(rates)
    })
}

/// Beside a pod that sends as much UDP as it can, each of three pods that send TCP gets a part of what
/// the node can send.
#[test]
fn no_sender_starves_beside_a_flood() -> anyhow::Result<()> {
    nobody_starves("flood", |lab| {
        let streams = Streams::start(&tcp(lab, 1)?)?;
        let (from, to) = pair(lab, 0)?;
        let flood = Flood::start(&datagrams::Plan {
            number: 0,
            from: &from.netns,
            to: Some(&to.netns),
            target: address(to, false)?,
            size: FLOOD_BYTES,
            rate: None,
        })?;
        let rates = rates(|| {
            let datagrams = flood.received() * FLOOD_BYTES as u64;
            [vec![datagrams], streams.received()].concat()
        });
        flood.stop()?;
        streams.stop()?;
        Ok(rates)
    })
}

/// In a lab of its own, the middle one of the least shares is not too small, and no packet is lost
/// from the account. `run` says what each pod received (Gbit/s).
fn nobody_starves(lab: &str, run: impl Fn(&Lab) -> anyhow::Result<Vec<f64>>) -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab(lab, 2, SENDERS)?;
    let shares = (0..REPETITIONS).map(|_| Ok(least_share(&run(&lab)?)));
    let mut shares = shares.collect::<anyhow::Result<Vec<f64>>>()?;
    shares.sort_by(f64::total_cmp);
    let share = shares.get(REPETITIONS / 2).context("nothing ran")?;
    ensure!(*share >= LEAST_SHARE, "the least share is {share:.2}");
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    lab.down()
}

/// What the poorest got, in parts of a fair share.
fn least_share(rates: &[f64]) -> f64 {
    let fair = rates.iter().sum::<f64>() / rates.len() as f64;
    let share = rates.iter().copied().fold(f64::INFINITY, f64::min) / fair;
    println!("{rates:.2?} Gbit/s, least share {share:.2}");
    share
}

/// What each receives (Gbit/s).
fn rates(received: impl Fn() -> Vec<u64>) -> Vec<f64> {
    thread::sleep(WARM_UP);
    let (begin, before) = (Instant::now(), received());
    thread::sleep(TIME);
    let (took, after) = (begin.elapsed().as_secs_f64(), received());
    let pairs = before.into_iter().zip(after);
    pairs
        .map(|(before, after)| (after - before) as f64 * 8.0 / took / 1e9)
        .collect()
}

/// A stream for each sender from number `first` on.
fn tcp(lab: &Lab, first: usize) -> anyhow::Result<Vec<streams::Plan>> {
    let plan = |number: usize| {
        let (from, to) = pair(lab, number)?;
        Ok(streams::Plan {
            number: number as u64,
            from: from.clone(),
            to: to.clone(),
            ipv6: false,
            bytes: None,
            congestion: Some("cubic".to_owned()),
        })
    };
    (first..SENDERS).map(plan).collect()
}

/// Sender and receiver number `number`.
fn pair(lab: &Lab, number: usize) -> anyhow::Result<(&Pod, &Pod)> {
    let pod = |at: usize| lab.pods().get(at).context("too few pods");
    Ok((pod(number)?, pod(SENDERS + number)?))
}
