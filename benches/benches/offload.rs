//! Time per super-packet of what is done where a device cannot: cut, join; and of framing.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::{hint::black_box, num::NonZeroU16};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fabric_core::{
    offload::{Gso, GsoKind, Offload, coalesce::Coalescer, segment::segment},
    packet::{Headers, parse},
    record::{StreamHeader, decode_datagram, encode_datagram},
    testing::packets::{Ip, Tcp},
};

/// Payload of a segment (bytes): MTU 1500 less headers with a timestamp option.
const SEGMENT_PAYLOAD: u16 = 1448;
/// Segments of a super-packet: as many as 64 KiB hold.
const SEGMENTS: usize = 44;

fn super_packet() -> (Vec<u8>, Gso) {
    let payload = vec![7; SEGMENTS * usize::from(SEGMENT_PAYLOAD)];
    let gso = Gso {
        kind: GsoKind::Tcp,
        size: NonZeroU16::new(SEGMENT_PAYLOAD).unwrap_or(NonZeroU16::MIN),
    };
    (Tcp::default().partial(&Ip::v4(), &payload), gso)
}

fn cutting(criterion: &mut Criterion) {
    let (packet, gso) = super_packet();
    let Ok(headers) = parse(&packet, packet.len()) else {
        return;
    };
    let mut group = criterion.benchmark_group("offload");
    group.throughput(Throughput::Bytes(packet.len() as u64));
    let mut scratch = Vec::new();
    group.bench_function("segment-64-kib", |bencher| {
        bencher.iter(|| {
            segment(black_box(&packet), &headers, gso, &mut scratch, |segment| {
                black_box(segment);
            })
        });
    });

    let mut segments: Vec<(Vec<u8>, Headers)> = Vec::new();
    let cut = segment(&packet, &headers, gso, &mut scratch, |segment| {
        if let Ok(headers) = parse(segment, segment.len()) {
            segments.push((segment.to_vec(), headers));
        }
    });
    assert!(cut.is_ok() && segments.len() == SEGMENTS);
    let mut coalescer = Coalescer::default();
    group.bench_function("coalesce-64-kib", |bencher| {
        bencher.iter(|| {
            let mut emitted = 0;
            let mut emit = |packet: &mut [u8], _: Offload| {
                black_box(packet);
                emitted += 1;
            };
            for (segment, headers) in &segments {
                coalescer.push(black_box(segment), headers, &mut emit);
            }
            coalescer.flush(&mut emit);
            emitted
        });
    });
    group.finish();
}

fn framing(criterion: &mut Criterion) {
    let (packet, gso) = super_packet();
    let header = StreamHeader {
        packet_len: packet.len() as u32,
        offload: Offload {
            needs_checksum: true,
            gso: Some(gso),
        },
    };
    let encoded = header.encode();
    let mut datagram = vec![encode_datagram(true)];
    datagram.extend_from_slice(&packet[..1400]);
    let mut group = criterion.benchmark_group("record");
    group.bench_function("stream-encode", |bencher| {
        bencher.iter(|| black_box(&header).encode());
    });
    group.bench_function("stream-decode", |bencher| {
        bencher.iter(|| StreamHeader::decode(black_box(encoded)));
    });
    group.bench_function("datagram-encode", |bencher| {
        bencher.iter(|| encode_datagram(black_box(true)));
    });
    group.bench_function("datagram-decode", |bencher| {
        bencher.iter(|| decode_datagram(black_box(&datagram)).is_ok());
    });
    group.finish();
}

criterion_group!(benches, cutting, framing);
criterion_main!(benches);
