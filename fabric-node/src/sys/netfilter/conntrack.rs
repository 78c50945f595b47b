//! What the kernel's connection tracking knows of translated flows; no I/O.
//!
//! In: the answer to [`dump`]. Out: each entry whose destination was translated, as the kernel sends it
//! on ([`Translated`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::{Writer, attribute};

/// A flow whose destination the kernel has translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Source as it leaves the kernel.
    pub source: (IpAddr, u16),
    /// Destination as it leaves the kernel.
    pub destination: (IpAddr, u16),
    /// IANA protocol number.
    pub protocol: u8,
    /// A TCP flow that is ending.
    pub is_closing: bool,
}

/// `NFNL_SUBSYS_CTNETLINK << 8` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW` (linux/netfilter/nfnetlink_conntrack.h): also the kind of each entry of a dump.
const ENTRY: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = SUBSYSTEM | 1;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP_FLAGS: u16 = 0x301;

const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h): the destination is translated.
const STATUS_DESTINATION_NAT: u32 = 1 << 5;
/// `TCP_CONNTRACK_FIN_WAIT` to `TCP_CONNTRACK_CLOSE` (linux/netfilter/nf_conntrack_tcp.h).
const TCP_CLOSING: std::ops::RangeInclusive<u8> = 4..=8;

/// The request for all entries of both families.
#[must_use]
pub fn dump() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(GET, DUMP_FLAGS, (0, 0), |_| {});
    writer.finish()
}

/// The flow of an entry of a dump; `None` for one whose destination is not translated, and for what is
/// no entry.
#[must_use]
pub fn translated(kind: u16, payload: &[u8]) -> Option<Translated> {
    if kind != ENTRY {
        return None;
    }
    let attributes = payload.get(4..)?;
    let status = u32::from_be_bytes(*attribute(attributes, CTA_STATUS)?.first_chunk()?);
    if status & STATUS_DESTINATION_NAT == 0 {
        return None;
    }
    // What the kernel expects back is what it sends, reversed.
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let addresses = attribute(reply, CTA_TUPLE_IP)?;
    let ip = |v4, v6| {
        let v4 = attribute(addresses, v4).and_then(<[u8]>::first_chunk::<4>);
        let v6 = attribute(addresses, v6).and_then(<[u8]>::first_chunk::<16>);
        v4.map(|octets| Ipv4Addr::from(*octets).into())
            .or_else(|| v6.map(|octets| Ipv6Addr::from(*octets).into()))
    };
    let upper = attribute(reply, CTA_TUPLE_PROTO)?;
    let number = |kind| {
        let bytes = attribute(upper, kind)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let identifier = number(CTA_PROTO_ICMP_ID).or_else(|| number(CTA_PROTO_ICMPV6_ID));
    let port = |kind| number(kind).or(identifier).unwrap_or(0);
    let tcp_state = attribute(attributes, CTA_PROTOINFO)
        .and_then(|info| attribute(info, CTA_PROTOINFO_TCP))
        .and_then(|tcp| attribute(tcp, CTA_PROTOINFO_TCP_STATE))
        .and_then(|state| state.first().copied());
    Some(Translated {
        source: (ip(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)),
        destination: (ip(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)),
        protocol: *attribute(upper, CTA_PROTO_NUM)?.first()?,
        is_closing: tcp_state.is_some_and(|state| TCP_CLOSING.contains(&state)),
    })
}

#[cfg(test)]
mod tests;
