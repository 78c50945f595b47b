//! Exact accounts: every packet received has one outcome.

use crate::verdict::DropReason;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
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
    /// Dropped, by reason; index with [`Counters::dropped`].
    pub drops: [u64; DropReason::COUNT],
}
