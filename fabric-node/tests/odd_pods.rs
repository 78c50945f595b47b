//! Pods that change what they were given: a larger MTU, no `eth0`. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod harness;

use std::net::UdpSocket;

use fabric_core::{counters::Counters, verdict::DropReason};
use fabric_node::sys::netlink::{LinkSettings, Netlink};
use harness::{Fabric, PATIENCE, POD_PORT, Plan, pod_address};

fn bind(fabric: &Fabric, node: usize) -> UdpSocket {
    let bind = || UdpSocket::bind((pod_address(node, 2, false), 0)).unwrap();
    let socket = fabric.nodes[node].pod.run(bind).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn eth0() -> (Netlink, u32) {
    let netlink = Netlink::connect().unwrap();
    let index = netlink.link("eth0").unwrap().unwrap().index;
    (netlink, index)
}

fn counters(fabric: &Fabric, node: usize) -> Counters {
    fabric.nodes[node].dataplane.counters()
}

/// A packet that a pod made larger than the link is cut, arrives whole, and is counted once, with
/// the bytes it was read with.
#[test]
fn an_oversized_packet_is_counted_as_it_was_read() {
    let fabric = Fabric::start(Plan::default());
    fabric.nodes[0]
        .pod
        .run(|| {
            let (netlink, index) = eth0();
            let settings = LinkSettings {
                mtu: Some(9000),
                ..Default::default()
            };
            netlink.configure_link(index, settings).unwrap();
            // Without "do not fragment".
            std::fs::write("/proc/sys/net/ipv4/ip_no_pmtu_disc", "1").unwrap();
        })
        .unwrap();
    let (sender, receiver) = (bind(&fabric, 0), bind(&fabric, 1));
    let before = counters(&fabric, 0);
    sender
        .send_to(&[7; 4000], receiver.local_addr().unwrap())
        .unwrap();
    let mut buffer = [0; 8192];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 4000);
    fabric.wait_for("the account of the packet", || {
        counters(&fabric, 0).delivered_peers.packets > before.delivered_peers.packets
    });
    let after = counters(&fabric, 0);
    let packet = 20 + 8 + 4000;
    assert_eq!(
        after.received_pods.bytes - before.received_pods.bytes,
        packet
    );
    assert_eq!(
        after.delivered_peers.bytes - before.delivered_peers.bytes,
        packet
    );
    assert_eq!(
        after.delivered_peers.packets - before.delivered_peers.packets,
        1
    );
    fabric.assert_conserved();
}

/// A pod that deletes its `eth0` is reported, what comes for it is dropped by name, and the worker
/// that had read it goes on.
#[test]
fn a_deleted_eth0_is_reported() {
    let fabric = Fabric::start(Plan::default());
    let sender = bind(&fabric, 1);
    fabric.nodes[0]
        .pod
        .run(|| {
            let (netlink, index) = eth0();
            netlink.delete_link(index).unwrap();
        })
        .unwrap();
    fabric.wait_for("the device to be missed", || {
        fabric.nodes[0].dataplane.reports()[0].gone == [POD_PORT]
    });
    for _ in 0..10 {
        sender
            .send_to(b"hello", (pod_address(0, 2, false), 9))
            .unwrap();
    }
    fabric.wait_for("the drops", || {
        counters(&fabric, 0).dropped(DropReason::PortGone) == 10
    });
    fabric.assert_conserved();
}
