//! Segmentation and checksum offload: virtio-net header semantics, split, coalesce.

pub mod coalesce;
pub mod segment;
pub mod vnet;

use std::num::NonZeroU16;

pub use vnet::VnetHeader;

/// What remains to be done to a packet before it could leave on a wire.
///
/// This is the part of a virtio-net header that cannot be derived from the packet itself; checksum
/// and header offsets are derived by [`VnetHeader::for_packet`] from [`crate::packet::Headers`], so
/// a peer cannot lie about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The upper-layer checksum field holds the pseudo-header sum only.
    pub needs_checksum: bool,
    /// The packet is a super-packet to be cut into segments.
    pub gso: Option<Gso>,
}

impl Offload {
    /// A packet complete as it is.
    pub const NONE: Self = Self {
        needs_checksum: false,
        gso: None,
    };
}

/// How a super-packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// TCP or UDP segmentation.
    pub kind: GsoKind,
    /// Payload bytes per segment.
    pub size: NonZeroU16,
}

/// The protocol by whose rules a super-packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segmentation (VIRTIO_NET_HDR_GSO_TCPV4 and _TCPV6).
    Tcp,
    /// TCP segmentation of a packet with CWR set (VIRTIO_NET_HDR_GSO_ECN): only the first segment
    /// keeps it.
    TcpEcn,
    /// UDP segmentation (VIRTIO_NET_HDR_GSO_UDP_L4).
    Udp,
}
