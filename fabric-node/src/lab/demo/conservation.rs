//! No packet vanishes: on each worker, what was received was delivered, answered, dropped for a
//! named reason, or waits in a queue.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use fabric_proto::admin::{DropList, PacketAccount, Status};

use super::{Plan, Scene, report::Finding};
use crate::lab::{Worker, ready};

/// How long a worker may take to come to rest: its counters are read while packets move.
const REST_MAX: Duration = Duration::from_secs(5);
/// Time between two readings.
const INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn plans<'a>(scene: &'a Scene<'a>) -> Vec<Plan<'a>> {
    let plan = |worker: &'a Worker| {
        let title = format!("no packet vanished on {}", worker.name);
        Plan::new(format!("conservation-{}", worker.name), title, move || {
            prove(worker)
        })
    };
    scene.workers.into_iter().map(plan).collect()
}

fn prove(worker: &Worker) -> anyhow::Result<Finding> {
    let deadline = Instant::now() + REST_MAX;
    loop {
        let status: Status = ready::document(&worker.admin_socket(), "/v1/status")?;
        let drops: DropList = ready::document(&worker.admin_socket(), "/v1/drops")?;
        match check(&status.packets, &drops) {
            Ok(value) => return Ok(Finding::new(value)),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// Adds up both sides of the account; the daemon's own verdict is not enough.
fn check(account: &PacketAccount, drops: &DropList) -> anyhow::Result<String> {
    let received = account.received_pods.packets
        + account.received_host.packets
        + account.received_peers.packets;
    let delivered = account.delivered_pods.packets
        + account.delivered_host.packets
        + account.delivered_peers.packets;
    let sum = delivered + account.answered + account.dropped + account.queued;
    let counts = format!(
        "{received} received = {delivered} delivered + {} answered + {} dropped + {} queued",
        account.answered, account.dropped, account.queued
    );
    ensure!(
        received == sum,
        "{counts} does not hold: the right side is {sum}"
    );
    ensure!(
        account.conserved,
        "{counts}, but the daemon says it is not conserved"
    );
    let by_reason: u64 = drops.items.iter().map(|drop| drop.packets).sum();
    ensure!(
        by_reason == account.dropped,
        "{} packets were dropped, but the reasons add up to {by_reason}",
        account.dropped
    );
    if account.received_pods.packets == 0
        || account.received_peers.packets == 0
        || account.delivered_pods.packets == 0
        || account.delivered_peers.packets == 0
    {
        bail!("{counts} says little: some way was never taken");
    }
    let reasons: Vec<String> = drops
        .items
        .iter()
        .filter(|drop| drop.packets > 0)
        .map(|drop| format!("{} {}", drop.reason, drop.packets))
        .collect();
    Ok(if reasons.is_empty() {
        counts
    } else {
        format!("{counts} ({})", reasons.join(", "))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fabric_proto::admin::{DropCount, Tally};

    use super::*;

    fn tally(packets: u64) -> Tally {
        Tally {
            packets,
            bytes: packets * 100,
        }
    }

    fn account() -> (PacketAccount, DropList) {
        let account = PacketAccount {
            received_pods: tally(10),
            received_host: tally(5),
            received_peers: tally(20),
            delivered_pods: tally(18),
            delivered_host: tally(4),
            delivered_peers: tally(8),
            answered: 1,
            queued: 1,
            marked: 2,
            dropped: 3,
            conserved: true,
        };
        let count = |reason: &str, packets| DropCount {
            reason: reason.to_owned(),
            packets,
        };
        (
            account,
            DropList {
                items: vec![count("A", 2), count("B", 0), count("C", 1)],
            },
        )
    }

    /// A balanced account holds and names the reasons that occurred.
    #[test]
    fn a_balanced_account_holds() {
        let (account, drops) = account();
        assert_eq!(
            check(&account, &drops).unwrap(),
            "35 received = 30 delivered + 1 answered + 3 dropped + 1 queued (A 2, C 1)"
        );
    }

    /// One packet more or less on either side, a daemon's "no", other sums by reason, and a way
    /// never taken all fail.
    #[test]
    fn any_difference_fails() {
        let changes: [fn(&mut PacketAccount, &mut DropList); 6] = [
            |account, _| account.received_pods.packets += 1,
            |account, _| account.answered = 0,
            |account, _| account.queued += 1,
            |account, _| account.conserved = false,
            |_, drops| drops.items[1].packets = 1,
            |account, _| {
                account.received_host.packets += account.received_peers.packets;
                account.received_peers.packets = 0;
            },
        ];
        for change in changes {
            let (mut account, mut drops) = account();
            change(&mut account, &mut drops);
            assert!(check(&account, &drops).is_err(), "{account:?} {drops:?}");
        }
    }
}
