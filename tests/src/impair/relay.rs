//! Carries packets from one end of the cable to the other, until told to end.
//!
//! Comes in: a [`Cable`], an [`Impairment`] and a descriptor whose end of file is the end. Goes out: a
//! [`Report`]. One thread, which sleeps when there is nothing to carry.

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    time::Instant,
};

use anyhow::Context as _;
use fabric_core::offload::vnet::VnetHeader;
use fabric_node::sys::tun::{READ_BYTES_MAX, Tun};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Impairment, Report, cable::Cable, direction::Direction};

/// Packets of one direction in a row, so that the other one has its turn.
const BATCH_PACKETS_MAX: usize = 32;

/// Carries packets until `end` has nothing more to read.
///
/// # Errors
///
/// A device is gone, or cannot be waited for.
pub fn run(cable: &Cable, impairment: Impairment, end: &impl AsFd) -> anyhow::Result<Report> {
    let mut directions = [0, 1].map(|number| Direction::new(impairment, number));
    let [one, other] = &cable.ends;
    let ways = [(one, other), (other, one)];
    let mut buffer = vec![0; READ_BYTES_MAX];
    while wait(&cable.ends, &directions, end)? {
        for ((from, to), direction) in ways.iter().zip(&mut directions) {
            carry(from, to, direction, &mut buffer)?;
            direction.pass_overdue(Instant::now(), &mut |parts: &[IoSlice<'_>]| {
                to.write(parts).is_ok()
            });
        }
    }
    let overruns = cable.overruns()?;
    for ((_, to), direction) in ways.iter().zip(&mut directions) {
        direction.pass_all(&mut |parts: &[IoSlice<'_>]| to.write(parts).is_ok());
    }
    let mut counts = directions.map(|direction| direction.counts());
    for (counts, overrun) in counts.iter_mut().zip(overruns) {
        counts.overrun = overrun;
    }
    Ok(Report {
        impairment,
        directions: counts,
    })
}

fn carry(from: &Tun, to: &Tun, direction: &mut Direction, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut vnet = [0; VnetHeader::LEN];
    let now = Instant::now();
    for _ in 0..BATCH_PACKETS_MAX {
        let len = match from.read(&mut vnet, buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("the cable is broken"),
        };
        let packet = buffer.get(..len).unwrap_or_default();
        direction.pass(
            VnetHeader::decode(vnet),
            packet,
            now,
            &mut |parts: &[IoSlice<'_>]| to.write(parts).is_ok(),
        );
    }
    Ok(())
}

/// Waits until there is something to carry or somebody has waited long enough; false at the end.
fn wait(ends: &[Tun; 2], directions: &[Direction; 2], end: &impl AsFd) -> anyhow::Result<bool> {
    let deadline = directions.iter().filter_map(Direction::deadline).min();
    let timeout = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        Timespec::try_from(left).unwrap_or_default()
    });
    let [one, other] = ends;
    let mut fds = [
        PollFd::new(one, PollFlags::IN),
        PollFd::new(other, PollFlags::IN),
        PollFd::new(end, PollFlags::IN),
    ];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(true),
        Err(errno) => return Err(errno).context("cannot wait for packets"),
    }
    let [_, _, end] = &fds;
    Ok(end.revents().is_empty())
}
