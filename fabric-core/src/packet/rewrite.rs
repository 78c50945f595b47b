//! rewrite

use super::Headers;

/// Takes one from the TTL or hop limit.
pub fn decrement_ttl(packet: &mut [u8], headers: &Headers) {
    let at = if headers.is_ipv6() { 7 } else { 8 };
    if let Some(ttl) = packet.get_mut(at) {
        *ttl = ttl.saturating_sub(1);
    }
}
