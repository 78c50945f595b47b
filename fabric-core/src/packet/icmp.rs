//! icmp

use std::net::IpAddr;

use super::{Fragment, Headers, Transport};

/// Which ICMP error a router owes the sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// TTL or hop limit used up.
    TimeExceeded,
    /// No route.
    NetUnreachable,
    /// Nobody has the address.
    HostUnreachable,
    /// Larger than the link.
    TooBig {
        /// MTU of the next hop in bytes.
        mtu: u32,
    },
    /// Forbidden by policy.
    CommunicationProhibited,
}

/// Whether an error about this packet may be sent at all.
#[must_use]
pub fn may_answer(_prefix: &[u8], headers: &Headers, _kind: IcmpError) -> bool {
    let about_error = match headers.transport {
        Transport::Icmp { kind, .. } if headers.is_ipv6() => kind < 128,
        Transport::Icmp { kind, .. } => matches!(kind, 3 | 4 | 5 | 11 | 12),
        Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Other | Transport::Absent => {
            false
        }
    };
    headers.fragment != Fragment::Later && !about_error
}

/// Writes a complete ICMP error packet.
pub fn write_error(
    kind: IcmpError,
    source: IpAddr,
    prefix: &[u8],
    headers: &Headers,
    out: &mut Vec<u8>,
) {
    out.clear();
    let (code, mtu) = match (kind, source) {
        (IcmpError::TimeExceeded, IpAddr::V4(_)) => ([11, 0], 0),
        (IcmpError::NetUnreachable, IpAddr::V4(_)) => ([3, 0], 0),
        (IcmpError::HostUnreachable, IpAddr::V4(_)) => ([3, 1], 0),
        (IcmpError::TooBig { mtu }, IpAddr::V4(_)) => ([3, 4], mtu),
        (IcmpError::CommunicationProhibited, IpAddr::V4(_)) => ([3, 13], 0),
        (IcmpError::TimeExceeded, IpAddr::V6(_)) => ([3, 0], 0),
        (IcmpError::NetUnreachable, IpAddr::V6(_)) => ([1, 0], 0),
        (IcmpError::HostUnreachable, IpAddr::V6(_)) => ([1, 3], 0),
        (IcmpError::TooBig { mtu }, IpAddr::V6(_)) => ([2, 0], mtu),
        (IcmpError::CommunicationProhibited, IpAddr::V6(_)) => ([1, 1], 0),
    };
    match (source, headers.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0]);
            out.extend(from.octets());
            out.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend([0x60, 0, 0, 0, 0, 0, 58, 64]);
            out.extend(from.octets());
            out.extend(to.octets());
        }
        _ => return,
    }
    out.extend(code);
    out.extend([0, 0]);
    out.extend(mtu.to_be_bytes());
    out.extend(prefix.iter().take(28));
}
