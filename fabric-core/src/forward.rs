//! Read this first: the whole decision about a packet, one screen for each direction.
//!
//! In: a parsed packet, where it came from, the snapshot and the time. Out: one [`Verdict`], and the
//! bytes of an ICMP error where the verdict is to answer. Nothing here reads or writes a device, and
//! nothing a pod or a peer can send makes it go anywhere but where the snapshot says. What passes through
//! the host's kernel, and what the host may send for others then, is in `forward/outside.rs`.

mod outside;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use self::outside::Passage;
use crate::{
    ids::{PeerId, PortId},
    limiter::{ErrorClass, IcmpLimiter},
    offload::Offload,
    packet::{
        Headers, Transport,
        icmp::{self, IcmpError},
        rewrite,
    },
    snapshot::{POD_MTU, Snapshot},
    verdict::{DropReason, NextHop, Verdict},
};

/// Decides about packets. Owns the rate limits of ICMP errors; one per worker thread.
#[derive(Debug, Default)]
pub struct Forwarder {
    limiter: IcmpLimiter,
}

impl Forwarder {
    /// Decides about a packet read from a port of this node; takes one from its TTL where it goes on.
    ///
    /// `packet` is the whole IP packet as parsed into `headers`. With [`Verdict::Answer`], `reply`
    /// holds a complete ICMP error for `from`; otherwise `reply` is untouched. A packet that does not
    /// go on is left as it came.
    #[expect(
        clippy::too_many_arguments,
        reason = "a pure function of everything that decides"
    )]
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
        if !is_forwardable(headers.source) {
            return Verdict::Drop(DropReason::SourceNotAllowed);
        }
        let is_own = snapshot.may_send(from, headers.source);
        let passage = if is_own {
            None
        } else {
            match outside::passage(snapshot, from, headers, now) {
                Some(passage) => Some(passage),
                None => return Verdict::Drop(DropReason::SourceNotAllowed),
            }
        };
        if let Some(reason) = misdirected(headers.destination) {
            return Verdict::Drop(reason);
        }
        if from == PortId::HOST && snapshot.detours().is_some() && outside::is_redirect(headers) {
            return Verdict::Drop(DropReason::Redirect);
        }
        let refused = Refused {
            snapshot,
            prefix: packet,
            headers,
            now,
        };
        let hop = snapshot.next_hop(headers.destination);
        let hop = match snapshot.detours() {
            Some(detours) if from != PortId::HOST => {
                outside::by_the_host(detours, hop, packet, headers, now)
            }
            _ => hop,
        };
        let (next_hop, onward) = match hop {
            Some(hop @ NextHop::Local(port)) => (hop, Verdict::Deliver(port)),
            Some(hop @ NextHop::Peer(peer)) => (hop, Verdict::Send(peer)),
            Some(NextHop::Unassigned) => return self.refuse(NO_SUCH_POD, &refused, reply),
            None => return self.refuse(NO_ROUTE, &refused, reply),
        };
        if headers.ttl <= 1 {
            return self.refuse(TTL_EXPIRED, &refused, reply);
        }
        let verdict = match fit(headers, offload) {
            Fit::Whole => onward,
            Fit::InFragments => Verdict::Fragment(next_hop),
            Fit::Never => return self.refuse(TOO_BIG, &refused, reply),
            Fit::Contradiction => return Verdict::Drop(DropReason::BadOffload),
        };
        if let (Some(Passage::Remembered), Some(detours)) = (passage, snapshot.detours()) {
            detours.remember(packet, headers, now);
        }
        rewrite::decrement_ttl(packet, headers);
        verdict
    }

    /// Decides about a packet that came from a peer node: only to a port of this node, never onward.
    ///
    /// `prefix` is the beginning of the packet, at least up to its upper-layer header. With
    /// [`Verdict::Answer`], `reply` holds a complete ICMP error for the peer's pod; otherwise `reply`
    /// is untouched. The TTL went down where the packet entered the fabric and stays as it is.
    pub fn ingress(
        &mut self,
        snapshot: &Snapshot,
        from: PeerId,
        prefix: &[u8],
        headers: &Headers,
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Verdict {
        if !is_forwardable(headers.source) || !snapshot.peer_owns(from, headers.source) {
            return Verdict::Drop(DropReason::PeerSourceNotAllowed);
        }
        if let Some(reason) = misdirected(headers.destination) {
            return Verdict::Drop(reason);
        }
        let port = match snapshot.next_hop(headers.destination) {
            Some(NextHop::Local(port)) => port,
            Some(NextHop::Unassigned) => {
                let refused = Refused {
                    snapshot,
                    prefix,
                    headers,
                    now,
                };
                return self.refuse(NO_SUCH_POD, &refused, reply);
            }
            // Never from tunnel to tunnel: no peer can use this node to reach another, and no
            // disagreement between two nodes about a route can become a loop.
            Some(NextHop::Peer(_)) | None => {
                return Verdict::Drop(DropReason::DestinationNotLocal);
            }
        };
        if headers.ttl == 0 {
            return Verdict::Drop(DropReason::TtlExpired);
        }
        match snapshot.detours() {
            Some(detours) => {
                Verdict::Deliver(outside::in_by_the_host(detours, port, prefix, headers, now))
            }
            None => Verdict::Deliver(port),
        }
    }

    /// Writes the ICMP error into `reply` if one is due and within the rate; else the packet is
    /// dropped for its reason.
    fn refuse(
        &mut self,
        (error, reason): Refusal,
        refused: &Refused<'_>,
        reply: &mut Vec<u8>,
    ) -> Verdict {
        let Refused {
            snapshot,
            prefix,
            headers,
            now,
        } = *refused;
        let Some(gateway) = snapshot.gateway(headers.source) else {
            return Verdict::Drop(reason);
        };
        let is_due = match error {
            IcmpError::TooBig { .. } => icmp::may_answer_too_big(headers),
            IcmpError::TimeExceeded
            | IcmpError::NetUnreachable
            | IcmpError::HostUnreachable
            | IcmpError::CommunicationProhibited => icmp::may_answer(headers),
        };
        if !is_due || !self.limiter.allow(class(error), headers.source, now) {
            return Verdict::Drop(reason);
        }
        reply.clear();
        if icmp::write_error(error, gateway, prefix, headers, reply) {
            Verdict::Answer
        } else {
            Verdict::Drop(reason)
        }
    }
}

/// What the sender is told, and under which name the packet is counted if it cannot be told.
type Refusal = (IcmpError, DropReason);

const NO_SUCH_POD: Refusal = (IcmpError::HostUnreachable, DropReason::NoSuchPod);
const NO_ROUTE: Refusal = (IcmpError::NetUnreachable, DropReason::NoRoute);
const TTL_EXPIRED: Refusal = (IcmpError::TimeExceeded, DropReason::TtlExpired);
const TOO_BIG: Refusal = (IcmpError::TooBig { mtu: POD_MTU }, DropReason::TooBig);

/// A packet that may have to be refused, and what it takes to tell its sender.
struct Refused<'a> {
    snapshot: &'a Snapshot,
    prefix: &'a [u8],
    headers: &'a Headers,
    now: Instant,
}

/// Whether a packet fits the link to its destination.
enum Fit {
    /// As it is, or in the segments its sender asked for.
    Whole,
    /// Only cut, which IPv4 without DF allows.
    InFragments,
    /// Too large, and not to be cut by a router.
    Never,
    /// Segmentation was asked for a packet that has no segments.
    Contradiction,
}

fn fit(headers: &Headers, offload: Offload) -> Fit {
    let Some(gso) = offload.gso else {
        return if headers.packet_len <= POD_MTU {
            Fit::Whole
        } else if headers.dont_fragment || headers.is_ipv6() {
            Fit::Never
        } else {
            Fit::InFragments
        };
    };
    let transport_len = match headers.transport {
        Transport::Tcp { header_len, .. } => u32::from(header_len),
        Transport::Udp { .. } => UDP_HEADER_LEN,
        Transport::Icmp { .. } | Transport::Other | Transport::Absent => return Fit::Contradiction,
    };
    let segment_len = u32::from(headers.transport_offset)
        .saturating_add(transport_len)
        .saturating_add(u32::from(gso.size.get()));
    // A packet shorter than one full segment is itself the only segment.
    if segment_len.min(headers.packet_len) <= POD_MTU {
        Fit::Whole
    } else {
        Fit::Never
    }
}

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER_LEN: u32 = 8;

fn is_forwardable(addr: IpAddr) -> bool {
    misdirected(addr).is_none()
}

/// Why a packet to `addr` is not for a router to forward, whatever the routes say; `None` for
/// ordinary unicast addresses.
fn misdirected(addr: IpAddr) -> Option<DropReason> {
    match addr {
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() => Some(DropReason::Multicast),
        IpAddr::V6(v6) if v6.is_multicast() => Some(DropReason::Multicast),
        IpAddr::V4(v4) if is_bound_to_a_link_v4(v4) => Some(DropReason::NotForwardable),
        IpAddr::V6(v6) if is_bound_to_a_link_v6(v6) => Some(DropReason::NotForwardable),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Loopback 127/8 and "this network" 0/8 (RFC 1122 3.2.1.3), link-local 169.254/16 (RFC 3927 2.7).
fn is_bound_to_a_link_v4(addr: Ipv4Addr) -> bool {
    let [first, ..] = addr.octets();
    first == 0 || addr.is_loopback() || addr.is_link_local()
}

/// Loopback ::1 and unspecified :: (RFC 4291 2.5), link-local fe80::/10 (RFC 4291 2.5.6), and
/// IPv4-mapped ::ffff:0:0/96, which would be IPv4 by a way around all IPv4 checks (RFC 6890 2.2.3).
fn is_bound_to_a_link_v6(addr: Ipv6Addr) -> bool {
    addr.is_loopback()
        || addr.is_unspecified()
        || addr.is_unicast_link_local()
        || addr.to_ipv4_mapped().is_some()
}

fn class(error: IcmpError) -> ErrorClass {
    match error {
        IcmpError::TooBig { .. } => ErrorClass::PathMtu,
        IcmpError::TimeExceeded
        | IcmpError::NetUnreachable
        | IcmpError::HostUnreachable
        | IcmpError::CommunicationProhibited => ErrorClass::Other,
    }
}

#[cfg(test)]
mod tests;
