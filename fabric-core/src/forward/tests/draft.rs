//! Packets to decide on: made from what a test says of them, and what it reads of an answer.

use super::*;

/// What a test packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Udp,
    Tcp,
    Ping,
    IcmpError,
    LaterFragment,
}

/// A packet to be made: bytes and headers that agree with each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    /// Length of the whole packet; raised to what the headers take.
    pub(super) len: usize,
    pub(super) dont_fragment: bool,
    pub(super) kind: Kind,
}

impl Draft {
    pub(super) fn udp(source: &str, destination: &str) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 64,
            len: 100,
            dont_fragment: true,
            kind: Kind::Udp,
        }
    }

    pub(super) fn make(self) -> (Vec<u8>, Headers) {
        let ipv6 = self.source.is_ipv6();
        let later = self.kind == Kind::LaterFragment;
        let (protocol, transport, upper): (u8, Transport, Vec<u8>) = match self.kind {
            Kind::Udp | Kind::LaterFragment => {
                let transport = Transport::Udp {
                    source: 7,
                    destination: 9,
                };
                (17, transport, vec![0, 7, 0, 9, 0, 8, 0, 0])
            }
            Kind::Tcp => {
                let (source, destination, header_len, flags) = (7, 9, 20, 0x10);
                let mut upper = vec![0; 20];
                (upper[1], upper[3], upper[12], upper[13]) = (7, 9, 0x50, flags);
                (
                    6,
                    Transport::Tcp {
                        source,
                        destination,
                        header_len,
                        flags,
                    },
                    upper,
                )
            }
            Kind::Ping | Kind::IcmpError => {
                let kind = match (self.kind == Kind::Ping, ipv6) {
                    (true, false) => 8,
                    (true, true) => 128,
                    (false, false) => 3,
                    (false, true) => 1,
                };
                let protocol = if ipv6 { 58 } else { 1 };
                (
                    protocol,
                    Transport::Icmp { kind, code: 0 },
                    vec![kind, 0, 0, 0, 0, 0, 0, 0],
                )
            }
        };
        let mut packet = self.ip_header(protocol, later);
        let transport_offset = packet.len() as u16;
        packet.extend(upper);
        packet.resize(packet.len().max(self.len), 0xa5);
        let len = packet.len();
        match ipv6 {
            true => packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
            false => {
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                let sum = ipv4_checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        let headers = Headers {
            source: self.source,
            destination: self.destination,
            protocol,
            packet_len: len as u32,
            transport_offset,
            ttl: self.ttl,
            traffic_class: 0,
            dont_fragment: ipv6 || self.dont_fragment,
            fragment: if later {
                Fragment::Later
            } else {
                Fragment::Whole
            },
            transport: if later { Transport::Absent } else { transport },
        };
        (packet, headers)
    }

    /// The IP header with lengths and checksum left open; for a later fragment of IPv6 with its
    /// extension header.
    fn ip_header(self, protocol: u8, later: bool) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let flags = u8::from(self.dont_fragment) << 6;
                let offset = if later { 185 } else { 0 };
                let mut header = vec![0x45, 0, 0, 0, 0, 1, flags, offset];
                header.extend([self.ttl, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let next = if later { 44 } else { protocol };
                let mut header = vec![0x60, 0, 0, 0, 0, 0, next, self.ttl];
                header.extend(source.octets());
                header.extend(destination.octets());
                if later {
                    header.extend([protocol, 0, 5, 0xc8, 0, 0, 0, 1]);
                }
                header
            }
            _ => panic!("one packet, one family"),
        }
    }
}

fn ipv4_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

pub(super) fn ttl_of(packet: &[u8]) -> u8 {
    packet[if packet[0] >> 4 == 6 { 7 } else { 8 }]
}

/// Source, destination, type and code of an ICMP error packet.
pub(super) fn read_icmp(reply: &[u8]) -> (IpAddr, IpAddr, (u8, u8)) {
    if reply[0] >> 4 == 4 {
        let addr = |at: usize| {
            let octets: [u8; 4] = reply[at..at + 4].try_into().unwrap();
            IpAddr::from(octets)
        };
        assert_eq!(reply[9], 1, "ICMP");
        let at = usize::from(reply[0] & 0xf) * 4;
        (addr(12), addr(16), (reply[at], reply[at + 1]))
    } else {
        let addr = |at: usize| {
            let octets: [u8; 16] = reply[at..at + 16].try_into().unwrap();
            IpAddr::from(octets)
        };
        assert_eq!(reply[6], 58, "ICMPv6");
        (addr(8), addr(24), (reply[40], reply[41]))
    }
}

pub(super) fn gso(kind: GsoKind, size: u16) -> Offload {
    Offload {
        needs_checksum: true,
        gso: Some(Gso {
            kind,
            size: NonZeroU16::new(size).unwrap(),
        }),
    }
}
