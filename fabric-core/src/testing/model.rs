//! The fabric as a few lists and loops: what [`crate::forward`] must decide, written down a second
//! time in the plainest way, with none of its code.
//!
//! In: what a snapshot is built from, and a packet's headers. Out: the verdict, and the type and code
//! of the ICMP error where there is one. Rate limits are not modelled: every error that is due is
//! sent. Slow on purpose; for tests only.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "numbers are checked by the tests that use them"
)]

pub mod outside;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    ids::{PeerId, PortId},
    offload::Offload,
    packet::{Fragment, Headers, Transport},
    snapshot::SnapshotBuilder,
    verdict::{DropReason, NextHop, Verdict},
};

/// What must become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The outcome.
    pub verdict: Verdict,
    /// ICMP or ICMPv6 type and code of the answer, in the family of the packet.
    pub icmp: Option<(u8, u8)>,
}

/// To whom an address belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod of this node, by its port.
    Pod(PortId),
    /// This node's host.
    Host,
    /// In a range of this node, but no pod has it.
    NobodyHere,
    /// A peer node.
    Peer(PeerId),
    /// Nobody in the fabric.
    Stranger,
}

/// The reference fabric.
#[derive(Clone, Debug)]
pub struct Model {
    state: SnapshotBuilder,
}

impl Model {
    /// The model of a state that passes the checks of [`SnapshotBuilder::build`].
    #[must_use]
    pub fn new(state: &SnapshotBuilder) -> Self {
        Self {
            state: state.clone(),
        }
    }

    /// To whom `addr` belongs.
    #[must_use]
    pub fn owner(&self, addr: IpAddr) -> Owner {
        for (port, addrs) in &self.state.pods {
            if addrs.contains(&addr) {
                return Owner::Pod(*port);
            }
        }
        if self.state.host_addresses.contains(&addr) || self.gateway(addr) == Some(addr) {
            return Owner::Host;
        }
        for (peer, nets) in &self.state.peers {
            if nets.iter().any(|net| covers(net, addr)) {
                return Owner::Peer(*peer);
            }
        }
        if self.state.local_ranges.iter().any(|net| covers(net, addr)) {
            return Owner::NobodyHere;
        }
        Owner::Stranger
    }

    /// What must become of a packet that port `from` sends.
    #[must_use]
    pub fn egress(&self, from: PortId, headers: &Headers, offload: Offload) -> Expected {
        let sender = match self.owner(headers.source) {
            Owner::Pod(port) => Some(port),
            Owner::Host => Some(PortId::HOST),
            Owner::NobodyHere | Owner::Peer(_) | Owner::Stranger => None,
        };
        if sender != Some(from) || special(headers.source).is_some() {
            return dropped(DropReason::SourceNotAllowed);
        }
        if let Some(reason) = special(headers.destination) {
            return dropped(reason);
        }
        let (whole, hop) = match self.owner(headers.destination) {
            Owner::Pod(port) => (Verdict::Deliver(port), NextHop::Local(port)),
            Owner::Host => (Verdict::Deliver(PortId::HOST), NextHop::Local(PortId::HOST)),
            Owner::Peer(peer) => (Verdict::Send(peer), NextHop::Peer(peer)),
            Owner::NobodyHere => return self.error(headers, (3, 1), (1, 3), DropReason::NoSuchPod),
            Owner::Stranger => return self.error(headers, (3, 0), (1, 0), DropReason::NoRoute),
        };
        if headers.ttl < 2 {
            return self.error(headers, (11, 0), (3, 0), DropReason::TtlExpired);
        }
        let Some(largest) = largest_on_the_wire(headers, offload) else {
            return dropped(DropReason::BadOffload);
        };
        if largest > 1500 {
            let cuttable = headers.source.is_ipv4() && !headers.dont_fragment;
            if cuttable && offload.gso.is_none() {
                return outcome(Verdict::Fragment(hop));
            }
            return self.error(headers, (3, 4), (2, 0), DropReason::TooBig);
        }
        outcome(whole)
    }

    /// What must become of a packet that peer `from` sends to this node.
    #[must_use]
    pub fn ingress(&self, from: PeerId, headers: &Headers) -> Expected {
        let owned = self.owner(headers.source) == Owner::Peer(from);
        if !owned || special(headers.source).is_some() {
            return dropped(DropReason::PeerSourceNotAllowed);
        }
        if let Some(reason) = special(headers.destination) {
            return dropped(reason);
        }
        let port = match self.owner(headers.destination) {
            Owner::Pod(port) => port,
            Owner::Host => PortId::HOST,
            Owner::NobodyHere => return self.error(headers, (3, 1), (1, 3), DropReason::NoSuchPod),
            Owner::Peer(_) | Owner::Stranger => return dropped(DropReason::DestinationNotLocal),
        };
        if headers.ttl == 0 {
            return dropped(DropReason::TtlExpired);
        }
        outcome(Verdict::Deliver(port))
    }

    fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        if like.is_ipv4() {
            self.state.gateway_v4.map(IpAddr::V4)
        } else {
            self.state.gateway_v6.map(IpAddr::V6)
        }
    }

    /// An ICMP error if one may be sent about this packet (RFC 1122 3.2.2, RFC 4443 2.4e) and the
    /// gateway has an address to send it from; else a drop.
    fn error(&self, headers: &Headers, v4: (u8, u8), v6: (u8, u8), reason: DropReason) -> Expected {
        let is_v4 = headers.source.is_ipv4();
        let about_error = match headers.transport {
            Transport::Icmp { kind, .. } if is_v4 => [3, 4, 5, 11, 12].contains(&kind),
            Transport::Icmp { kind, .. } => kind < 128,
            Transport::Tcp { .. } | Transport::Udp { .. } => false,
            Transport::Other | Transport::Absent => false,
        };
        let unanswerable = about_error || headers.fragment == Fragment::Later;
        if unanswerable || self.gateway(headers.source).is_none() {
            return dropped(reason);
        }
        Expected {
            verdict: Verdict::Answer,
            icmp: Some(if is_v4 { v4 } else { v6 }),
        }
    }
}

fn outcome(verdict: Verdict) -> Expected {
    Expected {
        verdict,
        icmp: None,
    }
}

fn dropped(reason: DropReason) -> Expected {
    outcome(Verdict::Drop(reason))
}

/// Whether the first bits of `addr` are those of `net`.
fn covers(net: &IpNet, addr: IpAddr) -> bool {
    let ((width, one), (other_width, other)) = (bits(net.addr()), bits(addr));
    let host_bits = width - u32::from(net.prefix_len());
    width == other_width && (one ^ other).checked_shr(host_bits).unwrap_or(0) == 0
}

fn bits(addr: IpAddr) -> (u32, u128) {
    match addr {
        IpAddr::V4(v4) => (32, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (128, u128::from(v6)),
    }
}

/// Ranges that no router forwards to or from, with the reason to drop.
fn special(addr: IpAddr) -> Option<DropReason> {
    const SPECIAL: [(&str, DropReason); 10] = [
        ("224.0.0.0/4", DropReason::Multicast),
        ("255.255.255.255/32", DropReason::Multicast),
        ("0.0.0.0/8", DropReason::NotForwardable),
        ("127.0.0.0/8", DropReason::NotForwardable),
        ("169.254.0.0/16", DropReason::NotForwardable),
        ("ff00::/8", DropReason::Multicast),
        ("::/128", DropReason::NotForwardable),
        ("::1/128", DropReason::NotForwardable),
        ("fe80::/10", DropReason::NotForwardable),
        ("::ffff:0:0/96", DropReason::NotForwardable),
    ];
    SPECIAL.into_iter().find_map(|(net, reason)| {
        let net: IpNet = net.parse().ok()?;
        covers(&net, addr).then_some(reason)
    })
}

/// The largest packet that would leave on a wire, found by cutting; `None` if segments are asked of a
/// packet without any.
fn largest_on_the_wire(headers: &Headers, offload: Offload) -> Option<u32> {
    let Some(gso) = offload.gso else {
        return Some(headers.packet_len);
    };
    let transport_len = match headers.transport {
        Transport::Tcp { header_len, .. } => u32::from(header_len),
        Transport::Udp { .. } => 8,
        Transport::Icmp { .. } | Transport::Other | Transport::Absent => return None,
    };
    let headers_len = u32::from(headers.transport_offset) + transport_len;
    let mut left = headers.packet_len.saturating_sub(headers_len);
    let mut largest = headers_len;
    while left > 0 {
        let segment = left.min(u32::from(gso.size.get()));
        largest = largest.max(headers_len + segment);
        left -= segment;
    }
    Some(largest)
}
