//! Endpoints on loopback sockets, driven by hand and by a clock of the test's own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod memory;
mod order;
mod queueing;
mod renewal;

use std::time::Duration;

use bytes::Bytes;
use fabric_core::ids::PortId;

use super::*;
use crate::{
    pki,
    tunnel::{
        link::Label,
        membership::PeerTarget,
        queue::{Class, Pending},
        report::EndedLinks,
        transport,
    },
};

const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Steps of the clock while packets are under way.
const STEP: Duration = Duration::from_millis(1);
/// The only peer of each endpoint.
const PEER: PeerId = PeerId(0);

/// Two nodes, `a` dials `b`.
struct Pair {
    authority: pki::Authority,
    secrets: Secrets,
    a: Endpoint,
    b: Endpoint,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let authority = pki::init("test", 1).unwrap();
        let secrets = Secrets::random().unwrap();
        let locals = [
            "127.0.0.1:0".parse().unwrap(),
            "127.0.0.2:0".parse().unwrap(),
        ];
        Self {
            a: endpoint(&authority, "a", 1, &secrets, &locals),
            b: endpoint(&authority, "b", 2, &secrets, &locals),
            authority,
            secrets,
            now: Instant::now(),
        }
    }

    fn connected() -> Self {
        let mut pair = Self::new();
        pair.introduce();
        pair.run_until_connected(Duration::from_secs(1));
        pair
    }

    fn introduce(&mut self) {
        let (of_a, of_b) = (peer("a", &[local(&self.a)]), peer("b", &[local(&self.b)]));
        self.a.set_peers(&[of_b], self.now);
        self.b.set_peers(&[of_a], self.now);
    }

    /// Starts `b` anew on the same port, without a word to anybody.
    fn kill_and_restart_b(&mut self) {
        let address = local(&self.b);
        let elsewhere = "127.0.0.1:0".parse().unwrap();
        drop(std::mem::replace(
            &mut self.b,
            endpoint(&self.authority, "b", 2, &self.secrets, &[elsewhere]),
        ));
        self.b = endpoint(&self.authority, "b", 3, &self.secrets, &[address]);
        let of_a = peer("a", &[local(&self.a)]);
        self.b.set_peers(&[of_a], self.now);
    }

    fn run_until_connected(&mut self, within: Duration) {
        let deadline = self.now + within;
        while !(is_connected(&self.a) && is_connected(&self.b)) {
            assert!(
                self.now < deadline,
                "{:?} {:?}",
                self.a.reports(),
                self.b.reports()
            );
            turn(&mut self.a, self.now);
            turn(&mut self.b, self.now);
            self.now += STEP;
        }
    }
}

fn endpoint(
    authority: &pki::Authority,
    name: &str,
    boot_id: u64,
    secrets: &Secrets,
    locals: &[SocketAddr],
) -> Endpoint {
    let node = NodeId::new(name).unwrap();
    let identity = identity(authority, &node);
    let context = EndpointContext {
        node,
        identity: LiveIdentity::of(identity),
        worker: 0,
        workers: 1,
        boot_id,
        underlay_mtu: 1500,
        settings: TunnelSettings {
            congestion: transport::Congestion::Cubic,
            idle_timeout: IDLE_TIMEOUT,
            keep_alive: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(1),
            offloads: crate::tunnel::socket::WantedOffloads::default(),
        },
        secrets: secrets.clone(),
    };
    Endpoint::bind(context, locals).unwrap()
}

fn identity(authority: &pki::Authority, node: &NodeId) -> NodeIdentity {
    let credentials = pki::issue(authority, node, 1).unwrap();
    load(
        &credentials.ca_pem,
        &credentials.chain_pem,
        &credentials.key_pem,
    )
}

fn load(ca: &str, certificate: &str, key: &str) -> NodeIdentity {
    let dir = tempfile::tempdir().unwrap();
    let texts = [("ca", ca), ("certificate", certificate), ("key", key)];
    let [ca, certificate, key] = texts.map(|(name, text)| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    NodeIdentity::load(&ca, &certificate, &key).unwrap()
}

fn local(endpoint: &Endpoint) -> SocketAddr {
    endpoint.sockets[0].local()
}

fn peer(name: &str, underlay: &[SocketAddr]) -> Peer {
    Peer {
        target: PeerTarget {
            id: PEER,
            node: NodeId::new(name).unwrap(),
            underlay: underlay.to_vec(),
            keys: Vec::new(),
        },
        shared: Arc::default(),
    }
}

fn is_connected(endpoint: &Endpoint) -> bool {
    endpoint.reports()[0].state == PeerState::Connected
}

/// What a worker does with its endpoint in one turn; returns the packets that arrived.
fn turn(endpoint: &mut Endpoint, now: Instant) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    endpoint.receive(now);
    if endpoint.next_timeout().is_some_and(|due| due <= now) {
        endpoint.handle_timeouts(now);
    }
    endpoint.take_records(now, |_, record| {
        if let Received::Datagram { packet, .. } = record {
            packets.push(packet.to_vec());
        }
    });
    endpoint.transmit(now);
    packets
}

/// Lets one endpoint alone see `time` pass.
fn pass(endpoint: &mut Endpoint, now: &mut Instant, time: Duration) {
    let end = *now + time;
    while *now < end {
        turn(endpoint, *now);
        *now = endpoint
            .next_timeout()
            .map_or(end, |due| due.clamp(*now + STEP, end));
    }
    turn(endpoint, *now);
}

fn send(endpoint: &mut Endpoint, packet: &[u8], now: Instant) {
    let link = endpoint.link(PEER, 0).unwrap();
    let label = Label {
        port: PortId(1),
        flow: 0,
        class: Class::Latency,
    };
    let pending = Pending {
        record: Bytes::from([&[0], packet].concat()),
        pinned: 1 + packet.len(),
        account: Some(packet.len() as u32),
    };
    link.send_datagram(label, pending, now);
}

/// A peer that falls silent is given up after the idle timeout, what waits for it is counted as
/// lost, and it is dialled until it answers again.
#[test]
fn a_silent_peer_is_dialled_again() {
    let mut pair = Pair::connected();
    let _ = pair.a.take_accounts();
    let mut sent = 0;
    // Nothing is acknowledged, so sooner or later the queue begins to grow.
    while pair.a.queued() < 3000 {
        for _ in 0..100 {
            send(&mut pair.a, &[0; 1000], pair.now);
            sent += 1;
        }
        pair.a.transmit(pair.now);
    }
    pass(&mut pair.a, &mut pair.now, IDLE_TIMEOUT * 2);
    assert!(!is_connected(&pair.a));
    let accounts = pair.a.take_accounts();
    let QueueAccounts {
        handed,
        full,
        managed,
        ..
    } = accounts.queues;
    assert!(accounts.lost > 0);
    assert_eq!(handed.packets + full + managed + accounts.lost, sent);
    assert_eq!(pair.a.queued(), 0);
    // The other side has slept for as long.
    pair.run_until_connected(Duration::from_secs(5));
    send(&mut pair.a, &[7], pair.now);
    pair.a.transmit(pair.now);
    assert_eq!(turn(&mut pair.b, pair.now), [[7]]);
}

/// What a connection lost, and what was in flight when it ended, is still told when another one has
/// taken its place; without it nobody could say why less arrived than was handed over.
#[test]
fn an_ended_connection_leaves_its_figures() {
    let mut pair = Pair::connected();
    let ended = |endpoint: &Endpoint| endpoint.reports()[0].ended;
    assert_eq!(ended(&pair.a), EndedLinks::default());
    while pair.a.queued() < 3000 {
        for _ in 0..100 {
            send(&mut pair.a, &[0; 1000], pair.now);
        }
        pair.a.transmit(pair.now);
    }
    pass(&mut pair.a, &mut pair.now, IDLE_TIMEOUT * 2);
    let unacknowledged = pair.a.take_accounts().queues.handed.bytes;
    pair.run_until_connected(Duration::from_secs(5));
    let of_a = ended(&pair.a);
    assert_eq!(of_a.connections, 1);
    // All that was handed over and never acknowledged, but for what the engine had not sent.
    let ready = transport::DATAGRAM_SEND_BUFFER_BYTES as u64;
    assert!(unacknowledged > 2 * ready, "{unacknowledged}");
    assert!(
        of_a.in_flight_bytes + ready >= unacknowledged,
        "{of_a:?} of {unacknowledged}"
    );
    // Probes and headers beside it.
    assert!(of_a.in_flight_bytes < 2 * unacknowledged, "{of_a:?}");
}

/// A dialler that slept longer than the idle timeout comes back.
#[test]
fn a_dialler_that_slept_comes_back() {
    let mut pair = Pair::connected();
    pass(&mut pair.b, &mut pair.now, IDLE_TIMEOUT * 2);
    assert!(!is_connected(&pair.b));
    pair.run_until_connected(Duration::from_secs(5));
}

/// A node that was killed and starts again is connected in less than the idle timeout: its first
/// answer to the old connection ends that.
#[test]
fn a_restart_is_noticed_at_once() {
    let mut pair = Pair::connected();
    pair.kill_and_restart_b();
    send(&mut pair.a, &[1], pair.now);
    pair.run_until_connected(Duration::from_secs(2));
}

/// However connections end, nothing of them stays.
#[test]
fn ended_connections_leave_nothing_behind() {
    let mut pair = Pair::connected();
    for _ in 0..5 {
        pair.kill_and_restart_b();
        pair.run_until_connected(IDLE_TIMEOUT * 2);
    }
    for _ in 0..3_000 {
        turn(&mut pair.a, pair.now);
        turn(&mut pair.b, pair.now);
        pair.now += STEP;
    }
    assert_eq!(pair.a.links.iter().flatten().count(), 1);
    assert_eq!(pair.a.engine.open_connections(), 1);
    assert!(pair.a.links.len() <= 3, "{} places", pair.a.links.len());
}

/// An address of a family that this node does not have costs no attempt.
#[test]
fn addresses_of_an_absent_family_are_passed_over() {
    let mut pair = Pair::new();
    let absent = "[2001:db8::1]:7946".parse().unwrap();
    let of_b = peer("b", &[absent, local(&pair.b)]);
    let of_a = peer("a", &[local(&pair.a)]);
    pair.a.set_peers(&[of_b], pair.now);
    pair.b.set_peers(&[of_a], pair.now);
    pair.run_until_connected(Duration::from_millis(500));
}

/// A connection to a node's second address is answered from there.
#[test]
fn every_address_answers_for_itself() {
    let mut pair = Pair::new();
    let second = pair.b.sockets[1].local();
    let of_a = peer("a", &[local(&pair.a)]);
    pair.a.set_peers(&[peer("b", &[second])], pair.now);
    pair.b.set_peers(&[of_a], pair.now);
    pair.run_until_connected(Duration::from_millis(500));
    assert_eq!(pair.a.reports()[0].links[0].remote, second);
}

/// A peer that only the second address of this node gets through to is dialled from there.
#[test]
fn every_address_is_dialled_from() {
    let mut pair = Pair::new();
    let of_b = peer("b", &[local(&pair.b)]);
    let of_a = peer("a", &[pair.a.sockets[1].local()]);
    pair.a.set_peers(&[of_b], pair.now);
    pair.b.set_peers(&[of_a], pair.now);
    pair.run_until_connected(Duration::from_secs(3));
}

/// A peer that cannot be reached at all is tried from time to time, not without end.
#[test]
fn an_unreachable_peer_is_no_busy_loop() {
    let mut pair = Pair::new();
    let absent = "[2001:db8::1]:7946".parse().unwrap();
    pair.a.set_peers(&[peer("b", &[absent])], pair.now);
    for _ in 0..20 {
        turn(&mut pair.a, pair.now);
        assert!(!pair.a.has_more());
        let due = pair.a.next_timeout().unwrap();
        assert!(due > pair.now, "due at once again");
        pair.now = due;
    }
    let report = &pair.a.reports()[0];
    assert!(
        report.last_error.contains("family"),
        "{}",
        report.last_error
    );
}

/// A connected pair without traffic asks for no turn between its signs of life.
#[test]
fn an_idle_pair_sleeps() {
    let mut pair = Pair::connected();
    let end = pair.now + Duration::from_secs(60);
    let mut turns = 0;
    while pair.now < end {
        turn(&mut pair.a, pair.now);
        turn(&mut pair.b, pair.now);
        assert!(!pair.a.has_more() && !pair.b.has_more());
        let due = pair.a.next_timeout().min(pair.b.next_timeout()).unwrap();
        pair.now = due.max(pair.now + STEP);
        turns += 1;
    }
    assert!(is_connected(&pair.a) && is_connected(&pair.b));
    assert!(turns < 60 * 20, "{turns} turns in a minute");
}

/// A stopped node is known to be gone at once, and dialled again.
#[test]
fn a_stop_is_told() {
    let mut pair = Pair::connected();
    pair.b.shut_down(pair.now);
    turn(&mut pair.a, pair.now);
    assert!(!is_connected(&pair.a));
    pair.kill_and_restart_b();
    pair.run_until_connected(Duration::from_secs(2));
}
