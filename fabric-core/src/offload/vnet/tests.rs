//! The virtio header: every byte of it, and every way it can contradict its packet.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use proptest::prelude::*;

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Generator, Ip, Tcp, echo_request, udp, udp_partial},
};

fn headers(packet: &[u8]) -> Headers {
    parse(packet, packet.len()).unwrap()
}

fn tcp(ip: &Ip) -> Headers {
    headers(&Tcp::default().partial(ip, &[1; 5000]))
}

fn udp_headers(ip: &Ip) -> Headers {
    headers(&udp_partial(ip, 1, 2, &[1; 5000]))
}

fn gso(kind: GsoKind, size: u16) -> Offload {
    Offload {
        needs_checksum: true,
        gso: NonZeroU16::new(size).map(|size| Gso { kind, size }),
    }
}

fn any_header() -> impl Strategy<Value = VnetHeader> {
    let interesting = prop::sample::select(vec![0_u8, 1, 2, 3, 4, 5, 0x80, 0x81, 0x84, 0x85]);
    let starts = prop::sample::select(vec![0_u16, 20, 40, 28, 60]);
    let offsets = prop::sample::select(vec![0_u16, 6, 16, 0xffff]);
    (
        0_u8..4,
        interesting,
        any::<u16>(),
        0_u16..3,
        starts,
        offsets,
    )
        .prop_map(
            |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| VnetHeader {
                flags,
                gso_type,
                hdr_len,
                gso_size: gso_size * 700,
                csum_start,
                csum_offset,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Ten bytes decode and encode to themselves.
    #[test]
    fn bytes_round_trip(bytes: [u8; VnetHeader::LEN]) {
        prop_assert_eq!(VnetHeader::decode(bytes).encode(), bytes);
    }

    /// What is accepted can be written again, and reads as the same offload.
    #[test]
    fn offload_round_trips(header in any_header(), seed: u64) {
        let mut generator = Generator::new(seed);
        let packet = generator.packet();
        prop_assume!(parse(&packet, packet.len()).is_ok());
        for parsed in [headers(&packet), tcp(&Ip::v4()), tcp(&Ip::v6()), udp_headers(&Ip::v4()), udp_headers(&Ip::v6())] {
            if let Ok(offload) = header.offload(&parsed) {
                let again = VnetHeader::for_packet(offload, &parsed).unwrap();
                prop_assert_eq!(again.offload(&parsed), Ok(offload));
                prop_assert_eq!(again.gso_size, if offload.gso.is_some() { header.gso_size } else { 0 });
                prop_assert_eq!(again.gso_type, header.gso_type);
                if offload.needs_checksum {
                    prop_assert_eq!(again.csum_start, header.csum_start);
                    prop_assert_eq!(again.csum_offset, header.csum_offset);
                    prop_assert_eq!(u32::from(again.hdr_len) + parsed.payload_len().unwrap(), parsed.packet_len);
                }
            }
        }
    }

    /// Whatever offload a peer claims, it is either refused or written and read back unchanged.
    #[test]
    fn for_packet_is_the_inverse(seed: u64, needs_checksum: bool, kind in 0..4, size in 1_u16..3000) {
        let packet = Generator::new(seed).packet();
        prop_assume!(parse(&packet, packet.len()).is_ok());
        let kind = [None, Some(GsoKind::Tcp), Some(GsoKind::TcpEcn), Some(GsoKind::Udp)][kind as usize];
        let size = NonZeroU16::new(size).unwrap();
        let offload = Offload { needs_checksum, gso: kind.map(|kind| Gso { kind, size }) };
        let parsed = headers(&packet);
        if let Ok(header) = VnetHeader::for_packet(offload, &parsed) {
            prop_assert_eq!(header.offload(&parsed), Ok(offload));
        } else {
            prop_assert_ne!(offload, Offload::NONE);
        }
    }
}

/// The fields stand in the order of `struct virtio_net_hdr`, in the machine's byte order.
#[test]
fn fields_stand_where_the_kernel_reads_them() {
    let header = VnetHeader {
        flags: 1,
        gso_type: 4,
        hdr_len: 0x0102,
        gso_size: 0x0304,
        csum_start: 0x0506,
        csum_offset: 0x0708,
    };
    let bytes = header.encode();
    assert_eq!(bytes[..2], [1, 4]);
    for (at, value) in [(2, 0x0102_u16), (4, 0x0304), (6, 0x0506), (8, 0x0708)] {
        assert_eq!(bytes[at..at + 2], value.to_ne_bytes());
    }
}

/// A TCP super-packet of either family is accepted, with and without the ECN bit.
#[test]
fn accepts_super_packets() {
    for (ip, gso_type, csum_start) in [(Ip::v4(), 1, 20), (Ip::v6(), 4, 40)] {
        for (ecn, kind) in [(0, GsoKind::Tcp), (0x80, GsoKind::TcpEcn)] {
            let header = VnetHeader {
                flags: 1,
                gso_type: gso_type | ecn,
                hdr_len: csum_start + 20,
                gso_size: 1448,
                csum_start,
                csum_offset: 16,
            };
            assert_eq!(header.offload(&tcp(&ip)), Ok(gso(kind, 1448)));
            assert_eq!(
                VnetHeader::for_packet(gso(kind, 1448), &tcp(&ip)),
                Ok(header)
            );
            // The hint is not trusted, so it may say anything.
            let wrong_hint = VnetHeader {
                hdr_len: 9,
                ..header
            };
            assert_eq!(wrong_hint.offload(&tcp(&ip)), Ok(gso(kind, 1448)));
        }
        let header = VnetHeader {
            flags: 3,
            gso_type: 5,
            hdr_len: csum_start + 8,
            gso_size: 1200,
            csum_start,
            csum_offset: 6,
        };
        assert_eq!(
            header.offload(&udp_headers(&ip)),
            Ok(gso(GsoKind::Udp, 1200))
        );
    }
}

/// Each contradiction between header and packet is refused.
#[test]
fn refuses_contradictions() {
    let good = VnetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 40,
        gso_size: 1448,
        csum_start: 20,
        csum_offset: 16,
    };
    let parsed = tcp(&Ip::v4());
    assert!(good.offload(&parsed).is_ok());
    let bad = [
        VnetHeader { flags: 0, ..good },
        VnetHeader { flags: 5, ..good },
        VnetHeader {
            gso_type: 4,
            ..good
        },
        VnetHeader {
            gso_type: 5,
            ..good
        },
        VnetHeader {
            gso_type: 3,
            ..good
        },
        VnetHeader {
            gso_type: 0x80,
            ..good
        },
        VnetHeader {
            gso_size: 0,
            ..good
        },
        VnetHeader {
            csum_start: 21,
            ..good
        },
        VnetHeader {
            csum_start: u16::MAX,
            ..good
        },
        VnetHeader {
            csum_offset: 6,
            ..good
        },
        VnetHeader {
            csum_offset: u16::MAX,
            ..good
        },
    ];
    for header in bad {
        assert_eq!(
            header.offload(&parsed),
            Err(DropReason::BadOffload),
            "{header:?}"
        );
    }
    let udp_ecn = VnetHeader {
        gso_type: 0x85,
        csum_offset: 6,
        ..good
    };
    assert!(udp_ecn.offload(&udp_headers(&Ip::v4())).is_err());
    let empty = headers(&Tcp::default().partial(&Ip::v4(), b""));
    assert_eq!(good.offload(&empty), Err(DropReason::BadOffload));
    let ping = headers(&echo_request(&Ip::v4(), 1, 2, &[0; 64]));
    let checksum_only = VnetHeader {
        gso_type: 0,
        csum_offset: 2,
        ..good
    };
    assert!(checksum_only.offload(&ping).is_err());
}

/// Fragments have no offload, whichever end claims it.
#[test]
fn refuses_fragments() {
    let ip = Ip {
        flags_and_offset: 0x2000,
        ..Ip::v4()
    };
    let parsed = udp_headers(&ip);
    let partial = Offload {
        needs_checksum: true,
        gso: None,
    };
    for offload in [partial, gso(GsoKind::Udp, 100)] {
        assert_eq!(
            VnetHeader::for_packet(offload, &parsed),
            Err(DropReason::BadOffload)
        );
    }
    assert_eq!(
        VnetHeader::for_packet(Offload::NONE, &parsed),
        Ok(VnetHeader::default())
    );
}

/// A peer's claim that does not fit the packet is refused.
#[test]
fn refuses_a_peers_contradictions() {
    let (tcp, udp) = (tcp(&Ip::v4()), udp_headers(&Ip::v6()));
    let without_checksum = Offload {
        needs_checksum: false,
        ..gso(GsoKind::Tcp, 100)
    };
    for (offload, parsed) in [
        (gso(GsoKind::Udp, 100), &tcp),
        (gso(GsoKind::Tcp, 100), &udp),
        (gso(GsoKind::TcpEcn, 100), &udp),
        (without_checksum, &tcp),
    ] {
        assert_eq!(
            VnetHeader::for_packet(offload, parsed),
            Err(DropReason::BadOffload)
        );
    }
}

/// The partial checksum of a packet inside a pod's own tunnel is completed, and the outer packet
/// needs nothing more.
#[test]
fn completes_the_checksum_of_an_inner_packet() {
    let inner = (
        Tcp::default().partial(&Ip::v4(), b"inner"),
        Tcp::default().packet(&Ip::v4(), b"inner"),
    );
    let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
    let wrap = |inner: &[u8]| udp(&Ip::v6(), 4789, 4789, &[&vxlan, inner].concat());
    let (mut packet, mut expected) = (wrap(&inner.0), wrap(&inner.1));
    // The sender made the outer checksum for the packet as it will be.
    packet[46..48].copy_from_slice(&expected[46..48]);
    let parsed = headers(&packet);
    let header = VnetHeader {
        flags: 1,
        csum_start: 40 + 8 + 8 + 20,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    assert_eq!(header.offload(&parsed), Err(DropReason::BadOffload));
    assert_eq!(
        header.offload_of_local(&mut packet, &parsed),
        Ok(Offload::NONE)
    );
    assert_eq!(packet, expected);
    assert!(checksum::verify(&packet, &parsed));

    // Neither header fields that have been read nor bytes beyond the packet can be written so.
    for (csum_start, csum_offset) in [(40, 2), (47, 0), (76, 2000), (u16::MAX, u16::MAX)] {
        let header = VnetHeader {
            csum_start,
            csum_offset,
            ..header
        };
        assert_eq!(
            header.offload_of_local(&mut expected, &parsed),
            Err(DropReason::BadOffload)
        );
        assert_eq!(packet, expected);
    }
}

/// A super-packet in more segments than any kernel sends is refused, whoever claims it; one segment
/// fewer is accepted.
#[test]
fn refuses_floods_of_segments() {
    let most_tcp = headers(&Tcp::default().partial(&Ip::v4(), &[1; TCP_SEGMENTS_MAX * 30]));
    let most_udp = headers(&udp_partial(&Ip::v6(), 1, 2, &[1; UDP_SEGMENTS_MAX * 30]));
    for (kind, packet) in [
        (GsoKind::Tcp, most_tcp),
        (GsoKind::TcpEcn, most_tcp),
        (GsoKind::Udp, most_udp),
    ] {
        assert!(VnetHeader::for_packet(gso(kind, 30), &packet).is_ok());
        for size in [1, 29] {
            assert_eq!(
                VnetHeader::for_packet(gso(kind, size), &packet),
                Err(DropReason::BadOffload)
            );
        }
    }
}
