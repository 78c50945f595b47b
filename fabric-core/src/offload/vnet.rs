//! The virtio-net header as TUN devices carry it.

use super::Offload;
use crate::{packet::Headers, verdict::DropReason};

/// `struct virtio_net_hdr` (linux/virtio_net.h), host byte order, 10 bytes before each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// VIRTIO_NET_HDR_F_*.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_*.
    pub gso_type: u8,
    /// Length of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming begins.
    pub csum_start: u16,
    /// Where the checksum goes, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes of the encoded header.
    pub const LEN: usize = 10;

    /// Reads the ten bytes a TUN device puts before a packet.
    #[must_use]
    pub fn decode(bytes: [u8; Self::LEN]) -> Self {
        let _ = bytes;
        Self::default()
    }

    /// The ten bytes to put before a packet.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        [0; Self::LEN]
    }

    /// Checks this header against the packet it came with and keeps what cannot be derived.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] where header and packet contradict each other.
    pub fn offload(&self, headers: &Headers) -> Result<Offload, DropReason> {
        let _ = headers;
        Err(DropReason::BadOffload)
    }

    /// The header that tells a TUN device what `offload` leaves to be done for this packet.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] if `offload` cannot apply to such a packet (it came from a peer).
    pub fn for_packet(offload: Offload, headers: &Headers) -> Result<Self, DropReason> {
        let _ = (offload, headers);
        Err(DropReason::BadOffload)
    }
}
