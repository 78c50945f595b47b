//! Segments against packets made one by one, as a sender without offload would make them.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Ip, Tcp, udp, udp_partial},
};

fn cut(packet: &[u8], kind: GsoKind, size: u16) -> Result<Vec<Vec<u8>>, DropReason> {
    let headers = parse(packet, packet.len()).unwrap();
    let size = NonZeroU16::new(size).unwrap();
    let mut segments = Vec::new();
    segment(
        packet,
        &headers,
        Gso { kind, size },
        &mut Vec::new(),
        |segment| segments.push(segment.to_vec()),
    )?;
    assert_eq!(segments.len(), segment_count(&headers, Gso { kind, size }));
    Ok(segments)
}

fn base(v6: bool, identification: u16) -> Ip {
    if v6 {
        Ip::v6()
    } else {
        Ip {
            identification,
            ..Ip::v4()
        }
    }
}

fn numbered(ip: &Ip, index: usize) -> Ip {
    Ip {
        identification: ip.identification.wrapping_add(index as u16),
        ..ip.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// TCP segments are the packets that a sender would have made one by one.
    #[test]
    fn tcp_equals_naive(
        payload in prop::collection::vec(any::<u8>(), 1..20_000),
        size in 1_u16..3000,
        v6: bool,
        ecn: bool,
        option_words in 0_usize..=10,
        sequence: u32,
        identification: u16,
        flags: u8,
    ) {
        let size = size.max((payload.len() / 200) as u16).max(1);
        let ip = base(v6, identification);
        let tcp = Tcp { sequence, flags, options: vec![1; option_words * 4], ..Tcp::default() };
        let kind = if ecn { GsoKind::TcpEcn } else { GsoKind::Tcp };
        let segments = cut(&tcp.partial(&ip, &payload), kind, size).unwrap();
        let chunks: Vec<_> = payload.chunks(usize::from(size)).collect();
        prop_assert_eq!(segments.len(), chunks.len());
        for (index, (segment, chunk)) in segments.iter().zip(&chunks).enumerate() {
            let mut flags = flags;
            if index + 1 < chunks.len() {
                flags &= !0b1001;
            }
            if index > 0 && ecn {
                flags &= !0x80;
            }
            let sequence = sequence.wrapping_add((index * usize::from(size)) as u32);
            let expected = Tcp { sequence, flags, ..tcp.clone() }.packet(&numbered(&ip, index), chunk);
            prop_assert_eq!(segment, &expected);
        }
    }

    /// UDP segments are the packets that a sender would have made one by one.
    #[test]
    fn udp_equals_naive(
        payload in prop::collection::vec(any::<u8>(), 1..20_000),
        size in 1_u16..3000,
        v6: bool,
        identification: u16,
    ) {
        let size = size.max((payload.len() / 200) as u16).max(1);
        let ip = base(v6, identification);
        let segments = cut(&udp_partial(&ip, 5, 6, &payload), GsoKind::Udp, size).unwrap();
        let expected: Vec<_> = payload
            .chunks(usize::from(size))
            .enumerate()
            .map(|(index, chunk)| udp(&numbered(&ip, index), 5, 6, chunk))
            .collect();
        prop_assert_eq!(segments, expected);
    }
}

/// IPv4 options and IPv6 extension headers are on every segment.
#[test]
fn keeps_ip_headers() {
    let v4 = Ip {
        options: vec![148, 4, 0, 0],
        ..Ip::v4()
    };
    let v6 = Ip {
        extensions: Some((60, vec![0, 0, 1, 4, 0, 0, 0, 0])),
        ..Ip::v6()
    };
    for ip in [v4, v6] {
        let payload = [7; 250];
        let segments = cut(&udp_partial(&ip, 5, 6, &payload), GsoKind::Udp, 100).unwrap();
        let expected: Vec<_> = payload
            .chunks(100)
            .enumerate()
            .map(|(index, chunk)| udp(&numbered(&ip, index), 5, 6, chunk))
            .collect();
        assert_eq!(segments, expected);
    }
}

/// A segment whose UDP checksum comes out as zero says 0xffff.
#[test]
fn udp_zero_checksum_is_written_as_ones() {
    let ip = Ip::v6();
    let zero = udp(&ip, 5, 6, &[0, 0]);
    // The first segment's payload is chosen to bring its sum to all ones.
    let payload = [&zero[46..48], &[1, 2]].concat();
    let segments = cut(&udp_partial(&ip, 5, 6, &payload), GsoKind::Udp, 2).unwrap();
    assert_eq!(segments[0][46..48], [0xff, 0xff]);
}

/// A wrong seed gives wrong checksums: the damage is not masked.
#[test]
fn wrong_seed_stays_wrong() {
    let mut packet = Tcp::default().partial(&Ip::v4(), &[3; 300]);
    packet[36] ^= 1;
    for segment in cut(&packet, GsoKind::Tcp, 100).unwrap() {
        let headers = parse(&segment, segment.len()).unwrap();
        assert!(!crate::packet::checksum::verify(&segment, &headers));
    }
}

/// The largest packets of both families are cut; the smallest size makes the most segments.
#[test]
fn cuts_the_largest_packets() {
    for (ip, payload_len) in [(Ip::v4(), 65_535 - 40), (Ip::v6(), 65_535 - 20)] {
        let packet = Tcp::default().partial(&ip, &vec![9; payload_len]);
        let segments = cut(&packet, GsoKind::Tcp, 1448).unwrap();
        assert_eq!(segments.len(), payload_len.div_ceil(1448));
        assert_eq!(cut(&packet, GsoKind::Tcp, u16::MAX).unwrap().len(), 1);
        assert_eq!(cut(&packet, GsoKind::Tcp, 1).unwrap().len(), payload_len);
    }
}

/// What cannot be cut so is refused, with nothing emitted.
#[test]
fn refuses_what_cannot_be_cut() {
    let tcp = Tcp::default().partial(&Ip::v4(), &[3; 300]);
    let udp = udp_partial(&Ip::v4(), 1, 2, &[3; 300]);
    let empty = Tcp::default().partial(&Ip::v4(), b"");
    let fragment = Ip {
        flags_and_offset: 0x2000,
        ..Ip::v4()
    };
    let fragment = udp_partial(&fragment, 1, 2, &[3; 300]);
    for (packet, kind) in [
        (&tcp, GsoKind::Udp),
        (&udp, GsoKind::Tcp),
        (&udp, GsoKind::TcpEcn),
        (&empty, GsoKind::Tcp),
        (&fragment, GsoKind::Udp),
    ] {
        let headers = parse(packet, packet.len()).unwrap();
        let size = NonZeroU16::new(100).unwrap();
        let result = segment(
            packet,
            &headers,
            Gso { kind, size },
            &mut Vec::new(),
            |_| panic!("emitted"),
        );
        assert_eq!(result, Err(DropReason::BadOffload));
    }
    let headers = parse(&tcp, tcp.len()).unwrap();
    let gso = Gso {
        kind: GsoKind::Tcp,
        size: NonZeroU16::new(100).unwrap(),
    };
    let result = segment(&tcp[..200], &headers, gso, &mut Vec::new(), |_| {});
    assert_eq!(result, Err(DropReason::Truncated));
}
