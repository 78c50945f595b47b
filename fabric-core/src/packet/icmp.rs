//! The ICMP and ICMPv6 errors that a router owes the sender of a packet.
//!
//! Comes in: a packet that cannot go on, as it was received. Goes out: a complete IP packet for its
//! source. Never done here: rate limiting ([`crate::limiter`]) and the choice of the error
//! ([`crate::forward`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Fragment, Headers, ICMP_HEADER_LEN, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Transport,
    checksum::{self, Sum},
    field::put_u16,
    protocol,
};

/// Largest ICMP error over IPv4, IP header included (bytes, RFC 1812 4.3.2.3).
pub const IPV4_ERROR_BYTES_MAX: usize = 576;
/// Largest ICMPv6 error, IP header included (bytes, RFC 4443 2.4 c).
pub const IPV6_ERROR_BYTES_MAX: usize = 1280;
/// The least MTU an IPv6 link may have (bytes, RFC 8200 5); no smaller one is announced.
pub const IPV6_MTU_MIN: u32 = 1280;

const TTL: u8 = 64;
/// Precedence 6, internetwork control (RFC 1812 4.3.2.5).
const TRAFFIC_CLASS: u8 = 0xc0;

/// Why a packet could not go on, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// The TTL or hop limit is used up (11/0; v6 3/0).
    TimeExceeded,
    /// No route to the network (3/0; v6 1/0).
    NetUnreachable,
    /// The network is here, the address is not (3/1; v6 address unreachable 1/3).
    HostUnreachable,
    /// Forbidden by policy (3/13; v6 1/1).
    CommunicationProhibited,
    /// Larger than the next link takes (3/4 of RFC 1191; v6 packet too big 2/0).
    TooBig {
        /// Bytes of the largest IP packet that the next link takes.
        mtu: u32,
    },
}

impl IcmpError {
    /// Type, code and the 32 bits after the checksum for IPv4.
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (11, 0, 0),
            Self::NetUnreachable => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::CommunicationProhibited => (3, 13, 0),
            Self::TooBig { mtu } => (3, 4, mtu.min(u32::from(u16::MAX))),
        }
    }

    /// Type, code and the 32 bits after the checksum for IPv6.
    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (3, 0, 0),
            Self::NetUnreachable => (1, 0, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::CommunicationProhibited => (1, 1, 0),
            Self::TooBig { mtu } => (2, 0, mtu.max(IPV6_MTU_MIN)),
        }
    }
}

/// True if an ICMP error may be sent about this packet: never about an ICMP error, a later
/// fragment, or a packet whose source or destination is not one host's (RFC 1812 4.3.2.7,
/// RFC 4443 2.4 e).
#[must_use]
pub fn may_answer(headers: &Headers) -> bool {
    is_one_host(headers.destination) && may_answer_source(headers)
}

/// As [`may_answer`] for [`IcmpError::TooBig`]: IPv6 senders to a multicast group are told too, or
/// path MTU discovery would not work for them (RFC 4443 2.4 e.3).
#[must_use]
pub fn may_answer_too_big(headers: &Headers) -> bool {
    let to_group = headers.is_ipv6() && headers.destination.is_multicast();
    (to_group || is_one_host(headers.destination)) && may_answer_source(headers)
}

fn may_answer_source(headers: &Headers) -> bool {
    headers.fragment != Fragment::Later && is_one_host(headers.source) && !is_error(headers)
}

fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            // 0/8 "this network", loopback, multicast, class E with limited broadcast
            // (RFC 1122 3.2.1.3, RFC 6890).
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
        }
    }
}

/// True for ICMP messages that are not plainly queries or replies; a fragment too short to tell
/// counts as an error.
fn is_error(headers: &Headers) -> bool {
    match (headers.transport, headers.is_ipv6()) {
        // Echo, router discovery, timestamp, information, mask, extended echo (IANA icmp-parameters).
        (Transport::Icmp { kind, .. }, false) => {
            !matches!(kind, 0 | 8 | 9 | 10 | 13..=18 | 42 | 43)
        }
        // RFC 4443 2.1: the high bit tells errors apart; 137 is Redirect, barred by 2.4 e.2.
        (Transport::Icmp { kind, .. }, true) => kind < 128 || kind == 137,
        (Transport::Absent, false) => headers.protocol == protocol::ICMP,
        (Transport::Absent, true) => headers.protocol == protocol::ICMPV6,
        (Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Other, _) => false,
    }
}

/// Writes into `out`, in place of what it held, the packet that tells the sender of `prefix` about
/// `kind`, from the gateway address `source`.
///
/// `prefix` is the packet as received, or the start of it; as much of it is quoted as fits.
/// Returns false, and leaves `out` empty, if `source` is not of the packet's address family.
/// Allocates only where `out` has less room than [`IPV6_ERROR_BYTES_MAX`].
pub fn write_error(
    kind: IcmpError,
    source: IpAddr,
    prefix: &[u8],
    headers: &Headers,
    out: &mut Vec<u8>,
) -> bool {
    out.clear();
    match (source, headers.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let quote = quoted::<IPV4_ERROR_BYTES_MAX, IPV4_HEADER_LEN>(prefix, headers);
            write_v4(kind, from, to, quote, out).is_some()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let quote = quoted::<IPV6_ERROR_BYTES_MAX, IPV6_HEADER_LEN>(prefix, headers);
            write_v6(kind, from, to, quote, out).is_some()
        }
        _ => false,
    }
}

/// The part of the packet that an error of at most `MAX` bytes has room for.
fn quoted<'a, const MAX: usize, const IP_HEADER: usize>(
    prefix: &'a [u8],
    headers: &Headers,
) -> &'a [u8] {
    let room = const {
        MAX.saturating_sub(IP_HEADER)
            .saturating_sub(ICMP_HEADER_LEN)
    };
    let packet_len = usize::try_from(headers.packet_len).unwrap_or(usize::MAX);
    prefix.get(..room.min(packet_len)).unwrap_or_else(|| {
        prefix
            .get(..packet_len.min(prefix.len()))
            .unwrap_or_default()
    })
}

fn write_v4(
    kind: IcmpError,
    from: Ipv4Addr,
    to: Ipv4Addr,
    quote: &[u8],
    out: &mut Vec<u8>,
) -> Option<()> {
    let (icmp_type, code, rest) = kind.v4();
    let len = u16::try_from(quote.len())
        .ok()?
        .checked_add(28)?
        .to_be_bytes();
    // DF and an id of zero: the error is one atomic datagram (RFC 6864 4.1).
    out.extend_from_slice(&[0x45, TRAFFIC_CLASS, len[0], len[1], 0, 0, 0x40, 0]);
    out.extend_from_slice(&[TTL, protocol::ICMP, 0, 0]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    let sum = checksum::checksum(out);
    put_u16(out, 10, sum)?;
    out.extend_from_slice(&[icmp_type, code, 0, 0]);
    out.extend_from_slice(&rest.to_be_bytes());
    out.extend_from_slice(quote);
    let message = out.get_mut(IPV4_HEADER_LEN..)?;
    let sum = checksum::checksum(message);
    put_u16(message, 2, sum)
}

fn write_v6(
    kind: IcmpError,
    from: Ipv6Addr,
    to: Ipv6Addr,
    quote: &[u8],
    out: &mut Vec<u8>,
) -> Option<()> {
    let (icmp_type, code, rest) = kind.v6();
    let len = u16::try_from(quote.len()).ok()?.checked_add(8)?;
    let [l0, l1] = len.to_be_bytes();
    out.extend_from_slice(&[0x60, 0, 0, 0, l0, l1, protocol::ICMPV6, TTL]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    out.extend_from_slice(&[icmp_type, code, 0, 0]);
    out.extend_from_slice(&rest.to_be_bytes());
    out.extend_from_slice(quote);
    let message = out.get_mut(IPV6_HEADER_LEN..)?;
    let sum = Sum::default()
        .bytes(&from.octets())
        .bytes(&to.octets())
        .word(len)
        .word(u16::from(protocol::ICMPV6))
        .bytes(message)
        .checksum();
    put_u16(message, 2, sum)
}

#[cfg(test)]
mod tests;
