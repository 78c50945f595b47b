//! Cutting an IPv4 packet into fragments (RFC 791 3.2).
//!
//! Comes in: a packet without DF and the MTU of the next link. Goes out: fragments that fit. Never
//! done here: reassembly, and IPv6 (only its sender may fragment, RFC 8200 5).

use super::{
    Headers, IPV4_HEADER_LEN, checksum,
    field::{get_u16, ipv4, put_u16},
};
use crate::verdict::DropReason;

/// Cuts `packet` into fragments of at most `mtu` bytes and hands them to `emit` in order. A packet
/// that fits is handed on as it is. `scratch` is the buffer the fragments are built in; what it
/// holds afterwards is of no use.
///
/// A partial checksum must have been completed before: it spans the whole packet. A packet that is a
/// fragment itself is cut further.
///
/// # Errors
///
/// [`DropReason::TooBig`] for IPv6, with DF set, or if `mtu` has no room for a header and 8 bytes
/// (68 is always enough); [`DropReason::Truncated`] if `packet` is shorter than `headers` say;
/// [`DropReason::BadTotalLength`] if a fragment would begin past what its offset field can say.
/// Nothing has been emitted then.
pub fn split(
    packet: &[u8],
    headers: &Headers,
    mtu: usize,
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    let packet = usize::try_from(headers.packet_len)
        .ok()
        .and_then(|len| packet.get(..len))
        .ok_or(DropReason::Truncated)?;
    if packet.len() <= mtu {
        emit(packet);
        return Ok(());
    }
    if headers.dont_fragment || headers.is_ipv6() {
        return Err(DropReason::TooBig);
    }
    let (header, payload) = packet
        .split_at_checked(usize::from(headers.transport_offset))
        .ok_or(DropReason::Truncated)?;
    let word = get_u16(header, ipv4::FLAGS_AND_OFFSET).ok_or(DropReason::Truncated)?;
    let first_offset = word & ipv4::OFFSET_MASK;
    let last_offset = payload
        .len()
        .div_ceil(8)
        .checked_add(usize::from(first_offset))
        .ok_or(DropReason::BadTotalLength)?;
    if last_offset > usize::from(ipv4::OFFSET_MASK).saturating_add(1) {
        return Err(DropReason::BadTotalLength);
    }
    // Later fragments may have shorter headers; one size for all keeps the offsets simple.
    let piece = mtu.saturating_sub(header.len()) & !7;
    if piece == 0 {
        return Err(DropReason::TooBig);
    }

    let later_header = LaterHeader::of(header)?;
    let pieces = payload.chunks(piece);
    let count = pieces.len();
    for (index, chunk) in pieces.enumerate() {
        let is_last = index.saturating_add(1) == count;
        let offset = (index.saturating_mul(piece) >> 3).saturating_add(usize::from(first_offset));
        let offset = u16::try_from(offset).map_err(|_| DropReason::BadTotalLength)?;
        // The reserved bit and, on the last piece, the packet's own MF stay as they were.
        let mut flags = word & !ipv4::OFFSET_MASK;
        if !is_last {
            flags |= ipv4::MORE_FRAGMENTS;
        }
        scratch.clear();
        scratch.extend_from_slice(if index == 0 {
            header
        } else {
            later_header.bytes()
        });
        let header_len = scratch.len();
        scratch.extend_from_slice(chunk);
        finish(scratch, header_len, flags | offset).ok_or(DropReason::BadTotalLength)?;
        emit(scratch);
    }
    Ok(())
}

/// Writes length, flags and checksum.
fn finish(fragment: &mut [u8], header_len: usize, flags_and_offset: u16) -> Option<()> {
    let total = u16::try_from(fragment.len()).ok()?;
    let header = fragment.get_mut(..header_len)?;
    put_u16(header, ipv4::TOTAL_LENGTH, total)?;
    put_u16(header, ipv4::FLAGS_AND_OFFSET, flags_and_offset)?;
    put_u16(header, ipv4::CHECKSUM, 0)?;
    let sum = checksum::checksum(header);
    put_u16(header, ipv4::CHECKSUM, sum)
}

/// Bytes of the longest IPv4 header.
const HEADER_BYTES_MAX: usize = 60;
/// An option with this bit goes into every fragment, others only into the first (RFC 791 3.1).
const OPTION_COPIED: u8 = 0x80;

/// The header of all fragments but the first.
struct LaterHeader {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl LaterHeader {
    fn of(header: &[u8]) -> Result<Self, DropReason> {
        let mut later = Self {
            // Zero is the end-of-options mark, so padding needs no writing.
            bytes: [0; HEADER_BYTES_MAX],
            len: 0,
        };
        let (fixed, mut options) = header
            .split_at_checked(IPV4_HEADER_LEN)
            .ok_or(DropReason::BadHeaderLength)?;
        later.push(fixed)?;
        while let Some((&kind, rest)) = options.split_first() {
            let len = match kind {
                0 => break,
                1 => 1,
                _ => usize::from(*rest.first().ok_or(DropReason::BadHeaderLength)?).max(2),
            };
            let (option, after) = options
                .split_at_checked(len)
                .ok_or(DropReason::BadHeaderLength)?;
            if kind & OPTION_COPIED != 0 {
                later.push(option)?;
            }
            options = after;
        }
        later.len = later.len.next_multiple_of(4).min(HEADER_BYTES_MAX);
        if let Ok(words) = u8::try_from(later.len >> 2) {
            later.bytes[0] = 0x40 | words;
        }
        Ok(later)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        let end = self.len.saturating_add(bytes.len());
        let room = self.bytes.get_mut(self.len..end);
        room.ok_or(DropReason::BadHeaderLength)?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
