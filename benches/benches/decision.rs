//! Time per packet of deciding where it goes: route lookup, egress, ingress.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use criterion::{Criterion, criterion_group, criterion_main};
use fabric_benches::fabric::{Fabric, SIZES};
use fabric_core::{
    detour::{Detours, Flow},
    forward::Forwarder,
    ids::{PeerId, PortId},
    offload::Offload,
    packet::parse,
    route::RouteTable,
    testing::packets::{Ip, Tcp, udp},
    verdict::{NextHop, Verdict},
};
use ts_bart::RoutingTable as _;

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route-lookup");
    for size in SIZES {
        let fabric = Fabric::new(size);
        let routes = fabric.routes();
        let table: RouteTable = routes.iter().copied().collect();
        // A yardstick: a compressed trie over the same routes.
        let mut trie = ts_bart::Table::<NextHop>::default();
        for &(net, next) in &routes {
            trie.insert(net, next);
        }
        for (family, targets) in [("v4", fabric.targets_v4()), ("v6", fabric.targets_v6())] {
            if targets.is_empty() {
                continue;
            }
            group.bench_function(format!("{family}-{}", size.name), |bencher| {
                let mut next = targets.iter().cycle();
                bencher.iter(|| next.next().map(|addr| table.lookup(black_box(*addr))));
            });
            group.bench_function(format!("{family}-{}-trie", size.name), |bencher| {
                let mut next = targets.iter().cycle();
                bencher.iter(|| next.next().map(|addr| trie.lookup(black_box(*addr))));
            });
        }
    }
    group.finish();
}

fn forward(criterion: &mut Criterion) {
    decide(criterion, "forward", None);
}

/// The same where the host is the way to the outside, with so many flows through it.
fn forward_beside_detours(criterion: &mut Criterion) {
    decide(criterion, "forward-beside-detours", Some(10_000));
}

/// A table of flows through the host: those of one pod with many Services.
fn detours(flows: u16) -> Arc<Detours> {
    let now = Instant::now();
    let detours = Detours::new([5, 6], now);
    for source_port in 0..flows {
        let flow = Flow {
            source: Fabric::POD_V4.into(),
            destination: Ipv4Addr::from(Fabric::peer_v4(0) | 9).into(),
            protocol: 6,
            source_port,
            destination_port: 80,
        };
        detours.restore(&flow, false, now);
    }
    Arc::new(detours)
}

fn decide(criterion: &mut Criterion, name: &str, flows: Option<u16>) {
    let mut group = criterion.benchmark_group(name);
    let now = Instant::now();
    for size in SIZES {
        let fabric = Fabric::new(size);
        let mut builder = fabric.builder();
        builder.detours = flows.map(detours);
        let Ok(snapshot) = builder.build() else {
            continue;
        };
        let own: [IpAddr; 2] = [Fabric::POD_V4.into(), Fabric::POD_V6.into()];
        let peers: [IpAddr; 2] = [
            Ipv4Addr::from(Fabric::peer_v4(0) | 9).into(),
            Ipv6Addr::from(Fabric::peer_v6(0) | 9).into(),
        ];
        for (family, own, peer) in [("v4", own[0], peers[0]), ("v6", own[1], peers[1])] {
            let mut forwarder = Forwarder::default();
            let mut reply = Vec::with_capacity(1280);
            let mut out = Tcp::default().packet(&Ip::between(own, peer), &[0; 1400]);
            let Ok(headers) = parse(&out, out.len()) else {
                continue;
            };
            group.bench_function(format!("egress-{family}-{}", size.name), |bencher| {
                bencher.iter(|| {
                    let verdict = forwarder.egress(
                        &snapshot,
                        Fabric::POD_PORT,
                        black_box(&mut out),
                        black_box(&headers),
                        Offload::NONE,
                        now,
                        &mut reply,
                    );
                    assert_eq!(verdict, Verdict::Send(PeerId(0)));
                });
            });
            let back = udp(&Ip::between(peer, own), 1, 2, &[0; 64]);
            let Ok(headers) = parse(&back, back.len()) else {
                continue;
            };
            group.bench_function(format!("ingress-{family}-{}", size.name), |bencher| {
                bencher.iter(|| {
                    let verdict = forwarder.ingress(
                        &snapshot,
                        PeerId(0),
                        black_box(&back),
                        black_box(&headers),
                        now,
                        &mut reply,
                    );
                    assert_eq!(verdict, Verdict::Deliver(PortId(1)));
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, lookup, forward, forward_beside_detours);
criterion_main!(benches);
