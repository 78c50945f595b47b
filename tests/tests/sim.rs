//! The packet decision under real TCP, in memory: same inputs, same run.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fabric_core::{
    packet::parse,
    testing::packets::{Generator, Ip, udp},
    verdict::DropReason,
};
use fabric_tests::sim::{Sim, Underlay, address};

const CLEAN: Underlay = Underlay {
    delay: Duration::from_millis(1),
    loss_one_in: 0,
};

fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) % 251) as u8
}

/// Sends `total` position-dependent bytes from pod 0 of node 0 to a pod, and checks every byte.
fn transfer(sim: &mut Sim, to: (usize, usize), ipv4: bool, total: usize, from_port: u16) {
    let listener = sim.pod(to.0, to.1).listen(80);
    let client = sim
        .pod(0, 0)
        .connect(address(to.0, to.1, ipv4), 80, from_port);
    let (mut sent, mut received) = (0, 0);
    let done = sim.run(Duration::from_secs(120), |sim| {
        let socket = sim.pod(0, 0).tcp(client);
        while sent < total && socket.can_send() {
            sent += socket
                .send(|room| {
                    let n = room.len().min(total - sent);
                    room[..n]
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, b)| *b = pattern(sent + i));
                    (n, n)
                })
                .unwrap();
        }
        let socket = sim.pod(to.0, to.1).tcp(listener);
        while socket.can_recv() {
            received += socket
                .recv(|data| {
                    for (i, byte) in data.iter().enumerate() {
                        assert_eq!(*byte, pattern(received + i), "byte {}", received + i);
                    }
                    (data.len(), data.len())
                })
                .unwrap();
        }
        received == total
    });
    assert!(done, "{received} of {total} bytes arrived");
    let remote = sim.pod(to.0, to.1).tcp(listener).remote_endpoint().unwrap();
    assert_eq!(
        std::net::IpAddr::from(remote.addr),
        address(0, 0, ipv4),
        "the sender's own address"
    );
}

/// TCP between nodes and on one node delivers every byte, in both families, as super-packets, and
/// every packet is accounted for.
#[test]
fn tcp_crosses_whole() {
    let mut sim = Sim::new(1, 3, 2, CLEAN);
    for (n, to) in [(1, 0), (2, 1), (0, 1)].into_iter().enumerate() {
        for ipv4 in [true, false] {
            let port = 40_000 + 2 * u16::try_from(n).unwrap() + u16::from(ipv4);
            transfer(&mut sim, to, ipv4, 2_000_000, port);
        }
    }
    assert!(
        sim.super_packets > 100,
        "{} super-packets",
        sim.super_packets
    );
    assert!(sim.is_conserved());
}

/// A lossy underlay slows TCP down and corrupts nothing; the accounts stay exact.
#[test]
fn tcp_survives_loss() {
    for seed in 0..5 {
        let mut sim = Sim::new(
            seed,
            2,
            1,
            Underlay {
                loss_one_in: 10,
                ..CLEAN
            },
        );
        transfer(&mut sim, (1, 0), seed % 2 == 0, 1_000_000, 40_000);
        assert!(sim.lost > 0);
        assert!(sim.is_conserved());
    }
}

/// Two runs of one seed are the same, packet for packet.
#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let mut sim = Sim::new(
            seed,
            2,
            1,
            Underlay {
                loss_one_in: 20,
                ..CLEAN
            },
        );
        transfer(&mut sim, (1, 0), true, 200_000, 40_000);
        (
            sim.lost,
            sim.super_packets,
            sim.counters(0).clone(),
            sim.counters(1).clone(),
        )
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).0, run(8).0);
}

/// A packet loses exactly one from its TTL on its way, between nodes as on one node.
#[test]
fn one_hop_per_crossing() {
    let mut sim = Sim::new(1, 2, 2, CLEAN);
    for (to, ipv4) in [
        ((1, 0), true),
        ((1, 0), false),
        ((0, 1), true),
        ((0, 1), false),
    ] {
        let ip = Ip::between(address(0, 0, ipv4), address(to.0, to.1, ipv4));
        let packet = udp(&ip, 1000, 2000, b"hop");
        let ttl = parse(&packet, packet.len()).unwrap().ttl;
        sim.pod(0, 0).inject(packet);
        let mut seen = Vec::new();
        assert!(sim.run(Duration::from_secs(1), |sim| {
            seen = sim.pod(to.0, to.1).take_seen();
            !seen.is_empty()
        }));
        let headers = parse(&seen[0].packet, seen[0].packet.len()).unwrap();
        assert_eq!(headers.ttl, ttl - 1);
        assert_eq!(headers.source, address(0, 0, ipv4));
    }
}

/// Random and mutated packets from a pod never reach another pod with a foreign source, never panic,
/// and leave the accounts exact.
#[test]
fn garbage_is_accounted_for() {
    let mut sim = Sim::new(1, 2, 2, CLEAN);
    let mut random = Generator::new(5);
    for round in 0..200 {
        for _ in 0..100 {
            let mut packet = random.packet();
            if random.one_in(2) {
                random.mutate(&mut packet);
            }
            packet.truncate(1500);
            sim.pod(0, 0).inject(packet);
        }
        sim.run(Duration::from_millis(2), |_| false);
        assert!(sim.is_conserved(), "after round {round}");
        for (node, pod) in [(0, 1), (1, 0), (1, 1)] {
            for seen in sim.pod(node, pod).take_seen() {
                let headers = parse(&seen.packet, seen.packet.len()).unwrap();
                assert!([address(0, 0, true), address(0, 0, false)].contains(&headers.source));
            }
        }
    }
    assert!(sim.counters(0).received().packets >= 20_000);
    assert!(sim.counters(0).dropped(DropReason::SourceNotAllowed) > 0);
}
