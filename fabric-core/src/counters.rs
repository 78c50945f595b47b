//! Exact accounts: every packet received has one outcome.
//!
//! In: what a worker saw and did, one call per packet. Out: sums, and whether they add up. An ICMP
//! error that the fabric itself writes is not a received packet: the packet that caused it is
//! counted as answered, and nothing else.

use crate::{ids::PortId, verdict::DropReason};

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

impl Tally {
    fn record(&mut self, bytes: usize) {
        self.add(Self {
            packets: 1,
            bytes: bytes as u64,
        });
    }

    fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// On which side of the fabric a packet came in or went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// A pod's `eth0`.
    Pod,
    /// The host's `fabric0`.
    Host,
    /// A peer node.
    Peer,
}

impl From<PortId> for Side {
    fn from(port: PortId) -> Self {
        if port == PortId::HOST {
            Self::Host
        } else {
            Self::Pod
        }
    }
}

/// One worker's account. Plain numbers, no atomics: the worker publishes copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Read from pods.
    pub received_pods: Tally,
    /// Read from the host's `fabric0`.
    pub received_host: Tally,
    /// Taken off records from peers.
    pub received_peers: Tally,
    /// Written to pods.
    pub delivered_pods: Tally,
    /// Written to the host's `fabric0`.
    pub delivered_host: Tally,
    /// Handed to a peer's connection.
    pub delivered_peers: Tally,
    /// Answered with an ICMP error.
    pub answered: u64,
    /// Waiting in a queue towards a peer at the time of the copy.
    pub queued: u64,
    /// Marked as having met congestion in a queue towards a peer (ECN CE, RFC 3168). No outcome: each
    /// is counted where it ended, too.
    pub marked: u64,
    /// Dropped, by reason; index with [`Counters::dropped`].
    pub drops: [u64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received_pods: Tally::default(),
            received_host: Tally::default(),
            received_peers: Tally::default(),
            delivered_pods: Tally::default(),
            delivered_host: Tally::default(),
            delivered_peers: Tally::default(),
            answered: 0,
            queued: 0,
            marked: 0,
            drops: [0; DropReason::COUNT],
        }
    }
}

impl Counters {
    /// A packet of `bytes` came in from `side`.
    pub fn record_received(&mut self, side: Side, bytes: usize) {
        match side {
            Side::Pod => self.received_pods.record(bytes),
            Side::Host => self.received_host.record(bytes),
            Side::Peer => self.received_peers.record(bytes),
        }
    }

    /// A packet of `bytes` went out to `side`: whole, cut into segments or fragments, it counts
    /// once, with the bytes it had when it was received.
    pub fn record_delivered(&mut self, side: Side, bytes: usize) {
        match side {
            Side::Pod => self.delivered_pods.record(bytes),
            Side::Host => self.delivered_host.record(bytes),
            Side::Peer => self.delivered_peers.record(bytes),
        }
    }

    /// A packet was answered with an ICMP error.
    pub fn record_answered(&mut self) {
        self.answered = self.answered.saturating_add(1);
    }

    /// A packet was dropped.
    pub fn record_dropped(&mut self, reason: DropReason) {
        self.record_dropped_many(reason, 1);
    }

    /// So many packets were dropped.
    pub fn record_dropped_many(&mut self, reason: DropReason, packets: u64) {
        // A reason's discriminant is its place in `drops`, by construction of `DropReason::ALL`.
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count = count.saturating_add(packets);
        }
    }

    /// Everything that came in.
    #[must_use]
    pub fn received(&self) -> Tally {
        sum([self.received_pods, self.received_host, self.received_peers])
    }

    /// Everything that went out.
    #[must_use]
    pub fn delivered(&self) -> Tally {
        sum([
            self.delivered_pods,
            self.delivered_host,
            self.delivered_peers,
        ])
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Packets dropped for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().copied().fold(0, u64::saturating_add)
    }

    /// Whether every packet received has exactly one outcome, or waits in a queue for one.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        let outcomes = [self.answered, self.queued, self.dropped_total()]
            .into_iter()
            .fold(self.delivered().packets, u64::saturating_add);
        self.received().packets == outcomes
    }

    /// Adds another worker's account to this one.
    pub fn merge(&mut self, other: &Self) {
        // Taken apart so that a new counter cannot be forgotten here.
        let Self {
            received_pods,
            received_host,
            received_peers,
            delivered_pods,
            delivered_host,
            delivered_peers,
            answered,
            queued,
            marked,
            drops,
        } = other;
        self.received_pods.add(*received_pods);
        self.received_host.add(*received_host);
        self.received_peers.add(*received_peers);
        self.delivered_pods.add(*delivered_pods);
        self.delivered_host.add(*delivered_host);
        self.delivered_peers.add(*delivered_peers);
        self.answered = self.answered.saturating_add(*answered);
        self.queued = self.queued.saturating_add(*queued);
        self.marked = self.marked.saturating_add(*marked);
        for (mine, theirs) in self.drops.iter_mut().zip(drops) {
            *mine = mine.saturating_add(*theirs);
        }
    }
}

fn sum(tallies: [Tally; 3]) -> Tally {
    tallies
        .into_iter()
        .fold(Tally::default(), |mut total, tally| {
            total.add(tally);
            total
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Outcome {
        Delivered(Side),
        Answered,
        Dropped(DropReason),
    }

    fn side() -> impl Strategy<Value = Side> {
        prop::sample::select(vec![Side::Pod, Side::Host, Side::Peer])
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            side().prop_map(Outcome::Delivered),
            Just(Outcome::Answered),
            prop::sample::select(DropReason::ALL).prop_map(Outcome::Dropped),
        ]
    }

    fn record(counters: &mut Counters, side: Side, bytes: usize, outcome: Outcome) {
        counters.record_received(side, bytes);
        match outcome {
            Outcome::Delivered(side) => counters.record_delivered(side, bytes),
            Outcome::Answered => counters.record_answered(),
            Outcome::Dropped(reason) => counters.record_dropped(reason),
        }
    }

    /// Each reason has a counter of its own, found by the reason alone.
    #[test]
    fn every_reason_has_its_own_counter() {
        for &reason in DropReason::ALL {
            let mut counters = Counters::default();
            counters.record_dropped(reason);
            for &other in DropReason::ALL {
                assert_eq!(counters.dropped(other), u64::from(other == reason));
            }
            assert_eq!(counters.dropped_total(), 1);
        }
    }

    /// A packet without an outcome shows, and waiting in a queue is an outcome for the time being.
    #[test]
    fn a_lost_packet_shows() {
        let mut counters = Counters::default();
        assert!(counters.is_conserved());
        counters.record_received(Side::from(PortId::HOST), 60);
        assert!(!counters.is_conserved());
        counters.queued = 1;
        assert!(counters.is_conserved());
        counters.record_delivered(Side::Peer, 60);
        assert!(!counters.is_conserved());
        assert_eq!(
            counters.received_host,
            Tally {
                packets: 1,
                bytes: 60
            }
        );
    }

    proptest! {
        /// Accounts with one outcome per packet are conserved, alone and merged, and sums are exact.
        #[test]
        fn one_outcome_each_is_conserved(
            packets in prop::collection::vec((side(), 20..65_575_usize, outcome()), 0..200),
            cut in 0..200_usize,
        ) {
            let mut whole = Counters::default();
            let mut parts = [Counters::default(), Counters::default()];
            for (at, &(side, bytes, outcome)) in packets.iter().enumerate() {
                record(&mut whole, side, bytes, outcome);
                let [first, second] = &mut parts;
                record(if at < cut { first } else { second }, side, bytes, outcome);
            }
            prop_assert!(whole.is_conserved());
            prop_assert_eq!(whole.received().packets, packets.len() as u64);
            prop_assert_eq!(
                whole.received().bytes,
                packets.iter().map(|&(_, bytes, _)| bytes as u64).sum::<u64>()
            );

            let [mut first, second] = parts;
            first.merge(&second);
            prop_assert_eq!(first, whole);
        }
    }
}
