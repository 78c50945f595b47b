//! Who may say to be whom: pods and hosts by address, peers by range.

use super::*;

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
