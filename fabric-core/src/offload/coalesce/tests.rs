//! Joining is undone by cutting: the same packets come back, in the order of their flow.
#![allow(
    clippy::unwrap_used,
    clippy::redundant_clone,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

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

/// Packets that may not join go out unchanged and in order, however well they fit otherwise.
#[test]
fn leaves_strangers_alone() {
    let (v4, tcp) = (Ip::v4(), Tcp::default());
    let second = |ip: Ip, tcp: Tcp| {
        let ip = Ip {
            identification: 1,
            ..ip
        };
        let tcp = Tcp {
            sequence: tcp.sequence + 100,
            ..tcp
        };
        tcp.packet(&ip, &[2; 100])
    };
    let first = tcp.packet(&v4, &[1; 100]);
    let joins = coalesce_all(&[first.clone(), second(v4.clone(), tcp.clone())]);
    assert_eq!(joins.len(), 1);

    let mut corrupt = second(v4.clone(), tcp.clone());
    *corrupt.last_mut().unwrap() ^= 1;
    let strangers = [
        corrupt,
        second(
            Ip {
                ttl: 63,
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            Ip {
                traffic_class: 3,
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            Ip {
                flags_and_offset: 0,
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            Ip {
                options: vec![1; 4],
                ..v4.clone()
            },
            tcp.clone(),
        ),
        second(
            v4.clone(),
            Tcp {
                sequence: 1001,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                acknowledgement: 9,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                window: 9,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                options: vec![1; 4],
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                source: 9,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x90,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x50,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x14,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x12,
                ..tcp.clone()
            },
        ),
        second(
            v4.clone(),
            Tcp {
                flags: 0x30,
                ..tcp.clone()
            },
        ),
    ];
    for stranger in strangers {
        let out = coalesce_all(&[first.clone(), stranger.clone()]);
        assert_eq!(
            out,
            [(first.clone(), Offload::NONE), (stranger, Offload::NONE)]
        );
    }
}

/// TCP options of one length and different content, as timestamps are, keep segments apart.
#[test]
fn different_options_do_not_join() {
    let run = |options: [u8; 4]| {
        let tcp = Tcp {
            options: options.to_vec(),
            ..Tcp::default()
        };
        tcp_run(&Ip::v6(), &tcp, 2, 100, 0)
    };
    let (a, b) = (run([1, 1, 1, 0]), run([1, 1, 1, 1]));
    assert_eq!(coalesce_all(&a).len(), 1);
    assert_eq!(coalesce_all(&[a[0].clone(), b[1].clone()]).len(), 2);
}

/// A first packet that is corrupt is not covered up by a sound one after it.
#[test]
fn corrupt_first_packet_stays_corrupt() {
    for ip in [Ip::v4(), Ip::v6()] {
        let mut packets = tcp_run(&ip, &Tcp::default(), 3, 100, 0);
        *packets[0].last_mut().unwrap() ^= 1;
        let out = coalesce_all(&packets);
        assert_eq!(out.len(), 2);
        assert_eq!(out[0], (packets[0].clone(), Offload::NONE));
        assert!(!checksum::verify(&out[0].0, &headers(&out[0].0)));
        assert_eq!(cut_all(&out), packets);
    }
}

/// PSH and FIN end a run at once, and so does a short segment: nothing waits for the flush.
#[test]
fn ends_a_run_at_once() {
    for last in [0x18, 0x11] {
        let mut packets = tcp_run(&Ip::v4(), &Tcp::default(), 3, 100, 0);
        let ip = Ip {
            identification: 3,
            ..Ip::v4()
        };
        let tcp = Tcp {
            sequence: 1300,
            flags: last,
            ..Tcp::default()
        };
        packets.push(tcp.packet(&ip, &[9; 100]));
        let mut out = Vec::new();
        let mut coalescer = Coalescer::default();
        for packet in &packets {
            coalescer.push(packet, &headers(packet), &mut |packet, offload| {
                out.push((packet.to_vec(), offload));
            });
        }
        assert_eq!(out.len(), 1);
        assert_eq!(cut_all(&out), packets);
    }
    let short = tcp_run(&Ip::v6(), &Tcp::default(), 3, 100, 1);
    let mut emitted = 0;
    let mut coalescer = Coalescer::default();
    for packet in &short {
        coalescer.push(packet, &headers(packet), &mut |_, _| emitted += 1);
    }
    assert_eq!(emitted, 1);
}

/// No super-packet exceeds 64 segments or the largest IPv4 length.
#[test]
fn keeps_to_its_limits() {
    for ip in [Ip::v4(), Ip::v6()] {
        let out = coalesce_all(&udp_run(&ip, 130, 100));
        let sizes: Vec<_> = out
            .iter()
            .map(|(packet, _)| headers(packet).payload_len().unwrap() / 100)
            .collect();
        assert_eq!(sizes, [64, 64, 2]);
        let packets = udp_run(&ip, 60, 1400);
        let out = coalesce_all(&packets);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|(packet, _)| packet.len() <= 65_535));
        assert_eq!(cut_all(&out), packets);
    }
}

/// Datagrams with DF and one constant identification join; what comes back differs in the
/// identification only, which carries no meaning there. Without DF they stay apart.
#[test]
fn constant_identification_joins_with_df_only() {
    let df: Vec<_> = (0..4_u8).map(|n| udp(&Ip::v4(), 7, 9, &[n; 100])).collect();
    let out = coalesce_all(&df);
    assert_eq!(out.len(), 1);
    for (again, before) in cut_all(&out).iter().zip(&df) {
        assert_eq!(again[..4], before[..4]);
        assert_eq!(again[6..10], before[6..10]);
        assert_eq!(again[12..], before[12..]);
    }
    let ip = Ip {
        flags_and_offset: 0,
        ..Ip::v4()
    };
    let plain: Vec<_> = (0..4_u8).map(|n| udp(&ip, 7, 9, &[n; 100])).collect();
    assert_eq!(coalesce_all(&plain).len(), 4);
}

/// A run keeps to one way of numbering: after counting, a repeated identification does not join, and
/// the other way round.
#[test]
fn identification_keeps_to_one_pattern() {
    for pattern in [[5, 6, 5], [5, 5, 7]] {
        let packets = pattern.map(|identification| {
            let ip = Ip {
                identification,
                ..Ip::v4()
            };
            udp(&ip, 7, 9, &[1; 100])
        });
        assert_eq!(coalesce_all(&packets).len(), 2, "{pattern:?}");
    }
}

/// UDP without a checksum, and with a length that is not the packet's, passes as it came.
#[test]
fn udp_oddities_pass() {
    let mut none = udp_run(&Ip::v4(), 3, 100);
    for packet in &mut none {
        packet[26..28].fill(0);
    }
    let mut short = udp_run(&Ip::v4(), 3, 100);
    for packet in &mut short {
        packet[25] = 50;
    }
    for packets in [none, short] {
        let out = coalesce_all(&packets);
        assert_eq!(out.len(), 3);
        assert_eq!(cut_all(&out), packets);
    }
}

/// Partial checksums join by their seed, also with whole ones; a wrong seed and a super-packet pass.
#[test]
fn joins_partial_checksums() {
    let partial = Offload {
        needs_checksum: true,
        gso: None,
    };
    for ip in [Ip::v4(), Ip::v6()] {
        let (a, b) = (
            udp_partial(&ip, 7, 9, &[1; 100]),
            udp_partial(&ip, 7, 9, &[2; 100]),
        );
        let whole = [udp(&ip, 7, 9, &[1; 100]), udp(&ip, 7, 9, &[2; 100])];
        let same = coalesce_offloads(&[(a.clone(), partial), (b.clone(), partial)]);
        let mixed = coalesce_offloads(&[(a.clone(), partial), (whole[1].clone(), Offload::NONE)]);
        assert_eq!(same.len(), 1);
        assert_eq!(same, mixed);
        let payloads: Vec<_> = cut_all(&same)
            .iter()
            .map(|packet| packet[packet.len() - 108..].to_vec())
            .collect();
        assert_eq!(payloads, whole.map(|p| p[p.len() - 108..].to_vec()));

        let single = vec![(a.clone(), partial)];
        assert_eq!(coalesce_offloads(&single), single);
        let mut wrong = b.clone();
        let at = wrong.len() - 102;
        wrong[at] ^= 1;
        let strange = vec![(a.clone(), partial), (wrong, partial)];
        assert_eq!(coalesce_offloads(&strange), strange);
        let super_packet = vec![(a.clone(), partial), same[0].clone()];
        assert_eq!(coalesce_offloads(&super_packet), super_packet);
    }
}

/// A later fragment does not overtake the flow it may belong to; other hosts' flows go on waiting.
#[test]
fn fragments_keep_the_order() {
    let other = Ip::between([10, 9, 9, 9], [10, 2, 0, 2]);
    let waiting = udp(&other, 7, 9, &[1; 100]);
    let first = udp(&Ip::v4(), 7, 9, &[1; 100]);
    let fragment = Ip {
        flags_and_offset: 0x0010,
        ..Ip::v4()
    }
    .packet(17, &[2; 100]);
    let out = coalesce_all(&[waiting.clone(), first.clone(), fragment.clone()]);
    let order: Vec<_> = out.into_iter().map(|(packet, _)| packet).collect();
    assert_eq!(order, [first, fragment, waiting]);
}

/// With more flows than it holds, the oldest goes out first.
#[test]
fn holds_a_bounded_number_of_flows() {
    let packets: Vec<_> = (0..=FLOWS_MAX as u16)
        .map(|port| udp(&Ip::v6(), port, 9, &[1; 100]))
        .collect();
    let mut out = Vec::new();
    let mut coalescer = Coalescer::default();
    for packet in &packets {
        coalescer.push(packet, &headers(packet), &mut |packet, _| {
            out.push(packet.to_vec());
        });
    }
    assert_eq!(out, packets[..1]);
}

/// Other protocols pass at once, without the bytes behind the packet.
#[test]
fn passes_what_it_does_not_know() {
    let ping = echo_request(&Ip::v6(), 1, 2, b"abc");
    let mut frame = ping.clone();
    frame.extend_from_slice(&[0; 8]);
    let mut out = Vec::new();
    Coalescer::default().push(&frame, &headers(&frame), &mut |packet, offload| {
        out.push((packet.to_vec(), offload));
    });
    assert_eq!(out, [(ping, Offload::NONE)]);
}
