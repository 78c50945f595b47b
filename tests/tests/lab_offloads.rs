//! Without any of the offloads everything works, and where the kernel changes its mind about them
//! while traffic flows, traffic goes on.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    config::offloads::{Offload, Offloads},
    lab::{Lab, Worker, command, underlay::inside},
};
use fabric_tests::{
    account::check_conserved,
    eventually::eventually,
    matrix::{SIZES, matrix},
    operator::{LogMark, peer, status},
    stage::Stage,
    stream::Stream,
};

/// How long one of the programs here may take.
const PROGRAM_MAX: Duration = Duration::from_secs(5);
/// What must arrive after each change for the flow to have gone on (bytes).
const PROGRESS_BYTES: u64 = 4 * 1024 * 1024;
/// How soon. Detecting that a path's MTU has fallen takes QUIC some losses, and TCP in the pods waits
/// longer with each (RFC 6298 section 5.5).
const PROGRESS_MAX: Duration = Duration::from_secs(8);
/// The operator's view of peers is at most half a second old.
const VIEW_MAX: Duration = Duration::from_secs(3);

/// With each offload off, and with all of them, on one side and on both, pods reach each other on the
/// same node and across, over both families, at every size; and the operator sees what is off.
#[test]
fn every_offload_can_be_off() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut options = stage.options("off", 2, 2)?;
    // A neighbour on one side is enough to see the way within a node.
    options.pods = vec![2, 1];
    let mut lab = Lab::up(&options)?;
    let each = Offload::ALL.map(|off| Offloads::ALL.without(off));
    for offloads in each.into_iter().chain([Offloads::NONE]) {
        // On one side first, then on the other, too.
        for sides in [&["worker-a"][..], &["worker-b"]] {
            let begin = Instant::now();
            lab.switch_offloads(sides, offloads)?;
            for name in sides {
                check_shown(&stage, lab.state().worker(name)?, offloads)?;
            }
            matrix(lab.pods(), &[false, true], &SIZES)
                .with_context(|| format!("{offloads:?} on {sides:?}"))?;
            println!("{offloads:?} on {sides:?}: {:?}", begin.elapsed());
        }
        for worker in lab.workers() {
            check_conserved(worker)?;
        }
        lab.switch_offloads(&["worker-b"], Offloads::ALL)?;
    }
    lab.down()
}

/// `fabric status` names what is in use and what is not.
fn check_shown(stage: &Stage, worker: &Worker, offloads: Offloads) -> anyhow::Result<()> {
    let shown = status(stage, worker)?;
    let in_use = [shown.host_device.offloads, shown.underlay_offloads].concat();
    let off: Vec<&str> = shown
        .offloads_off
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    for (offload, names) in [
        (Offload::Checksum, &["checksum"][..]),
        (Offload::Tso4, &["tso4"]),
        (Offload::Tso6, &["tso6"]),
        (Offload::Uso, &["uso4", "uso6"]),
        (Offload::UdpGso, &["udp-gso"]),
        (Offload::UdpGro, &["udp-gro"]),
    ] {
        for name in names {
            let on = offloads.has(offload);
            let is_in_use = in_use.iter().any(|it| it == name);
            ensure!(
                is_in_use == on && off.contains(name) != on,
                "{offload:?} on {}: {in_use:?} are in use, {off:?} are not",
                worker.name
            );
        }
    }
    Ok(())
}

/// Whatever happens to the offloads and the MTU of an interface under a transfer, and when the kernel
/// refuses batches altogether, every byte arrives in its place, no connection between the nodes is
/// lost, and the operator sees which side sends payloads one by one.
#[test]
fn transfers_survive_changes_of_the_underlay() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("change", 2, 1)?;
    let [a, b] = lab.workers() else {
        panic!("two workers")
    };
    let [pod_a, pod_b] = lab.pods() else {
        panic!("two pods")
    };
    let marks = [a, b].map(|worker| (worker, LogMark::at_end(worker)));
    let streams = [
        Stream::start(pod_a, pod_b, false)?,
        Stream::start(pod_b, pod_a, true)?,
    ];
    let move_on = |after: &str| -> anyhow::Result<()> {
        let begin = Instant::now();
        for stream in &streams {
            stream
                .moves(PROGRESS_BYTES, PROGRESS_MAX)
                .with_context(|| format!("after {after}"))?;
        }
        println!("{after}: both streams move after {:?}", begin.elapsed());
        Ok(())
    };
    move_on("the start")?;
    // Before Linux 6.11 the first of these makes the kernel refuse batches (EIO).
    for feature in ["tx", "tx-udp-segmentation", "tso", "gso", "sg"] {
        for state in ["off", "on"] {
            run(&a.netns, &["ethtool", "-K", "eth0", feature, state])?;
            move_on(&format!("{feature} {state}"))?;
        }
    }
    let gso = |worker: &Worker, other: &Worker| -> anyhow::Result<String> {
        Ok(peer(&stage, worker, &other.name)?.context("no peer")?.gso)
    };
    lab.refuse_batches(&a.name, true)?;
    move_on("a refusal of batches")?;
    eventually("the fall-back is seen", VIEW_MAX, || {
        let shown = gso(a, b)?;
        ensure!(shown == "off (EINVAL)", "{shown}");
        Ok(())
    })?;
    ensure!(
        gso(b, a)? == "on",
        "the other side has nothing to do with it"
    );
    let refused = "the kernel does not cut batches";
    marks[0].1.line(a, &[refused, "WARN"])?;
    lab.refuse_batches(&a.name, false)?;
    for mtu in ["1400", "1500"] {
        run(&a.netns, &["ip", "link", "set", "eth0", "mtu", mtu])?;
        move_on(&format!("MTU {mtu}"))?;
    }
    for (worker, mark) in &marks {
        let ended = mark.line(worker, &["peer disconnected"]);
        ensure!(ended.is_err(), "{}: {ended:?}", worker.name);
        let lines = mark.count(worker, &[refused]);
        ensure!(lines <= 2, "{}: {lines} lines about batches", worker.name);
        check_conserved(worker)?;
    }
    for stream in streams {
        println!("{} bytes were checked", stream.end()?);
    }
    lab.down()
}

fn run(netns: &Path, words: &[&str]) -> anyhow::Result<()> {
    let (program, arguments) = words.split_first().context("no program")?;
    let found = command::find(program).with_context(|| format!("{program} is not installed"))?;
    let mut command = Command::new(found);
    command.args(arguments);
    let answer = inside(netns, move || command::run(command, b"", PROGRAM_MAX))?;
    ensure!(answer.status.success(), "{words:?}: {}", answer.stderr);
    Ok(())
}
