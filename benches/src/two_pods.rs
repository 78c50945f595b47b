//! Two workers with one pod each: what runs between the pods, and which daemons it goes through.
//!
//! Comes in: a lab of that shape. Goes out: what one TCP stream moved, process ids. Never done here:
//! building the lab, or looking at the daemons.

use std::net::IpAddr;

use anyhow::{Context as _, anyhow, bail};
use fabric_node::{
    lab::{Lab, LabName, LabOptions},
    sys::netns::Netns,
};

use crate::{
    invocation::Invocation,
    iperf::{self, Direction, Ends, TcpLoad, Transfer},
};

/// The lab to build, with the programs that `invocation` names.
///
/// # Errors
///
/// There is no folder of programs.
pub fn options(name: &LabName, invocation: &Invocation) -> anyhow::Result<LabOptions> {
    Ok(LabOptions::new(name.clone(), 2, 1, invocation.programs()?))
}

/// Process ids of both daemons, that of the sending worker first.
///
/// # Errors
///
/// One does not run.
pub fn daemons(lab: &Lab) -> anyhow::Result<[u32; 2]> {
    let pids: Vec<u32> = lab.workers().iter().filter_map(|it| it.pid).collect();
    pids.try_into().map_err(|_| anyhow!("not both daemons run"))
}

/// Sends one TCP stream from the first pod to the second, with the machine's congestion control.
///
/// # Errors
///
/// The lab has another shape or the pod no address of this family, or iperf3 fails.
pub fn stream(lab: &Lab, ipv6: bool, seconds: u32) -> anyhow::Result<Transfer> {
    let [from, to] = lab.pods() else {
        bail!("the lab has not two pods")
    };
    let mut addresses = to.addresses.iter().copied();
    let address = addresses.find(|it: &IpAddr| it.is_ipv6() == ipv6);
    let (client, server) = (Netns::open(&from.netns)?, Netns::open(&to.netns)?);
    let ends = Ends {
        client: &client,
        server: &server,
        address: address.context("the pod has no such address")?,
    };
    let load = TcpLoad {
        streams: 1,
        direction: Direction::Forth,
        seconds,
        congestion: None,
    };
    iperf::tcp(ends, load)
}
