//! A hostile pod: whatever it writes, its worker lives, every packet has one outcome, and other pods
//! notice nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test says what it counted"
)]

mod harness;

use std::{io::IoSlice, os::fd::OwnedFd, time::Instant};

use fabric_core::{counters::Counters, verdict::DropReason};
use fabric_node::{
    dataplane::Dataplane,
    sys::{
        capture::Capture,
        tun::{Tun, TunOffloads},
    },
};
use harness::{
    ADOPTED_HOST, Fabric, Plan, Wire, hostile::Hostile, pod_address, traffic::tcp_echoes_during,
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair,
        sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size},
    },
};

const PACKETS: u64 = 1_000_000;
const RAW_PACKETS: u64 = 50_000;

/// A million random and damaged packets with random and contradicting virtio headers go through the
/// worker: no panic, one outcome each, none with a foreign source or destination reaches the next
/// node, and TCP between other pods runs all the while and afterwards.
#[test]
fn a_million_hostile_packets() {
    let (ours, device) = packet_pair();
    let fabric = Fabric::start(Plan {
        wire: Wire::Loopback,
        adopted: Some(Tun::adopt(device, "adopted0", TunOffloads::ALL).unwrap()),
        ..Plan::default()
    });
    let own = [false, true].map(|ipv6| pod_address(0, ADOPTED_HOST, ipv6));
    let mut hostile = Hostile::new(1, own);
    let begin = Instant::now();
    let (returned, echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        let mut returned = 0;
        for number in 0..PACKETS {
            let packet = hostile.packet();
            let vnet = hostile.vnet(&packet);
            rustix::io::writev(&ours, &[IoSlice::new(&vnet), IoSlice::new(&packet)]).unwrap();
            if number % 16 == 0 {
                returned += drain(&ours);
            }
        }
        returned
    });
    let taken = begin.elapsed();
    fabric.wait_for("all hostile packets read", || {
        drain(&ours);
        received_from_pods(&fabric) == PACKETS + tx_packets(&fabric, 0)
    });
    let ((), after) = tcp_echoes_during(&fabric, 0, 1, || {
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
    assert!(echoes > 0 && after > 0);
    fabric.assert_conserved();
    let counters = fabric.nodes[0].dataplane.counters();
    show("hostile packets", PACKETS, &counters);
    println!("in {taken:?}; {returned} packets came back, {echoes}+{after} honest echoes");
    assert_nothing_foreign(&fabric.nodes[1].dataplane);
    for reason in [
        DropReason::Truncated,
        DropReason::BadVersion,
        DropReason::BadHeaderLength,
        DropReason::BadTotalLength,
        DropReason::BadHeaderChecksum,
        DropReason::ExtensionHeaders,
        DropReason::BadOffload,
        DropReason::SourceNotAllowed,
        DropReason::Multicast,
        DropReason::NotForwardable,
        DropReason::NoSuchPod,
    ] {
        assert!(
            counters.dropped(reason) > 0,
            "{} was not met",
            reason.name()
        );
    }
}

/// The same from inside a pod, through a packet socket on its own eth0: what the kernel lets through
/// is exactly what is counted.
#[test]
fn hostile_packets_from_a_packet_socket() {
    let fabric = Fabric::start(Plan {
        wire: Wire::Loopback,
        ..Plan::default()
    });
    let raw = fabric.nodes[0]
        .pod
        .run(|| Capture::open("eth0").unwrap())
        .unwrap();
    let own = [false, true].map(|ipv6| pod_address(0, 2, ipv6));
    let mut hostile = Hostile::new(2, own);
    let before = tx_packets(&fabric, 0);
    let (written, echoes) = tcp_echoes_during(&fabric, 0, 1, || {
        (0..RAW_PACKETS)
            .filter(|_| raw.send(&hostile.packet()).is_ok())
            .count() as u64
    });
    fabric.wait_for("all packets read", || {
        received_from_pods(&fabric) == tx_packets(&fabric, 0)
    });
    fabric.assert_conserved();
    let counters = fabric.nodes[0].dataplane.counters();
    show("packets through a packet socket", written, &counters);
    println!("{echoes} honest echoes meanwhile");
    // The kernel drops what finds its queue full, and says so to nobody.
    assert!(tx_packets(&fabric, 0) - before > RAW_PACKETS / 20);
    assert!(echoes > 0);
    assert_nothing_foreign(&fabric.nodes[1].dataplane);
}

/// A socket pair with the semantics of a TUN descriptor: one packet per call, whole or not at all.
fn packet_pair() -> (OwnedFd, OwnedFd) {
    let (ours, device) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    for fd in [&ours, &device] {
        set_socket_send_buffer_size(fd, 1 << 20).unwrap();
        set_socket_recv_buffer_size(fd, 1 << 20).unwrap();
    }
    (ours, device)
}

fn drain(fd: &OwnedFd) -> u64 {
    let mut buffer = [0; 2048];
    let mut count = 0;
    loop {
        match recv(fd, &mut buffer, RecvFlags::DONTWAIT) {
            Ok(_) => count += 1,
            Err(Errno::AGAIN) => return count,
            Err(error) => panic!("the worker's side is gone: {error}"),
        }
    }
}

fn received_from_pods(fabric: &Fabric) -> u64 {
    fabric.nodes[0].dataplane.counters().received_pods.packets
}

/// Packets that the worker has read from a pod's eth0, as the kernel counts them.
fn tx_packets(fabric: &Fabric, node: usize) -> u64 {
    let text = fabric.nodes[node]
        .pod
        .run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap())
        .unwrap();
    let line = text.lines().find(|line| line.contains("eth0:")).unwrap();
    let (_, numbers) = line.split_once(':').unwrap();
    numbers.split_whitespace().nth(9).unwrap().parse().unwrap()
}

/// The node that filters lets nothing through that the next node would have to refuse.
fn assert_nothing_foreign(next: &Dataplane) {
    let counters = next.counters();
    for reason in [
        DropReason::PeerSourceNotAllowed,
        DropReason::DestinationNotLocal,
        DropReason::BadRecord,
        DropReason::BadOffload,
    ] {
        assert_eq!(counters.dropped(reason), 0, "{}", reason.name());
    }
}

fn show(what: &str, sent: u64, counters: &Counters) {
    let drops: Vec<String> = DropReason::ALL
        .iter()
        .filter(|reason| counters.dropped(**reason) > 0)
        .map(|reason| format!("{} {}", reason.name(), counters.dropped(*reason)))
        .collect();
    println!(
        "{sent} {what}: received {}, delivered to pods {}, to peers {}, answered {}, dropped {} ({})",
        counters.received().packets,
        counters.delivered_pods.packets,
        counters.delivered_peers.packets,
        counters.answered,
        counters.dropped_total(),
        drops.join(", "),
    );
}
