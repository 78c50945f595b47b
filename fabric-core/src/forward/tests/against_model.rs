//! Random fabrics, random packets: the forwarder decides what the naive model decides.

use std::{cell::RefCell, collections::BTreeSet};

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

use super::*;
use crate::testing::model::Model;

/// One node of a random fabric; number 0 is this node.
#[derive(Clone, Debug)]
struct Shape {
    v4_len: Option<u8>,
    v6_len: Option<u8>,
    has_gateway: bool,
    has_extra_range: bool,
    pods: u8,
}

fn shape() -> impl Strategy<Value = Shape> {
    let v4_len = prop::option::weighted(0.9, 20..=30_u8);
    let v6_len = prop::option::weighted(0.9, 48..=126_u8);
    (
        v4_len,
        v6_len,
        prop::bool::weighted(0.9),
        any::<bool>(),
        0..5_u8,
    )
        .prop_map(
            |(v4_len, v6_len, has_gateway, has_extra_range, pods)| Shape {
                v4_len,
                v6_len,
                has_gateway,
                has_extra_range,
                pods,
            },
        )
}

/// Every claim of node `number`: ranges, host addresses, and its pods with one address per family.
struct Claims {
    ranges: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    hosts: Vec<IpAddr>,
    pods: Vec<Vec<IpAddr>>,
}

fn claims(number: u8, shape: &Shape) -> Claims {
    let v4 = |low: u8| IpAddr::from([10, number, 0, low]);
    let v6 = |low: u8| IpAddr::from([0xfd00, number.into(), 0, 0, 0, 0, 0, low.into()]);
    let mut ranges = Vec::new();
    let mut families: Vec<&dyn Fn(u8) -> IpAddr> = Vec::new();
    if let Some(len) = shape.v4_len {
        ranges.push(IpNet::new(v4(0), len).unwrap());
        families.push(&v4);
    }
    if let Some(len) = shape.v6_len {
        ranges.push(IpNet::new(v6(0), len).unwrap());
        families.push(&v6);
    }
    let inside = |addr: &IpAddr, ranges: &[IpNet]| ranges.iter().any(|net| net.contains(addr));
    let pods = (2..2 + shape.pods)
        .map(|low| families.iter().map(move |family| family(low)))
        .map(|addrs| addrs.filter(|addr| inside(addr, &ranges)).collect())
        .collect();
    let gateways = families.iter().map(|family| family(1)).collect();
    if shape.has_extra_range {
        ranges.push(IpNet::new(IpAddr::from([172, 16, number, 0]), 24).unwrap());
    }
    Claims {
        ranges,
        gateways,
        hosts: vec![
            IpAddr::from([192, 168, 0, 1 + number]),
            IpAddr::from([0xfdff, 0, 0, 0, 0, 0, 0, 1 + u16::from(number)]),
        ],
        pods,
    }
}

/// The state of node 0, and for each sender the addresses it truly has.
struct Fabric {
    state: SnapshotBuilder,
    ports: Vec<(PortId, Vec<IpAddr>)>,
    peers: Vec<(PeerId, Vec<IpAddr>)>,
    addresses: Vec<IpAddr>,
}

fn fabric(shapes: &[Shape]) -> Fabric {
    let mut state = SnapshotBuilder::default();
    let (mut ports, mut peers) = (Vec::new(), vec![(PeerId(99), Vec::new())]);
    let mut addresses = strangers();
    for (number, shape) in (0..).zip(shapes) {
        let Claims {
            ranges,
            gateways,
            mut hosts,
            pods,
        } = claims(number, shape);
        if number == 0 && shape.has_gateway {
            for gateway in &gateways {
                match *gateway {
                    IpAddr::V4(v4) => state.gateway_v4 = Some(v4),
                    IpAddr::V6(v6) => state.gateway_v6 = Some(v6),
                }
            }
        }
        hosts.extend(gateways);
        addresses.extend(
            ranges
                .iter()
                .flat_map(|net| [net.network(), net.broadcast()]),
        );
        addresses.extend(hosts.iter().chain(pods.iter().flatten()));
        if number == 0 {
            ports = (1..).map(PortId).zip(pods).collect();
            state.pods = ports.clone();
            state.local_ranges = ranges;
            ports.push((PortId::HOST, hosts.clone()));
            state.host_addresses = hosts;
            ports.push((PortId(99), Vec::new()));
        } else {
            let peer = PeerId(u32::from(number));
            let mut owned = ranges;
            peers.push((
                peer,
                pods.into_iter()
                    .flatten()
                    .chain(hosts.iter().copied())
                    .collect(),
            ));
            owned.extend(hosts.into_iter().map(IpNet::from));
            state.peers.push((peer, owned));
        }
    }
    Fabric {
        state,
        ports,
        peers,
        addresses,
    }
}

fn strangers() -> Vec<IpAddr> {
    [
        "9.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "10.99.0.1",
        "2001:db8::1",
        "::",
        "::1",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "::ffff:10.0.0.2",
        "fd00:99::1",
    ]
    .map(|text| text.parse().unwrap())
    .to_vec()
}

/// A packet by indices into whatever fabric it meets.
#[derive(Clone, Debug)]
struct Throw {
    from: Index,
    honest: bool,
    source: Index,
    destination: Index,
    ttl: u8,
    len: usize,
    dont_fragment: bool,
    kind: Kind,
    gso_size: Option<u16>,
}

fn throw() -> impl Strategy<Value = Throw> {
    let ttl = prop_oneof![Just(64_u8), 0..4_u8, any::<u8>()];
    let len = prop_oneof![0..1500_usize, 1490..1510_usize, 1500..9000_usize];
    let kind = prop::sample::select(vec![
        Kind::Udp,
        Kind::Tcp,
        Kind::Ping,
        Kind::IcmpError,
        Kind::LaterFragment,
    ]);
    let gso_size = prop::option::weighted(0.3, prop_oneof![1..3000_u16, 1420..1480_u16]);
    let who = (
        any::<Index>(),
        prop::bool::weighted(0.8),
        any::<Index>(),
        any::<Index>(),
    );
    (who, ttl, len, any::<bool>(), kind, gso_size).prop_map(
        |((from, honest, source, destination), ttl, len, dont_fragment, kind, gso_size)| Throw {
            from,
            honest,
            source,
            destination,
            ttl,
            len,
            dont_fragment,
            kind,
            gso_size,
        },
    )
}

impl Throw {
    /// Picks sender and addresses; the destination is in the family of the source.
    fn aim<S: Copy>(&self, senders: &[(S, Vec<IpAddr>)], all: &[IpAddr]) -> (S, Draft) {
        let (from, own) = self.from.get(senders);
        let source = if self.honest && !own.is_empty() {
            *self.source.get(own)
        } else {
            *self.source.get(all)
        };
        let same_family: Vec<_> = all
            .iter()
            .filter(|addr| addr.is_ipv4() == source.is_ipv4())
            .collect();
        let draft = Draft {
            source,
            destination: **self.destination.get(&same_family),
            ttl: self.ttl,
            len: self.len,
            dont_fragment: self.dont_fragment,
            kind: self.kind,
        };
        (*from, draft)
    }

    fn offload(&self) -> Offload {
        let kind = match self.kind {
            Kind::Tcp => GsoKind::Tcp,
            Kind::Udp | Kind::Ping | Kind::IcmpError | Kind::LaterFragment => GsoKind::Udp,
        };
        self.gso_size.map_or(Offload::NONE, |size| gso(kind, size))
    }
}

type Case = (Vec<Shape>, Vec<Throw>);

fn cases() -> impl Strategy<Value = Case> {
    let shapes = prop::collection::vec(shape(), 1..5);
    (shapes, prop::collection::vec(throw(), 1..80))
}

/// Runs many cases and demands that exactly the outcomes listed were seen, so that agreement is never
/// agreement about nothing. These cases are the same in every run: what luck must bring about would
/// fail on a bad day. Then others, which differ from run to run, must agree as well.
fn run(
    check: impl Fn(&Case, &mut dyn FnMut(Verdict)) -> Result<(), TestCaseError>,
    outcomes: &[&str],
) {
    let same = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = ProptestConfig::with_cases(400);
    let seen = outcomes_of(TestRunner::new_with_rng(config, same), &check);
    let expected: BTreeSet<_> = outcomes.iter().copied().collect();
    assert_eq!(seen, expected);
    outcomes_of(TestRunner::new(ProptestConfig::with_cases(200)), &check);
}

/// The names of all outcomes of the cases of `runner`, all of which must pass.
fn outcomes_of(
    mut runner: TestRunner,
    check: &impl Fn(&Case, &mut dyn FnMut(Verdict)) -> Result<(), TestCaseError>,
) -> BTreeSet<&'static str> {
    let seen = RefCell::new(BTreeSet::new());
    let result = runner.run(&cases(), |case| {
        check(&case, &mut |verdict| {
            let name = match verdict {
                Verdict::Deliver(_) => "DELIVER",
                Verdict::Send(_) => "SEND",
                Verdict::Fragment(_) => "FRAGMENT",
                Verdict::Answer => "ANSWER",
                Verdict::Drop(reason) => reason.name(),
            };
            seen.borrow_mut().insert(name);
        })
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    seen.into_inner()
}

/// The answer is due, comes from the gateway, goes to the source, and says what the model says.
fn check_reply(
    state: &SnapshotBuilder,
    headers: &Headers,
    icmp: Option<(u8, u8)>,
    reply: &[u8],
) -> Result<(), TestCaseError> {
    let Some(icmp) = icmp else {
        prop_assert!(reply.is_empty(), "a reply without an answer");
        return Ok(());
    };
    let gateway = match headers.source {
        IpAddr::V4(_) => state.gateway_v4.map(IpAddr::V4),
        IpAddr::V6(_) => state.gateway_v6.map(IpAddr::V6),
    };
    prop_assert_eq!(read_icmp(reply), (gateway.unwrap(), headers.source, icmp));
    Ok(())
}

/// Every packet a port sends has the outcome the model gives it; what goes on has a source of that
/// very port and one less TTL, what does not go on is left as it came.
#[test]
fn egress_agrees_with_the_model() {
    let check = |(shapes, throws): &Case, seen: &mut dyn FnMut(Verdict)| {
        let fabric = fabric(shapes);
        let snapshot = fabric.state.clone().build().unwrap();
        let model = Model::new(&fabric.state);
        for throw in throws {
            let (from, draft) = throw.aim(&fabric.ports, &fabric.addresses);
            let (original, headers) = draft.make();
            let (mut packet, mut reply) = (original.clone(), Vec::new());
            let verdict = Forwarder::default().egress(
                &snapshot,
                from,
                &mut packet,
                &headers,
                throw.offload(),
                Instant::now(),
                &mut reply,
            );
            seen(verdict);
            let expected = model.egress(from, &headers, throw.offload());
            prop_assert_eq!(verdict, expected.verdict, "{:?} from {:?}", draft, from);
            check_reply(&fabric.state, &headers, expected.icmp, &reply)?;

            match verdict {
                Verdict::Answer | Verdict::Drop(_) => prop_assert_eq!(packet, original),
                Verdict::Deliver(_) | Verdict::Send(_) | Verdict::Fragment(_) => {
                    prop_assert_eq!(ttl_of(&packet), ttl_of(&original) - 1);
                    let own = fabric.ports.iter().find(|(port, _)| *port == from);
                    prop_assert!(own.unwrap().1.contains(&headers.source));
                }
            }
        }
        Ok(())
    };
    run(
        check,
        &[
            "DELIVER",
            "SEND",
            "FRAGMENT",
            "ANSWER",
            "SOURCE_NOT_ALLOWED",
            "MULTICAST",
            "NOT_FORWARDABLE",
            "NO_ROUTE",
            "NO_SUCH_POD",
            "TTL_EXPIRED",
            "TOO_BIG",
            "BAD_OFFLOAD",
        ],
    );
}

/// Every packet a peer sends has the outcome the model gives it; it is delivered here or nowhere, and
/// only from the ranges of that peer.
#[test]
fn ingress_agrees_with_the_model() {
    let check = |(shapes, throws): &Case, seen: &mut dyn FnMut(Verdict)| {
        let fabric = fabric(shapes);
        let snapshot = fabric.state.clone().build().unwrap();
        let model = Model::new(&fabric.state);
        for throw in throws {
            let (from, draft) = throw.aim(&fabric.peers, &fabric.addresses);
            let (packet, headers) = draft.make();
            let mut reply = Vec::new();
            let verdict = Forwarder::default().ingress(
                &snapshot,
                from,
                &packet,
                &headers,
                Instant::now(),
                &mut reply,
            );
            seen(verdict);
            let expected = model.ingress(from, &headers);
            prop_assert_eq!(verdict, expected.verdict, "{:?} from {:?}", draft, from);
            check_reply(&fabric.state, &headers, expected.icmp, &reply)?;

            prop_assert!(!matches!(verdict, Verdict::Send(_) | Verdict::Fragment(_)));
            if matches!(verdict, Verdict::Deliver(_) | Verdict::Answer) {
                let owned = fabric.state.peers.iter().find(|(peer, _)| *peer == from);
                let ranges = &owned.unwrap().1;
                prop_assert!(ranges.iter().any(|net| net.contains(&headers.source)));
            }
        }
        Ok(())
    };
    run(
        check,
        &[
            "DELIVER",
            "ANSWER",
            "PEER_SOURCE_NOT_ALLOWED",
            "DESTINATION_NOT_LOCAL",
            "MULTICAST",
            "NOT_FORWARDABLE",
            "NO_SUCH_POD",
            "TTL_EXPIRED",
        ],
    );
}
