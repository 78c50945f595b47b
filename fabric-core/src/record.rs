//! The node-to-node record: one packet on its way between two workers.
//!
//! On a stream a record is a [`StreamHeader`] of 8 bytes and the packet. In a QUIC datagram it is
//! one flags byte and the packet, which is never a super-packet. Checksum and header offsets do not
//! travel: the receiver derives them from the packet it has parsed itself.

use std::num::NonZeroU16;

use thiserror::Error;

use crate::offload::{Gso, GsoKind, Offload};

/// Bytes of an encoded [`StreamHeader`].
pub const STREAM_HEADER_LEN: usize = 8;
/// Bytes before the packet in a QUIC datagram.
pub const DATAGRAM_HEADER_LEN: usize = 1;
/// The largest packet a record may carry (bytes): an IPv6 header and 65 535 bytes of payload.
pub const PACKET_BYTES_MAX: u32 = 65_575;

const NEEDS_CHECKSUM: u8 = 0b0000_0001;
const GSO_MASK: u8 = 0b0000_0110;
const GSO_TCP: u8 = 0b0000_0010;
const GSO_TCP_ECN: u8 = 0b0000_0100;
const GSO_UDP: u8 = 0b0000_0110;
const RESERVED: u8 = 0b1111_1000;

/// A record that cannot be decoded: the peer is broken or hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A length of zero or above [`PACKET_BYTES_MAX`].
    #[error("packet length {0} is outside 1..={PACKET_BYTES_MAX}")]
    Length(u32),
    /// A flag bit or reserved byte is set that this version does not know.
    #[error("unknown flags {0:#04x}")]
    Flags(u8),
    /// Segment size and segmentation kind do not go together.
    #[error("segment size {0} does not go with the flags")]
    SegmentSize(u16),
    /// A datagram without a packet in it.
    #[error("empty datagram")]
    Empty,
}

/// What precedes a packet on a stream: `length:u32 flags:u8 reserved:u8 segment_size:u16`, all in
/// network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// Bytes of the packet that follows.
    pub packet_len: u32,
    /// What remains to be done to it.
    pub offload: Offload,
}

impl StreamHeader {
    /// The header as it goes on the stream.
    #[must_use]
    pub fn encode(&self) -> [u8; STREAM_HEADER_LEN] {
        let [l0, l1, l2, l3] = self.packet_len.to_be_bytes();
        let [s0, s1] = self
            .offload
            .gso
            .map_or(0, |gso| gso.size.get())
            .to_be_bytes();
        [l0, l1, l2, l3, flags(self.offload), 0, s0, s1]
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// Anything this version would not have written.
    pub fn decode(bytes: [u8; STREAM_HEADER_LEN]) -> Result<Self, RecordError> {
        let [l0, l1, l2, l3, flags, reserved, s0, s1] = bytes;
        let packet_len = u32::from_be_bytes([l0, l1, l2, l3]);
        if packet_len == 0 || packet_len > PACKET_BYTES_MAX {
            return Err(RecordError::Length(packet_len));
        }
        if flags & RESERVED != 0 || reserved != 0 {
            return Err(RecordError::Flags(flags | reserved));
        }
        let size = u16::from_be_bytes([s0, s1]);
        let kind = match flags & GSO_MASK {
            GSO_TCP => Some(GsoKind::Tcp),
            GSO_TCP_ECN => Some(GsoKind::TcpEcn),
            GSO_UDP => Some(GsoKind::Udp),
            _ => None,
        };
        let gso = match (kind, NonZeroU16::new(size)) {
            (Some(kind), Some(size)) => Some(Gso { kind, size }),
            (None, None) => None,
            _ => return Err(RecordError::SegmentSize(size)),
        };
        Ok(Self {
            packet_len,
            offload: Offload {
                needs_checksum: flags & NEEDS_CHECKSUM != 0,
                gso,
            },
        })
    }
}

/// The byte that precedes a packet in a QUIC datagram. `needs_checksum` is all it can say.
#[must_use]
pub fn encode_datagram(needs_checksum: bool) -> u8 {
    if needs_checksum { NEEDS_CHECKSUM } else { 0 }
}

/// Splits a QUIC datagram into what remains to be done and the packet.
///
/// # Errors
///
/// Anything this version would not have written.
pub fn decode_datagram(datagram: &[u8]) -> Result<(Offload, &[u8]), RecordError> {
    let Some((&flags, packet)) = datagram.split_first() else {
        return Err(RecordError::Empty);
    };
    if flags & !NEEDS_CHECKSUM != 0 {
        return Err(RecordError::Flags(flags));
    }
    if packet.is_empty() {
        return Err(RecordError::Empty);
    }
    Ok((
        Offload {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            gso: None,
        },
        packet,
    ))
}

fn flags(offload: Offload) -> u8 {
    let checksum = if offload.needs_checksum {
        NEEDS_CHECKSUM
    } else {
        0
    };
    let gso = match offload.gso.map(|gso| gso.kind) {
        None => 0,
        Some(GsoKind::Tcp) => GSO_TCP,
        Some(GsoKind::TcpEcn) => GSO_TCP_ECN,
        Some(GsoKind::Udp) => GSO_UDP,
    };
    checksum | gso
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn gso() -> impl Strategy<Value = Gso> {
        let kinds = vec![GsoKind::Tcp, GsoKind::TcpEcn, GsoKind::Udp];
        (prop::sample::select(kinds), 1..=u16::MAX).prop_map(|(kind, size)| Gso {
            kind,
            size: NonZeroU16::new(size).unwrap(),
        })
    }

    fn header() -> impl Strategy<Value = StreamHeader> {
        (1..=PACKET_BYTES_MAX, any::<bool>(), prop::option::of(gso())).prop_map(
            |(packet_len, needs_checksum, gso)| StreamHeader {
                packet_len,
                offload: Offload {
                    needs_checksum,
                    gso,
                },
            },
        )
    }

    /// Bytes near the valid ones: random flags, lengths and sizes that are often small or zero.
    fn nearly_valid() -> impl Strategy<Value = [u8; STREAM_HEADER_LEN]> {
        let len = prop_oneof![0..=PACKET_BYTES_MAX.saturating_add(2), any::<u32>()];
        let flags = prop_oneof![0..8_u8, any::<u8>()];
        let reserved = prop_oneof![4 => Just(0_u8), 1 => any::<u8>()];
        let size = prop_oneof![Just(0_u16), any::<u16>()];
        (len, flags, reserved, size).prop_map(|(len, flags, reserved, size)| {
            let [l0, l1, l2, l3] = len.to_be_bytes();
            let [s0, s1] = size.to_be_bytes();
            [l0, l1, l2, l3, flags, reserved, s0, s1]
        })
    }

    /// The layout on the wire is fixed: two nodes of different versions must read the same.
    #[test]
    fn layout_is_fixed() {
        let header = StreamHeader {
            packet_len: 0x0001_0002,
            offload: Offload {
                needs_checksum: true,
                gso: Some(Gso {
                    kind: GsoKind::TcpEcn,
                    size: NonZeroU16::new(0x05b4).unwrap(),
                }),
            },
        };
        assert_eq!(header.encode(), [0, 1, 0, 2, 0b101, 0, 0x05, 0xb4]);
        assert_eq!(encode_datagram(true), 1);
        assert_eq!(encode_datagram(false), 0);
    }

    /// Each way to be wrong has its own error.
    #[test]
    fn wrong_headers_are_named() {
        let cases = [
            ([0, 0, 0, 0, 0, 0, 0, 0], RecordError::Length(0)),
            ([0, 1, 0, 0x28, 0, 0, 0, 0], RecordError::Length(65_576)),
            ([0, 0, 0, 1, 0b1000, 0, 0, 0], RecordError::Flags(0b1000)),
            ([0, 0, 0, 1, 0, 1, 0, 0], RecordError::Flags(1)),
            ([0, 0, 0, 1, 0, 0, 0, 9], RecordError::SegmentSize(9)),
            ([0, 0, 0, 1, 0b10, 0, 0, 0], RecordError::SegmentSize(0)),
        ];
        for (bytes, error) in cases {
            assert_eq!(StreamHeader::decode(bytes), Err(error));
        }
        assert_eq!(decode_datagram(&[]), Err(RecordError::Empty));
        assert_eq!(decode_datagram(&[1]), Err(RecordError::Empty));
        assert_eq!(decode_datagram(&[2, 0x45]), Err(RecordError::Flags(2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// What is encoded decodes to the same.
        #[test]
        fn stream_header_round_trips(header in header()) {
            prop_assert_eq!(StreamHeader::decode(header.encode()), Ok(header));
        }

        /// Random bytes are refused, or stand for one header that is written exactly like this.
        #[test]
        fn every_header_has_one_encoding(
            bytes in prop_oneof![nearly_valid(), any::<[u8; STREAM_HEADER_LEN]>()],
        ) {
            if let Ok(header) = StreamHeader::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!((1..=PACKET_BYTES_MAX).contains(&header.packet_len));
            }
        }

        /// A datagram decodes to the flag and the packet that went into it.
        #[test]
        fn datagram_round_trips(
            needs_checksum in any::<bool>(),
            packet in prop::collection::vec(any::<u8>(), 1..200),
        ) {
            let mut datagram = vec![encode_datagram(needs_checksum)];
            datagram.extend_from_slice(&packet);
            let offload = Offload { needs_checksum, gso: None };
            prop_assert_eq!(decode_datagram(&datagram), Ok((offload, packet.as_slice())));
        }

        /// Random datagrams are refused, or encode again to the same bytes.
        #[test]
        fn every_datagram_has_one_encoding(
            datagram in prop::collection::vec(prop_oneof![0..3_u8, any::<u8>()], 0..40),
        ) {
            if let Ok((offload, packet)) = decode_datagram(&datagram) {
                let mut again = vec![encode_datagram(offload.needs_checksum)];
                again.extend_from_slice(packet);
                prop_assert_eq!(again.as_slice(), datagram.as_slice());
                prop_assert!(!packet.is_empty());
            }
        }
    }
}
