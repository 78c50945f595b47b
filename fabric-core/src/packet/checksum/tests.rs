//! Sums against one made word by word, and against etherparse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use etherparse::SlicedPacket;
use proptest::prelude::*;

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Generator, Ip, Tcp, echo_request, naive_sum, udp, udp_partial},
};

fn headers(packet: &[u8]) -> Headers {
    parse(packet, packet.len()).unwrap()
}

/// True if etherparse computes the checksum that the packet carries.
fn etherparse_agrees(packet: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let net = sliced.net.unwrap();
    let transport = sliced.transport.unwrap();
    match (net.ipv4_ref(), transport) {
        (Some(ip), etherparse::TransportSlice::Tcp(tcp)) => {
            let header = ip.header();
            tcp.calc_checksum_ipv4(header.source(), header.destination())
                .unwrap()
                == tcp.checksum()
        }
        (None, etherparse::TransportSlice::Tcp(tcp)) => {
            let header = net.ipv6_ref().unwrap().header();
            tcp.calc_checksum_ipv6(header.source(), header.destination())
                .unwrap()
                == tcp.checksum()
        }
        (Some(ip), etherparse::TransportSlice::Udp(udp)) => {
            let header = ip.header().to_header();
            udp.to_header()
                .calc_checksum_ipv4(&header, udp.payload())
                .unwrap()
                == udp.checksum()
        }
        (None, etherparse::TransportSlice::Udp(udp)) => {
            let header = net.ipv6_ref().unwrap().header().to_header();
            udp.to_header()
                .calc_checksum_ipv6(&header, udp.payload())
                .unwrap()
                == udp.checksum()
        }
        _ => false,
    }
}

fn any_ip() -> impl Strategy<Value = Ip> {
    prop::bool::ANY.prop_map(|v6| if v6 { Ip::v6() } else { Ip::v4() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The wide sum equals the sum word by word, for every length and however it is cut in even parts.
    #[test]
    fn sum_equals_naive(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0_usize..3000) {
        prop_assert_eq!(Sum::default().bytes(&bytes).fold(), naive_sum(&[&bytes]));
        let (a, b) = bytes.split_at((cut & !1).min(bytes.len() & !1));
        prop_assert_eq!(Sum::default().bytes(a).bytes(b).fold(), naive_sum(&[&bytes]));
    }

    /// Words count as the bytes they are written as.
    #[test]
    fn words_are_bytes(word: u16, long: u32) {
        let bytes = [&long.to_be_bytes()[..], &word.to_be_bytes()].concat();
        prop_assert_eq!(Sum::default().word(word).long(long).fold(), naive_sum(&[&bytes]));
    }

    /// An updated checksum is the one computed anew.
    #[test]
    fn update_equals_recomputation(mut bytes in prop::collection::vec(any::<u8>(), 2..60), at: prop::sample::Index, new: u16) {
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
        // All zero is the one content whose sum has two writings; an IP header is never that.
        bytes[0] |= 0x40;
        let at = (at.index(bytes.len()) & !1).max(2) % bytes.len();
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let before = checksum(&bytes);
        let new = if at == 0 { new | 0x4000 } else { new };
        bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
        prop_assert_eq!(update(before, old, new), checksum(&bytes));
    }

    /// Completing a partial checksum gives the packet that had the whole one, and etherparse agrees.
    #[test]
    fn completes_partial_checksums(ip in any_ip(), payload in prop::collection::vec(any::<u8>(), 0..1500), is_udp: bool) {
        let (mut packet, whole) = if is_udp {
            (udp_partial(&ip, 1, 2, &payload), udp(&ip, 1, 2, &payload))
        } else {
            let tcp = Tcp::default();
            (tcp.partial(&ip, &payload), tcp.packet(&ip, &payload))
        };
        let parsed = headers(&packet);
        complete_checksum(&mut packet, &parsed).unwrap();
        prop_assert_eq!(&packet, &whole);
        prop_assert!(verify(&packet, &parsed));
        prop_assert!(etherparse_agrees(&packet));
    }

    /// A flipped bit anywhere above the IP header is noticed, unless it takes UDP's checksum away.
    #[test]
    fn notices_damage(seed: u64, at: prop::sample::Index, bit in 0_u8..8) {
        let mut generator = Generator::new(seed);
        let payload = generator.bytes(64);
        for ip in [Ip::v4(), Ip::v6()] {
            for mut packet in [Tcp::default().packet(&ip, &payload), udp(&ip, 7, 9, &payload), echo_request(&ip, 3, 4, &payload)] {
                let parsed = headers(&packet);
                prop_assert!(verify(&packet, &parsed));
                let upper = usize::from(parsed.transport_offset);
                let at = upper + at.index(packet.len() - upper);
                packet[at] ^= 1 << bit;
                let none = matches!(parsed.transport, Transport::Udp { .. }) && packet[upper + 6..upper + 8] == [0, 0];
                prop_assert!(none || !verify(&packet, &parsed));
            }
        }
    }

    /// The seed of a partial checksum is the folded sum of the pseudo-header.
    #[test]
    fn seed_equals_naive(ip in any_ip(), len in 0_usize..60_000) {
        let parsed = headers(&udp(&ip, 1, 2, b""));
        let seed = pseudo_header_sum(&parsed, u32::try_from(len).unwrap()).fold();
        prop_assert_eq!(seed, ip.pseudo_header_sum(17, len));
    }
}

/// UDP without a checksum passes over IPv4 and not over IPv6.
#[test]
fn zero_means_none_over_ipv4_only() {
    for (ip, at, passes) in [(Ip::v4(), 26, true), (Ip::v6(), 46, false)] {
        let mut packet = udp(&ip, 1, 2, b"abc");
        packet[at..at + 2].fill(0);
        assert_eq!(verify(&packet, &headers(&packet)), passes);
    }
}

/// A UDP checksum that comes out as zero is written as 0xffff, a TCP one stays zero.
#[test]
fn computed_zero_is_written_as_ones_for_udp() {
    for ip in [Ip::v4(), Ip::v6()] {
        // With a payload equal to the checksum of the packet that has zero in its place, the sum is
        // all ones and its complement zero.
        let zero = udp(&ip, 1, 2, &[0, 0]);
        let at = usize::from(headers(&zero).transport_offset) + 6;
        let mut packet = udp_partial(&ip, 1, 2, &zero[at..at + 2]);
        let parsed = headers(&packet);
        complete_checksum(&mut packet, &parsed).unwrap();
        assert_eq!(packet[at..at + 2], [0xff, 0xff]);
        assert!(verify(&packet, &parsed));

        let tcp = Tcp::default();
        let zero = tcp.packet(&ip, &[0, 0]);
        let at = usize::from(headers(&zero).transport_offset) + 16;
        let mut packet = tcp.partial(&ip, &zero[at..at + 2]);
        let parsed = headers(&packet);
        complete_checksum(&mut packet, &parsed).unwrap();
        assert_eq!(packet[at..at + 2], [0, 0]);
        assert!(verify(&packet, &parsed));
    }
}

/// The sum of the longest packet does not overflow.
#[test]
fn sums_the_longest_packet() {
    let bytes = vec![0xff; 65_575];
    assert_eq!(Sum::default().bytes(&bytes).fold(), naive_sum(&[&bytes]));
}

/// A UDP length beyond the packet, or below the header's, does not verify and does not panic.
#[test]
fn refuses_a_udp_length_that_cannot_be() {
    for length in [0_u8, 7, 200] {
        let mut packet = udp(&Ip::v4(), 1, 2, b"abc");
        packet[25] = length;
        assert!(!verify(&packet, &headers(&packet)));
    }
}

/// Only whole TCP and UDP packets have a partial checksum to complete.
#[test]
fn refuses_to_complete_others() {
    let mut ping = echo_request(&Ip::v4(), 1, 2, b"abc");
    let parsed = headers(&ping);
    assert_eq!(
        complete_checksum(&mut ping, &parsed),
        Err(DropReason::BadOffload)
    );
    let packet = udp(&Ip::v4(), 1, 2, b"abc");
    let parsed = headers(&packet);
    assert_eq!(
        complete_checksum(&mut packet[..24].to_vec(), &parsed),
        Err(DropReason::BadOffload)
    );
}
