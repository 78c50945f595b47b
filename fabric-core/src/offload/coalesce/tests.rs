//! Joining is undone by cutting: the same packets come back, in the order of their flow.
#![allow(
    clippy::unwrap_used,
    clippy::redundant_clone,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod apart;
mod ends;
mod fields;

use std::{collections::HashMap, num::NonZeroU16};

use proptest::prelude::*;

use super::*;
use crate::{
    offload::{Gso, GsoKind, VnetHeader, segment::segment},
    packet::{Transport, checksum, parse},
    testing::packets::{Generator, Ip, Tcp, echo_request, udp, udp_partial},
};

type Out = Vec<(Vec<u8>, Offload)>;

fn headers(packet: &[u8]) -> Headers {
    parse(packet, packet.len()).unwrap()
}

fn coalesce_all(packets: &[Vec<u8>]) -> Out {
    let with_offload: Vec<_> = packets
        .iter()
        .map(|packet| (packet.clone(), Offload::NONE))
        .collect();
    coalesce_offloads(&with_offload)
}

fn coalesce_offloads(packets: &[(Vec<u8>, Offload)]) -> Out {
    let mut out = Vec::new();
    let mut emit = |packet: &mut [u8], offload: Offload| out.push((packet.to_vec(), offload));
    let mut coalescer = Coalescer::default();
    for (packet, offload) in packets {
        coalescer.push_offload(packet, &headers(packet), *offload, &mut emit);
    }
    coalescer.flush(&mut emit);
    coalescer.flush(&mut |_, _| panic!("emitted twice"));
    out
}

/// Every packet as it would leave on a wire.
fn cut_all(out: &Out) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (packet, offload) in out {
        let parsed = headers(packet);
        match offload.gso {
            Some(gso) => {
                // A TUN device must be able to take it.
                VnetHeader::for_packet(*offload, &parsed).unwrap();
                segment(packet, &parsed, gso, &mut Vec::new(), |segment| {
                    packets.push(segment.to_vec());
                })
                .unwrap();
            }
            None => packets.push(packet.clone()),
        }
    }
    packets
}

fn by_flow(packets: &[Vec<u8>]) -> HashMap<String, Vec<&Vec<u8>>> {
    let mut flows: HashMap<String, Vec<&Vec<u8>>> = HashMap::new();
    for packet in packets {
        let parsed = headers(packet);
        let ports = match parsed.transport {
            Transport::Tcp {
                source,
                destination,
                ..
            }
            | Transport::Udp {
                source,
                destination,
            } => Some((source, destination)),
            Transport::Icmp { .. } | Transport::Other | Transport::Absent => None,
        };
        let key = format!(
            "{} {} {} {ports:?}",
            parsed.source, parsed.destination, parsed.protocol
        );
        flows.entry(key).or_default().push(packet);
    }
    flows
}

/// `count` segments of one TCP flow, `size` bytes each, the last shorter by `less`.
fn tcp_run(ip: &Ip, tcp: &Tcp, count: usize, size: usize, less: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|index| {
            let ip = Ip {
                identification: ip.identification.wrapping_add(index as u16),
                ..ip.clone()
            };
            let tcp = Tcp {
                sequence: tcp.sequence.wrapping_add((index * size) as u32),
                ..tcp.clone()
            };
            let len = if index + 1 == count {
                size - less
            } else {
                size
            };
            tcp.packet(&ip, &vec![index as u8; len])
        })
        .collect()
}

fn udp_run(ip: &Ip, count: usize, size: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|index| {
            let ip = Ip {
                identification: ip.identification.wrapping_add(index as u16),
                ..ip.clone()
            };
            udp(&ip, 7, 9, &vec![index as u8; size])
        })
        .collect()
}

/// Packets of several flows, interleaved, most of them fit to join, some damaged or odd.
fn traffic(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Generator::new(seed);
    let flows = 1 + random.below(12);
    let sizes = [100, 100, 100, 700, 1400];
    let mut next: Vec<(u32, u16)> = (0..flows)
        .map(|_| (random.bits() as u32, random.bits() as u16))
        .collect();
    let mut packets = Vec::new();
    for _ in 0..random.below(120) {
        let flow = random.below(flows);
        let size = sizes[random.below(sizes.len())];
        let len = if random.one_in(30) { 0 } else { size };
        let payload = random.bytes(len);
        let (sequence, identification) = next[flow];
        let mut ip = if flow.is_multiple_of(2) {
            Ip::v4()
        } else {
            Ip::v6()
        };
        ip.identification = identification;
        ip.traffic_class = if random.one_in(20) { 3 } else { 2 };
        ip.ttl = if random.one_in(30) { 63 } else { 64 };
        if random.one_in(40) {
            ip.options = vec![1; 4];
        }
        let mut packet = match flow % 3 {
            0 => udp(&ip, flow as u16, 9, &payload),
            _ => {
                let flags = [
                    0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x18, 0x11, 0x90, 0x50, 0x12, 0x30,
                ];
                let tcp = Tcp {
                    source: flow as u16,
                    sequence,
                    flags: flags[random.below(flags.len())],
                    window: if random.one_in(20) { 99 } else { 512 },
                    options: vec![
                        u8::from(!random.one_in(30));
                        if random.one_in(30) { 4 } else { 12 }
                    ],
                    ..Tcp::default()
                };
                tcp.packet(&ip, &payload)
            }
        };
        if random.one_in(25) {
            let at = usize::from(headers(&packet).transport_offset);
            // Above the ports, and not where a header length would change.
            let at = at + if flow.is_multiple_of(3) { 6 } else { 16 };
            packet[at] ^= 0x40;
        }
        next[flow] = (
            sequence.wrapping_add(payload.len() as u32),
            identification.wrapping_add(1),
        );
        if random.one_in(30) {
            next[flow].0 = next[flow].0.wrapping_add(1);
        }
        if random.one_in(30) {
            next[flow].1 = next[flow].1.wrapping_add(7);
        }
        packets.push(packet);
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Cutting what was joined gives back the very packets, each flow in its order, corrupt ones with
    /// their corruption.
    #[test]
    fn cutting_undoes_joining(seed: u64) {
        let packets = traffic(seed);
        let again = cut_all(&coalesce_all(&packets));
        prop_assert_eq!(again.len(), packets.len());
        prop_assert_eq!(by_flow(&again), by_flow(&packets));
    }

    /// Joining what was cut gives back the very super-packet and its metadata.
    #[test]
    fn joining_undoes_cutting(
        v6: bool,
        is_udp: bool,
        cwr: bool,
        push: bool,
        size in 100_u16..1500,
        count in 2_usize..40,
        less in 0_u16..99,
        sequence: u32,
        identification: u16,
    ) {
        let ip = Ip { identification, ..if v6 { Ip::v6() } else { Ip::v4() } };
        let payload = Generator::new(u64::from(sequence)).bytes(count * usize::from(size) - usize::from(less));
        let flags = 0x10 | if cwr { 0x80 } else { 0 } | if push { 0x08 } else { 0 };
        let (packet, kind) = match (is_udp, cwr) {
            (true, _) => (udp_partial(&ip, 7, 9, &payload), GsoKind::Udp),
            (false, true) => (Tcp { flags, sequence, ..Tcp::default() }.partial(&ip, &payload), GsoKind::TcpEcn),
            (false, false) => (Tcp { flags, sequence, ..Tcp::default() }.partial(&ip, &payload), GsoKind::Tcp),
        };
        let offload = Offload { needs_checksum: true, gso: Some(Gso { kind, size: NonZeroU16::new(size).unwrap() }) };
        let out = coalesce_all(&cut_all(&vec![(packet.clone(), offload)]));
        prop_assert_eq!(out, vec![(packet, offload)]);
    }

    /// Any packets at all come out once each, damaged or not, with nothing left behind.
    #[test]
    fn nothing_is_lost_or_doubled(seeds in prop::collection::vec(any::<u64>(), 0..40)) {
        let packets: Vec<_> = seeds
            .iter()
            .map(|seed| Generator::new(*seed).packet())
            .filter(|packet| parse(packet, packet.len()).is_ok())
            .collect();
        let mut again = cut_all(&coalesce_all(&packets));
        let mut packets = packets;
        again.sort();
        packets.sort();
        prop_assert_eq!(again, packets);
    }
}

/// The traffic of the property above does get joined, so the property says something.
#[test]
fn traffic_is_joined() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..50 {
        let packets = traffic(seed);
        before += packets.len();
        after += coalesce_all(&packets).len();
    }
    assert!(after * 10 < before * 9, "{before} packets, {after} after");
}
