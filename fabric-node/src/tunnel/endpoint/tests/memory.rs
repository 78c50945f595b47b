//! The memory that many full connections share.

use super::*;
use crate::tunnel::{endpoint::budget::WORKER_QUEUE_BYTES_MAX, queue::STREAM_QUEUE_BYTES_MAX};

/// Peers that never read: more than the memory of all would suffice for.
const PEERS: u32 = 8;
/// A large packet; its record keeps a buffer of its own in use.
const PACKET: usize = 60_000;

/// A node and its peers, which stop once all are connected.
struct Star {
    hub: Endpoint,
    now: Instant,
    sent: u64,
}

impl Star {
    fn new() -> Self {
        let authority = pki::init("test", 1).unwrap();
        let secrets = Secrets::random().unwrap();
        let locals = ["127.0.0.1:0".parse().unwrap()];
        let start = |name: &str, id| endpoint(&authority, name, id, &secrets, &locals);
        let mut hub = start("a", 0);
        let mut now = Instant::now();
        let of_hub = peer("a", &[local(&hub)]);
        let (mut peers, mut known) = (Vec::new(), Vec::new());
        for id in 0..PEERS {
            let name = format!("b{id}");
            let mut other = start(&name, u64::from(id) + 1);
            other.set_peers(std::slice::from_ref(&of_hub), now);
            let mut of_other = peer(&name, &[local(&other)]);
            of_other.target.id = PeerId(id);
            known.push(of_other);
            peers.push(other);
        }
        hub.set_peers(&known, now);
        let deadline = now + Duration::from_secs(1);
        let is_whole = |hub: &Endpoint, peers: &[Endpoint]| {
            let mut reports = hub.reports().into_iter();
            reports.all(|report| report.state == PeerState::Connected)
                && peers.iter().all(is_connected)
        };
        while !is_whole(&hub, &peers) {
            assert!(now < deadline, "{:?}", hub.reports());
            turn(&mut hub, now);
            for other in &mut peers {
                turn(other, now);
            }
            now += STEP;
        }
        let _ = hub.take_accounts();
        Self { hub, now, sent: 0 }
    }

    /// Queues a packet for a peer, large or small.
    fn send(&mut self, to: u32, class: Class) {
        let label = Label {
            port: PortId(1),
            flow: 1,
            class,
        };
        let len = if class == Class::Bulk { PACKET } else { 1000 };
        let pending = Pending {
            record: Bytes::from(vec![0; len]),
            pinned: len,
            account: Some(len as u32),
        };
        let link = self.hub.link(PeerId(to), 1).unwrap();
        match class {
            Class::Bulk => link.send_stream(label, pending, self.now),
            Class::Latency => link.send_datagram(label, pending, self.now),
        }
        self.sent += 1;
    }

    /// Memory of the queue to each peer.
    fn queues(&self) -> Vec<usize> {
        let links = self.hub.links.iter().flatten();
        links.map(|slot| slot.link.queue_bytes()).collect()
    }

    /// Every packet that was queued has had one outcome or waits; the memory is what the queues say.
    fn check_accounts(&mut self) {
        self.hub.transmit(self.now);
        assert_eq!(self.hub.budget.total(), self.queues().iter().sum::<usize>());
        let accounts = self.hub.take_accounts();
        let QueueAccounts {
            handed,
            full,
            managed,
            ..
        } = accounts.queues;
        assert!(full > 0);
        let ended = handed.packets + full + managed + accounts.lost;
        assert_eq!(ended + self.hub.queued(), self.sent);
        self.sent = self.hub.queued();
    }
}

/// However much is sent to however many peers that take nothing, in whatever order, the queues of all of
/// them together never keep more memory than the worker has for them, every packet that finds no room is
/// counted, and no queue is left without: the last one finds as much as is its share.
#[test]
fn full_connections_share_a_bounded_memory() {
    let mut star = Star::new();
    let large = 2 * STREAM_QUEUE_BYTES_MAX / PACKET;
    // One peer after the other, each filled to what it may have, with turns in between.
    for to in 0..PEERS {
        for n in 0..large {
            star.send(to, Class::Bulk);
            assert!(star.queues().iter().sum::<usize>() <= WORKER_QUEUE_BYTES_MAX);
            if n % 50 == 0 {
                star.hub.transmit(star.now);
            }
        }
    }
    let queues = star.queues();
    let total: usize = queues.iter().sum();
    assert!(total > WORKER_QUEUE_BYTES_MAX / 10 * 9, "{queues:?}");
    assert!(queues.iter().all(|bytes| *bytes > PACKET), "{queues:?}");
    star.check_accounts();

    // All at once, large and small: those with too much give way to nobody, but grow no further.
    for n in 0..4000 * PEERS {
        let class = if n % 3 == 0 {
            Class::Bulk
        } else {
            Class::Latency
        };
        star.send(n % PEERS, class);
        if n % 16 == 0 {
            assert!(star.queues().iter().sum::<usize>() <= WORKER_QUEUE_BYTES_MAX);
        }
    }
    star.check_accounts();

    // The memory of connections that end is there for others.
    star.hub.set_peers(&[], star.now);
    assert_eq!(star.hub.budget.total(), 0);
    let accounts = star.hub.take_accounts();
    assert_eq!(accounts.lost, star.sent);
}

/// A connection that is alone is held by nothing but its own bounds.
#[test]
fn a_single_connection_has_all_it_wants() {
    let mut star = Star::new();
    for _ in 0..2 * STREAM_QUEUE_BYTES_MAX / PACKET {
        star.send(0, Class::Bulk);
    }
    let most = star.queues().into_iter().max().unwrap();
    assert!(most <= STREAM_QUEUE_BYTES_MAX && most + 2 * PACKET > STREAM_QUEUE_BYTES_MAX);
    star.check_accounts();
}
