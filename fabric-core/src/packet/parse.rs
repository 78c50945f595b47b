//! Parse once, then trust the type.

use std::net::IpAddr;

use crate::verdict::DropReason;

/// What the packet decision needs of an IP packet, read and checked once by [`parse`].
///
/// Offsets count bytes from the first byte of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol (IANA number), past all IPv6 extension headers.
    pub protocol: u8,
    /// Length of the IP packet in bytes as its header says; bytes beyond it are not part of it.
    pub packet_len: u32,
    /// Where the upper-layer header begins.
    pub transport_offset: u16,
    /// TTL (IPv4) or hop limit (IPv6).
    pub ttl: u8,
    /// TOS (IPv4) or traffic class (IPv6): DSCP in the upper six bits, ECN in the lower two.
    pub traffic_class: u8,
    /// True for IPv4 with DF set, and for every IPv6 packet.
    pub dont_fragment: bool,
    /// Whether this is a whole packet or a fragment of one.
    pub fragment: Fragment,
    /// The upper-layer fields that the decision uses.
    pub transport: Transport,
}

/// Where a packet stands in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: it carries the upper-layer header.
    First,
    /// A later fragment: `transport` is [`Transport::Absent`].
    Later,
}

/// Upper-layer fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP: ports in host byte order, header length in bytes, the flags byte (CWR..FIN).
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Length of the TCP header in bytes, options included.
        header_len: u8,
        /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from the highest bit down (RFC 9293 3.1).
        flags: u8,
    },
    /// UDP ports, host byte order.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP for IPv4 or ICMPv6 for IPv6.
    Icmp {
        /// Message type.
        kind: u8,
        /// Message code.
        code: u8,
    },
    /// A protocol the fabric forwards by address alone.
    Other,
    /// No upper-layer header in this packet: a later fragment, or a packet too short to hold one.
    Absent,
}

impl Headers {
    /// True for an IPv6 packet.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.source.is_ipv6()
    }
}

/// Checks `prefix`, the first bytes of a frame of `available` bytes in all, and returns its headers.
///
/// `prefix` must hold the IP header, its options or extension headers and the first bytes of the
/// upper-layer header; [`HEADER_PREFIX_LEN`] bytes are always enough.
///
/// # Errors
///
/// The reason to drop the packet.
pub fn parse(prefix: &[u8], available: usize) -> Result<Headers, DropReason> {
    let _ = (prefix, available);
    Err(DropReason::Truncated)
}

/// Bytes of a packet that [`parse`] may look at: 40 of IPv6, 256 of extension headers, 60 of TCP.
pub const HEADER_PREFIX_LEN: usize = 356;
