//! Time of what a tunnel does to bytes, engine aside: sealing and opening packets, taking records out
//! of a stream.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fabric_benches::stages::{Cipher, PACKET_BYTES, arrived, take_apart};
use fabric_node::tunnel::framing::RecordAssembler;

fn sealing(criterion: &mut Criterion) {
    let Ok(mut cipher) = Cipher::new() else {
        return;
    };
    let mut group = criterion.benchmark_group("aes-128-gcm");
    group.throughput(Throughput::Bytes(PACKET_BYTES as u64));
    let mut packet = vec![7; PACKET_BYTES];
    group.bench_function("seal-1452", |bencher| {
        bencher.iter(|| cipher.seal(black_box(&mut packet)));
    });
    let mut sealed = vec![7; PACKET_BYTES];
    assert!(cipher.seal(&mut sealed));
    group.bench_function("open-1452", |bencher| {
        bencher.iter_batched_ref(
            || sealed.clone(),
            |packet| assert!(cipher.open(black_box(packet))),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn framing(criterion: &mut Criterion) {
    let chunks = arrived();
    let mut group = criterion.benchmark_group("framing");
    let bytes: usize = chunks.iter().map(bytes::Bytes::len).sum();
    group.throughput(Throughput::Bytes(bytes as u64));
    let mut assembler = RecordAssembler::default();
    group.bench_function("record-64-kib", |bencher| {
        bencher.iter(|| assert_eq!(take_apart(&mut assembler, black_box(&chunks)), 1));
    });
    group.finish();
}

criterion_group!(benches, sealing, framing);
criterion_main!(benches);
