//! Two nodes joined by a veth pair between two network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::{net::UdpSocket, time::Duration};

use fabric_core::verdict::DropReason;
use fabric_node::{
    sys::{netlink::Netlink, tun::TunOffloads},
    tunnel::report::PeerState,
};
use harness::{Fabric, Plan, set_underlay, traffic::echo_all};

/// Every size crosses between nodes over TCP and UDP, both families, with the sender's own address
/// seen, and the accounts hold.
#[test]
fn every_size_crosses() {
    let both = Fabric::start(Plan::default());
    echo_all(&both, 0, 1);
    assert_both_received(&both);
}

/// The same without any offload of the TUN devices.
#[test]
fn every_size_crosses_without_offloads() {
    let both = Fabric::start(Plan {
        offloads: TunOffloads::NONE,
        ..Plan::default()
    });
    echo_all(&both, 0, 1);
    assert_both_received(&both);
}

/// Nodes with different numbers of workers connect every worker and carry packets.
#[test]
fn workers_of_unequal_number_connect() {
    for workers in [[2, 1], [1, 3]] {
        let both = Fabric::start(Plan {
            workers: workers.to_vec(),
            ..Plan::default()
        });
        echo_all(&both, 0, 1);
        assert_both_received(&both);
    }
}

/// A pod that sends from an address that is not its own reaches nobody, and each packet is counted.
#[test]
fn spoofed_sources_are_dropped_and_counted() {
    let both = Fabric::start(Plan::default());
    let spoofer = both.nodes[0]
        .pod
        .run(|| {
            let netlink = Netlink::connect().unwrap();
            let link = netlink.link("eth0").unwrap().unwrap().index;
            let address = "10.1.0.77/32".parse().unwrap();
            netlink.add_address(link, address).unwrap();
            UdpSocket::bind("10.1.0.77:0").unwrap()
        })
        .unwrap();
    for _ in 0..100 {
        spoofer.send_to(b"spoofed", "10.2.0.2:9").unwrap();
    }
    let counters = |node: usize| both.nodes[node].dataplane.counters();
    both.wait_for("100 spoofed packets counted", || {
        counters(0).dropped(DropReason::SourceNotAllowed) == 100
    });
    assert_eq!(counters(1).received().packets, 0);
    both.assert_conserved();
}

/// Nodes that have lost sight of each other for longer than a connection lives connect again by
/// themselves, and every packet that waited for the dead connection is accounted for.
#[test]
fn reconnects_after_the_underlay_was_cut() {
    let both = Fabric::start(Plan {
        idle_timeout: Duration::from_secs(1),
        ..Plan::default()
    });
    echo_all(&both, 0, 1);
    set_underlay(&both.nodes[0].host, 0, false);
    let sender = both.nodes[0]
        .pod
        .run(|| UdpSocket::bind("10.1.0.2:0").unwrap())
        .unwrap();
    both.wait_for("both see the end", || {
        sender.send_to(&[7; 1000], "10.2.0.2:9").unwrap();
        let state = |node, peer| both.peer(node, peer).map(|peer| peer.state);
        state(0, 1) == Some(PeerState::Connecting) && state(1, 0) == Some(PeerState::Waiting)
    });
    set_underlay(&both.nodes[0].host, 0, true);
    both.wait_connected();
    echo_all(&both, 0, 1);
    assert_both_received(&both);
}

fn assert_both_received(both: &Fabric) {
    both.assert_conserved();
    for node in &both.nodes {
        assert!(node.dataplane.counters().received().packets > 0);
    }
}
