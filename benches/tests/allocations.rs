//! Allocations on the packet path, counted.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use allocation_counter::measure;
use bytes::{Buf, Bytes};
use fabric_benches::fabric::{Fabric, SIZES};
use fabric_core::{
    forward::Forwarder,
    ids::{PeerId, PortId},
    offload::{Offload, VnetHeader},
    packet::parse,
    record::StreamHeader,
    testing::packets::{Ip, Tcp},
    verdict::Verdict,
};
use fabric_node::tunnel::{
    link::Label,
    queue::{Class, Engine, Lane, Pending, SendQueue, Written},
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

/// An engine that takes half of what it is offered, so that records are left in pieces.
struct Half;

impl Engine for Half {
    fn datagram_room(&mut self) -> usize {
        1400
    }

    fn take_datagram(&mut self, _: &Bytes) -> bool {
        true
    }

    fn take_stream(&mut self, _: usize, piece: &mut Bytes) -> Written {
        let taken = piece.len().div_ceil(2);
        piece.advance(taken);
        Written::Bytes(taken)
    }

    fn as_stream_record(&mut self, record: &Bytes) -> Bytes {
        record.clone()
    }
}

/// Packets of many ports and flows pass the queue in front of a connection, also a full one, without
/// a single allocation once it has been full before.
#[test]
fn the_queue_does_not_allocate() {
    let mut queue = SendQueue::default();
    let mut now = Instant::now();
    let (large, small) = (Bytes::from(vec![0; 60_000]), Bytes::from(vec![0; 60]));
    let mut round = |number: u32| {
        now += std::time::Duration::from_micros(100);
        for n in 0..20 {
            let tcp = n % 2 == 0;
            let (lane, class, record) = if tcp {
                (Lane::Stream, Class::Bulk, &large)
            } else {
                (Lane::Datagram, Class::Latency, &small)
            };
            let label = Label {
                port: PortId(n % 5),
                flow: number.wrapping_mul(31).wrapping_add(n),
                class,
            };
            let pending = Pending {
                record: record.clone(),
                pinned: record.len(),
                account: Some(60),
            };
            queue.push(lane, label, pending, now);
        }
        queue.serve(now, 100_000, 16 * 1024, &mut Half)
    };
    let warm: usize = (0..20_000).map(&mut round).sum();
    let mut served = 0;
    let counted = measure(|| served = (20_000..22_000).map(&mut round).sum());
    assert!(warm > 0 && served > 0);
    assert_eq!(counted.count_total, 0);
    assert!(queue.take_accounts().full > 1_000);
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
