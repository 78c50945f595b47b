//! Makes a packet a record and queues it on a connection to the peer that owns its destination.
//!
//! TCP rides on streams, whole, so that its super-packets cross uncut and a loss on the underlay is
//! mended below it. Everything else rides in datagrams as long as it fits, and keeps its loss
//! semantics. What does not fit takes a stream: nothing is lost for its size.

use bytes::BytesMut;
use fabric_core::{
    offload::{
        Gso, GsoKind, Offload,
        segment::{segment, segment_count},
    },
    packet::{Fragment, Headers, Transport},
    record::{DATAGRAM_HEADER_LEN, STREAM_HEADER_LEN, StreamHeader, encode_datagram},
    verdict::DropReason,
};

use crate::tunnel::{
    buffers::BufferPool,
    link::{PeerLink, QueueFull},
};

/// Room that a packet needs in front of it to become a record without being moved (bytes).
pub const HEADROOM: usize = STREAM_HEADER_LEN;

/// Queues the packet at `HEADROOM..` of `buffer` on `link`.
///
/// `account`: the bytes it is counted with once it is handed over; `None` for a packet that this node
/// made, and for all fragments of a packet but the last.
///
/// # Errors
///
/// The reason to drop it; nothing was queued then.
pub fn send(
    link: &mut dyn PeerLink,
    buffer: &mut BytesMut,
    pool: &mut BufferPool,
    headers: &Headers,
    offload: Offload,
    account: Option<u32>,
    scratch: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let len = headers.packet_len as usize;
    let room = link.datagram_room();
    let on_stream =
        matches!(headers.transport, Transport::Tcp { .. }) && headers.fragment == Fragment::Whole;
    let result = match offload.gso {
        Some(
            gso @ Gso {
                kind: GsoKind::Udp, ..
            },
        ) if fits_in_segments(headers, gso, room, link) => {
            return send_segments(link, buffer, pool, headers, gso, account, scratch);
        }
        None if !on_stream && len + DATAGRAM_HEADER_LEN <= room => {
            let start = HEADROOM - DATAGRAM_HEADER_LEN;
            if let Some(flags) = buffer.get_mut(start) {
                *flags = encode_datagram(offload.needs_checksum);
            }
            link.send_datagram(pool.carve_frozen(buffer, start, HEADROOM + len), account)
        }
        _ => {
            let header = StreamHeader {
                packet_len: headers.packet_len,
                offload,
            };
            if let Some(place) = buffer.first_chunk_mut::<STREAM_HEADER_LEN>() {
                *place = header.encode();
            }
            link.send_stream(
                flow_hash(headers),
                pool.carve_frozen(buffer, 0, HEADROOM + len),
                account,
            )
        }
    };
    result.map_err(|QueueFull| DropReason::PeerQueueFull)
}

/// Whether all segments of a UDP super-packet fit datagrams, and the queue takes them all.
fn fits_in_segments(headers: &Headers, gso: Gso, room: usize, link: &dyn PeerLink) -> bool {
    let Some(payload) = headers.payload_offset() else {
        return false;
    };
    usize::from(payload) + usize::from(gso.size.get()) + DATAGRAM_HEADER_LEN <= room
        && segment_count(headers, gso) <= link.datagram_slots()
}

fn send_segments(
    link: &mut dyn PeerLink,
    buffer: &BytesMut,
    pool: &mut BufferPool,
    headers: &Headers,
    gso: Gso,
    account: Option<u32>,
    scratch: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let packet = buffer.get(HEADROOM..).ok_or(DropReason::Truncated)?;
    let mut left = segment_count(headers, gso);
    let mut result = Ok(());
    segment(packet, headers, gso, scratch, |segment| {
        left = left.saturating_sub(1);
        let record = pool.copy_parts(&[encode_datagram(false)], segment).freeze();
        let account = account.filter(|_| left == 0);
        if link.send_datagram(record, account).is_err() {
            result = Err(DropReason::PeerQueueFull);
        }
    })?;
    result
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
