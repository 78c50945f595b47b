//! Allocations on the packet path, counted.
#![allow(clippy::unwrap_used)]

use std::{num::NonZeroU16, time::Instant};

use allocation_counter::measure;
use fabric_benches::{
    fabric::{Fabric, SIZES},
    stages::{Cipher, PACKET_BYTES, arrived, take_apart},
};
use fabric_core::{
    forward::Forwarder,
    ids::PeerId,
    offload::{Gso, GsoKind, Offload, VnetHeader, coalesce::Coalescer, segment::segment},
    packet::{checksum, parse},
    record::{StreamHeader, decode_datagram, encode_datagram},
    route::RouteTable,
    testing::packets::{Ip, Tcp},
    verdict::Verdict,
};
use fabric_node::tunnel::framing::RecordAssembler;

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
