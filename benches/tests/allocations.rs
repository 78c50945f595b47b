//! Allocations on the packet path, counted.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use allocation_counter::measure;
use fabric_benches::fabric::{Fabric, SIZES};
use fabric_core::{
    forward::Forwarder,
    ids::PeerId,
    offload::{Offload, VnetHeader},
    packet::parse,
    record::StreamHeader,
    testing::packets::{Ip, Tcp},
    verdict::Verdict,
};

/// Packets of one measurement: a first one that fills a cache must not be the only one.
const PACKETS: usize = 1_000;

/// A packet from a pod to a peer is parsed, checked, routed and framed without a single allocation,
/// in either family.
#[test]
fn the_way_out_does_not_allocate() {
    let (own, peer) = addresses();
    for (own, peer) in own.into_iter().zip(peer) {
        let snapshot = Fabric::new(SIZES[1]).snapshot().unwrap();
        let fresh = Tcp::default().packet(&Ip::between(own, peer), &[0; 1400]);
        let mut packet = fresh.clone();
        let (mut forwarder, mut reply, now) = (Forwarder::default(), Vec::new(), Instant::now());
        let vnet = VnetHeader::default();
        let counted = measure(|| {
            for _ in 0..PACKETS {
                // Each round takes one from the TTL.
                packet.copy_from_slice(&fresh);
                let headers = parse(&packet, packet.len()).unwrap();
                let offload = vnet.offload_of_local(&mut packet, &headers).unwrap();
                let verdict = forwarder.egress(
                    &snapshot,
                    Fabric::POD_PORT,
                    &mut packet,
                    &headers,
                    offload,
                    now,
                    &mut reply,
                );
                assert_eq!(verdict, Verdict::Send(PeerId(0)));
                let header = StreamHeader {
                    packet_len: headers.packet_len,
                    offload,
                };
                std::hint::black_box(header.encode());
            }
        });
        assert_eq!(counted.count_total, 0, "{own}");
    }
}

/// A packet from a peer to a pod is parsed, checked and routed without a single allocation, in
/// either family.
#[test]
fn the_way_in_does_not_allocate() {
    let (own, peer) = addresses();
    for (own, peer) in own.into_iter().zip(peer) {
        let snapshot = Fabric::new(SIZES[1]).snapshot().unwrap();
        let packet = Tcp::default().packet(&Ip::between(peer, own), &[0; 1400]);
        let (mut forwarder, mut reply, now) = (Forwarder::default(), Vec::new(), Instant::now());
        let counted = measure(|| {
            for _ in 0..PACKETS {
                let headers = parse(&packet, packet.len()).unwrap();
                let verdict =
                    forwarder.ingress(&snapshot, PeerId(0), &packet, &headers, now, &mut reply);
                assert_eq!(verdict, Verdict::Deliver(Fabric::POD_PORT));
                std::hint::black_box(VnetHeader::for_packet(Offload::NONE, &headers)).unwrap();
            }
        });
        assert_eq!(counted.count_total, 0, "{own}");
    }
}

/// The counter counts: without that, the tests above would prove nothing.
#[test]
fn an_allocation_is_counted() {
    let counted = measure(|| {
        std::hint::black_box(vec![0_u8; 100]);
    });
    assert_eq!(counted.count_total, 1);
}

fn addresses() -> ([std::net::IpAddr; 2], [std::net::IpAddr; 2]) {
    let own = [Fabric::POD_V4.into(), Fabric::POD_V6.into()];
    let peer = [
        std::net::Ipv4Addr::from(Fabric::peer_v4(0) | 9).into(),
        std::net::Ipv6Addr::from(Fabric::peer_v6(0) | 9).into(),
    ];
    (own, peer)
}
