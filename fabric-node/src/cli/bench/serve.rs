//! `fabric bench --serve POD`: servers inside of a pod until interrupted, for a client elsewhere.

use std::{net::SocketAddr, process::ExitCode, thread};

use anyhow::{bail, ensure};

use super::{
    args::BenchArgs,
    pair::{program, with_port_hint},
    pods::PodAt,
};
use crate::{
    lab::Interrupt,
    measure::{
        LOOK,
        iperf::{self, Serve},
        meter::{Greeting, PORT_OFFSET, server::Server},
    },
    sys::netns::Netns,
    terminal::output::Output,
};

/// Serves until interrupted.
///
/// # Errors
///
/// A server cannot be started, or one ended by itself.
pub(super) fn run(pod: &PodAt, args: &BenchArgs, output: Output) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let netns = Netns::open(&pod.pod.netns)?;
    let addresses: Vec<_> = pod.addresses().filter(|it| args.allows(*it)).collect();
    ensure!(!addresses.is_empty(), "{} has no such address", pod.label());
    let program = program(args.meter)?;
    let iperf = program
        .map(|program| iperf::Server::start(&program, &netns, None, args.port, Serve::On))
        .transpose()
        .map_err(with_port_hint)?;
    let greeting = Greeting::new(iperf.is_some());
    let start = |address| {
        let address = SocketAddr::new(address, args.port + PORT_OFFSET);
        Server::start(&netns, address, greeting)
    };
    let meters = addresses
        .iter()
        .map(|address| start(*address))
        .collect::<anyhow::Result<Vec<Server>>>()
        .map_err(with_port_hint)?;
    let with = if iperf.is_some() {
        "iperf3 and the built-in meter"
    } else {
        "the built-in meter"
    };
    output.say(&format!(
        "serving in {} with {with}; on another node run",
        pod.label()
    ));
    for address in &addresses {
        let target = match args.port {
            iperf::PORT => address.to_string(),
            port => SocketAddr::new(*address, port).to_string(),
        };
        output.say(&format!("  fabric bench POD {target}"));
    }
    output.say("Ctrl-C ends it");
    while !interrupt.is_set() {
        if iperf.as_ref().is_some_and(iperf::Server::has_ended) {
            bail!("the iperf3 server has ended");
        }
        if meters.iter().any(Server::has_ended) {
            bail!("the built-in meter has ended");
        }
        thread::sleep(LOOK);
    }
    Ok(ExitCode::SUCCESS)
}
