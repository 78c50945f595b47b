//! Read this first: the whole decision about a packet, one screen for each direction.

use std::time::Instant;

use crate::{
    ids::{PeerId, PortId},
    offload::Offload,
    packet::Headers,
    snapshot::Snapshot,
    verdict::{DropReason, Verdict},
};

/// Decides about packets. Owns the rate limits of ICMP errors; one per worker thread.
#[derive(Debug, Default)]
pub struct Forwarder {}

impl Forwarder {
    /// Decides about a packet read from a port of this node; takes one from its TTL where it goes on.
    ///
    /// `packet` is the whole IP packet as parsed into `headers`. With [`Verdict::Answer`], `reply`
    /// holds a complete ICMP error for `from`.
    pub fn egress(
        &mut self,
        snapshot: &Snapshot,
        from: PortId,
        packet: &mut [u8],
        headers: &Headers,
        offload: Offload,
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Verdict {
        let _ = (snapshot, from, packet, headers, offload, now, reply);
        Verdict::Drop(DropReason::NoRoute)
    }

    /// Decides about a packet that came from a peer node: only to a port of this node, never onward.
    ///
    /// `prefix` is the beginning of the packet, at least up to its upper-layer header. With
    /// [`Verdict::Answer`], `reply` holds a complete ICMP error for the peer's pod.
    pub fn ingress(
        &mut self,
        snapshot: &Snapshot,
        from: PeerId,
        prefix: &[u8],
        headers: &Headers,
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Verdict {
        let _ = (snapshot, from, prefix, headers, now, reply);
        Verdict::Drop(DropReason::NoRoute)
    }
}
