//! Every TTL and every ECN codepoint, the header checksum recomputed beside it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use proptest::prelude::*;

use super::*;
use crate::{
    packet::parse,
    testing::packets::{Generator, Ip, udp},
    verdict::DropReason,
};

fn reparse(packet: &[u8]) -> Result<Headers, DropReason> {
    parse(packet, packet.len())
}

/// Every TTL above one goes down by one and leaves a valid header; zero and one stay.
#[test]
fn decrements_every_ttl() {
    for base in [Ip::v4(), Ip::v6()] {
        for identification in [0, 1, 0x1234, 0xffff] {
            for ttl in 0..=255_u8 {
                let ip = Ip {
                    ttl,
                    identification,
                    ..base.clone()
                };
                let before = udp(&ip, 1, 2, b"x");
                let mut packet = before.clone();
                let headers = reparse(&packet).unwrap();
                let done = decrement_ttl(&mut packet, &headers);
                assert_eq!(done, ttl > 1);
                if done {
                    let after = reparse(&packet).unwrap();
                    assert_eq!(
                        after,
                        Headers {
                            ttl: ttl - 1,
                            ..headers
                        }
                    );
                } else {
                    assert_eq!(packet, before);
                }
            }
        }
    }
}

/// ECT packets get the CE mark and keep their DSCP; Not-ECT packets are left alone.
#[test]
fn marks_ect_only() {
    for base in [Ip::v4(), Ip::v6()] {
        for traffic_class in 0..=255_u8 {
            let ip = Ip {
                traffic_class,
                ..base.clone()
            };
            let mut packet = udp(&ip, 1, 2, b"x");
            let headers = reparse(&packet).unwrap();
            let marked = set_ecn_ce(&mut packet, &headers);
            assert_eq!(marked, traffic_class & 3 != 0);
            let expected = if marked {
                traffic_class | 3
            } else {
                traffic_class
            };
            let after = reparse(&packet).unwrap();
            assert_eq!(
                after,
                Headers {
                    traffic_class: expected,
                    ..headers
                }
            );
        }
    }
}

/// A header checksum that is wrong stays wrong: the update does not mend it.
#[test]
fn does_not_mask_a_wrong_checksum() {
    let mut packet = udp(&Ip::v4(), 1, 2, b"x");
    let headers = reparse(&packet).unwrap();
    packet[11] ^= 1;
    assert!(decrement_ttl(&mut packet, &headers));
    assert_eq!(reparse(&packet), Err(DropReason::BadHeaderChecksum));
}

/// Bytes too few for a header are left alone.
#[test]
fn survives_a_short_buffer() {
    for ip in [Ip::v4(), Ip::v6()] {
        let headers = reparse(&udp(&ip, 1, 2, b"x")).unwrap();
        assert!(!decrement_ttl(&mut [], &headers));
        assert!(!set_ecn_ce(&mut [0x45], &headers));
    }
}

proptest! {
    /// Rewriting touches the IP header only, whatever else the packet holds.
    #[test]
    fn touches_the_ip_header_only(seed: u64) {
        let before = Generator::new(seed).packet();
        if let Ok(headers) = reparse(&before) {
            let mut packet = before.clone();
            let down = decrement_ttl(&mut packet, &headers);
            set_ecn_ce(&mut packet, &headers);
            let upper = usize::from(headers.transport_offset);
            prop_assert_eq!(&packet[upper..], &before[upper..]);
            let after = reparse(&packet).unwrap();
            prop_assert_eq!(after.ttl, if down { headers.ttl - 1 } else { headers.ttl });
            prop_assert_eq!(after.transport, headers.transport);
        }
    }
}
