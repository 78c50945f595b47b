#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;
use crate::{
    packet::{icmp, parse},
    testing::packets::{Generator, Ip, Tcp, echo_request, icmp as message, udp},
};

/// An ICMP error of `router` about `packet`, as the fabric itself writes them.
fn error_about(packet: &[u8], router: IpAddr) -> Vec<u8> {
    let headers = parse(packet, packet.len()).unwrap();
    let mut error = Vec::new();
    let written = icmp::write_error(
        icmp::IcmpError::HostUnreachable,
        router,
        packet,
        &headers,
        &mut error,
    );
    assert!(written);
    error
}

fn quoted(error: &[u8]) -> Option<Quoted> {
    of_error(error, &parse(error, error.len()).unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses and ports of the packet are found in an error about it, in both families.
#[test]
fn an_error_quotes_its_packet() {
    for (ip_header, router) in [(Ip::v4(), ip("10.2.0.1")), (Ip::v6(), ip("fd00:2::1"))] {
        let cases = [
            (Tcp::default().packet(&ip_header, b"x"), 6, (40_000, 80)),
            (udp(&ip_header, 5, 6, b"x"), 17, (5, 6)),
            (ip_header.packet(132, &[1; 12]), 132, (0, 0)),
        ];
        for (packet, protocol, ports) in cases {
            let found = quoted(&error_about(&packet, router)).unwrap();
            assert_eq!(found.source, ip_header.source);
            assert_eq!(found.destination, ip_header.destination);
            assert_eq!((found.protocol, found.ports), (protocol, Some(ports)));
        }
        let ping = echo_request(&ip_header, 77, 1, b"x");
        let found = quoted(&error_about(&ping, router)).unwrap();
        assert_eq!(found.ports, Some((77, 77)));
    }
}

/// What stands before the ports is stepped over: IPv4 options, IPv6 extension headers.
#[test]
fn ports_are_found_behind_options() {
    let v4 = Ip {
        options: vec![1; 8],
        ..Ip::v4()
    };
    let v6 = Ip {
        extensions: Some((60, vec![0, 0, 1, 4, 0, 0, 0, 0])),
        ..Ip::v6()
    };
    for (ip_header, router) in [(v4, ip("10.2.0.1")), (v6, ip("fd00:2::1"))] {
        let packet = udp(&ip_header, 5, 6, b"x");
        let found = quoted(&error_about(&packet, router)).unwrap();
        assert_eq!((found.protocol, found.ports), (17, Some((5, 6))));
    }
}

/// A quoted fragment has addresses and no ports, whichever fragment it is.
#[test]
fn a_quoted_fragment_has_no_ports() {
    let first = Ip {
        flags_and_offset: 0x2000,
        ..Ip::v4()
    };
    let packet = udp(&first, 5, 6, &[0; 64]);
    let found = quoted(&error_about(&packet, ip("10.2.0.1"))).unwrap();
    assert_eq!((found.source, found.ports), (first.source, None));
}

/// An error about a packet that its receiver did not send is about nothing of theirs; queries and
/// redirects are no errors.
#[test]
fn foreign_quotes_and_other_messages_are_none() {
    let packet = udp(&Ip::v4(), 5, 6, b"x");
    let to_another = Ip::between(
        "10.2.0.1".parse::<Ipv4Addr>().unwrap(),
        "10.1.0.9".parse::<Ipv4Addr>().unwrap(),
    );
    let mut rest = vec![0; 4];
    rest.extend_from_slice(&packet);
    assert_eq!(quoted(&message(&to_another, 3, 3, &rest)), None);

    let to_sender = Ip::between(ip("10.2.0.1"), Ip::v4().source);
    assert!(quoted(&message(&to_sender, 3, 3, &rest)).is_some());
    for kind in [0, 5, 8] {
        assert_eq!(quoted(&message(&to_sender, kind, 0, &rest)), None, "{kind}");
    }
    assert_eq!(quoted(&packet), None);
}

proptest! {
    /// Whatever is quoted, and however little of it: no panic, and never ports that are not there.
    #[test]
    fn any_quote_is_survived(seed in any::<u64>(), keep in 0..80_usize, ipv6 in any::<bool>()) {
        let mut generator = Generator::new(seed);
        let mut quote = generator.packet();
        generator.mutate(&mut quote);
        quote.truncate(keep);
        let outer = if ipv6 { Ip::v6() } else { Ip::v4() };
        let mut rest = vec![0; 4];
        rest.extend_from_slice(&quote);
        let error = message(&outer, if ipv6 { 1 } else { 3 }, 0, &rest);
        if let Some(found) = quoted(&error) {
            prop_assert_eq!(found.source, outer.destination);
            prop_assert!(keep >= 20);
            prop_assert!(keep > 20 || !matches!(found.ports, Some(ports) if ports != (0, 0)));
        }
    }
}
