//! Cutting a super-packet into packets that could leave on a wire.
//!
//! Comes in: a TCP or UDP packet larger than the link, with a partial checksum. Goes out: complete
//! packets, one after the other in a buffer that is used again. Never done here: IP fragmentation
//! ([`crate::packet::fragment`]).
//!
//! The partial checksum's seed is the sender's and stays the base of every segment's checksum: only
//! the length in it changes. So a packet whose pseudo-header is not the visible one (an IPv6 routing
//! header on its way) comes out right, and a wrong seed stays wrong and is not masked.

use super::{Gso, GsoKind};
use crate::{
    packet::{
        Headers, IPV6_HEADER_LEN,
        checksum::{Sum, checksum},
        field::{get_u16, get_u32, ipv4, ipv6, put, put_u16, tcp, udp},
    },
    verdict::DropReason,
};

/// How many packets [`segment`] makes of a super-packet; one for a packet that cannot be cut.
#[must_use]
pub fn segment_count(headers: &Headers, gso: Gso) -> usize {
    let payload = headers.payload_len().unwrap_or(0);
    let count = payload.div_ceil(u32::from(gso.size.get())).max(1);
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Cuts `packet` and hands the segments to `emit` in order. `scratch` is the buffer they are built
/// in; what it holds afterwards is of no use.
///
/// TCP: sequence numbers go on, FIN and PSH stay on the last segment only, and with
/// [`GsoKind::TcpEcn`] CWR on the first only. IPv4 identifications count up from the packet's own.
/// Every segment has complete checksums.
///
/// # Errors
///
/// [`DropReason::BadOffload`] if the packet cannot be cut so; [`DropReason::Truncated`] if it is
/// shorter than `headers` say. Nothing has been emitted then.
pub fn segment(
    packet: &[u8],
    headers: &Headers,
    gso: Gso,
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    let packet = usize::try_from(headers.packet_len)
        .ok()
        .and_then(|len| packet.get(..len))
        .ok_or(DropReason::Truncated)?;
    let template = Template::of(packet, headers, gso).ok_or(DropReason::BadOffload)?;
    let chunks = template.payload.chunks(usize::from(gso.size.get()));
    let count = chunks.len();
    let mut position = Position {
        index: 0,
        payload_offset: 0,
        is_last: false,
    };
    for chunk in chunks {
        position.is_last = usize::from(position.index).saturating_add(1) == count;
        scratch.clear();
        scratch.extend_from_slice(template.header);
        scratch.extend_from_slice(chunk);
        template
            .finish(scratch, position)
            .ok_or(DropReason::BadOffload)?;
        emit(scratch);
        position.index = position.index.saturating_add(1);
        position.payload_offset = position
            .payload_offset
            .saturating_add(u32::from(gso.size.get()));
    }
    Ok(())
}

/// Where a segment stands in its super-packet.
#[derive(Clone, Copy)]
struct Position {
    index: u16,
    payload_offset: u32,
    is_last: bool,
}

/// What all segments have in common.
struct Template<'a> {
    /// IP and upper-layer header of the super-packet.
    header: &'a [u8],
    payload: &'a [u8],
    kind: GsoKind,
    is_ipv6: bool,
    transport_offset: usize,
    checksum_offset: usize,
    /// The partial checksum's seed without the length in it.
    seed: Sum,
}

impl<'a> Template<'a> {
    fn of(packet: &'a [u8], headers: &Headers, gso: Gso) -> Option<Self> {
        if !gso.kind.applies_to(headers.transport) {
            return None;
        }
        let (header, payload) = packet.split_at_checked(headers.payload_offset()?.into())?;
        if payload.is_empty() {
            return None;
        }
        let transport_offset = usize::from(headers.transport_offset);
        let checksum_offset = usize::from(headers.checksum_offset()?);
        let upper = header.get(transport_offset..)?;
        let upper_len = u16::try_from(packet.len().checked_sub(transport_offset)?).ok()?;
        let seed = get_u16(upper, checksum_offset)?;
        Some(Self {
            header,
            payload,
            kind: gso.kind,
            is_ipv6: headers.is_ipv6(),
            transport_offset,
            checksum_offset,
            // Adding the complement subtracts.
            seed: Sum::default().word(seed).word(!upper_len),
        })
    }

    fn finish(&self, segment: &mut [u8], position: Position) -> Option<()> {
        self.finish_ip(segment, position.index)?;
        let upper = segment.get_mut(self.transport_offset..)?;
        let upper_len = u16::try_from(upper.len()).ok()?;
        match self.kind {
            GsoKind::Tcp | GsoKind::TcpEcn => self.finish_tcp(upper, position)?,
            GsoKind::Udp => put_u16(upper, udp::LENGTH, upper_len)?,
        }
        put_u16(upper, self.checksum_offset, 0)?;
        let sum = self.seed.word(upper_len).bytes(upper).checksum();
        let sum = match (self.kind, sum) {
            // RFC 768: zero would say that there is no checksum.
            (GsoKind::Udp, 0) => 0xffff,
            (_, sum) => sum,
        };
        put_u16(upper, self.checksum_offset, sum)
    }

    fn finish_ip(&self, segment: &mut [u8], index: u16) -> Option<()> {
        if self.is_ipv6 {
            let payload_len = segment.len().checked_sub(IPV6_HEADER_LEN)?;
            let payload_len = u16::try_from(payload_len).ok()?;
            return put_u16(segment, ipv6::PAYLOAD_LENGTH, payload_len);
        }
        let total = u16::try_from(segment.len()).ok()?;
        let header = segment.get_mut(..self.transport_offset)?;
        put_u16(header, ipv4::TOTAL_LENGTH, total)?;
        let id = get_u16(header, ipv4::IDENTIFICATION)?.wrapping_add(index);
        put_u16(header, ipv4::IDENTIFICATION, id)?;
        put_u16(header, ipv4::CHECKSUM, 0)?;
        let sum = checksum(header);
        put_u16(header, ipv4::CHECKSUM, sum)
    }

    fn finish_tcp(&self, upper: &mut [u8], position: Position) -> Option<()> {
        let sequence = get_u32(upper, tcp::SEQUENCE)?.wrapping_add(position.payload_offset);
        put(upper, tcp::SEQUENCE, sequence.to_be_bytes())?;
        let mut flags = *upper.get(tcp::FLAGS)?;
        if !position.is_last {
            flags &= !(tcp::FIN | tcp::PSH);
        }
        if position.index > 0 && self.kind == GsoKind::TcpEcn {
            flags &= !tcp::CWR;
        }
        put(upper, tcp::FLAGS, [flags])
    }
}

#[cfg(test)]
mod tests;
