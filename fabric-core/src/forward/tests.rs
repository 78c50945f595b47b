#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test starts at any moment and counts from there"
)]

mod against_model;
mod answers;
mod draft;
mod sources;
mod through_the_host;

use std::num::NonZeroU16;

use ipnet::IpNet;

use self::draft::{Draft, Kind, gso, read_icmp, ttl_of};
use super::*;
use crate::{
    offload::{Gso, GsoKind},
    packet::Fragment,
    snapshot::SnapshotBuilder,
};

const POD: PortId = PortId(1);
const NEIGHBOUR: PortId = PortId(2);
const PEER: PeerId = PeerId(1);

fn state() -> SnapshotBuilder {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    SnapshotBuilder {
        gateway_v4: Some(Ipv4Addr::new(10, 0, 1, 1)),
        gateway_v6: Some("fd00:1::1".parse().unwrap()),
        local_ranges: vec![net("10.0.1.0/24"), net("fd00:1::/64")],
        host_addresses: vec![ip("192.168.0.1")],
        pods: vec![
            (POD, vec![ip("10.0.1.2"), ip("fd00:1::2")]),
            (NEIGHBOUR, vec![ip("10.0.1.3"), ip("fd00:1::3")]),
        ],
        peers: vec![
            (
                PEER,
                vec![
                    net("10.0.2.0/24"),
                    net("fd00:2::/64"),
                    net("192.168.0.2/32"),
                ],
            ),
            (PeerId(2), vec![net("10.0.3.0/24")]),
        ],
        ..SnapshotBuilder::default()
    }
}

/// One worker at one moment.
struct Node {
    snapshot: Snapshot,
    forwarder: Forwarder,
    now: Instant,
    reply: Vec<u8>,
}

impl Node {
    fn new(state: SnapshotBuilder) -> Self {
        Self {
            snapshot: state.build().unwrap(),
            forwarder: Forwarder::default(),
            now: Instant::now(),
            reply: Vec::new(),
        }
    }

    fn egress_with(&mut self, from: PortId, draft: Draft, offload: Offload) -> Verdict {
        let (mut packet, headers) = draft.make();
        let Self {
            snapshot,
            forwarder,
            now,
            reply,
        } = self;
        reply.clear();
        forwarder.egress(snapshot, from, &mut packet, &headers, offload, *now, reply)
    }

    fn egress(&mut self, from: PortId, draft: Draft) -> Verdict {
        self.egress_with(from, draft, Offload::NONE)
    }

    fn ingress(&mut self, from: PeerId, draft: Draft) -> Verdict {
        let (packet, headers) = draft.make();
        let Self {
            snapshot,
            forwarder,
            now,
            reply,
        } = self;
        reply.clear();
        forwarder.ingress(snapshot, from, &packet, &headers, *now, reply)
    }
}

/// A pod reaches its neighbour, itself, the host, a peer's pods and a peer's host; so does the host.
#[test]
fn packets_go_where_the_routes_say() {
    let mut node = Node::new(state());
    let cases = [
        (POD, "10.0.1.2", "10.0.1.3", Verdict::Deliver(NEIGHBOUR)),
        (POD, "10.0.1.2", "10.0.1.2", Verdict::Deliver(POD)),
        (POD, "10.0.1.2", "10.0.1.1", Verdict::Deliver(PortId::HOST)),
        (
            POD,
            "10.0.1.2",
            "192.168.0.1",
            Verdict::Deliver(PortId::HOST),
        ),
        (POD, "10.0.1.2", "10.0.2.9", Verdict::Send(PEER)),
        (POD, "fd00:1::2", "fd00:2::9", Verdict::Send(PEER)),
        (POD, "fd00:1::2", "fd00:1::3", Verdict::Deliver(NEIGHBOUR)),
        (
            PortId::HOST,
            "10.0.1.1",
            "10.0.1.3",
            Verdict::Deliver(NEIGHBOUR),
        ),
        (
            PortId::HOST,
            "192.168.0.1",
            "192.168.0.2",
            Verdict::Send(PEER),
        ),
    ];
    for (from, source, destination, verdict) in cases {
        let draft = Draft::udp(source, destination);
        assert_eq!(
            node.egress(from, draft),
            verdict,
            "{source} to {destination}"
        );
    }
}
