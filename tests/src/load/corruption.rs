//! Many streams over a bad cable, both ways, both families; then nothing may be wrong: no byte of a
//! stream, and no packet in the accounts of the daemons.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use fabric_node::lab::{Lab, Pod, Worker, ready};
use fabric_proto::admin::{DropList, PeerList};
use serde::Serialize;

use super::{
    kernel::tcp_retransmissions,
    streams::{Streams, Watch, criss_cross},
};
use crate::{
    account::check_conserved,
    impair::{Impairment, Report, process::Impairer},
};

/// Streams side by side.
pub const STREAMS: u64 = 16;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of all streams together.
    pub bytes: u64,
    /// How bad the cable is.
    pub impairment: Impairment,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Bytes that arrived; each was compared with what belongs there.
    pub bytes: u64,
    /// Streams that carried them.
    pub streams: u64,
    /// From the first byte of all to the last (s).
    pub seconds: f64,
    /// Of all streams together.
    pub gbit_per_second: f64,
    /// What the cable did.
    pub cable: Report,
    /// TCP segments that the pods' kernels sent again.
    pub tcp_retransmissions: u64,
    /// QUIC packets that each daemon declared lost.
    pub quic_lost: [u64; 2],
    /// Packets that each daemon dropped, by reason, where there were any.
    pub drops: [Vec<(String, u64)>; 2],
}

/// Runs it in a lab of two workers with two pods each, over both families.
///
/// # Errors
///
/// `watch` says so, a byte is wrong or missing, an account does not add up, the cable did not do what it was to do, or
/// the lab is of another kind.
pub fn run(
    lab: &Lab,
    impair: &Path,
    options: Options,
    watch: &mut Watch<'_>,
) -> anyhow::Result<Outcome> {
    let [a, b] = lab.workers() else {
        bail!("there are two workers in this, not {}", lab.workers().len());
    };
    ensure!(
        options.bytes.is_multiple_of(STREAMS),
        "{} bytes are no {STREAMS} equal shares",
        options.bytes
    );
    let plans = criss_cross(lab.pods(), STREAMS, Some(options.bytes / STREAMS))?;
    let impairer = Impairer::start(impair, lab, options.impairment)?;
    let begin = Instant::now();
    let streams = Streams::start(&plans)?;
    streams.watch(watch)?;
    let carried = streams.finish()?;
    let took = begin.elapsed();
    let bytes = carried.iter().map(|stream| stream.bytes).sum();
    ensure!(
        bytes == options.bytes,
        "{bytes} of {} bytes arrived",
        options.bytes
    );
    check_conserved(a)?;
    check_conserved(b)?;
    let quic_lost = [quic_lost(a)?, quic_lost(b)?];
    let drops = [drops(a)?, drops(b)?];
    let cable = impairer.stop()?;
    check_cable(&cable, bytes)?;
    Ok(Outcome {
        bytes,
        streams: STREAMS,
        seconds: took.as_secs_f64(),
        gbit_per_second: bytes as f64 * 8.0 / took.as_secs_f64() / 1e9,
        cable,
        tcp_retransmissions: retransmissions(lab.pods())?,
        quic_lost,
        drops,
    })
}

/// A cable that was no worse than a good one proves nothing.
fn check_cable(report: &Report, bytes: u64) -> anyhow::Result<()> {
    let total = report.total();
    ensure!(
        total.bytes >= bytes,
        "the streams went another way: {total:?}"
    );
    for counts in report.directions {
        ensure!(counts.add_up(), "the cable lost count: {counts:?}");
        // A tenth of what is to be expected: far beyond what chance could do.
        let least = |ppm: u32| counts.received * u64::from(ppm) / 10_000_000;
        ensure!(
            counts.lost >= least(report.impairment.lose_ppm)
                && counts.doubled >= least(report.impairment.double_ppm)
                && counts.overtaken >= least(report.impairment.delay_ppm),
            "the cable was better than asked for: {counts:?}"
        );
    }
    Ok(())
}

fn retransmissions(pods: &[Pod]) -> anyhow::Result<u64> {
    pods.iter().map(|pod| tcp_retransmissions(&pod.netns)).sum()
}

/// QUIC packets that the daemon of `worker` declared lost, as it says itself.
///
/// # Errors
///
/// It does not answer.
pub fn quic_lost(worker: &Worker) -> anyhow::Result<u64> {
    let peers: PeerList = ready::document(&worker.admin_socket(), "/v1/peers")?;
    Ok(peers.items.iter().map(|peer| peer.lost_packets).sum())
}

/// Connections of `worker` that have ended, and the bytes of QUIC packets in flight at their ends.
///
/// # Errors
///
/// It does not answer.
pub fn quic_ended(worker: &Worker) -> anyhow::Result<(u64, u64)> {
    let peers: PeerList = ready::document(&worker.admin_socket(), "/v1/peers")?;
    let ended = peers
        .items
        .iter()
        .map(|peer| (peer.ended_connections, peer.ended_in_flight_bytes));
    Ok(ended.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)))
}

/// Reasons for which the daemon of `worker` has dropped packets.
///
/// # Errors
///
/// It does not answer.
pub fn drops(worker: &Worker) -> anyhow::Result<Vec<(String, u64)>> {
    let drops: DropList = ready::document(&worker.admin_socket(), "/v1/drops")?;
    let some = drops.items.into_iter().filter(|drop| drop.packets > 0);
    Ok(some.map(|drop| (drop.reason, drop.packets)).collect())
}

/// For people.
#[must_use]
pub fn describe(outcome: &Outcome) -> String {
    let cable = outcome.cable.total();
    let took = Duration::from_secs_f64(outcome.seconds);
    format!(
        "- {} bytes over {} streams in {took:.1?}, {:.2} Gbit/s: 0 wrong\n\
         - cable: {} datagrams in {} packets ({} cut), {} lost, {} doubled, {} delayed ({} late ones \
         overtaken), {} overrun\n\
         - {} TCP segments sent again; QUIC declared {:?} packets lost; drops {:?}\n",
        outcome.bytes,
        outcome.streams,
        outcome.gbit_per_second,
        cable.received,
        cable.packets,
        cable.cut,
        cable.lost,
        cable.doubled,
        cable.delayed,
        cable.overtaken,
        cable.overrun,
        outcome.tcp_retransmissions,
        outcome.quic_lost,
        outcome.drops,
    )
}
