//! Conservation: what a worker received it delivered, answered, dropped for a reason, or holds.

use std::time::Duration;

use anyhow::ensure;
use fabric_node::lab::{Worker, ready};
use fabric_proto::admin::{DropList, Status};

use crate::eventually::eventually;

/// How long a worker may take to come to rest: its counters are read while packets move.
const REST_MAX: Duration = Duration::from_secs(5);

/// Checks the account of a worker, by its own sums and by the daemon's word.
///
/// # Errors
///
/// The account does not add up, even at rest.
pub fn check_conserved(worker: &Worker) -> anyhow::Result<()> {
    let what = format!("conservation on {}", worker.name);
    eventually(&what, REST_MAX, || {
        let status: Status = ready::document(&worker.admin_socket(), "/v1/status")?;
        let drops: DropList = ready::document(&worker.admin_socket(), "/v1/drops")?;
        let account = status.packets;
        let received = account.received_pods.packets
            + account.received_host.packets
            + account.received_peers.packets;
        let delivered = account.delivered_pods.packets
            + account.delivered_host.packets
            + account.delivered_peers.packets;
        let by_reason: u64 = drops.items.iter().map(|drop| drop.packets).sum();
        ensure!(
            received == delivered + account.answered + account.dropped + account.queued,
            "{account:?} does not add up"
        );
        ensure!(
            account.conserved,
            "the daemon says it does not: {account:?}"
        );
        ensure!(
            by_reason == account.dropped,
            "{} dropped, but the reasons add up to {by_reason}",
            account.dropped
        );
        Ok(())
    })
    .map(drop)
}
