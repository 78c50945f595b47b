//! Reads a TUN device.

use std::{io, sync::Arc};

use bytes::BytesMut;
use fabric_core::{ids::PortId, offload::VnetHeader};

use super::outbound::HEADROOM;
use crate::{
    sys::tun::{READ_BYTES_MAX, Tun},
    tunnel::buffers::BUFFER_BYTES,
};

/// The kernel cuts off silently what a buffer cannot hold.
const _: () = assert!(HEADROOM + READ_BYTES_MAX <= BUFFER_BYTES);

/// A device that this worker reads.
pub(super) struct Port {
    pub(super) id: PortId,
    pub(super) tun: Arc<Tun>,
    /// Readable as far as is known.
    pub(super) ready: bool,
}

/// What a read gave.
pub(super) enum Read {
    /// A packet of this many bytes behind the headroom of the buffer.
    Packet(VnetHeader, usize),
    /// The kernel had a packet and could not hand it over.
    Lost(io::Error),
    /// Nothing more at present.
    Empty,
    /// The device is gone.
    Gone(io::Error),
}

impl Port {
    pub(super) fn read(&mut self, buffer: &mut BytesMut) -> Read {
        let mut vnet = [0; VnetHeader::LEN];
        let Some(room) = buffer.get_mut(HEADROOM..) else {
            return Read::Empty;
        };
        match self.tun.read(&mut vnet, room) {
            Ok(len) => Read::Packet(VnetHeader::decode(vnet), len),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                self.ready = false;
                Read::Empty
            }
            Err(error) if is_of_one_packet(&error) => Read::Lost(error),
            Err(error) => Read::Gone(error),
        }
    }
}

/// Errors that say nothing about the device: a packet whose segmentation has no virtio name, or a
/// moment without memory.
fn is_of_one_packet(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOMEM | libc::ENOBUFS)
    )
}
