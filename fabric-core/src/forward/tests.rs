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

use std::num::NonZeroU16;

use ipnet::IpNet;

use super::*;
use crate::{
    offload::{Gso, GsoKind},
    packet::Fragment,
    snapshot::SnapshotBuilder,
};

/// What a test packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Udp,
    Tcp,
    Ping,
    IcmpError,
    LaterFragment,
}

/// A packet to be made: bytes and headers that agree with each other.
#[derive(Clone, Copy, Debug)]
struct Draft {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    /// Length of the whole packet; raised to what the headers take.
    len: usize,
    dont_fragment: bool,
    kind: Kind,
}

impl Draft {
    fn udp(source: &str, destination: &str) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 64,
            len: 100,
            dont_fragment: true,
            kind: Kind::Udp,
        }
    }

    fn make(self) -> (Vec<u8>, Headers) {
        let ipv6 = self.source.is_ipv6();
        let later = self.kind == Kind::LaterFragment;
        let (protocol, transport, upper): (u8, Transport, Vec<u8>) = match self.kind {
            Kind::Udp | Kind::LaterFragment => {
                let transport = Transport::Udp {
                    source: 7,
                    destination: 9,
                };
                (17, transport, vec![0, 7, 0, 9, 0, 8, 0, 0])
            }
            Kind::Tcp => {
                let (source, destination, header_len, flags) = (7, 9, 20, 0x10);
                let mut upper = vec![0; 20];
                (upper[1], upper[3], upper[12], upper[13]) = (7, 9, 0x50, flags);
                (
                    6,
                    Transport::Tcp {
                        source,
                        destination,
                        header_len,
                        flags,
                    },
                    upper,
                )
            }
            Kind::Ping | Kind::IcmpError => {
                let kind = match (self.kind == Kind::Ping, ipv6) {
                    (true, false) => 8,
                    (true, true) => 128,
                    (false, false) => 3,
                    (false, true) => 1,
                };
                let protocol = if ipv6 { 58 } else { 1 };
                (
                    protocol,
                    Transport::Icmp { kind, code: 0 },
                    vec![kind, 0, 0, 0, 0, 0, 0, 0],
                )
            }
        };
        let mut packet = self.ip_header(protocol, later);
        let transport_offset = packet.len() as u16;
        packet.extend(upper);
        packet.resize(packet.len().max(self.len), 0xa5);
        let len = packet.len();
        match ipv6 {
            true => packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
            false => {
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                let sum = ipv4_checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        let headers = Headers {
            source: self.source,
            destination: self.destination,
            protocol,
            packet_len: len as u32,
            transport_offset,
            ttl: self.ttl,
            traffic_class: 0,
            dont_fragment: ipv6 || self.dont_fragment,
            fragment: if later {
                Fragment::Later
            } else {
                Fragment::Whole
            },
            transport: if later { Transport::Absent } else { transport },
        };
        (packet, headers)
    }

    /// The IP header with lengths and checksum left open; for a later fragment of IPv6 with its
    /// extension header.
    fn ip_header(self, protocol: u8, later: bool) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let flags = u8::from(self.dont_fragment) << 6;
                let offset = if later { 185 } else { 0 };
                let mut header = vec![0x45, 0, 0, 0, 0, 1, flags, offset];
                header.extend([self.ttl, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let next = if later { 44 } else { protocol };
                let mut header = vec![0x60, 0, 0, 0, 0, 0, next, self.ttl];
                header.extend(source.octets());
                header.extend(destination.octets());
                if later {
                    header.extend([protocol, 0, 5, 0xc8, 0, 0, 0, 1]);
                }
                header
            }
            _ => panic!("one packet, one family"),
        }
    }
}

fn ipv4_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn ttl_of(packet: &[u8]) -> u8 {
    packet[if packet[0] >> 4 == 6 { 7 } else { 8 }]
}

/// Source, destination, type and code of an ICMP error packet.
fn read_icmp(reply: &[u8]) -> (IpAddr, IpAddr, (u8, u8)) {
    if reply[0] >> 4 == 4 {
        let addr = |at: usize| {
            let octets: [u8; 4] = reply[at..at + 4].try_into().unwrap();
            IpAddr::from(octets)
        };
        assert_eq!(reply[9], 1, "ICMP");
        let at = usize::from(reply[0] & 0xf) * 4;
        (addr(12), addr(16), (reply[at], reply[at + 1]))
    } else {
        let addr = |at: usize| {
            let octets: [u8; 16] = reply[at..at + 16].try_into().unwrap();
            IpAddr::from(octets)
        };
        assert_eq!(reply[6], 58, "ICMPv6");
        (addr(8), addr(24), (reply[40], reply[41]))
    }
}

fn gso(kind: GsoKind, size: u16) -> Offload {
    Offload {
        needs_checksum: true,
        gso: Some(Gso {
            kind,
            size: NonZeroU16::new(size).unwrap(),
        }),
    }
}

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

/// A pod cannot send as its neighbour, the host, a peer, nobody, or a multicast group.
#[test]
fn a_spoofed_source_goes_nowhere() {
    let mut node = Node::new(state());
    for source in [
        "10.0.1.3",
        "10.0.1.1",
        "10.0.1.77",
        "10.0.2.9",
        "8.8.8.8",
        "0.0.0.0",
        "224.0.0.1",
    ] {
        let verdict = node.egress(POD, Draft::udp(source, "10.0.1.3"));
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::SourceNotAllowed),
            "{source}"
        );
    }
    for source in ["fd00:1::3", "fe80::1", "::", "::1", "::ffff:10.0.1.2"] {
        let verdict = node.egress(POD, Draft::udp(source, "fd00:1::3"));
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::SourceNotAllowed),
            "{source}"
        );
    }
}

/// The source is checked before all else: a spoofed packet is never answered.
#[test]
fn a_spoofed_packet_is_never_answered() {
    let mut node = Node::new(state());
    let draft = Draft {
        ttl: 1,
        ..Draft::udp("10.0.1.3", "9.9.9.9")
    };
    assert_eq!(
        node.egress(POD, draft),
        Verdict::Drop(DropReason::SourceNotAllowed)
    );
    assert!(node.reply.is_empty());
}

/// A source that no router forwards is refused even where the state gives it to somebody.
#[test]
fn ownership_does_not_make_an_address_forwardable() {
    let mut state = state();
    state.host_addresses.push(IpAddr::from([169, 254, 0, 1]));
    state.peers[0].1.push("127.0.0.0/8".parse().unwrap());
    let mut node = Node::new(state);
    let from_host = node.egress(PortId::HOST, Draft::udp("169.254.0.1", "10.0.1.2"));
    assert_eq!(from_host, Verdict::Drop(DropReason::SourceNotAllowed));
    let from_peer = node.ingress(PEER, Draft::udp("127.0.0.1", "10.0.1.2"));
    assert_eq!(from_peer, Verdict::Drop(DropReason::PeerSourceNotAllowed));
}

/// A packet that may go on but has no TTL left is answered by the gateway and stays as it came.
#[test]
fn the_last_ttl_is_answered() {
    let mut node = Node::new(state());
    for (source, destination, gateway, icmp) in [
        ("10.0.1.2", "10.0.2.9", "10.0.1.1", (11, 0)),
        ("fd00:1::2", "fd00:2::9", "fd00:1::1", (3, 0)),
    ] {
        for ttl in [0, 1] {
            let draft = Draft {
                ttl,
                ..Draft::udp(source, destination)
            };
            assert_eq!(node.egress(POD, draft), Verdict::Answer);
            let expected = (gateway.parse().unwrap(), source.parse().unwrap(), icmp);
            assert_eq!(read_icmp(&node.reply), expected);
        }
        let draft = Draft {
            ttl: 2,
            ..Draft::udp(source, destination)
        };
        assert_eq!(node.egress(POD, draft), Verdict::Send(PEER));
    }
}

/// TTL goes down once between a pod and a pod of another node: on the way out, not on the way in.
#[test]
fn ttl_goes_down_once_per_crossing() {
    let mut node = Node::new(state());
    let (mut packet, headers) = Draft::udp("10.0.1.2", "10.0.2.9").make();
    let Node {
        snapshot,
        forwarder,
        now,
        reply,
    } = &mut node;
    forwarder.egress(
        snapshot,
        POD,
        &mut packet,
        &headers,
        Offload::NONE,
        *now,
        reply,
    );
    assert_eq!(ttl_of(&packet), 63);

    let inward = Draft {
        ttl: 1,
        ..Draft::udp("10.0.2.9", "10.0.1.2")
    };
    assert_eq!(node.ingress(PEER, inward), Verdict::Deliver(POD));
    let dead = Draft { ttl: 0, ..inward };
    assert_eq!(
        node.ingress(PEER, dead),
        Verdict::Drop(DropReason::TtlExpired)
    );
}

/// 1500 bytes pass; one more is cut where the sender allows it and else answered with the MTU.
#[test]
fn size_is_never_a_silent_drop() {
    let mut node = Node::new(state());
    let v4 = Draft {
        len: 1500,
        ..Draft::udp("10.0.1.2", "10.0.2.9")
    };
    assert_eq!(node.egress(POD, v4), Verdict::Send(PEER));
    let larger = Draft { len: 1501, ..v4 };
    assert_eq!(node.egress(POD, larger), Verdict::Answer);
    assert_eq!(read_icmp(&node.reply).2, (3, 4));
    assert_eq!(node.reply[26..28], 1500_u16.to_be_bytes());

    let cuttable = Draft {
        dont_fragment: false,
        ..larger
    };
    let to_peer = Verdict::Fragment(NextHop::Peer(PEER));
    assert_eq!(node.egress(POD, cuttable), to_peer);
    let next_door = Draft {
        destination: IpAddr::from([10, 0, 1, 3]),
        ..cuttable
    };
    let to_pod = Verdict::Fragment(NextHop::Local(NEIGHBOUR));
    assert_eq!(node.egress(POD, next_door), to_pod);

    let v6 = Draft {
        len: 1501,
        dont_fragment: false,
        ..Draft::udp("fd00:1::2", "fd00:2::9")
    };
    assert_eq!(node.egress(POD, v6), Verdict::Answer);
    assert_eq!(read_icmp(&node.reply).2, (2, 0));
    assert_eq!(node.reply[44..48], 1500_u32.to_be_bytes());
}

/// A super-packet passes if its segments fit, whatever its own size.
#[test]
fn super_packets_are_measured_by_their_segments() {
    let mut node = Node::new(state());
    let tcp = |source, destination| Draft {
        len: 60_000,
        kind: Kind::Tcp,
        ..Draft::udp(source, destination)
    };
    let v4 = tcp("10.0.1.2", "10.0.2.9");
    let v6 = tcp("fd00:1::2", "fd00:2::9");
    let cases = [
        (v4, GsoKind::Tcp, 1460, Verdict::Send(PEER)),
        (v4, GsoKind::TcpEcn, 1461, Verdict::Answer),
        (v6, GsoKind::Tcp, 1440, Verdict::Send(PEER)),
        (v6, GsoKind::Tcp, 1441, Verdict::Answer),
        (
            Draft {
                kind: Kind::Udp,
                ..v4
            },
            GsoKind::Udp,
            1472,
            Verdict::Send(PEER),
        ),
        (
            Draft {
                kind: Kind::Udp,
                ..v4
            },
            GsoKind::Udp,
            1473,
            Verdict::Answer,
        ),
        (
            Draft { len: 1000, ..v4 },
            GsoKind::Tcp,
            9000,
            Verdict::Send(PEER),
        ),
        (
            Draft {
                dont_fragment: false,
                ..v4
            },
            GsoKind::Tcp,
            1461,
            Verdict::Answer,
        ),
    ];
    for (draft, kind, size, verdict) in cases {
        assert_eq!(
            node.egress_with(POD, draft, gso(kind, size)),
            verdict,
            "{draft:?} {size}"
        );
    }
    let ping = Draft {
        kind: Kind::Ping,
        ..v4
    };
    let contradiction = node.egress_with(POD, ping, gso(GsoKind::Udp, 1000));
    assert_eq!(contradiction, Verdict::Drop(DropReason::BadOffload));
}

/// A peer reaches pods and host of this node, and through it nobody else.
#[test]
fn a_peer_never_reaches_beyond_this_node() {
    let mut node = Node::new(state());
    let cases = [
        ("10.0.1.2", Verdict::Deliver(POD)),
        ("10.0.1.1", Verdict::Deliver(PortId::HOST)),
        ("192.168.0.1", Verdict::Deliver(PortId::HOST)),
        ("10.0.1.77", Verdict::Answer),
        ("10.0.3.9", Verdict::Drop(DropReason::DestinationNotLocal)),
        ("10.0.2.9", Verdict::Drop(DropReason::DestinationNotLocal)),
        ("9.9.9.9", Verdict::Drop(DropReason::DestinationNotLocal)),
        ("239.1.1.1", Verdict::Drop(DropReason::Multicast)),
        ("255.255.255.255", Verdict::Drop(DropReason::Multicast)),
        ("127.0.0.1", Verdict::Drop(DropReason::NotForwardable)),
    ];
    for (destination, verdict) in cases {
        let draft = Draft::udp("10.0.2.9", destination);
        assert_eq!(node.ingress(PEER, draft), verdict, "{destination}");
    }
}

/// A peer speaks for its own ranges: not for another peer, nor for this node, nor for strangers.
#[test]
fn a_peer_speaks_for_itself() {
    let mut node = Node::new(state());
    for source in [
        "10.0.3.9",
        "10.0.1.2",
        "10.0.1.1",
        "192.168.0.1",
        "8.8.8.8",
        "127.0.0.1",
    ] {
        let verdict = node.ingress(PEER, Draft::udp(source, "10.0.1.2"));
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::PeerSourceNotAllowed),
            "{source}"
        );
    }
    let unknown = node.ingress(PeerId(99), Draft::udp("10.0.2.9", "10.0.1.2"));
    assert_eq!(unknown, Verdict::Drop(DropReason::PeerSourceNotAllowed));
}

/// Without a gateway address in the packet's family there is no answer, and the drop says why.
#[test]
fn without_a_gateway_the_reason_is_counted() {
    let mut state = state();
    state.gateway_v4 = None;
    let mut node = Node::new(state);
    let base = Draft::udp("10.0.1.2", "10.0.2.9");
    let to = |addr: [u8; 4]| Draft {
        destination: IpAddr::from(addr),
        ..base
    };
    let cases = [
        (to([9, 9, 9, 9]), DropReason::NoRoute),
        (to([10, 0, 1, 77]), DropReason::NoSuchPod),
        (Draft { ttl: 1, ..base }, DropReason::TtlExpired),
        (Draft { len: 1501, ..base }, DropReason::TooBig),
    ];
    for (draft, reason) in cases {
        assert_eq!(node.egress(POD, draft), Verdict::Drop(reason));
        assert!(node.reply.is_empty());
    }
}

/// A flood of packets that deserve an error gets ten answers, the rest are counted by their reason,
/// path MTU errors still go out, and a second later there are ten more.
#[test]
fn answers_are_limited_and_path_mtu_is_not_starved() {
    let mut node = Node::new(state());
    let nowhere = Draft::udp("10.0.1.2", "9.9.9.9");
    for number in 0..1000 {
        let expected = match number {
            0..10 => Verdict::Answer,
            _ => Verdict::Drop(DropReason::NoRoute),
        };
        assert_eq!(node.egress(POD, nowhere), expected, "{number}");
    }
    let too_big = Draft {
        len: 1501,
        ..Draft::udp("10.0.1.2", "10.0.2.9")
    };
    assert_eq!(node.egress(POD, too_big), Verdict::Answer);
    let neighbour = Draft::udp("10.0.1.3", "9.9.9.9");
    assert_eq!(node.egress(NEIGHBOUR, neighbour), Verdict::Answer);

    node.now += std::time::Duration::from_secs(1);
    let answers = (0..1000).filter(|_| node.egress(POD, nowhere) == Verdict::Answer);
    assert_eq!(answers.count(), 10);
}
