//! Packets for tests: makers that fill in lengths and checksums, and a small seeded generator.
//!
//! Checksums are summed here word by word, apart from the code under test, so that a maker can
//! stand as its oracle.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a maker that panics fails the test that misuses it"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The fields of an IP header that a test may want to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address; its family is the packet's.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub traffic_class: u8,
    /// IPv4 identification.
    pub identification: u16,
    /// IPv4 flags and fragment offset, as they stand in the header (0x4000 is DF, 0x2000 MF).
    pub flags_and_offset: u16,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers between the IP header and the upper layer, complete but for the last
    /// one's next-header byte, and the number of the first.
    pub extensions: Option<(u8, Vec<u8>)>,
}

impl Ip {
    /// A header between two addresses of one family: TTL 64, DF for IPv4, all else zero.
    #[must_use]
    pub fn between(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            ttl: 64,
            traffic_class: 0,
            identification: 0,
            flags_and_offset: 0x4000,
            options: Vec::new(),
            extensions: None,
        }
    }

    /// Between two fixed pod addresses, 10.1.0.2 and 10.2.0.2.
    #[must_use]
    pub fn v4() -> Self {
        Self::between(Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 2, 0, 2))
    }

    /// Between two fixed pod addresses, fd00:1::2 and fd00:2::2.
    #[must_use]
    pub fn v6() -> Self {
        Self::between(
            Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2),
            Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2),
        )
    }

    /// A whole packet of `protocol` with `upper` after the IP header.
    #[must_use]
    pub fn packet(&self, protocol: u8, upper: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_len = 20 + self.options.len();
                let total = (header_len + upper.len()) as u16;
                let mut packet = vec![0x40 | (header_len / 4) as u8, self.traffic_class];
                packet.extend_from_slice(&total.to_be_bytes());
                packet.extend_from_slice(&self.identification.to_be_bytes());
                packet.extend_from_slice(&self.flags_and_offset.to_be_bytes());
                packet.extend_from_slice(&[self.ttl, protocol, 0, 0]);
                packet.extend_from_slice(&source.octets());
                packet.extend_from_slice(&destination.octets());
                packet.extend_from_slice(&self.options);
                let sum = !naive_sum(&[&packet]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend_from_slice(upper);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (next, extensions) = match &self.extensions {
                    None => (protocol, Vec::new()),
                    Some((first, bytes)) => {
                        (*first, with_last_next_header(*first, bytes, protocol))
                    }
                };
                let payload_len = (extensions.len() + upper.len()) as u16;
                let word = 0x6000_0000 | (u32::from(self.traffic_class) << 20);
                let mut packet = word.to_be_bytes().to_vec();
                packet.extend_from_slice(&payload_len.to_be_bytes());
                packet.extend_from_slice(&[next, self.ttl]);
                packet.extend_from_slice(&source.octets());
                packet.extend_from_slice(&destination.octets());
                packet.extend_from_slice(&extensions);
                packet.extend_from_slice(upper);
                packet
            }
            _ => panic!("source and destination are of different families"),
        }
    }

    /// The folded sum of the pseudo-header, which is the seed of a partial checksum.
    #[must_use]
    pub fn pseudo_header_sum(&self, protocol: u8, upper_len: usize) -> u16 {
        let tail = [(upper_len >> 8) as u8, upper_len as u8, 0, protocol];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                naive_sum(&[&source.octets(), &destination.octets(), &tail])
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                naive_sum(&[&source.octets(), &destination.octets(), &tail])
            }
            _ => panic!("source and destination are of different families"),
        }
    }

    fn finish(&self, protocol: u8, mut upper: Vec<u8>, field: usize, partial: bool) -> Vec<u8> {
        let seed = self.pseudo_header_sum(protocol, upper.len());
        upper[field..field + 2].copy_from_slice(&seed.to_be_bytes());
        if !partial {
            let sum = !naive_sum(&[&upper]);
            let sum = if protocol == UDP && sum == 0 {
                0xffff
            } else {
                sum
            };
            upper[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        self.packet(protocol, &upper)
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The last header in `bytes` gets `protocol` as its next header.
fn with_last_next_header(first: u8, bytes: &[u8], protocol: u8) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let (mut kind, mut at) = (first, 0);
    loop {
        let len = match kind {
            44 => 8,
            51 => (usize::from(out[at + 1]) + 2) * 4,
            _ => (usize::from(out[at + 1]) + 1) * 8,
        };
        if at + len >= out.len() {
            out[at] = protocol;
            return out;
        }
        kind = out[at];
        at += len;
    }
}

/// A TCP header to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from the highest bit down.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options, a multiple of 4 bytes.
    pub options: Vec<u8>,
}

impl Default for Tcp {
    /// An ACK from port 40000 to port 80.
    fn default() -> Self {
        Self {
            source: 40_000,
            destination: 80,
            sequence: 1_000,
            acknowledgement: 2_000,
            flags: 0x10,
            window: 512,
            options: Vec::new(),
        }
    }
}

impl Tcp {
    /// A whole packet with valid checksums.
    #[must_use]
    pub fn packet(&self, ip: &Ip, payload: &[u8]) -> Vec<u8> {
        ip.finish(TCP, self.upper(payload), 16, false)
    }

    /// As [`Tcp::packet`], with the pseudo-header's sum only in the checksum field.
    #[must_use]
    pub fn partial(&self, ip: &Ip, payload: &[u8]) -> Vec<u8> {
        ip.finish(TCP, self.upper(payload), 16, true)
    }

    fn upper(&self, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut upper = Vec::with_capacity(header_len + payload.len());
        upper.extend_from_slice(&self.source.to_be_bytes());
        upper.extend_from_slice(&self.destination.to_be_bytes());
        upper.extend_from_slice(&self.sequence.to_be_bytes());
        upper.extend_from_slice(&self.acknowledgement.to_be_bytes());
        upper.extend_from_slice(&[(header_len as u8 / 4) << 4, self.flags]);
        upper.extend_from_slice(&self.window.to_be_bytes());
        upper.extend_from_slice(&[0; 4]);
        upper.extend_from_slice(&self.options);
        upper.extend_from_slice(payload);
        upper
    }
}

/// A UDP packet with valid checksums.
#[must_use]
pub fn udp(ip: &Ip, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    ip.finish(UDP, udp_upper(source, destination, payload), 6, false)
}

/// As [`udp`], with the pseudo-header's sum only in the checksum field.
#[must_use]
pub fn udp_partial(ip: &Ip, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    ip.finish(UDP, udp_upper(source, destination, payload), 6, true)
}

fn udp_upper(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut upper = Vec::with_capacity(8 + payload.len());
    upper.extend_from_slice(&source.to_be_bytes());
    upper.extend_from_slice(&destination.to_be_bytes());
    upper.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    upper.extend_from_slice(&[0; 2]);
    upper.extend_from_slice(payload);
    upper
}

/// An ICMP or ICMPv6 message, by the family of `ip`, with valid checksums. `rest` is everything
/// after the checksum and at least 4 bytes long.
#[must_use]
pub fn icmp(ip: &Ip, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut upper = vec![kind, code, 0, 0];
    upper.extend_from_slice(rest);
    if ip.source.is_ipv6() {
        return ip.finish(58, upper, 2, false);
    }
    let sum = !naive_sum(&[&upper]);
    upper[2..4].copy_from_slice(&sum.to_be_bytes());
    ip.packet(1, &upper)
}

/// A ping of the family of `ip`.
#[must_use]
pub fn echo_request(ip: &Ip, identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut rest = identifier.to_be_bytes().to_vec();
    rest.extend_from_slice(&sequence.to_be_bytes());
    rest.extend_from_slice(payload);
    icmp(ip, if ip.source.is_ipv6() { 128 } else { 8 }, 0, &rest)
}

/// A TCP segment over IPv4 between fixed pod addresses.
#[must_use]
pub fn ipv4_tcp(payload: &[u8]) -> Vec<u8> {
    Tcp::default().packet(&Ip::v4(), payload)
}

/// A TCP segment over IPv6 between fixed pod addresses.
#[must_use]
pub fn ipv6_tcp(payload: &[u8]) -> Vec<u8> {
    Tcp::default().packet(&Ip::v6(), payload)
}

/// A UDP packet over IPv4 between fixed pod addresses.
#[must_use]
pub fn ipv4_udp(payload: &[u8]) -> Vec<u8> {
    udp(&Ip::v4(), 40_000, 53, payload)
}

/// A UDP packet over IPv6 between fixed pod addresses.
#[must_use]
pub fn ipv6_udp(payload: &[u8]) -> Vec<u8> {
    udp(&Ip::v6(), 40_000, 53, payload)
}

/// The folded ones' complement sum of `parts`, 16 bits at a time. All parts but the last are of even
/// length.
#[must_use]
pub fn naive_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// A seeded generator: the same seed gives the same packets for ever (SplitMix64).
#[derive(Clone, Debug)]
pub struct Generator(u64);

impl Generator {
    /// Starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.bits() as u8).collect()
    }

    /// A valid packet of either family: TCP, UDP, ICMP or another protocol, now and then with IPv4
    /// options, IPv6 extension headers, or as a fragment.
    pub fn packet(&mut self) -> Vec<u8> {
        let mut ip = if self.one_in(2) { Ip::v4() } else { Ip::v6() };
        ip.ttl = self.bits() as u8;
        ip.traffic_class = self.bits() as u8;
        ip.identification = self.bits() as u16;
        if self.one_in(2) {
            ip.flags_and_offset = 0;
        }
        if self.one_in(4) {
            // Timestamp option (RFC 791 3.1), no-operation, end of options.
            ip.options = vec![68, 6, 5, 0, 0, 0, 1, 0];
        }
        if self.one_in(4) {
            ip.extensions = Some(self.extensions());
        }
        let len = self.below(1400);
        let payload = self.bytes(len);
        let (source, destination) = (self.bits() as u16, self.bits() as u16);
        let mut packet = match self.below(5) {
            0 | 1 => {
                let tcp = Tcp {
                    source,
                    destination,
                    sequence: self.bits() as u32,
                    flags: self.bits() as u8,
                    options: vec![1; self.below(11) * 4],
                    ..Tcp::default()
                };
                tcp.packet(&ip, &payload)
            }
            2 => udp(&ip, source, destination, &payload),
            3 => echo_request(&ip, source, destination, &payload),
            _ => ip.packet(132, &payload),
        };
        if !ip.source.is_ipv6() && self.one_in(6) {
            let word = [0x2000_u16, 0x2010, 0x0010][self.below(3)];
            packet[6..8].copy_from_slice(&word.to_be_bytes());
            packet[10..12].copy_from_slice(&[0; 2]);
            let header_len = usize::from(packet[0] & 0x0f) * 4;
            let sum = !naive_sum(&[&packet[..header_len]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// A few IPv6 extension headers: the number of the first, and their bytes.
    fn extensions(&mut self) -> (u8, Vec<u8>) {
        let mut kinds = Vec::new();
        if self.one_in(2) {
            kinds.push(0);
        }
        for kind in [60, 43, 44, 51, 60] {
            if self.one_in(3) {
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            kinds.push(60);
        }
        let mut bytes = Vec::new();
        for (at, kind) in kinds.iter().enumerate() {
            let next = kinds.get(at + 1).copied().unwrap_or(0);
            match kind {
                // An atomic fragment, a first or a later one.
                44 => {
                    let word = [0_u16, 1, 0x0101, 0x0100][self.below(4)].to_be_bytes();
                    bytes.extend_from_slice(&[next, 0, word[0], word[1], 1, 2, 3, 4]);
                }
                51 => bytes.extend_from_slice(&[next, 4, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
                43 => bytes.extend_from_slice(&[next, 0, 4, 0, 0, 0, 0, 0]),
                // One PadN option.
                _ => bytes.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]),
            }
            if *kind == 51 {
                bytes.extend_from_slice(&[0; 12]);
            }
        }
        (kinds[0], bytes)
    }

    /// Damages `packet` in a few places: bits, lengths, its end.
    pub fn mutate(&mut self, packet: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if packet.is_empty() {
                return;
            }
            let head = packet.len().min(80);
            match self.below(5) {
                0 => {
                    let at = self.below(head);
                    packet[at] ^= 1 << self.below(8);
                }
                1 => {
                    let at = self.below(head);
                    packet[at] = self.bits() as u8;
                }
                2 => packet.truncate(self.below(packet.len())),
                3 => {
                    let more = self.below(40);
                    let tail = self.bytes(more);
                    packet.extend_from_slice(&tail);
                }
                _ => {
                    let at = self.below(head);
                    packet[at] = [0, 0xff, 0x45, 6, 17][self.below(5)];
                }
            }
        }
    }
}
