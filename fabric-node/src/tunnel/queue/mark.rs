//! Tells the sender of a record of congestion without losing it (RFC 3168 section 5).
//!
//! Comes in: a record whose turn has come. Goes out: the same record with the mark, if its packet is
//! of an ECN-capable transport. A super-packet carries one mark for all its segments, and what
//! remains to be done to it stays as it is. Outer packets are never looked at: QUIC keeps its own
//! marks to itself, so nothing has to be carried over between the headers (RFC 6040).

use bytes::{Bytes, BytesMut};
use fabric_core::{
    packet::{parse, rewrite::set_ecn_ce},
    record::{DATAGRAM_HEADER_LEN, STREAM_HEADER_LEN},
};

use super::Lane;

/// Marks the packet in `record`; false, and nothing is changed, where its sender understands loss
/// only.
///
/// The buffer beneath a record is shared and never changed, so the marked one is a copy. Signals are
/// milliseconds apart, and a copy is cheaper than buffers that every packet could change.
pub(super) fn mark(record: &mut Bytes, lane: Lane) -> bool {
    let at = match lane {
        Lane::Datagram => DATAGRAM_HEADER_LEN,
        Lane::Stream => STREAM_HEADER_LEN,
    };
    let Some(packet) = record.get(at..) else {
        return false;
    };
    let Ok(headers) = parse(packet, packet.len()) else {
        return false;
    };
    if headers.traffic_class & 0b11 == 0 {
        return false;
    }
    let mut copy = BytesMut::from(&record[..]);
    if !set_ecn_ce(&mut copy[at..], &headers) {
        return false;
    }
    *record = copy.freeze();
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::IpAddr;

    use fabric_core::{
        offload::Offload,
        packet::Headers,
        record::{StreamHeader, encode_datagram},
        testing::packets::{Ip, Tcp},
    };

    use super::*;

    /// A protocol of no importance (IANA: unassigned).
    const UNASSIGNED: u8 = 200;

    fn record(lane: Lane, packet: &[u8]) -> Bytes {
        let header = match lane {
            Lane::Datagram => vec![encode_datagram(false)],
            Lane::Stream => StreamHeader {
                packet_len: u32::try_from(packet.len()).unwrap(),
                offload: Offload::NONE,
            }
            .encode()
            .to_vec(),
        };
        Bytes::from([&header[..], packet].concat())
    }

    fn packet_of(record: &Bytes, lane: Lane) -> (Vec<u8>, Headers) {
        let at = if lane == Lane::Datagram { 1 } else { 8 };
        let packet = record[at..].to_vec();
        let headers = parse(&packet, packet.len()).unwrap();
        (packet, headers)
    }

    /// A packet of an ECN-capable sender arrives with the mark, whole and with a right checksum; one
    /// of another sender is left alone. In both families, on both ways.
    #[test]
    fn marks_capable_senders_only() {
        for (source, destination) in [("10.1.0.1", "10.2.0.1"), ("fd00::1", "fd01::1")] {
            let [source, destination]: [IpAddr; 2] =
                [source, destination].map(|address| address.parse().unwrap());
            for (ecn, marked) in [(0, false), (1, true), (2, true), (3, true)] {
                let ip = Ip {
                    traffic_class: 0xb8 | ecn,
                    ..Ip::between(source, destination)
                };
                for (lane, packet) in [
                    (Lane::Stream, Tcp::default().packet(&ip, &[7; 3000])),
                    (Lane::Datagram, ip.packet(UNASSIGNED, &[7; 300])),
                ] {
                    let mut changed = record(lane, &packet);
                    assert_eq!(mark(&mut changed, lane), marked);
                    let (after, headers) = packet_of(&changed, lane);
                    let expected = if marked { 3 } else { 0 };
                    assert_eq!(headers.traffic_class, 0xb8 | expected);
                    // All that differs is the mark and, in IPv4, the checksum that covers it.
                    let differing = (0..packet.len()).filter(|&at| after[at] != packet[at]);
                    assert!(
                        differing.clone().all(|at| at < 12),
                        "{:?}",
                        differing.collect::<Vec<_>>()
                    );
                }
            }
        }
    }

    /// What is no packet is no reason to panic.
    #[test]
    fn leaves_garbage_alone() {
        for len in 0..40 {
            for lane in [Lane::Datagram, Lane::Stream] {
                assert!(!mark(&mut Bytes::from(vec![0xff; len]), lane));
            }
        }
    }
}
