//! Makes a packet a record and queues it on a connection to the peer that owns its destination.
//!
//! TCP rides on streams, whole, so that its super-packets cross uncut and a loss on the underlay is
//! mended below it. Everything else rides in datagrams as long as it fits, and keeps its loss
//! semantics. What does not fit takes a stream: nothing is lost for its size. While it is under way the
//! rest of its flow follows it there, so that the flow keeps its order.

use std::{ops::Range, time::Instant};

use bytes::BytesMut;
use fabric_core::{
    ids::PortId,
    offload::{
        Gso, GsoKind, Offload,
        segment::{segment, segment_count},
    },
    packet::{Fragment, Headers, Transport},
    record::{DATAGRAM_HEADER_LEN, STREAM_HEADER_LEN, StreamHeader, encode_datagram},
    verdict::DropReason,
};

use crate::tunnel::{
    buffers::{BufferPool, footprint},
    link::{Label, PeerLink},
    queue::{Class, Pending},
};

/// Room that a packet needs in front of it to become a record without being moved (bytes).
pub const HEADROOM: usize = STREAM_HEADER_LEN;
/// Records up to this are copied while much waits for the peer, so that small ones do not fill the
/// queue with large buffers (bytes). A larger one keeps at most four times its size.
const COPY_WHEN_BACKLOGGED_BYTES: usize = 16 * 1024;

/// Where a packet comes from, and how it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The port that sent it, or [`crate::tunnel::link::OWN_PORT`].
    pub port: PortId,
    /// The bytes it is counted with once it is handed over; `None` for a packet that this node made,
    /// and for all fragments of a packet but the last.
    pub account: Option<u32>,
    /// When it came.
    pub at: Instant,
}

/// Queues the packet at `HEADROOM..` of `buffer` on `link`.
///
/// # Errors
///
/// The reason to drop it; nothing was queued then. What is dropped in the queue is counted there.
pub fn send(
    link: &mut dyn PeerLink,
    buffer: &mut BytesMut,
    pool: &mut BufferPool,
    headers: &Headers,
    offload: Offload,
    origin: Origin,
    scratch: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let len = headers.packet_len as usize;
    let is_tcp =
        matches!(headers.transport, Transport::Tcp { .. }) && headers.fragment == Fragment::Whole;
    let label = Label {
        port: origin.port,
        flow: flow_hash(headers),
        class: if is_tcp { Class::Bulk } else { Class::Latency },
    };
    let room = link.datagram_room(label.flow);
    match offload.gso {
        Some(
            gso @ Gso {
                kind: GsoKind::Udp, ..
            },
        ) if fits_in_segments(headers, gso, room) => {
            return send_segments(link, buffer, pool, headers, gso, (label, origin), scratch);
        }
        None if !is_tcp && len + DATAGRAM_HEADER_LEN <= room => {
            let start = HEADROOM - DATAGRAM_HEADER_LEN;
            if let Some(flags) = buffer.get_mut(start) {
                *flags = encode_datagram(offload.needs_checksum);
            }
            let pending = pending(link, buffer, pool, start..HEADROOM + len, origin.account);
            link.send_datagram(label, pending, origin.at);
        }
        _ => {
            let header = StreamHeader {
                packet_len: headers.packet_len,
                offload,
            };
            if let Some(place) = buffer.first_chunk_mut::<STREAM_HEADER_LEN>() {
                *place = header.encode();
            }
            let pending = pending(link, buffer, pool, 0..HEADROOM + len, origin.account);
            link.send_stream(label, pending, origin.at);
        }
    }
    Ok(())
}

/// Takes a record out of the buffer.
fn pending(
    link: &dyn PeerLink,
    buffer: &mut BytesMut,
    pool: &mut BufferPool,
    range: Range<usize>,
    account: Option<u32>,
) -> Pending {
    let len = range.len();
    if len <= COPY_WHEN_BACKLOGGED_BYTES && link.is_backlogged() {
        let record = pool.copy(buffer.get(range).unwrap_or_default()).freeze();
        return Pending {
            record,
            pinned: len,
            account,
        };
    }
    Pending {
        record: pool.carve_frozen(buffer, range.start, range.end),
        pinned: footprint(len),
        account,
    }
}

/// Whether all segments of a UDP super-packet fit datagrams.
fn fits_in_segments(headers: &Headers, gso: Gso, room: usize) -> bool {
    let Some(payload) = headers.payload_offset() else {
        return false;
    };
    usize::from(payload) + usize::from(gso.size.get()) + DATAGRAM_HEADER_LEN <= room
}

/// A datagram for each segment. The packet is counted with the last one: as handed over or as
/// dropped, whatever became of the others.
fn send_segments(
    link: &mut dyn PeerLink,
    buffer: &BytesMut,
    pool: &mut BufferPool,
    headers: &Headers,
    gso: Gso,
    (label, origin): (Label, Origin),
    scratch: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let packet = buffer.get(HEADROOM..).ok_or(DropReason::Truncated)?;
    let mut left = segment_count(headers, gso);
    segment(packet, headers, gso, scratch, |segment| {
        left = left.saturating_sub(1);
        let record = pool.copy_parts(&[encode_datagram(false)], segment).freeze();
        let pending = Pending {
            pinned: record.len(),
            record,
            account: origin.account.filter(|_| left == 0),
        };
        link.send_datagram(label, pending, origin.at);
    })?;
    Ok(())
}

/// A number that is the same for all packets of a flow. Fragments have no ports, so none of their
/// datagram counts them.
#[must_use]
pub fn flow_hash(headers: &Headers) -> u32 {
    let ports = match (headers.fragment, headers.transport) {
        (
            Fragment::Whole,
            Transport::Tcp {
                source,
                destination,
                ..
            }
            | Transport::Udp {
                source,
                destination,
            },
        ) => u32::from(source) << 16 | u32::from(destination),
        _ => 0,
    };
    let fold = |addr: std::net::IpAddr| match addr {
        std::net::IpAddr::V4(addr) => u64::from(addr.to_bits()),
        std::net::IpAddr::V6(addr) => {
            let bits = addr.to_bits();
            (bits >> 64) as u64 ^ bits as u64
        }
    };
    // Multiplication mixes downwards into the upper half, which is what is kept.
    let mut hash = fold(headers.source).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ fold(headers.destination)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash = (hash ^ u64::from(ports) ^ u64::from(headers.protocol) << 32)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash >> 32) as u32
}
