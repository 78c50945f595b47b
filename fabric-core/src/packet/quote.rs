//! What an ICMP error quotes of the packet that it is about.
//!
//! Comes in: a whole ICMP error. Goes out: addresses and ports of the packet quoted, as far as the quote
//! goes. Never done here: checking that packet as one to be forwarded; nobody forwards a quote.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    Fragment, Headers, ICMP_HEADER_LEN, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Transport,
    field::{get_u16, ipv4, ipv6},
    parse::{Chain, address_v6, walk_extensions},
    protocol,
};

/// A quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol (IANA number).
    pub protocol: u8,
    /// Source and destination port, or twice the identifier of an ICMP query, or zeros for protocols
    /// without; `None` for a fragment and for a quote that is too short.
    pub ports: Option<(u16, u16)>,
}

/// The packet that an ICMP error quotes; `None` for all other packets, for a redirect, for a quote that
/// is no IP header, and for one whose sender is not who the error goes to.
#[must_use]
pub fn of_error(packet: &[u8], headers: &Headers) -> Option<Quoted> {
    if !is_error(headers) {
        return None;
    }
    let start = usize::from(headers.transport_offset).saturating_add(ICMP_HEADER_LEN);
    let quote = packet.get(start..)?;
    let quoted = match headers.source {
        IpAddr::V4(_) => quoted_v4(quote),
        IpAddr::V6(_) => quoted_v6(quote),
    }?;
    (quoted.source == headers.destination).then_some(quoted)
}

/// Whether a packet is an ICMP error that quotes another packet. A redirect quotes one, too, and is none.
#[must_use]
pub fn is_error(headers: &Headers) -> bool {
    // RFC 792: destination unreachable, source quench, time exceeded, parameter problem. RFC 4443 2.1:
    // errors have the highest bit clear.
    match (headers.transport, headers.source) {
        (Transport::Icmp { kind, .. }, IpAddr::V4(_)) => matches!(kind, 3 | 4 | 11 | 12),
        (Transport::Icmp { kind, .. }, IpAddr::V6(_)) => kind < 128,
        (Transport::Tcp { .. } | Transport::Udp { .. }, _) => false,
        (Transport::Other | Transport::Absent, _) => false,
    }
}

fn quoted_v4(quote: &[u8]) -> Option<Quoted> {
    let fixed: &[u8; IPV4_HEADER_LEN] = quote.first_chunk()?;
    let [first, .., s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
    let header_len = usize::from(first & 0x0f) << 2;
    if first >> 4 != 4 || header_len < IPV4_HEADER_LEN {
        return None;
    }
    let is_fragment =
        get_u16(fixed, ipv4::FLAGS_AND_OFFSET)? & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0;
    let protocol = fixed[9];
    let upper = quote.get(header_len..).filter(|_| !is_fragment);
    Some(Quoted {
        source: Ipv4Addr::new(s0, s1, s2, s3).into(),
        destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
        protocol,
        ports: upper.and_then(|upper| ports(upper, protocol)),
    })
}

fn quoted_v6(quote: &[u8]) -> Option<Quoted> {
    let fixed: &[u8; IPV6_HEADER_LEN] = quote.first_chunk()?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let payload_len = get_u16(fixed, ipv6::PAYLOAD_LENGTH)?;
    let packet_len = usize::from(payload_len).saturating_add(IPV6_HEADER_LEN);
    let (_, addresses) = fixed.split_at(8);
    let (source, destination) = addresses.split_at(16);
    let (source, destination) = (address_v6(source).ok()?, address_v6(destination).ok()?);
    let Chain {
        protocol,
        transport_offset,
        fragment,
    } = walk_extensions(quote, packet_len, fixed[6]).ok()?;
    let upper = quote
        .get(usize::from(transport_offset)..)
        .filter(|_| fragment == Fragment::Whole);
    Some(Quoted {
        source,
        destination,
        protocol,
        ports: upper.and_then(|upper| ports(upper, protocol)),
    })
}

fn ports(upper: &[u8], protocol: u8) -> Option<(u16, u16)> {
    match protocol {
        protocol::TCP | protocol::UDP => Some((get_u16(upper, 0)?, get_u16(upper, 2)?)),
        protocol::ICMP | protocol::ICMPV6 => {
            let identifier = get_u16(upper, 4)?;
            Some((identifier, identifier))
        }
        _ => Some((0, 0)),
    }
}

#[cfg(test)]
mod tests;
