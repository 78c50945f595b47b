//! What a router changes in a packet on its way: TTL and the congestion mark.
//!
//! Comes in: a packet and its parsed headers. Goes out: the packet, its IPv4 header checksum
//! updated by the difference (RFC 1624), so that damage done earlier stays visible. Never done here:
//! deciding, or touching anything above the IP header.

use super::{
    Headers, checksum,
    field::{get_u16, ipv4, ipv6, put, put_u16},
};

const ECN_MASK: u8 = 0b11;
const ECN_CE: u8 = 0b11;
const ECN_NOT_ECT: u8 = 0b00;

/// Takes one from the TTL or hop limit. Returns false, and changes nothing, where none would be
/// left (RFC 1812 5.3.1) or `packet` does not hold its header.
pub fn decrement_ttl(packet: &mut [u8], headers: &Headers) -> bool {
    let at = if headers.is_ipv6() {
        ipv6::HOP_LIMIT
    } else {
        ipv4::TTL
    };
    let Some(left) = packet.get(at).and_then(|ttl| ttl.checked_sub(1)) else {
        return false;
    };
    left > 0 && replace(packet, headers, at, left)
}

/// Marks a packet of an ECN-capable transport as having met congestion (RFC 3168 5). Returns
/// whether the packet carries the mark; if not, its sender understands loss only.
pub fn set_ecn_ce(packet: &mut [u8], headers: &Headers) -> bool {
    // In IPv6 the traffic class straddles the first two bytes.
    let shift = if headers.is_ipv6() { 4 } else { 0 };
    let Some(&byte) = packet.get(1) else {
        return false;
    };
    match (byte >> shift) & ECN_MASK {
        ECN_NOT_ECT => false,
        ECN_CE => true,
        _ => replace(packet, headers, 1, byte | (ECN_CE << shift)),
    }
}

/// Writes one byte of the IP header and keeps the IPv4 header checksum in step.
fn replace(packet: &mut [u8], headers: &Headers, at: usize, value: u8) -> bool {
    let word_at = at & !1;
    let Some(old) = get_u16(packet, word_at) else {
        return false;
    };
    if put(packet, at, [value]).is_none() {
        return false;
    }
    if headers.is_ipv6() {
        return true;
    }
    let (Some(new), Some(sum)) = (get_u16(packet, word_at), get_u16(packet, ipv4::CHECKSUM)) else {
        return false;
    };
    put_u16(packet, ipv4::CHECKSUM, checksum::update(sum, old, new)).is_some()
}

#[cfg(test)]
mod tests;
