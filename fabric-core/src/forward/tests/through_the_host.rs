//! Beside a kernel that translates: what goes to the host, and what the host may send for others.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    detour::Detours,
    packet::parse,
    testing::{
        model::outside::{Content, OutsideModel, Talk},
        packets::{Ip, Tcp, icmp, udp},
    },
};

const HOST: PortId = PortId::HOST;
const VIP: &str = "10.96.0.10";
const OTHER_PEER: PeerId = PeerId(2);

fn outside() -> SnapshotBuilder {
    SnapshotBuilder {
        peer_hosts: vec!["192.168.0.2".parse().unwrap()],
        detours: Some(Arc::new(Detours::new([3, 4], Instant::now()))),
        ..state()
    }
}

/// What a pod has no other way for goes to the host, once only: not from a peer, not back from the host.
#[test]
fn what_nobody_has_goes_to_the_host() {
    let mut node = Node::new(outside());
    for (source, destination) in [("10.0.1.2", VIP), ("fd00:1::2", "2001:db8::1")] {
        let sent = node.egress(POD, Draft::udp(source, destination));
        assert_eq!(sent, Verdict::Deliver(HOST), "{destination}");
    }
    assert_eq!(
        node.ingress(PEER, Draft::udp("10.0.2.9", VIP)),
        Verdict::Drop(DropReason::DestinationNotLocal)
    );
    // The kernel has no way for it either and sends it back: the pod is told.
    assert_eq!(
        node.egress(HOST, Draft::udp("10.0.1.2", VIP)),
        Verdict::Answer
    );
    // An address of this node's that no pod has is no reason to ask the host.
    assert_eq!(
        node.egress(POD, Draft::udp("10.0.1.2", "10.0.1.77")),
        Verdict::Answer
    );
}

/// The way of one flow through a Service, there and back, to a pod of another node.
#[test]
fn a_service_answers_by_the_host() {
    let mut node = Node::new(outside());
    let there = Draft::udp("10.0.1.2", "10.0.2.9");
    // The ports of a draft are 7 and 9 in both directions: turned for the reply.
    let reply = |node: &mut Node, from_peer: bool| {
        let ip = Ip::between(
            "10.0.2.9".parse::<IpAddr>().unwrap(),
            "10.0.1.2".parse::<IpAddr>().unwrap(),
        );
        let mut packet = udp(&ip, 9, 7, b"x");
        let headers = parse(&packet, packet.len()).unwrap();
        let Node {
            snapshot,
            forwarder,
            now,
            reply,
        } = node;
        if from_peer {
            forwarder.ingress(snapshot, PEER, &packet, &headers, *now, reply)
        } else {
            forwarder.egress(
                snapshot,
                HOST,
                &mut packet,
                &headers,
                Offload::NONE,
                *now,
                reply,
            )
        }
    };
    assert_eq!(reply(&mut node, true), Verdict::Deliver(POD), "no detour");
    assert_eq!(
        reply(&mut node, false),
        Verdict::Drop(DropReason::SourceNotAllowed),
        "the host may not be a peer's pod"
    );
    assert_eq!(node.egress(HOST, there), Verdict::Send(PEER));
    assert_eq!(reply(&mut node, true), Verdict::Deliver(HOST));
    assert_eq!(
        node.egress(HOST, Draft::udp(VIP, "10.0.1.2")),
        Verdict::Deliver(POD),
        "as the Service's address"
    );
    assert_eq!(
        reply(&mut node, false),
        Verdict::Deliver(POD),
        "untranslated"
    );
}

/// Where the host is not for the outside, it sends for nobody, and what has no route has none.
#[test]
fn without_an_outside_all_is_as_ever() {
    let mut node = Node::new(state());
    assert_eq!(
        node.egress(POD, Draft::udp("10.0.1.2", VIP)),
        Verdict::Answer
    );
    for source in ["10.0.1.3", VIP, "192.168.0.2", "10.0.2.9"] {
        assert_eq!(
            node.egress(HOST, Draft::udp(source, "10.0.1.2")),
            Verdict::Drop(DropReason::SourceNotAllowed),
            "{source}"
        );
    }
}

/// The host sends for others only where a translation leads: never as a pod of another node that it was
/// given nothing from, never for strangers to other nodes, never as an address that no pod has.
#[test]
fn the_host_does_not_speak_for_everybody() {
    let mut node = Node::new(outside());
    for (source, destination) in [
        ("10.0.2.9", "10.0.1.2"),
        ("10.0.2.9", "10.0.3.9"),
        (VIP, "10.0.2.9"),
        (VIP, "192.168.0.1"),
        ("192.168.0.2", "10.0.3.9"),
        ("10.0.1.77", "10.0.1.2"),
        ("10.0.1.2", "192.168.0.1"),
        ("127.0.0.1", "10.0.1.2"),
        ("169.254.1.1", "10.0.1.2"),
        ("224.0.0.1", "10.0.1.2"),
    ] {
        assert_eq!(
            node.egress(HOST, Draft::udp(source, destination)),
            Verdict::Drop(DropReason::SourceNotAllowed),
            "{source} to {destination}"
        );
    }
    // Nor do the others gain by it.
    assert_eq!(
        node.egress(POD, Draft::udp(VIP, "10.0.1.3")),
        Verdict::Drop(DropReason::SourceNotAllowed)
    );
    assert_eq!(
        node.ingress(PEER, Draft::udp(VIP, "10.0.1.2")),
        Verdict::Drop(DropReason::PeerSourceNotAllowed)
    );
}

/// A pod of another node speaks to a NodePort here that keeps its address: the backend sees it, and the
/// answer passes the host.
#[test]
fn a_node_port_keeps_the_address_of_a_pod_elsewhere() {
    let mut node = Node::new(outside());
    let to_backend = Draft::udp("10.0.2.9", "10.0.1.2");
    assert_eq!(
        node.egress(HOST, to_backend),
        Verdict::Drop(DropReason::SourceNotAllowed)
    );
    let to_node = node.ingress(PEER, Draft::udp("10.0.2.9", "192.168.0.1"));
    assert_eq!(to_node, Verdict::Deliver(HOST));
    assert_eq!(node.egress(HOST, to_backend), Verdict::Deliver(POD));
    let ip = Ip::between(
        "10.0.1.2".parse::<IpAddr>().unwrap(),
        "10.0.2.9".parse::<IpAddr>().unwrap(),
    );
    let mut answer = udp(&ip, 9, 7, b"x");
    let headers = parse(&answer, answer.len()).unwrap();
    let verdict = node.forwarder.egress(
        &node.snapshot,
        POD,
        &mut answer,
        &headers,
        Offload::NONE,
        node.now,
        &mut node.reply,
    );
    assert_eq!(verdict, Verdict::Deliver(HOST));
}

const PODS: [&str; 2] = ["10.0.1.2", "10.0.1.3"];
const THERE: [&str; 2] = ["10.0.2.9", "10.0.2.10"];
const EVERYBODY: [&str; 11] = [
    "10.0.1.2",
    "10.0.1.3",
    "10.0.1.1",
    "10.0.1.77",
    "192.168.0.1",
    "10.0.2.9",
    "10.0.2.10",
    "192.168.0.2",
    "10.0.3.9",
    VIP,
    "9.9.9.9",
];

/// What a packet carries, ports aside.
#[derive(Clone, Copy, Debug)]
enum Carries {
    Udp,
    Tcp,
    Ping,
    First,
    Later,
    Error,
    ErrorAboutFragment,
    Redirect,
}

#[derive(Clone, Copy, Debug)]
enum From {
    Port(PortId),
    Peer(PeerId),
}

#[derive(Clone, Debug)]
struct Throw {
    from: From,
    source: IpAddr,
    destination: IpAddr,
    carries: Carries,
    ports: (u16, u16),
    /// What an error is about: destination of the quoted packet, and whether its source is true.
    about: (IpAddr, bool),
}

fn throw() -> impl Strategy<Value = Throw> {
    let anybody = || prop::sample::select(EVERYBODY.as_slice());
    let likely = |few: &'static [&'static str]| prop::sample::select(few);
    let from = prop::sample::select(vec![
        From::Port(HOST),
        From::Port(HOST),
        From::Port(POD),
        From::Port(NEIGHBOUR),
        From::Peer(PEER),
        From::Peer(OTHER_PEER),
    ]);
    let carries = prop::sample::select(vec![
        Carries::Udp,
        Carries::Udp,
        Carries::Tcp,
        Carries::Ping,
        Carries::First,
        Carries::Later,
        Carries::Error,
        Carries::ErrorAboutFragment,
        Carries::Redirect,
    ]);
    let port = || prop::sample::select(vec![7_u16, 9]);
    let addresses = prop_oneof![
        1 => (anybody(), anybody()),
        2 => (likely(&PODS), likely(&THERE)),
        2 => (likely(&THERE), likely(&PODS)),
        1 => (likely(&PODS), likely(&PODS)),
        1 => (likely(&THERE), prop::sample::select(vec!["192.168.0.1"])),
    ];
    let about = (likely(&THERE), prop::bool::weighted(0.9));
    (from, addresses, carries, (port(), port()), about).prop_map(
        |(from, (source, destination), carries, ports, (about, true_source))| {
            let ip = |text: &str| text.parse::<IpAddr>().unwrap();
            // Most senders are who they say they are, or nothing would be tested but that.
            let source = match from {
                From::Port(POD) => "10.0.1.2",
                From::Port(NEIGHBOUR) => "10.0.1.3",
                From::Peer(OTHER_PEER) => "10.0.3.9",
                From::Port(_) | From::Peer(_) => source,
            };
            Throw {
                from,
                source: ip(source),
                destination: ip(destination),
                carries,
                ports,
                about: (ip(about), true_source),
            }
        },
    )
}

impl Throw {
    fn talk(&self, protocol: u8) -> Talk {
        let (from, to) = match protocol {
            1 => (self.ports.0, self.ports.0),
            _ => self.ports,
        };
        (self.source, self.destination, protocol, from, to)
    }

    fn make(&self) -> (Vec<u8>, Content) {
        let ip = Ip::between(self.source, self.destination);
        let (from, to) = self.ports;
        let fragment = |flags_and_offset| Ip {
            flags_and_offset,
            ..ip.clone()
        };
        let quoted_source = match self.about.1 {
            true => self.destination,
            false => "10.0.1.99".parse().unwrap(),
        };
        let quoted = Ip::between(quoted_source, self.about.0);
        let quote = |packet: Vec<u8>| [vec![0; 4], packet].concat();
        match self.carries {
            Carries::Udp => (udp(&ip, from, to, b"x"), Content::Whole(self.talk(17))),
            Carries::Tcp => {
                let tcp = Tcp {
                    source: from,
                    destination: to,
                    ..Tcp::default()
                };
                (tcp.packet(&ip, b"x"), Content::Whole(self.talk(6)))
            }
            Carries::Ping => (
                icmp(&ip, 8, 0, &[&from.to_be_bytes()[..], &[0, 1]].concat()),
                Content::Whole(self.talk(1)),
            ),
            Carries::First => (
                udp(&fragment(0x2000), from, to, &[0; 64]),
                Content::Fragment(Some(self.talk(17))),
            ),
            Carries::Later => (
                fragment(0x0010).packet(17, &[0; 64]),
                Content::Fragment(None),
            ),
            Carries::Error => {
                let talk = (quoted_source, self.about.0, 17, from, to);
                let rest = quote(udp(&quoted, from, to, b"x"));
                (icmp(&ip, 3, 3, &rest), Content::Error(talk))
            }
            Carries::ErrorAboutFragment => {
                let piece = Ip {
                    flags_and_offset: 0x2000,
                    ..quoted
                };
                let rest = quote(udp(&piece, from, to, &[0; 16]));
                (
                    icmp(&ip, 3, 3, &rest),
                    Content::ErrorAboutFragment(quoted_source, self.about.0),
                )
            }
            Carries::Redirect => {
                let rest = quote(udp(&quoted, from, to, b"x"));
                (icmp(&ip, 5, 1, &rest), Content::Redirect)
            }
        }
    }
}

/// Whatever host, pods and peers send, one after the other: each packet has the outcome that the model
/// gives it, which keeps plain sets.
#[test]
fn sequences_agree_with_the_model() {
    let seen: RefCell<BTreeMap<String, u32>> = RefCell::default();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let result = runner.run(&prop::collection::vec(throw(), 1..200), |throws| {
        let state = outside();
        let snapshot = state.clone().build().unwrap();
        let mut model = OutsideModel::new(&state);
        let now = Instant::now();
        for throw in &throws {
            let (mut packet, content) = throw.make();
            let headers = parse(&packet, packet.len()).unwrap();
            let (mut forwarder, mut reply) = (Forwarder::default(), Vec::new());
            let (verdict, expected) = match throw.from {
                From::Port(port) => (
                    forwarder.egress(
                        &snapshot,
                        port,
                        &mut packet,
                        &headers,
                        Offload::NONE,
                        now,
                        &mut reply,
                    ),
                    model.egress(port, &headers, content),
                ),
                From::Peer(peer) => (
                    forwarder.ingress(&snapshot, peer, &packet, &headers, now, &mut reply),
                    model.ingress(peer, &headers, content),
                ),
            };
            prop_assert_eq!(verdict, expected.verdict, "{:?}", throw);
            let to_pod = PODS
                .map(|pod| pod.parse().unwrap())
                .contains(&throw.destination);
            let key = format!("{:?} {:?} {to_pod} {verdict:?}", throw.from, throw.carries);
            *seen.borrow_mut().entry(key).or_default() += 1;
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    // Agreement is not about nothing: replies of every kind were taken to the host.
    let seen = seen.into_inner();
    for carries in [
        "Udp",
        "Tcp",
        "Ping",
        "First",
        "Later",
        "Error",
        "ErrorAboutFragment",
    ] {
        let taken = format!("Peer(PeerId(1)) {carries} true Deliver(PortId(0))");
        assert!(seen.contains_key(&taken), "{carries}: {seen:#?}");
    }
    assert!(seen.contains_key("Port(PortId(0)) Redirect true Drop(Redirect)"));
}
