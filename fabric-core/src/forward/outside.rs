//! Where the host's kernel carries what is not for the fabric: which packets go to it, and what it may
//! send in another's name.
//!
//! In: a packet, the snapshot, the [`Detours`]. Out: another next hop, or a right to pass. Only asked
//! where the snapshot has detours.

use std::time::Instant;

use crate::{
    detour::Detours,
    ids::PortId,
    packet::{Headers, Transport},
    snapshot::Snapshot,
    verdict::NextHop,
};

/// How a packet passes that the host sends in another's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// Its replies must come back to the host.
    Remembered,
    /// Its replies find their way, or it is one.
    Free,
}

/// Whether the host may send from a source that is not its own; `None`: nobody may.
///
/// - From a pod of this node, to anybody but the host: what the kernel has translated for that pod.
/// - From nobody in the fabric, to a pod of this node: a Service's address, or a client outside.
/// - From a peer's host, to a pod of this node: it, too, may speak to a NodePort over the underlay.
/// - From a peer's pod, to a pod of this node, if the host was given its packets: it spoke to a NodePort,
///   or it answers a flow that passes here, and the kernel had nothing to translate.
pub(super) fn passage(
    snapshot: &Snapshot,
    from: PortId,
    headers: &Headers,
    now: Instant,
) -> Option<Passage> {
    let detours = snapshot.detours().filter(|_| from == PortId::HOST)?;
    let destination = snapshot.next_hop(headers.destination);
    let source = snapshot.next_hop(headers.source);
    if is_local_pod(source) {
        let to_host = destination == Some(NextHop::Local(PortId::HOST));
        return (!to_host).then_some(Passage::Remembered);
    }
    if !is_local_pod(destination) {
        return None;
    }
    match source {
        None => Some(Passage::Free),
        Some(NextHop::Peer(_)) => {
            if snapshot.is_peer_host(headers.source) || detours.has_source(headers.source, now) {
                Some(Passage::Remembered)
            } else {
                let has_pair = detours.has_pair(headers.source, headers.destination, now);
                has_pair.then_some(Passage::Free)
            }
        }
        Some(NextHop::Local(_) | NextHop::Unassigned) => None,
    }
}

/// The next hop of a pod's packet: the host for what is not for the fabric, and for the replies of what
/// the host sent.
pub(super) fn by_the_host(
    detours: &Detours,
    hop: Option<NextHop>,
    packet: &[u8],
    headers: &Headers,
    now: Instant,
) -> Option<NextHop> {
    match hop {
        None => Some(NextHop::Local(PortId::HOST)),
        Some(NextHop::Local(PortId::HOST) | NextHop::Unassigned) => hop,
        Some(NextHop::Local(_) | NextHop::Peer(_)) if detours.is_reply(packet, headers, now) => {
            Some(NextHop::Local(PortId::HOST))
        }
        Some(NextHop::Local(_) | NextHop::Peer(_)) => hop,
    }
}

/// The port that a peer's packet goes to, which is for `port` by its destination.
pub(super) fn in_by_the_host(
    detours: &Detours,
    port: PortId,
    packet: &[u8],
    headers: &Headers,
    now: Instant,
) -> PortId {
    if port == PortId::HOST {
        // A NodePort, perhaps: the kernel then sends it on to a pod from the source it has.
        detours.add_source(headers.source, now);
        return port;
    }
    if detours.is_reply(packet, headers, now) {
        PortId::HOST
    } else {
        port
    }
}

/// The kernel tells who sends through `fabric0` what comes back by it that there is a shorter way. There
/// is none: the kernel is on the way to translate.
pub(super) fn is_redirect(headers: &Headers) -> bool {
    match headers.transport {
        // RFC 792; RFC 4861 4.5.
        Transport::Icmp { kind, .. } => kind == if headers.is_ipv6() { 137 } else { 5 },
        Transport::Tcp { .. } | Transport::Udp { .. } => false,
        Transport::Other | Transport::Absent => false,
    }
}

fn is_local_pod(hop: Option<NextHop>) -> bool {
    matches!(hop, Some(NextHop::Local(port)) if port != PortId::HOST)
}
