//! A UDP super-packet over IPv4, seen as the datagrams that it stands for.
//!
//! Comes in: a virtio header and the packet behind it, as a TUN device gives them. Goes out: any run of
//! its datagrams, as a packet that a TUN device takes, with lengths, IPv4 identification and checksums
//! of its own. Never done here: copying payload, looking into it.

use std::ops::Range;

use fabric_core::offload::vnet::{FLAG_NEEDS_CSUM, GSO_NONE, GSO_UDP_L4, VnetHeader};

/// IPv4 without options, and UDP (RFC 791 section 3.1, RFC 768).
const HEADERS: usize = 28;
const IPV4_HEADER: usize = 20;
/// Version 4, five words.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
const PROTOCOL_UDP: u8 = 17;
/// More fragments, and where in the whole this one begins: neither for a packet that is whole.
const FRAGMENT_BITS: u16 = 0x3fff;

/// The datagrams of one packet.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a> {
    vnet: VnetHeader,
    packet: &'a [u8],
    /// Payload of all datagrams but the last (bytes), never 0.
    size: usize,
}

/// A run of datagrams as one packet.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The encoded virtio header, and those of IPv4 and UDP.
    pub head: [u8; VnetHeader::LEN + HEADERS],
    /// The rest of the packet.
    pub payload: &'a [u8],
}

impl<'a> Datagrams<'a> {
    /// Reads a packet; `None` for what is no whole UDP datagram over IPv4 without options, or no
    /// number of them.
    #[must_use]
    pub fn parse(vnet: VnetHeader, packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<HEADERS>()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let is_udp = header[0] == IPV4_WITHOUT_OPTIONS
            && header[9] == PROTOCOL_UDP
            && word(6) & FRAGMENT_BITS == 0
            && usize::from(word(2)) == packet.len()
            && usize::from(word(24)) == packet.len() - IPV4_HEADER;
        let payload = packet.len() - HEADERS;
        let size = match vnet.gso_type {
            GSO_NONE => payload.max(1),
            // The checksum of each datagram is made of the partial one.
            GSO_UDP_L4 if vnet.flags & FLAG_NEEDS_CSUM != 0 => usize::from(vnet.gso_size),
            _ => 0,
        };
        (is_udp && size > 0).then_some(Self { vnet, packet, size })
    }

    /// How many there are: at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload().len().div_ceil(self.size).max(1)
    }

    /// The datagrams `run`, of which there is at least one, as one packet.
    #[must_use]
    pub fn piece(&self, run: Range<usize>) -> Piece<'a> {
        let payload = self.payload();
        let end = (run.end * self.size).min(payload.len());
        let payload = payload.get(run.start * self.size..end).unwrap_or_default();
        let mut head = [0; VnetHeader::LEN + HEADERS];
        let (vnet, headers) = head.split_at_mut(VnetHeader::LEN);
        vnet.copy_from_slice(&self.vnet_of(run.len(), payload.len()).encode());
        headers.copy_from_slice(&self.packet[..HEADERS]);
        if run.len() < self.count() {
            self.describe(headers, run.start, payload.len());
        }
        Piece { head, payload }
    }

    fn payload(&self) -> &'a [u8] {
        &self.packet[HEADERS..]
    }

    fn vnet_of(&self, datagrams: usize, payload: usize) -> VnetHeader {
        if datagrams > 1 && payload > self.size {
            return self.vnet;
        }
        VnetHeader {
            gso_type: GSO_NONE,
            gso_size: 0,
            ..self.vnet
        }
    }

    /// Lengths, identification and checksums of a part.
    fn describe(&self, headers: &mut [u8], first: usize, payload: usize) {
        let mut put = |at: usize, value: u16| {
            headers[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        // A part is shorter than the whole, which had a length of 16 bits.
        let udp_len = (payload + HEADERS - IPV4_HEADER) as u16;
        put(2, (payload + HEADERS) as u16);
        let identification = u16::from_be_bytes([self.packet[4], self.packet[5]]);
        // As the kernel numbers what it cuts.
        put(4, identification.wrapping_add(first as u16));
        put(24, udp_len);
        put(10, 0);
        let ipv4 = !folded(sum(&headers[..IPV4_HEADER]));
        headers[10..12].copy_from_slice(&ipv4.to_be_bytes());
        // The pseudo header (RFC 768): both addresses, protocol and length. What needs no checksum
        // was never more than one datagram, and is not described.
        let pseudo = sum(&headers[12..20]) + u32::from(PROTOCOL_UDP) + u32::from(udp_len);
        headers[26..28].copy_from_slice(&folded(pseudo).to_be_bytes());
    }
}

/// The sum of all 16-bit words (RFC 1071), not folded. At most 20 bytes.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use smoltcp::{
        phy::ChecksumCapabilities,
        wire::{IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr},
    };

    use super::*;

    const ADDRESSES: [Ipv4Address; 2] = [
        Ipv4Address::new(10, 90, 0, 1),
        Ipv4Address::new(10, 90, 0, 2),
    ];

    /// A packet with this payload, written by another implementation, checksums complete.
    fn packet(payload: &[u8]) -> Vec<u8> {
        let udp = UdpRepr {
            src_port: 4789,
            dst_port: 5000,
        };
        let ipv4 = Ipv4Repr {
            src_addr: ADDRESSES[0],
            dst_addr: ADDRESSES[1],
            next_header: IpProtocol::Udp,
            payload_len: 8 + payload.len(),
            hop_limit: 64,
        };
        let mut bytes = vec![0; HEADERS + payload.len()];
        let all = ChecksumCapabilities::default();
        ipv4.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &all);
        let [from, to] = ADDRESSES.map(IpAddress::from);
        udp.emit(
            &mut UdpPacket::new_unchecked(&mut bytes[20..]),
            &from,
            &to,
            payload.len(),
            |buffer| buffer.copy_from_slice(payload),
            &all,
        );
        bytes
    }

    fn super_packet(payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
        let vnet = VnetHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: 28,
            gso_size: size,
            csum_start: 20,
            csum_offset: 6,
        };
        (vnet, packet(payload))
    }

    /// What a kernel does with a packet whose checksum is partial: it adds up the rest and the partial
    /// sum; then another implementation reads it.
    fn read(piece: &Piece<'_>) -> (VnetHeader, Vec<u8>) {
        let vnet = VnetHeader::decode(*piece.head.first_chunk().unwrap());
        let mut bytes = [&piece.head[VnetHeader::LEN..], piece.payload].concat();
        if vnet.flags & FLAG_NEEDS_CSUM != 0 {
            let mut covered = bytes[20..].to_vec();
            if covered.len() % 2 == 1 {
                covered.push(0);
            }
            let checksum = !folded(sum(&covered));
            bytes[26..28].copy_from_slice(&checksum.to_be_bytes());
        }
        let ipv4 = Ipv4Packet::new_checked(&bytes).unwrap();
        assert!(ipv4.verify_checksum());
        assert_eq!(usize::from(ipv4.total_len()), bytes.len());
        let udp = UdpPacket::new_checked(ipv4.payload()).unwrap();
        let [from, to] = ADDRESSES.map(IpAddress::from);
        assert!(udp.verify_checksum(&from, &to));
        assert_eq!((udp.src_port(), udp.dst_port()), (4789, 5000));
        (vnet, udp.payload().to_vec())
    }

    /// Every run of the datagrams of a super-packet, with a last one that is shorter or not, is a
    /// packet that another implementation finds right, with exactly the payload of these datagrams.
    #[test]
    fn every_run_is_a_packet_of_its_own() {
        for len in [2_000_u16, 2_100, 2_501] {
            let payload: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let (vnet, packet) = super_packet(&payload, 500);
            let datagrams = Datagrams::parse(vnet, &packet).unwrap();
            let count = usize::from(len).div_ceil(500);
            assert_eq!(datagrams.count(), count);
            for start in 0..count {
                for end in start + 1..=count {
                    if end - start == count {
                        continue;
                    }
                    let (found, bytes) = read(&datagrams.piece(start..end));
                    let expected = &payload[start * 500..(end * 500).min(payload.len())];
                    assert_eq!(bytes, expected);
                    let is_single = end - start == 1;
                    assert_eq!(found.gso_type == GSO_NONE, is_single, "{start}..{end}");
                    assert_eq!(found.gso_size == 500, !is_single);
                }
            }
        }
    }

    /// A packet in one piece is passed on as it came, byte by byte, and a single datagram as well.
    #[test]
    fn the_whole_is_unchanged() {
        let (vnet, packet) = super_packet(&[7; 1_200], 500);
        let single = VnetHeader::default();
        for (vnet, count) in [(vnet, 3), (single, 1)] {
            let datagrams = Datagrams::parse(vnet, &packet).unwrap();
            assert_eq!(datagrams.count(), count);
            let piece = datagrams.piece(0..count);
            assert_eq!(piece.head[..VnetHeader::LEN], vnet.encode());
            assert_eq!(
                [&piece.head[VnetHeader::LEN..], piece.payload].concat(),
                packet
            );
        }
    }

    /// What is no UDP over IPv4, a fragment, cut off or a super-packet of another kind is not taken
    /// for datagrams; an empty datagram is one.
    #[test]
    fn other_packets_are_told_apart() {
        let (vnet, good) = super_packet(&[7; 1_200], 500);
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        for bad in [
            changed(0, 0x46),
            changed(9, 6),
            changed(6, 0x20),
            changed(7, 1),
        ] {
            assert!(Datagrams::parse(vnet, &bad).is_none());
        }
        assert!(Datagrams::parse(vnet, &good[..good.len() - 1]).is_none());
        assert!(Datagrams::parse(vnet, &[]).is_none());
        for (flags, gso_type, gso_size) in [(0, GSO_UDP_L4, 500), (1, 1, 500), (1, GSO_UDP_L4, 0)] {
            let vnet = VnetHeader {
                flags,
                gso_type,
                gso_size,
                ..vnet
            };
            assert!(Datagrams::parse(vnet, &good).is_none());
        }
        let empty = packet(&[]);
        assert_eq!(
            Datagrams::parse(VnetHeader::default(), &empty)
                .unwrap()
                .count(),
            1
        );
    }
}
