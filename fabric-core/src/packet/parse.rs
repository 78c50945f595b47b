//! Parse once, then trust the type.
//!
//! Comes in: the first bytes of a frame and its length. Goes out: [`Headers`], with every offset
//! checked against the packet, or the reason to drop it. Never done here: changing a byte, or
//! looking at an upper-layer checksum (a router leaves those to the end points).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    ICMP_HEADER_LEN, IPV4_HEADER_LEN, IPV6_HEADER_LEN, TCP_HEADER_LEN, UDP_HEADER_LEN,
    checksum::Sum,
    field::{self, ipv4},
    protocol,
};
use crate::verdict::DropReason;

/// What the packet decision needs of an IP packet, read and checked once by [`parse`].
///
/// Offsets count bytes from the first byte of the IP header. For a whole packet,
/// `transport_offset` and the whole TCP, UDP or ICMP header that `transport` names lie within
/// `packet_len`.
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

    /// Where the TCP or UDP payload begins; `None` for other protocols and for fragments.
    #[must_use]
    pub fn payload_offset(&self) -> Option<u16> {
        let header_len = match self.transport {
            Transport::Tcp { header_len, .. } => u16::from(header_len),
            Transport::Udp { .. } => 8,
            Transport::Icmp { .. } | Transport::Other | Transport::Absent => return None,
        };
        match self.fragment {
            Fragment::Whole => self.transport_offset.checked_add(header_len),
            Fragment::First | Fragment::Later => None,
        }
    }

    /// Bytes of TCP or UDP payload; `None` for other protocols and for fragments.
    #[must_use]
    pub fn payload_len(&self) -> Option<u32> {
        self.packet_len
            .checked_sub(u32::from(self.payload_offset()?))
    }

    /// Where the checksum field of a whole TCP or UDP packet lies, counted from
    /// `transport_offset`; `None` for other protocols and for fragments.
    #[must_use]
    pub fn checksum_offset(&self) -> Option<u16> {
        match (self.transport, self.fragment) {
            (Transport::Tcp { .. }, Fragment::Whole) => Some(field::tcp::CHECKSUM),
            (Transport::Udp { .. }, Fragment::Whole) => Some(field::udp::CHECKSUM),
            _ => None,
        }
    }
}

/// Bytes of a packet that [`parse`] may look at: 40 of IPv6, 256 of extension headers, 60 of TCP.
pub const HEADER_PREFIX_LEN: usize = 356;
/// IPv6 extension headers walked before a packet is dropped.
pub const EXTENSION_HEADERS_MAX: usize = 8;
/// Bytes of IPv6 extension headers walked before a packet is dropped.
pub const EXTENSION_BYTES_MAX: usize = 256;

const _: () = assert!(HEADER_PREFIX_LEN == IPV6_HEADER_LEN + EXTENSION_BYTES_MAX + 60);

/// Checks `prefix`, the first bytes of a frame of `available` bytes in all, and returns its headers.
///
/// `prefix` must hold the IP header, its options or extension headers and the first bytes of the
/// upper-layer header; [`HEADER_PREFIX_LEN`] bytes are always enough. Bytes of the frame beyond the
/// packet's own length are allowed and are no part of it (RFC 1122 3.2.1, link padding).
///
/// # Errors
///
/// The reason to drop the packet.
pub fn parse(prefix: &[u8], available: usize) -> Result<Headers, DropReason> {
    let prefix = prefix.get(..available).unwrap_or(prefix);
    match prefix.first().map(|first| first >> 4) {
        Some(4) => parse_ipv4(prefix, available),
        Some(6) => parse_ipv6(prefix, available),
        Some(_) => Err(DropReason::BadVersion),
        None => Err(DropReason::Truncated),
    }
}

/// RFC 1812 5.2.2: the checks a router makes before it looks at anything else.
fn parse_ipv4(prefix: &[u8], available: usize) -> Result<Headers, DropReason> {
    let fixed: &[u8; IPV4_HEADER_LEN] = prefix.first_chunk().ok_or(DropReason::Truncated)?;
    let header_len = (fixed[0] & 0x0f) << 2;
    let header_bytes = usize::from(header_len);
    if header_bytes < IPV4_HEADER_LEN || header_bytes > available {
        return Err(DropReason::BadHeaderLength);
    }
    let packet_len = u16::from_be_bytes([fixed[2], fixed[3]]);
    if packet_len < u16::from(header_len) {
        return Err(DropReason::BadTotalLength);
    }
    if usize::from(packet_len) > available {
        return Err(DropReason::Truncated);
    }
    let header = prefix.get(..header_bytes).ok_or(DropReason::Truncated)?;
    if Sum::default().bytes(header).fold() != 0xffff {
        return Err(DropReason::BadHeaderChecksum);
    }
    if let Some(options) = header.get(IPV4_HEADER_LEN..) {
        check_options(options)?;
    }

    let flags_and_offset = u16::from_be_bytes([fixed[6], fixed[7]]);
    let more = flags_and_offset & ipv4::MORE_FRAGMENTS != 0;
    let fragment = fragment_of(flags_and_offset & ipv4::OFFSET_MASK, more);
    let protocol = fixed[9];
    let upper = Upper {
        prefix,
        packet_len: usize::from(packet_len),
        offset: header_bytes,
        fragment,
    };
    let transport = match protocol {
        protocol::ICMP => upper.icmp(),
        other => upper.ports(other),
    }?;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
    Ok(Headers {
        source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
        destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
        protocol,
        packet_len: u32::from(packet_len),
        transport_offset: u16::from(header_len),
        ttl: fixed[8],
        traffic_class: fixed[1],
        dont_fragment: flags_and_offset & ipv4::DONT_FRAGMENT != 0,
        fragment,
        transport,
    })
}

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// Refuses source routes, and option lists whose lengths do not add up: behind a broken length a
/// source route could hide from us and be found by a more forgiving reader.
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            OPTION_END => return Ok(()),
            OPTION_NO_OPERATION => options = rest,
            OPTION_LOOSE_SOURCE_ROUTE | OPTION_STRICT_SOURCE_ROUTE => {
                return Err(DropReason::SourceRoute);
            }
            _ => {
                let len = usize::from(*rest.first().ok_or(DropReason::BadHeaderLength)?);
                if len < 2 {
                    return Err(DropReason::BadHeaderLength);
                }
                options = options.get(len..).ok_or(DropReason::BadHeaderLength)?;
            }
        }
    }
    Ok(())
}

fn parse_ipv6(prefix: &[u8], available: usize) -> Result<Headers, DropReason> {
    let fixed: &[u8; IPV6_HEADER_LEN] = prefix.first_chunk().ok_or(DropReason::Truncated)?;
    let payload_len = u16::from_be_bytes([fixed[4], fixed[5]]);
    let next_header = fixed[6];
    // RFC 2675: zero with a hop-by-hop header announces a jumbogram.
    if payload_len == 0 && next_header == protocol::HOP_BY_HOP {
        return Err(DropReason::BadTotalLength);
    }
    let packet_len = u32::from(payload_len).saturating_add(40);
    let packet_bytes = usize::from(payload_len).saturating_add(IPV6_HEADER_LEN);
    if packet_bytes > available {
        return Err(DropReason::Truncated);
    }

    let chain = walk_extensions(prefix, packet_bytes, next_header)?;
    let upper = Upper {
        prefix,
        packet_len: packet_bytes,
        offset: usize::from(chain.transport_offset),
        fragment: chain.fragment,
    };
    let transport = match chain.protocol {
        protocol::ICMPV6 => upper.icmp(),
        other => upper.ports(other),
    }?;
    let (_, addresses) = fixed.split_at(8);
    let (source, destination) = addresses.split_at(16);
    Ok(Headers {
        source: address_v6(source)?,
        destination: address_v6(destination)?,
        protocol: chain.protocol,
        packet_len,
        transport_offset: chain.transport_offset,
        ttl: fixed[7],
        traffic_class: (fixed[0] << 4) | (fixed[1] >> 4),
        dont_fragment: true,
        fragment: chain.fragment,
        transport,
    })
}

pub(super) fn address_v6(bytes: &[u8]) -> Result<IpAddr, DropReason> {
    let octets: &[u8; 16] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    Ok(IpAddr::V6(Ipv6Addr::from(*octets)))
}

/// What the walk along the extension headers ends at.
pub(super) struct Chain {
    pub(super) protocol: u8,
    pub(super) transport_offset: u16,
    pub(super) fragment: Fragment,
}

/// RFC 8200 4: follows the extension headers to the upper layer, or to the end of what a later
/// fragment tells.
pub(super) fn walk_extensions(
    prefix: &[u8],
    packet_len: usize,
    first: u8,
) -> Result<Chain, DropReason> {
    let mut next = first;
    let mut offset = IPV6_HEADER_LEN;
    let mut fragment = Fragment::Whole;
    let mut seen_fragment_header = false;
    for position in 0..=EXTENSION_HEADERS_MAX {
        let known = matches!(
            next,
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::AUTHENTICATION
                | protocol::DESTINATION_OPTIONS
        );
        if !known || fragment == Fragment::Later {
            let transport_offset =
                u16::try_from(offset).map_err(|_| DropReason::ExtensionHeaders)?;
            return Ok(Chain {
                protocol: next,
                transport_offset,
                fragment,
            });
        }
        // RFC 8200 4.1: hop-by-hop options come first or not at all.
        if next == protocol::HOP_BY_HOP && position > 0 {
            return Err(DropReason::ExtensionHeaders);
        }
        let header = extension(prefix, packet_len, offset)?;
        let len = extension_len(next, header[1])?;
        match next {
            protocol::ROUTING if header[2] == 0 => return Err(DropReason::RoutingHeader),
            protocol::FRAGMENT if seen_fragment_header => return Err(DropReason::ExtensionHeaders),
            protocol::FRAGMENT => {
                seen_fragment_header = true;
                let word = u16::from_be_bytes([header[2], header[3]]);
                fragment = fragment_of(word >> 3, word & 1 != 0);
            }
            _ => {}
        }
        next = header[0];
        offset = offset.saturating_add(len);
        if offset > packet_len || offset > IPV6_HEADER_LEN.saturating_add(EXTENSION_BYTES_MAX) {
            return Err(DropReason::ExtensionHeaders);
        }
    }
    Err(DropReason::ExtensionHeaders)
}

/// The first 8 bytes of the extension header at `offset`: none is shorter.
fn extension(prefix: &[u8], packet_len: usize, offset: usize) -> Result<[u8; 8], DropReason> {
    if offset.saturating_add(8) > packet_len {
        return Err(DropReason::ExtensionHeaders);
    }
    let header = prefix.get(offset..).and_then(<[u8]>::first_chunk);
    header.copied().ok_or(DropReason::Truncated)
}

/// Bytes of an extension header, from its length field.
fn extension_len(kind: u8, length_field: u8) -> Result<usize, DropReason> {
    let units = usize::from(length_field);
    match kind {
        protocol::FRAGMENT => Ok(8),
        // RFC 4302 2.2: in units of 4 bytes, minus 2; the fixed part alone is 12 bytes.
        protocol::AUTHENTICATION if units == 0 => Err(DropReason::ExtensionHeaders),
        protocol::AUTHENTICATION => Ok(units.saturating_add(2) << 2),
        // RFC 8200 4.2: in units of 8 bytes, not counting the first 8.
        _ => Ok(units.saturating_add(1) << 3),
    }
}

fn fragment_of(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// The upper-layer header's place in the packet.
struct Upper<'a> {
    prefix: &'a [u8],
    packet_len: usize,
    offset: usize,
    fragment: Fragment,
}

impl<'a> Upper<'a> {
    fn ports(&self, protocol: u8) -> Result<Transport, DropReason> {
        match (self.fragment, protocol) {
            (Fragment::Later, _) => Ok(Transport::Absent),
            (_, protocol::TCP) => self.tcp(),
            (_, protocol::UDP) => self.udp(),
            _ => Ok(Transport::Other),
        }
    }

    fn tcp(&self) -> Result<Transport, DropReason> {
        if self.room() < TCP_HEADER_LEN {
            return self.cut_short();
        }
        let header: &[u8; TCP_HEADER_LEN] = self.bytes()?;
        let header_len = (header[12] >> 4) << 2;
        if usize::from(header_len) < TCP_HEADER_LEN {
            return Err(DropReason::BadHeaderLength);
        }
        if usize::from(header_len) > self.room() {
            return self.cut_short();
        }
        Ok(Transport::Tcp {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
            header_len,
            flags: header[field::tcp::FLAGS],
        })
    }

    fn udp(&self) -> Result<Transport, DropReason> {
        if self.room() < UDP_HEADER_LEN {
            return self.cut_short();
        }
        let header: &[u8; UDP_HEADER_LEN] = self.bytes()?;
        Ok(Transport::Udp {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
        })
    }

    fn icmp(&self) -> Result<Transport, DropReason> {
        if self.fragment == Fragment::Later {
            return Ok(Transport::Absent);
        }
        if self.room() < ICMP_HEADER_LEN {
            return self.cut_short();
        }
        let header: &[u8; ICMP_HEADER_LEN] = self.bytes()?;
        Ok(Transport::Icmp {
            kind: header[0],
            code: header[1],
        })
    }

    /// Bytes of the packet from the upper-layer header on.
    fn room(&self) -> usize {
        self.packet_len.saturating_sub(self.offset)
    }

    fn bytes<const N: usize>(&self) -> Result<&'a [u8; N], DropReason> {
        let bytes = self.prefix.get(self.offset..);
        bytes
            .and_then(<[u8]>::first_chunk)
            .ok_or(DropReason::Truncated)
    }

    /// A tiny first fragment may leave the rest of the header to the next one (RFC 791 permits
    /// it); a whole packet may not.
    fn cut_short(&self) -> Result<Transport, DropReason> {
        match self.fragment {
            Fragment::Whole => Err(DropReason::Truncated),
            Fragment::First | Fragment::Later => Ok(Transport::Absent),
        }
    }
}

#[cfg(test)]
mod tests;
