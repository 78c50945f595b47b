//! Errors read back with etherparse; the rules on when to be silent, one by one.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Generator, Ip, echo_request, icmp, naive_sum, udp},
};

const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1));

const ALL: [IcmpError; 6] = [
    IcmpError::TimeExceeded,
    IcmpError::NetUnreachable,
    IcmpError::HostUnreachable,
    IcmpError::CommunicationProhibited,
    IcmpError::TooBig { mtu: 1400 },
    IcmpError::TooBig { mtu: 100_000 },
];

fn headers(packet: &[u8]) -> Headers {
    parse(packet, packet.len()).unwrap()
}

fn error(kind: IcmpError, packet: &[u8], prefix_len: usize) -> Vec<u8> {
    let parsed = headers(packet);
    let gateway = if parsed.is_ipv6() {
        GATEWAY_V6
    } else {
        GATEWAY_V4
    };
    let mut out = vec![1, 2, 3];
    let prefix = &packet[..prefix_len.min(packet.len())];
    assert!(write_error(kind, gateway, prefix, &parsed, &mut out));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever it is about, an error is a packet that parses, verifies, goes to the packet's source,
    /// quotes the packet as it came, and keeps to its size.
    #[test]
    fn errors_are_complete_packets(seed: u64, kind in prop::sample::select(ALL.to_vec()), prefix_len in 60_usize..2000) {
        let mut packet = Generator::new(seed).packet();
        prop_assume!(parse(&packet, packet.len()).is_ok());
        // Bytes behind the packet are not quoted.
        packet.extend_from_slice(&[0xee; 9]);
        let parsed = headers(&packet);
        let reply = error(kind, &packet, prefix_len);
        let found = headers(&reply);
        prop_assert_eq!(found.packet_len as usize, reply.len());
        prop_assert_eq!(found.destination, parsed.source);
        prop_assert_eq!(found.ttl, 64);
        prop_assert!(checksum::verify(&reply, &found));
        let sliced = SlicedPacket::from_ip(&reply).unwrap();
        let (max, icmp_bytes) = match (sliced.net.unwrap(), sliced.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                prop_assert_eq!(naive_sum(&[ip.header().slice()]), 0xffff);
                prop_assert_eq!(naive_sum(&[icmp.slice()]), 0xffff);
                (IPV4_ERROR_BYTES_MAX, icmp.slice())
            }
            (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                let header = ip.header();
                prop_assert!(icmp.is_checksum_valid(header.source(), header.destination()));
                (IPV6_ERROR_BYTES_MAX, icmp.slice())
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert!(reply.len() <= max);
        let room = max - (reply.len() - icmp_bytes.len()) - 8;
        let quote = &icmp_bytes[8..];
        let expected = prefix_len.min(parsed.packet_len as usize).min(room);
        prop_assert_eq!(quote.len(), expected);
        prop_assert_eq!(quote, &packet[..quote.len()]);
    }
}

/// Types, codes and MTU stand where RFC 792, 1191 and 4443 put them.
#[test]
fn writes_types_and_codes() {
    let expected = [
        ([11, 0], [3, 0]),
        ([3, 0], [1, 0]),
        ([3, 1], [1, 3]),
        ([3, 13], [1, 1]),
        ([3, 4], [2, 0]),
        ([3, 4], [2, 0]),
    ];
    for (kind, (v4, v6)) in ALL.into_iter().zip(expected) {
        let reply = error(kind, &udp(&Ip::v4(), 1, 2, &[5; 900]), 2000);
        assert_eq!(reply.len(), 576);
        assert_eq!(reply[20..22], v4);
        let reply = error(kind, &udp(&Ip::v6(), 1, 2, &[5; 2000]), 3000);
        assert_eq!(reply.len(), 1280);
        assert_eq!(reply[40..42], v6);
    }
    let mtu = |mtu: u32, packet: &[u8]| error(IcmpError::TooBig { mtu }, packet, 2000);
    let (v4, v6) = (udp(&Ip::v4(), 1, 2, b"x"), udp(&Ip::v6(), 1, 2, b"x"));
    assert_eq!(mtu(1400, &v4)[24..28], [0, 0, 5, 120]);
    assert_eq!(mtu(100_000, &v4)[24..28], [0, 0, 0xff, 0xff]);
    assert_eq!(mtu(1400, &v6)[44..48], 1400_u32.to_be_bytes());
    assert_eq!(mtu(576, &v6)[44..48], 1280_u32.to_be_bytes());
}

/// A gateway address of the other family writes nothing.
#[test]
fn refuses_the_wrong_family() {
    let packet = udp(&Ip::v4(), 1, 2, b"x");
    let mut out = vec![1];
    assert!(!write_error(
        IcmpError::TimeExceeded,
        GATEWAY_V6,
        &packet,
        &headers(&packet),
        &mut out
    ));
    assert!(out.is_empty());
}

/// Errors are never answered, queries and replies are.
#[test]
fn is_silent_about_errors() {
    for kind in 0..=255_u8 {
        let v4 = icmp(&Ip::v4(), kind, 0, &[0; 28]);
        let query = matches!(kind, 0 | 8..=10 | 13..=18 | 42 | 43);
        assert_eq!(may_answer(&headers(&v4)), query, "ICMP type {kind}");
        let v6 = icmp(&Ip::v6(), kind, 0, &[0; 28]);
        let informational = kind >= 128 && kind != 137;
        assert_eq!(may_answer(&headers(&v6)), informational, "ICMPv6 {kind}");
        assert_eq!(may_answer_too_big(&headers(&v6)), informational);
    }
    for ip in [Ip::v4(), Ip::v6()] {
        let ping = echo_request(&ip, 1, 2, b"x");
        let reply = error(IcmpError::NetUnreachable, &ping, 500);
        assert!(may_answer(&headers(&ping)));
        assert!(!may_answer(&headers(&reply)));
    }
}

/// Later fragments, and first ones too short to tell an ICMP error, are not answered.
#[test]
fn is_silent_about_later_fragments() {
    let fragment = |flags_and_offset: u16, protocol: u8, upper: &[u8]| {
        let ip = Ip {
            flags_and_offset,
            ..Ip::v4()
        };
        may_answer(&headers(&ip.packet(protocol, upper)))
    };
    assert!(fragment(0x2000, 17, &[1; 64]));
    assert!(!fragment(0x2001, 17, &[1; 64]));
    assert!(!fragment(0x0001, 17, &[1; 64]));
    assert!(fragment(0x2000, 6, &[1; 8]));
    assert!(!fragment(0x2000, 1, &[8; 4]));
}

/// Sources and destinations that are not one host are not answered.
#[test]
fn is_silent_about_addresses_of_no_host() {
    let host = "10.1.0.2".parse::<IpAddr>().unwrap();
    let none = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    for address in none.map(|text| text.parse::<IpAddr>().unwrap()) {
        for (source, destination) in [(host, address), (address, host)] {
            let packet = udp(&Ip::between(source, destination), 1, 2, b"x");
            assert!(!may_answer(&headers(&packet)), "{source} {destination}");
            assert!(!may_answer_too_big(&headers(&packet)));
        }
    }
    let host = "fd00::2".parse::<IpAddr>().unwrap();
    for address in ["::", "::1", "ff02::1"].map(|text| text.parse::<IpAddr>().unwrap()) {
        for (source, destination) in [(host, address), (address, host)] {
            let packet = udp(&Ip::between(source, destination), 1, 2, b"x");
            assert!(!may_answer(&headers(&packet)), "{source} {destination}");
            assert_eq!(
                may_answer_too_big(&headers(&packet)),
                destination.is_multicast()
            );
        }
    }
}
