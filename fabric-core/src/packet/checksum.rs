//! The Internet checksum: whole, partial and incremental.
//!
//! Comes in: bytes. Goes out: 16-bit ones' complement sums in host byte order. Never done here:
//! mending the checksum of a packet that arrived with a complete one.

use std::net::IpAddr;

use super::{
    Fragment, Headers, Transport, UDP_HEADER_LEN,
    field::{get_u16, put_u16, udp},
};
use crate::verdict::DropReason;

/// A ones' complement sum in the making (RFC 1071).
///
/// Words are added in the machine's own byte order and 64 bits wide; the sum is turned into network
/// order once, at the end (RFC 1071 2, byte order independence).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`. All but the last slice added must have an even length.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, tail) = bytes.as_chunks::<4>();
        let mut total = self.0;
        for word in words {
            total = total.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        Self(total.wrapping_add(u64::from(u32::from_ne_bytes(last))))
    }

    /// Adds one 16-bit word, given in host byte order.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0.wrapping_add(u64::from(word.to_be())))
    }

    /// Adds one 32-bit word, given in host byte order.
    #[must_use]
    pub fn long(self, long: u32) -> Self {
        Self(self.0.wrapping_add(u64::from(long.to_be())))
    }

    /// The sum folded to 16 bits, host byte order. Not complemented: this is what a checksum field
    /// holds as the seed of a partial checksum.
    #[must_use]
    pub fn fold(self) -> u16 {
        let [a, b, c, d, e, f, g, h] = self.0.to_ne_bytes();
        // Four 16-bit words, then twice the end-around carry: 4 * 0xffff needs 18 bits.
        let sum = [[a, b], [c, d], [e, f], [g, h]]
            .iter()
            .fold(0_u32, |sum, word| {
                sum.wrapping_add(u32::from(u16::from_be_bytes(*word)))
            });
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        let [_, _, high, low] = sum.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// The checksum: the complement of the sum, host byte order.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The Internet checksum of `bytes`, host byte order (RFC 1071).
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::default().bytes(bytes).checksum()
}

/// The sum of the pseudo-header for an upper layer of `upper_len` bytes (RFC 9293 3.1, RFC 768,
/// RFC 8200 8.1). Folded, it is the seed that a partial checksum starts from.
#[must_use]
pub fn pseudo_header_sum(headers: &Headers, upper_len: u32) -> Sum {
    let sum = Sum::default()
        .long(upper_len)
        .word(u16::from(headers.protocol));
    match (headers.source, headers.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum.bytes(&source.octets()).bytes(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum.bytes(&source.octets()).bytes(&destination.octets())
        }
        // `parse` never mixes the families.
        _ => sum,
    }
}

/// False if the packet's upper-layer checksum can be checked and is wrong.
///
/// Checked are whole TCP, UDP, ICMP and ICMPv6 packets. UDP over IPv4 without a checksum (zero)
/// passes, over IPv6 it does not (RFC 8200 8.1).
#[must_use]
pub fn verify(packet: &[u8], headers: &Headers) -> bool {
    if headers.fragment != Fragment::Whole {
        return true;
    }
    let Some(upper) = upper_layer(packet, headers) else {
        return false;
    };
    let sum = match headers.transport {
        Transport::Tcp { .. } => with_pseudo_header(headers, upper),
        Transport::Udp { .. } => {
            if get_u16(upper, udp::CHECKSUM.into()) == Some(0) {
                return !headers.is_ipv6();
            }
            // The UDP length, not the IP length, says how far the checksum reaches.
            let covered = get_u16(upper, udp::LENGTH).map(usize::from);
            match covered.and_then(|len| upper.get(..len)) {
                Some(covered) if covered.len() >= UDP_HEADER_LEN => {
                    with_pseudo_header(headers, covered)
                }
                _ => return false,
            }
        }
        Transport::Icmp { .. } if headers.is_ipv6() => with_pseudo_header(headers, upper),
        Transport::Icmp { .. } => Sum::default().bytes(upper),
        Transport::Other | Transport::Absent => return true,
    };
    sum.fold() == 0xffff
}

/// Does what a partial checksum (VIRTIO_NET_HDR_F_NEEDS_CSUM) leaves to be done: the field holds
/// the pseudo-header's sum, the rest is added and the complement stored.
///
/// # Errors
///
/// [`DropReason::BadOffload`] if the packet is not a whole TCP or UDP packet, or shorter than
/// `headers` say.
pub fn complete_checksum(packet: &mut [u8], headers: &Headers) -> Result<(), DropReason> {
    let offset = headers.checksum_offset().ok_or(DropReason::BadOffload)?;
    let zero_means_none = matches!(headers.transport, Transport::Udp { .. });
    usize::try_from(headers.packet_len)
        .ok()
        .and_then(|len| packet.get_mut(usize::from(headers.transport_offset)..len))
        .and_then(|upper| complete_at(upper, usize::from(offset), zero_means_none))
        .ok_or(DropReason::BadOffload)
}

/// Completes the partial checksum at `offset` of `covered`. With `zero_means_none`, a checksum of
/// zero is written as 0xffff (RFC 768). `None`, and nothing written, if the field is out of bounds.
pub(crate) fn complete_at(covered: &mut [u8], offset: usize, zero_means_none: bool) -> Option<()> {
    let sum = Sum::default().bytes(covered).checksum();
    let checksum = if sum == 0 && zero_means_none {
        0xffff
    } else {
        sum
    };
    put_u16(covered, offset, checksum)
}

/// The checksum after a 16-bit word under it went from `old` to `new` (RFC 1624 equation 3). All in
/// host byte order.
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default()
        .word(!checksum)
        .word(!old)
        .word(new)
        .checksum()
}

fn with_pseudo_header(headers: &Headers, upper: &[u8]) -> Sum {
    let len = u32::try_from(upper.len()).unwrap_or(u32::MAX);
    pseudo_header_sum(headers, len).bytes(upper)
}

fn upper_layer<'a>(packet: &'a [u8], headers: &Headers) -> Option<&'a [u8]> {
    let end = usize::try_from(headers.packet_len).ok()?;
    packet.get(usize::from(headers.transport_offset)..end)
}

#[cfg(test)]
mod tests;
