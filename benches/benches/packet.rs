//! Time per packet of looking at it: headers, checksums.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fabric_core::{
    packet::{checksum, parse},
    testing::packets::{self, Ip, Tcp},
};

/// Payload of a full segment (bytes).
const SEGMENT_PAYLOAD: usize = 1448;
/// Payload of a super-packet (bytes).
const SUPER_PAYLOAD: usize = 65_000;

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, packet) in [
        ("tcp-v4", packets::ipv4_tcp(&[0; 1400])),
        ("tcp-v6", packets::ipv6_tcp(&[0; 1400])),
        ("udp-v4", packets::ipv4_udp(&[0; 64])),
        ("udp-v6", packets::ipv6_udp(&[0; 64])),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| parse(black_box(&packet), black_box(packet.len())));
        });
    }
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for (name, len) in [("1500-bytes", SEGMENT_PAYLOAD), ("64-kib", SUPER_PAYLOAD)] {
        let bytes = vec![0xa5; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| checksum::checksum(black_box(&bytes)));
        });
    }
    let partial = Tcp::default().partial(&Ip::v4(), &[7; SEGMENT_PAYLOAD]);
    if let Ok(headers) = parse(&partial, partial.len()) {
        group.throughput(Throughput::Bytes(partial.len() as u64));
        group.bench_function("complete-tcp-segment", |bencher| {
            bencher.iter_batched_ref(
                || partial.clone(),
                |packet| checksum::complete_checksum(black_box(packet), &headers),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, parsing, checksums);
criterion_main!(benches);
