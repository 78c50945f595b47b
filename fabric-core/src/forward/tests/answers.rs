//! What is answered, and when it is not: TTL, size, gateways, rates.

use super::*;

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
