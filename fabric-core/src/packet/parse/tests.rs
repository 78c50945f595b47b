//! The parser against etherparse and against a naive walk along the extension headers.
//!
//! Where the two differ on purpose:
//! - etherparse leaves the IPv4 header checksum unchecked; a router must not (RFC 1812 5.2.2). The
//!   oracle sums it word by word, for etherparse's own sum leaves out the reserved flag.
//! - etherparse does not look into IPv4 options; source routes and broken option lists are refused.
//! - etherparse takes an IPv6 payload length of zero for "all of the slice"; here it means zero.
//! - etherparse walks on past the header of a later fragment, into bytes that are no header.
//! - etherparse takes any number of extension headers, routing type 0, and several fragment headers.
//! - etherparse takes AH for an IPv4 extension; here it is an upper layer, as port rules cannot
//!   look behind it in the same way for both families.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpSlice, Ipv4HeaderSlice, LaxNetSlice, LaxSlicedPacket, TcpSlice,
    UdpHeaderSlice, err::tcp::HeaderSliceError,
};
use proptest::prelude::*;

use super::*;
use crate::testing::packets::{
    Generator, Ip, Tcp, echo_request, ipv4_tcp, ipv4_udp, ipv6_tcp, ipv6_udp, naive_sum, udp,
};

fn check(packet: &[u8]) -> Result<Headers, DropReason> {
    parse(packet, packet.len())
}

fn refresh_checksum(packet: &mut [u8]) {
    let header_len = usize::from(packet.first().map_or(0, |first| first & 0x0f)) * 4;
    if packet.first().is_some_and(|first| first >> 4 == 4)
        && header_len >= 20
        && packet.len() >= header_len
    {
        packet[10..12].fill(0);
        let sum = !naive_sum(&[&packet[..header_len]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

fn with_options(options: &[u8]) -> Vec<u8> {
    let ip = Ip {
        options: options.to_vec(),
        ..Ip::v4()
    };
    udp(&ip, 1, 2, b"x")
}

fn with_extensions(first: u8, bytes: &[u8]) -> Vec<u8> {
    let ip = Ip {
        extensions: Some((first, bytes.to_vec())),
        ..Ip::v6()
    };
    udp(&ip, 1, 2, b"x")
}

// ---- the oracle ----

#[derive(Debug, PartialEq)]
struct Expected {
    protocol: u8,
    transport_offset: usize,
    packet_len: usize,
    fragment: Fragment,
    transport: Transport,
}

/// What should come of `packet`; `None` if it is to be dropped.
fn oracle(packet: &[u8]) -> Option<Expected> {
    match packet.first()? >> 4 {
        4 => oracle_v4(packet),
        6 => oracle_v6(packet),
        _ => None,
    }
}

fn oracle_v4(packet: &[u8]) -> Option<Expected> {
    let slice = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let header = slice.to_header();
    let packet_len = usize::from(header.total_len);
    if naive_sum(&[slice.slice()]) != 0xffff
        || packet_len < header.header_len()
        || packet_len > packet.len()
        || !options_are_plain(&slice.slice()[20..])
    {
        return None;
    }
    let fragment = match (header.fragment_offset.value(), header.more_fragments) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    let upper = &packet[header.header_len()..packet_len];
    Some(Expected {
        protocol: header.protocol.0,
        transport_offset: header.header_len(),
        packet_len,
        fragment,
        transport: oracle_transport(upper, header.protocol.0, fragment, 1)?,
    })
}

fn options_are_plain(options: &[u8]) -> bool {
    match options {
        [] | [0, ..] => true,
        [1, rest @ ..] => options_are_plain(rest),
        [131 | 137, ..] | [_] => false,
        [_, len, ..] => {
            let len = usize::from(*len);
            (2..=options.len()).contains(&len) && options_are_plain(&options[len..])
        }
    }
}

fn oracle_v6(packet: &[u8]) -> Option<Expected> {
    if packet.len() < 40 {
        return None;
    }
    let packet_len = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    if packet_len > packet.len() || (packet_len == 40 && packet[6] == 0) {
        return None;
    }
    let packet = &packet[..packet_len];
    let chain = naive_chain(packet[6], packet, 40)?;
    let bytes: usize = chain.iter().map(|header| header.len).sum();
    let fragment_headers: Vec<_> = chain.iter().filter(|header| header.kind == 44).collect();
    if chain.len() > 8
        || bytes > 256
        || fragment_headers.len() > 1
        || chain
            .iter()
            .any(|header| header.kind == 43 && header.third == 0)
        || chain.iter().skip(1).any(|header| header.kind == 0)
    {
        return None;
    }
    let fragment = fragment_headers.first().map_or(Fragment::Whole, |header| {
        match (header.word >> 3, header.word & 1) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        }
    });
    let (protocol, transport_offset) = if fragment == Fragment::Later {
        (chain.last()?.next, 40 + bytes)
    } else {
        let Ok(IpSlice::Ipv6(slice)) = IpSlice::from_slice(packet) else {
            return None;
        };
        assert_eq!(slice.is_payload_fragmented(), fragment == Fragment::First);
        let payload = slice.payload();
        (payload.ip_number.0, packet_len - payload.payload.len())
    };
    let upper = &packet[transport_offset..];
    Some(Expected {
        protocol,
        transport_offset,
        packet_len,
        fragment,
        transport: oracle_transport(upper, protocol, fragment, 58)?,
    })
}

struct Extension {
    kind: u8,
    next: u8,
    third: u8,
    word: u16,
    len: usize,
}

/// The extension headers from `at` on, a later fragment's own the last; `None` if one is cut short.
fn naive_chain(kind: u8, packet: &[u8], at: usize) -> Option<Vec<Extension>> {
    if ![0, 43, 44, 51, 60].contains(&kind) {
        return Some(Vec::new());
    }
    let rest = &packet[at..];
    let len = match (kind, usize::from(*rest.get(1)?)) {
        (44, _) => 8,
        (51, 0) => return None,
        (51, units) => (units + 2) * 4,
        (_, units) => (units + 1) * 8,
    };
    if rest.len() < len {
        return None;
    }
    let header = Extension {
        kind,
        next: rest[0],
        third: rest[2],
        word: u16::from_be_bytes([rest[2], rest[3]]),
        len,
    };
    let is_later = kind == 44 && header.word >> 3 != 0;
    let mut chain = vec![header];
    if !is_later {
        chain.extend(naive_chain(rest[0], packet, at + len)?);
    }
    Some(chain)
}

fn oracle_transport(upper: &[u8], protocol: u8, at: Fragment, icmp: u8) -> Option<Transport> {
    if at == Fragment::Later {
        return Some(Transport::Absent);
    }
    let cut_short = (at == Fragment::First).then_some(Transport::Absent);
    if protocol == 6 {
        return match TcpSlice::from_slice(upper) {
            Ok(tcp) => Some(Transport::Tcp {
                source: tcp.source_port(),
                destination: tcp.destination_port(),
                header_len: tcp.data_offset() * 4,
                flags: tcp.slice()[13],
            }),
            Err(HeaderSliceError::Len(_)) => cut_short,
            Err(HeaderSliceError::Content(_)) => None,
        };
    }
    if protocol == 17 {
        return match UdpHeaderSlice::from_slice(upper) {
            Ok(udp) => Some(Transport::Udp {
                source: udp.source_port(),
                destination: udp.destination_port(),
            }),
            Err(_) => cut_short,
        };
    }
    if protocol != icmp {
        return Some(Transport::Other);
    }
    let fields = if icmp == 1 {
        Icmpv4Slice::from_slice(&upper[..upper.len().min(8)]).map(|m| (m.type_u8(), m.code_u8()))
    } else {
        Icmpv6Slice::from_slice(upper).map(|m| (m.type_u8(), m.code_u8()))
    };
    match fields {
        Ok((kind, code)) => Some(Transport::Icmp { kind, code }),
        // A timestamp is longer than the 8 bytes shown to the oracle.
        Err(_) if upper.len() >= 8 => Some(Transport::Icmp {
            kind: upper[0],
            code: upper[1],
        }),
        Err(_) => cut_short,
    }
}

fn assert_agrees(packet: &[u8]) -> Result<bool, TestCaseError> {
    let headers = check(packet);
    let found = headers.ok().map(|headers| Expected {
        protocol: headers.protocol,
        transport_offset: usize::from(headers.transport_offset),
        packet_len: headers.packet_len as usize,
        fragment: headers.fragment,
        transport: headers.transport,
    });
    prop_assert_eq!(&found, &oracle(packet), "{:?} for {:02x?}", headers, packet);
    if let Ok(headers) = headers {
        match LaxSlicedPacket::from_ip(packet).unwrap().net.unwrap() {
            LaxNetSlice::Ipv4(slice) => {
                let header = slice.header();
                prop_assert_eq!(headers.source, IpAddr::V4(header.source_addr()));
                prop_assert_eq!(headers.destination, IpAddr::V4(header.destination_addr()));
                prop_assert_eq!(headers.ttl, header.ttl());
                let class = (header.dcp().value() << 2) | header.ecn().value();
                prop_assert_eq!(headers.traffic_class, class);
                prop_assert_eq!(headers.dont_fragment, header.dont_fragment());
            }
            LaxNetSlice::Ipv6(slice) => {
                let header = slice.header();
                prop_assert_eq!(headers.source, IpAddr::V6(header.source_addr()));
                prop_assert_eq!(headers.destination, IpAddr::V6(header.destination_addr()));
                prop_assert_eq!(headers.ttl, header.hop_limit());
                prop_assert_eq!(headers.traffic_class, header.traffic_class());
                prop_assert!(headers.dont_fragment);
            }
            LaxNetSlice::Arp(_) => prop_assert!(false, "not IP"),
        }
        // The parser needs no more than the prefix it asks for.
        let prefix = &packet[..packet.len().min(HEADER_PREFIX_LEN)];
        prop_assert_eq!(parse(prefix, packet.len()), Ok(headers));
    }
    Ok(found.is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Generated packets are read as etherparse reads them, down to every field.
    #[test]
    fn agrees_on_generated_packets(seed: u64) {
        let packet = Generator::new(seed).packet();
        assert_agrees(&packet)?;
    }

    /// Damaged packets are accepted or refused as the oracle says, with a valid header checksum too.
    #[test]
    fn agrees_on_mutated_packets(seed: u64) {
        let mut generator = Generator::new(seed);
        let mut packet = generator.packet();
        generator.mutate(&mut packet);
        assert_agrees(&packet)?;
        refresh_checksum(&mut packet);
        assert_agrees(&packet)?;
    }

    /// Random bytes behind a plausible first byte are accepted or refused as the oracle says.
    #[test]
    fn agrees_on_random_bytes(first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60, 0x6f, 0x05]),
                              mut bytes in prop::collection::vec(any::<u8>(), 1..400)) {
        bytes[0] = first;
        if let Some(length) = bytes.get_mut(2..6) {
            length[0] = 0;
            length[2] = 0;
        }
        refresh_checksum(&mut bytes);
        assert_agrees(&bytes)?;
    }

    /// No bytes and no claimed length make the parser panic, and a prefix never tells more than the
    /// whole frame does.
    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), available in 0_usize..70_000) {
        if let Ok(headers) = parse(&bytes, available) {
            prop_assert!(headers.packet_len as usize <= available);
            if let Some(payload) = headers.payload_offset() {
                prop_assert!(u32::from(payload) <= headers.packet_len);
            }
        }
    }
}

/// The comparison means something: of damaged packets many are accepted and many refused.
#[test]
fn mutation_reaches_both_outcomes() {
    let accepted = (0..2000)
        .filter(|&seed| {
            let mut generator = Generator::new(seed);
            let mut packet = generator.packet();
            generator.mutate(&mut packet);
            refresh_checksum(&mut packet);
            check(&packet).is_ok()
        })
        .count();
    assert!((400..1800).contains(&accepted), "{accepted} of 2000");
}

/// TCP over IPv4 is read with ports in host byte order and the offsets of its headers.
#[test]
fn reads_tcp_over_ipv4() {
    let headers = check(&ipv4_tcp(b"hello")).unwrap();
    assert_eq!(headers.transport_offset, 20);
    assert_eq!(headers.payload_offset(), Some(40));
    assert_eq!(headers.payload_len(), Some(5));
    assert_eq!(headers.checksum_offset(), Some(16));
    assert!(headers.dont_fragment && !headers.is_ipv6());
    assert_eq!(
        headers.transport,
        Transport::Tcp {
            source: 40_000,
            destination: 80,
            header_len: 20,
            flags: 0x10
        }
    );
}

/// UDP over IPv6 and pings of both families are read.
#[test]
fn reads_udp_and_icmp() {
    let headers = check(&ipv6_udp(b"hello")).unwrap();
    assert_eq!((headers.transport_offset, headers.packet_len), (40, 53));
    assert_eq!(headers.checksum_offset(), Some(6));
    for (ip, kind) in [(Ip::v4(), 8), (Ip::v6(), 128)] {
        let headers = check(&echo_request(&ip, 1, 2, b"x")).unwrap();
        assert_eq!(headers.transport, Transport::Icmp { kind, code: 0 });
        assert_eq!(headers.payload_offset(), None);
    }
}

/// ICMP in IPv6 and ICMPv6 in IPv4 are no ICMP: their numbers mean something else there.
#[test]
fn icmp_belongs_to_its_family() {
    let headers = check(&Ip::v6().packet(1, &[8; 8])).unwrap();
    assert_eq!(headers.transport, Transport::Other);
    let headers = check(&Ip::v4().packet(58, &[128; 8])).unwrap();
    assert_eq!(headers.transport, Transport::Other);
}

/// Bytes behind the packet are no part of it; missing ones refuse it.
#[test]
fn trims_and_refuses_by_length() {
    for mut packet in [ipv4_udp(b"abc"), ipv6_tcp(b"abc")] {
        let len = packet.len();
        for short in 0..len {
            assert_eq!(check(&packet[..short]), parse(&packet, short));
            assert!(check(&packet[..short]).is_err());
        }
        packet.extend_from_slice(&[0xaa; 30]);
        assert_eq!(check(&packet).unwrap().packet_len as usize, len);
    }
}

/// Each way to spoil the IP header has its own reason.
#[test]
fn names_the_reason() {
    let good = ipv4_udp(b"abc");
    let spoil = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    assert_eq!(check(&[]), Err(DropReason::Truncated));
    assert_eq!(check(&spoil(0, 0x55)), Err(DropReason::BadVersion));
    assert_eq!(check(&spoil(0, 0x44)), Err(DropReason::BadHeaderLength));
    assert_eq!(check(&spoil(0, 0x4f)), Err(DropReason::BadHeaderLength));
    assert_eq!(check(&spoil(3, 19)), Err(DropReason::BadTotalLength));
    assert_eq!(check(&spoil(2, 0xff)), Err(DropReason::Truncated));
    assert_eq!(check(&spoil(8, 1)), Err(DropReason::BadHeaderChecksum));
    let mut jumbo = with_extensions(0, &[0, 0, 1, 4, 0, 0, 0, 0]);
    jumbo[4..6].fill(0);
    assert_eq!(check(&jumbo), Err(DropReason::BadTotalLength));
    let mut tcp = ipv4_tcp(b"abc");
    tcp[32] = 0x40;
    assert_eq!(check(&tcp), Err(DropReason::BadHeaderLength));
    tcp[32] = 0x60;
    assert_eq!(check(&tcp), Err(DropReason::Truncated));
}

/// Source routes are refused wherever they hide; record route, timestamp and router alert pass.
#[test]
fn refuses_source_routes() {
    for kind in [131, 137] {
        assert_eq!(
            check(&with_options(&[1, kind, 3, 4])),
            Err(DropReason::SourceRoute)
        );
    }
    for options in [[7, 3, 4, 0], [68, 4, 5, 0], [148, 4, 0, 0], [0, 131, 3, 4]] {
        assert!(check(&with_options(&options)).is_ok(), "{options:?}");
    }
    for options in [[7, 5, 4, 0], [7, 0, 131, 3], [1, 1, 1, 7]] {
        assert_eq!(
            check(&with_options(&options)),
            Err(DropReason::BadHeaderLength),
            "{options:?}"
        );
    }
}

/// Extension headers are walked up to 8 of them and 256 bytes, and no further.
#[test]
fn bounds_extension_headers() {
    let chain = |count: usize| -> Vec<u8> { [60, 0, 1, 4, 0, 0, 0, 0].repeat(count) };
    assert!(check(&with_extensions(60, &chain(8))).is_ok());
    assert_eq!(
        check(&with_extensions(60, &chain(9))),
        Err(DropReason::ExtensionHeaders)
    );
    let sized = |units: u8| {
        let mut bytes = vec![0; (usize::from(units) + 1) * 8];
        bytes[1] = units;
        bytes
    };
    let headers = check(&with_extensions(60, &sized(31))).unwrap();
    assert_eq!(headers.transport_offset, 296);
    assert_eq!(
        check(&with_extensions(60, &sized(32))),
        Err(DropReason::ExtensionHeaders)
    );
    // Hop-by-hop options anywhere but first (RFC 8200 4.1).
    let late = [&[0, 0, 1, 4, 0, 0, 0, 0][..], &[0, 0, 1, 4, 0, 0, 0, 0]].concat();
    assert_eq!(
        check(&with_extensions(60, &late)),
        Err(DropReason::ExtensionHeaders)
    );
}

/// Routing header type 0 is refused, other types pass (RFC 5095).
#[test]
fn refuses_routing_type_zero() {
    assert_eq!(
        check(&with_extensions(43, &[0; 8])),
        Err(DropReason::RoutingHeader)
    );
    assert!(check(&with_extensions(43, &[0, 0, 4, 0, 0, 0, 0, 0])).is_ok());
}

/// IPv6 fragments are told apart, and an atomic fragment is a whole packet (RFC 6946).
#[test]
fn recognises_ipv6_fragments() {
    let fragment = |word: u16| {
        let [a, b] = word.to_be_bytes();
        check(&with_extensions(44, &[0, 0, a, b, 0, 0, 0, 9])).unwrap()
    };
    assert_eq!(fragment(0).fragment, Fragment::Whole);
    assert!(fragment(0).payload_offset().is_some());
    assert_eq!(fragment(1).fragment, Fragment::First);
    assert_eq!(fragment(1).payload_offset(), None);
    assert!(matches!(fragment(1).transport, Transport::Udp { .. }));
    for word in [8, 9] {
        assert_eq!(fragment(word).fragment, Fragment::Later);
        assert_eq!(fragment(word).transport, Transport::Absent);
        assert_eq!(fragment(word).protocol, protocol::UDP);
    }
}

/// A first fragment too short for its upper-layer header has none; a whole packet is refused.
#[test]
fn tiny_first_fragment_has_no_transport() {
    let tcp = Tcp::default().packet(&Ip::v4(), b"");
    for flags_and_offset in [0x2000, 0] {
        let ip = Ip {
            flags_and_offset,
            ..Ip::v4()
        };
        let found = check(&ip.packet(6, &tcp[20..28])).map(|headers| headers.transport);
        if flags_and_offset == 0 {
            assert_eq!(found, Err(DropReason::Truncated));
        } else {
            assert_eq!(found, Ok(Transport::Absent));
        }
    }
}
