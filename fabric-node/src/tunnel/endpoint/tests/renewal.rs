//! Connections that take the place of others, and connections that must end.

use std::cell::Cell;

use super::{
    order::{Arrived, LARGE, MIXED, SMALL, Sender},
    *,
};
use crate::pki::{LiveIdentity, key::KeyHash};

const DAY_MS: i64 = 24 * 3_600_000;
/// What is under way has come after this.
const SETTLE: Duration = Duration::from_millis(50);

thread_local! {
    /// How far the system's clock is ahead of the real one, as the endpoints of this test see it (ms).
    static AHEAD_MS: Cell<i64> = const { Cell::new(0) };
    /// A time of the test's clock, and what the real one said then (ms since 1970).
    static BEGUN: Cell<Option<(Instant, i64)>> = const { Cell::new(None) };
}

fn wall_ms(now: Instant) -> i64 {
    let (begun, wall_ms) = BEGUN.get().unwrap();
    let passed = now.saturating_duration_since(begun);
    wall_ms + i64::try_from(passed.as_millis()).unwrap() + AHEAD_MS.get()
}

impl Pair {
    fn with_clock() -> Self {
        let mut pair = Self::connected();
        BEGUN.set(Some((pair.now, unix_millis(pair.now))));
        pair.a.wall_ms = wall_ms;
        pair.b.wall_ms = wall_ms;
        pair
    }

    /// Lets both run for `time` with a packet each way in every step, and then until these have come.
    /// Every one must have come, once and in order.
    fn run_under_traffic(&mut self, time: Duration, what: &str) {
        let end = self.now + time;
        let mut arrived = [Vec::new(), Vec::new()];
        let mut number = 0_u32;
        while self.now < end + SETTLE {
            if self.now < end {
                for endpoint in [&mut self.a, &mut self.b] {
                    assert!(is_connected(endpoint), "{what}: {:?}", endpoint.reports());
                    send(endpoint, &number.to_be_bytes(), self.now);
                }
                number += 1;
            }
            for (endpoint, arrived) in [&mut self.a, &mut self.b].into_iter().zip(&mut arrived) {
                let packets = turn(endpoint, self.now);
                let number = |packet: Vec<u8>| u32::from_be_bytes(packet.try_into().unwrap());
                arrived.extend(packets.into_iter().map(number));
            }
            self.now += STEP;
        }
        for arrived in arrived {
            let missing = (0..number)
                .filter(|number| !arrived.contains(number))
                .count();
            assert_eq!(missing, 0, "{what}: of {number}");
            assert_eq!(arrived.len() as u32, number, "{what}: some came twice");
            assert!(arrived.is_sorted(), "{what}: some were overtaken");
        }
    }

    fn replace_identity(&self, of_b: bool) -> KeyHash {
        let live = self.live(of_b);
        let name = live.current().node_id().clone();
        live.replace(identity(&self.authority, &name)).unwrap();
        live.current().key()
    }

    fn live(&self, of_b: bool) -> &LiveIdentity {
        let endpoint = if of_b { &self.b } else { &self.a };
        &endpoint.context.identity
    }

    /// What `of` knows of its peer from now on, with these keys.
    fn pin(&mut self, on_a: bool, keys: &[KeyHash]) {
        let (name, at) = if on_a {
            ("b", local(&self.b))
        } else {
            ("a", local(&self.a))
        };
        let mut known = peer(name, &[at]);
        known.target.keys = keys.to_vec();
        let endpoint = if on_a { &mut self.a } else { &mut self.b };
        endpoint.set_peers(&[known], self.now);
    }
}

/// The key that the other side of the one connection showed.
fn shown(endpoint: &Endpoint) -> KeyHash {
    let entry = endpoint.peers.values().next().unwrap();
    let [index] = entry.live[..] else {
        panic!("{} connections", entry.live.len())
    };
    let slot = endpoint.links[index].as_deref().unwrap();
    slot.terms.as_ref().unwrap().key
}

/// A new identity of the side that dials is in use at once: another connection takes over, and no packet
/// is lost, sent twice or overtaken, either way. What it replaced is gone soon.
#[test]
fn a_new_identity_takes_over_without_loss() {
    let mut pair = Pair::with_clock();
    let before = shown(&pair.b);
    let key = pair.replace_identity(false);
    pair.a.dial(pair.now);
    pair.run_under_traffic(
        Duration::from_secs(3),
        "while a connection replaced another",
    );
    assert_eq!(shown(&pair.b), key);
    assert_ne!(key, before);
    for endpoint in [&pair.a, &pair.b] {
        let report = &endpoint.reports()[0];
        assert_eq!((report.links.len(), report.ended.connections), (1, 1));
        let slots = endpoint.links.iter().flatten();
        let carrying = slots.filter(|slot| slot.stage != Stage::Closing).count();
        assert_eq!(carrying, 1);
    }
    let accounts = [pair.a.take_accounts(), pair.b.take_accounts()];
    assert!(accounts.iter().all(|accounts| accounts.lost == 0));
}

/// Beside a load on streams that fills the windows, connections that replace each other lose no packet of
/// any size, and none arrives twice or in pieces.
#[test]
fn a_takeover_amid_records_loses_none() {
    let mut pair = Pair::with_clock();
    let (mut sender, mut arrived) = (Sender::new(), Arrived::default());
    let mut sent = 0;
    for round in 0..3_000_usize {
        if round % 500 == 250 {
            pair.replace_identity(false);
            pair.a.dial(pair.now);
        }
        if pair.a.queued() < 10 {
            (0..4).for_each(|_| queueing::send_large(&mut pair.a, pair.now));
        }
        sender.send(&mut pair.a, MIXED, [64, 1472, 1350][round % 3], pair.now);
        sender.send(&mut pair.a, SMALL, 64, pair.now);
        sender.send(&mut pair.a, LARGE, 1472, pair.now);
        sent += 1;
        turn(&mut pair.a, pair.now);
        arrived.take(&mut pair.b, pair.now);
        pair.now += STEP;
    }
    for _ in 0..500 {
        turn(&mut pair.a, pair.now);
        arrived.take(&mut pair.b, pair.now);
        pair.now += STEP;
    }
    assert!(pair.a.reports()[0].ended.connections >= 5);
    for flow in &arrived.0 {
        let mut numbers: Vec<u32> = flow.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    }
    let (of_a, of_b) = (pair.a.take_accounts(), pair.b.take_accounts());
    assert_eq!((of_a.lost, of_b.bad_records), (0, 0));
}

/// A new identity of the side that accepts is shown in the next handshake, and the connection that runs
/// goes on with the old one.
#[test]
fn running_connections_go_on() {
    let mut pair = Pair::with_clock();
    let before = shown(&pair.a);
    let key = pair.replace_identity(true);
    pair.run_under_traffic(Duration::from_secs(1), "beside a new identity");
    assert_eq!(shown(&pair.a), before);
    pair.b.shut_down(pair.now);
    turn(&mut pair.a, pair.now);
    pair.kill_and_restart_b();
    pair.run_until_connected(Duration::from_secs(2));
    assert_ne!(
        shown(&pair.a),
        key,
        "the restarted one has an identity of its own"
    );
}

/// Before the certificate ends another connection is made, with whatever the other side has by then, and
/// nothing is lost; a connection whose certificates are over ends on both sides, whoever dialled.
#[test]
fn no_connection_outlives_a_certificate() {
    let mut pair = Pair::with_clock();
    let before = shown(&pair.a);
    // Certificates of a day, and five minutes that are past: a fifth is left 4.8 hours before the end.
    AHEAD_MS.set(DAY_MS - 6 * 3_600_000);
    let key = pair.replace_identity(true);
    pair.a.review(pair.now);
    pair.run_under_traffic(Duration::from_secs(1), "six hours before the end");
    assert_eq!(shown(&pair.a), before, "there is time");
    let wait = pair.a.peers[&PEER].dialled[&0].renewal.due.unwrap() - pair.now;
    // Six hours less a fifth of a day and five minutes.
    assert!(
        wait > Duration::from_secs(4_200) && wait < Duration::from_secs(4_320),
        "{wait:?}"
    );
    AHEAD_MS.set(DAY_MS - 7_000);
    pair.a.review(pair.now);
    pair.run_under_traffic(Duration::from_millis(3_500), "seconds before the end");
    assert_eq!(shown(&pair.a), key);
    AHEAD_MS.set(DAY_MS + 60_000);
    for endpoint in [&mut pair.a, &mut pair.b] {
        let before = endpoint.reports()[0].ended.connections;
        endpoint.review(pair.now);
        let report = &endpoint.reports()[0];
        assert!(!is_connected(endpoint));
        assert!(report.ended.connections > before);
        assert!(
            report.last_error.contains("expired"),
            "{}",
            report.last_error
        );
    }
}

/// The clock is looked at by itself at least once a minute.
#[test]
fn a_clock_that_is_set_is_noticed() {
    let mut pair = Pair::with_clock();
    AHEAD_MS.set(2 * DAY_MS);
    let end = pair.now + Duration::from_secs(61);
    while is_connected(&pair.b) {
        assert!(pair.now < end, "nobody looked");
        turn(&mut pair.a, pair.now);
        turn(&mut pair.b, pair.now);
        let due = [&pair.a, &pair.b].map(|endpoint| endpoint.next_timeout().unwrap());
        pair.now = due[0].min(due[1]).max(pair.now + STEP);
    }
}

/// A key that is not named is refused on both sides of a handshake, by name; the named one is accepted.
#[test]
fn only_named_keys_are_accepted() {
    for on_a in [true, false] {
        let mut pair = Pair::with_clock();
        let named = shown(if on_a { &pair.a } else { &pair.b });
        let other = pair.live(!on_a).current().key();
        pair.pin(on_a, &[named]);
        pair.run_under_traffic(Duration::from_millis(200), "with the right key");
        pair.pin(on_a, &[other]);
        let pinning = |pair: &Pair| {
            let endpoint = if on_a { &pair.a } else { &pair.b };
            endpoint.reports()[0].clone()
        };
        assert_ne!(pinning(&pair).state, PeerState::Connected, "at once");
        for _ in 0..500 {
            turn(&mut pair.a, pair.now);
            turn(&mut pair.b, pair.now);
            pair.now += STEP;
            assert_ne!(pinning(&pair).state, PeerState::Connected);
        }
        let error = pinning(&pair).last_error;
        assert!(error.contains("another key"), "{error}");
        pair.pin(on_a, &[other, named]);
        pair.run_until_connected(Duration::from_secs(3));
    }
}

/// A key changes in three steps, old, both, new, on either side, and no packet is lost: connections with
/// the key that is named no longer are replaced before they end.
#[test]
fn keys_change_without_loss() {
    for of_b in [true, false] {
        let mut pair = Pair::with_clock();
        let on_a = of_b;
        let old = pair.live(of_b).current().key();
        pair.pin(on_a, &[old]);
        let new = identity(&pair.authority, pair.live(of_b).current().node_id());
        let key = new.key();
        pair.pin(on_a, &[old, key]);
        pair.run_under_traffic(Duration::from_millis(300), "with both keys named");
        pair.live(of_b).replace(new).unwrap();
        pair.a.dial(pair.now);
        pair.b.dial(pair.now);
        pair.run_under_traffic(Duration::from_secs(2), "with the new key in use");
        pair.pin(on_a, &[key]);
        // The side that accepts names no keys, and does not know: it is the dialler that must act.
        pair.run_under_traffic(Duration::from_secs(7), "with the old key named no longer");
        assert_eq!(shown(if on_a { &pair.a } else { &pair.b }), key);
    }
}

/// Peers that cannot be met with a new identity are tried again after longer and longer waits, and the
/// connection that there is goes on.
#[test]
fn failed_replacements_back_off() {
    let mut pair = Pair::with_clock();
    let elsewhere = pki::init("test", 1).unwrap();
    let both = [
        pair.authority.certificate_pem(),
        elsewhere.certificate_pem(),
    ]
    .concat();
    let name = NodeId::new("a").unwrap();
    let credentials = pki::issue(&elsewhere, &name, 1).unwrap();
    let next = load(&both, &credentials.chain_pem, &credentials.key_pem);
    pair.live(false).replace(next).unwrap();
    pair.a.dial(pair.now);
    pair.run_under_traffic(
        Duration::from_secs(20),
        "while the peer refuses the new identity",
    );
    let refused = pair.b.engine.open_connections();
    assert!(refused <= 3, "{refused}");
    let renewal = pair.a.peers[&PEER].dialled[&0].renewal;
    let due = renewal.due.unwrap();
    assert!(
        due > pair.now + Duration::from_secs(5),
        "{:?}",
        due - pair.now
    );
}
