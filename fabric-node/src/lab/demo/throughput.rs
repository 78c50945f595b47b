//! How fast one TCP stream is, by iperf3, across workers and between neighbours.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, ensure};

use super::{Plan, Scene, address, report::Finding};
use crate::{
    lab::{Interrupt, Pod},
    measure::{
        Direction, Load, Protocol,
        iperf::{self, Serve},
    },
    sys::netns::Netns,
};

/// One stream, for three seconds.
const LOAD: Load = Load {
    protocol: Protocol::Tcp,
    direction: Direction::Forward,
    streams: 1,
    seconds: 3,
};

pub(super) fn plans<'a>(scene: &'a Scene<'a>) -> Vec<Plan<'a>> {
    [
        ("iperf3-across", scene.remote, "across workers"),
        ("iperf3-neighbour", scene.neighbour, "on one worker"),
    ]
    .into_iter()
    .map(|(id, target, where_to)| {
        let title = format!(
            "iperf3 from {} to {}, {where_to}",
            scene.pod.name, target.name
        );
        Plan::new(id, title, move || measure(scene, target))
    })
    .collect()
}

fn measure(scene: &Scene<'_>, target: &Pod) -> anyhow::Result<Finding> {
    let family = scene
        .families
        .first()
        .copied()
        .context("the pods have no family")?;
    let address = SocketAddr::new(address(target, family)?, iperf::PORT);
    let program = Path::new(&scene.tools.iperf3);
    let (from, to) = (Netns::open(&scene.pod.netns)?, Netns::open(&target.netns)?);
    let server = iperf::Server::start(program, &to, Some(address.ip()), iperf::PORT, Serve::Once)
        .with_context(|| format!("in {}", target.name))?;
    // A Ctrl-C is asked for after each proof.
    let found = iperf::measure(program, &from, address, &LOAD, &Interrupt::never())?;
    drop(server);
    let gbit = found
        .received_bits_per_second()
        .context("iperf3 has no sum of what was received")?
        / 1e9;
    ensure!(gbit > 0.0, "nothing arrived");
    Ok(Finding::new(format!("{gbit:.2} Gbit/s"))
        .with("gbitPerSecond", (gbit * 1000.0).round() / 1000.0))
}
