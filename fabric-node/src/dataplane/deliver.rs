//! Writes a packet to a TUN device, doing what the device cannot have done for it.
//!
//! Comes in: a packet whole or in pieces, its headers, what remains to be done. Goes out: one
//! gathered write where the device takes offloads, else the finished segments.

use std::io::IoSlice;

use fabric_core::{
    offload::{Gso, GsoKind, Offload, VnetHeader, segment::segment},
    packet::{Headers, checksum::complete_checksum},
    verdict::DropReason,
};

use crate::{
    sys::tun::{Tun, TunOffloads},
    tunnel::framing::{RECORD_SLICES_MAX, RecordAssembler},
};

/// A packet, or where its pieces are.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// In one piece.
    Whole(&'a [u8]),
    /// The record at hand of a stream.
    Pieces(&'a RecordAssembler),
}

/// Buffers for the slow way; kept from packet to packet.
#[derive(Debug, Default)]
pub struct DeliverScratch {
    whole: Vec<u8>,
    segment: Vec<u8>,
}

/// Writes the packet to `tun`.
///
/// # Errors
///
/// The reason to drop it: the metadata does not suit the packet, or the kernel refused.
pub fn deliver(
    tun: &Tun,
    headers: &Headers,
    offload: Offload,
    content: Content<'_>,
    scratch: &mut DeliverScratch,
) -> Result<(), DropReason> {
    let vnet = VnetHeader::for_packet(offload, headers)?;
    if !takes(tun.offloads(), headers, offload) {
        return deliver_finished(tun, headers, offload, content, scratch);
    }
    let vnet = vnet.encode();
    let len = headers.packet_len as usize;
    match content {
        Content::Whole(packet) => {
            let packet = packet.get(..len).ok_or(DropReason::Truncated)?;
            write(tun, &[IoSlice::new(&vnet), IoSlice::new(packet)])
        }
        Content::Pieces(pieces) => {
            let mut parts = [IoSlice::new(&[]); RECORD_SLICES_MAX];
            parts[0] = IoSlice::new(&vnet);
            let used = pieces.slices(len, &mut parts, 1);
            if let Some(parts) = used.and_then(|used| parts.get(..used)) {
                return write(tun, parts);
            }
            let packet = gather(content, len, &mut scratch.whole);
            write(tun, &[IoSlice::new(&vnet), IoSlice::new(packet)])
        }
    }
}

/// Whether the device lets the kernel do what remains.
fn takes(has: TunOffloads, headers: &Headers, offload: Offload) -> bool {
    let gso = match (offload.gso.map(|gso| gso.kind), headers.is_ipv6()) {
        (None, _) => true,
        (Some(GsoKind::Tcp | GsoKind::TcpEcn), false) => has.tso4,
        (Some(GsoKind::Tcp | GsoKind::TcpEcn), true) => has.tso6,
        (Some(GsoKind::Udp), false) => has.uso4,
        (Some(GsoKind::Udp), true) => has.uso6,
    };
    gso && (has.checksum || !offload.needs_checksum)
}

fn deliver_finished(
    tun: &Tun,
    headers: &Headers,
    offload: Offload,
    content: Content<'_>,
    scratch: &mut DeliverScratch,
) -> Result<(), DropReason> {
    gather(content, headers.packet_len as usize, &mut scratch.whole);
    let mut refused = Ok(());
    finish(
        &mut scratch.whole,
        headers,
        offload,
        &mut scratch.segment,
        |packet| {
            let vnet = VnetHeader::default().encode();
            if let Err(reason) = write(tun, &[IoSlice::new(&vnet), IoSlice::new(packet)]) {
                refused = Err(reason);
            }
        },
    )?;
    refused
}

/// Hands `packet` to `emit` as packets that need nothing more.
///
/// # Errors
///
/// [`DropReason::BadOffload`] if it cannot be cut as `offload` says; nothing was emitted then.
pub fn finish(
    packet: &mut [u8],
    headers: &Headers,
    offload: Offload,
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    match offload {
        Offload {
            gso: Some(gso @ Gso { .. }),
            ..
        } => segment(packet, headers, gso, scratch, emit),
        Offload {
            needs_checksum: true,
            ..
        } => {
            complete_checksum(packet, headers)?;
            emit(packet);
            Ok(())
        }
        Offload { .. } => {
            emit(packet);
            Ok(())
        }
    }
}

fn gather<'a>(content: Content<'_>, len: usize, whole: &'a mut Vec<u8>) -> &'a [u8] {
    whole.clear();
    match content {
        Content::Whole(packet) => whole.extend_from_slice(packet.get(..len).unwrap_or(packet)),
        Content::Pieces(pieces) => pieces.append_to(len, whole),
    }
    whole
}

fn write(tun: &Tun, parts: &[IoSlice<'_>]) -> Result<(), DropReason> {
    tun.write(parts)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBADFD | libc::ENODEV) => DropReason::PortGone,
            _ => DropReason::DeviceRefused,
        })
}
