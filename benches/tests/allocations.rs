//! Allocations on the packet path, counted.
#![allow(clippy::unwrap_used)]

use std::{num::NonZeroU16, time::Instant};

use allocation_counter::measure;
use bytes::{Buf, Bytes};
use fabric_benches::{
    fabric::{Fabric, SIZES},
    stages::{Cipher, PACKET_BYTES, arrived, take_apart},
};
use fabric_core::{
    forward::Forwarder,
    ids::{PeerId, PortId},
    offload::{Gso, GsoKind, Offload, VnetHeader, coalesce::Coalescer, segment::segment},
    packet::{checksum, parse},
    record::{StreamHeader, decode_datagram, encode_datagram},
    route::RouteTable,
    testing::packets::{Ip, Tcp},
    verdict::Verdict,
};
use fabric_node::tunnel::{
    framing::RecordAssembler,
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

/// No stage of a packet allocates once its buffers have their sizes: lookup in each table, checksums,
/// cutting and joining of super-packets, records and their way out of a stream, sealing and opening.
#[test]
fn no_stage_allocates() {
    for size in SIZES {
        let fabric = Fabric::new(size);
        let table: RouteTable = fabric.routes().into_iter().collect();
        for addr in [fabric.targets_v4(), fabric.targets_v6()].concat() {
            assert_none("lookup", || table.lookup(addr).is_some());
        }
    }
    let (packet, gso) = super_packet();
    let headers = parse(&packet, packet.len()).unwrap();
    assert_none("checksum", || checksum::checksum(&packet) != 1);
    let mut scratch = Vec::with_capacity(packet.len());
    assert_none("segment", || {
        segment(&packet, &headers, gso, &mut scratch, |_| ()).is_ok()
    });
    let mut segments = Vec::new();
    segment(&packet, &headers, gso, &mut scratch, |segment| {
        segments.push((segment.to_vec(), parse(segment, segment.len()).unwrap()));
    })
    .unwrap();
    let mut coalescer = Coalescer::default();
    let mut coalesce = || {
        let mut emitted = 0;
        for (segment, headers) in &segments {
            coalescer.push(segment, headers, &mut |_, _| emitted += 1);
        }
        coalescer.flush(&mut |_, _| emitted += 1);
        emitted == 1
    };
    // It grows to the size of a super-packet once.
    assert!(coalesce());
    assert_none("coalesce", coalesce);
    let mut first = segments[0].0.clone();
    let first_headers = segments[0].1;
    assert_none("complete checksum", || {
        checksum::complete_checksum(&mut first, &first_headers).is_ok()
    });
    let datagram = [&[encode_datagram(true)], &first[..]].concat();
    assert_none("datagram", || decode_datagram(&datagram).is_ok());
    let (mut assembler, chunks) = (RecordAssembler::default(), arrived());
    assert_eq!(take_apart(&mut assembler, &chunks), 1);
    assert_none("framing", || take_apart(&mut assembler, &chunks) == 1);
    let (mut cipher, mut sealed) = (Cipher::new().unwrap(), [7; PACKET_BYTES]);
    assert_none("seal and open", || {
        cipher.seal(&mut sealed) && cipher.open(&mut sealed)
    });
}

/// The counter counts: without that, the tests above would prove nothing.
#[test]
fn an_allocation_is_counted() {
    let counted = measure(|| {
        std::hint::black_box(vec![0_u8; 100]);
    });
    assert_eq!(counted.count_total, 1);
}

/// Runs `stage`, which must hold, and counts.
fn assert_none(name: &str, mut stage: impl FnMut() -> bool) {
    let mut holds = false;
    let counted = measure(|| holds = stage());
    assert!(holds, "{name}");
    assert_eq!(counted.count_total, 0, "{name}");
}

/// As many segments as 64 KiB hold.
fn super_packet() -> (Vec<u8>, Gso) {
    let gso = Gso {
        kind: GsoKind::Tcp,
        size: NonZeroU16::new(1448).unwrap(),
    };
    (Tcp::default().partial(&Ip::v4(), &[7; 44 * 1448]), gso)
}

fn addresses() -> ([std::net::IpAddr; 2], [std::net::IpAddr; 2]) {
    let own = [Fabric::POD_V4.into(), Fabric::POD_V6.into()];
    let peer = [
        std::net::Ipv4Addr::from(Fabric::peer_v4(0) | 9).into(),
        std::net::Ipv6Addr::from(Fabric::peer_v6(0) | 9).into(),
    ];
    (own, peer)
}
