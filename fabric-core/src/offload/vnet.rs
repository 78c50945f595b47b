//! The virtio-net header as TUN devices carry it.
//!
//! Comes in: ten bytes and the packet they precede. Goes out: an [`Offload`] that holds for this
//! packet, or the reason to drop it; and the way back. Never done here: cutting or completing.

use std::num::NonZeroU16;

use super::{Gso, GsoKind, Offload, segment::segment_count};
use crate::{
    packet::{Fragment, Headers, Transport, checksum},
    verdict::DropReason,
};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum field holds a partial checksum.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum has been verified. Of no consequence here.
pub const FLAG_DATA_VALID: u8 = 2;

/// VIRTIO_NET_HDR_GSO_NONE.
pub const GSO_NONE: u8 = 0;
/// VIRTIO_NET_HDR_GSO_TCPV4.
pub const GSO_TCPV4: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV6.
pub const GSO_TCPV6: u8 = 4;
/// VIRTIO_NET_HDR_GSO_UDP_L4.
pub const GSO_UDP_L4: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN: a bit beside the TCP types.
pub const GSO_ECN: u8 = 0x80;

/// Segments that a TCP super-packet may be cut into: 64 KiB by 36 bytes, which is the least that the
/// smallest MSS of a Linux sender (48) leaves beside timestamps, make 1821. Without a bound one packet
/// in segments of one byte would be worth 65 000 writes to a device.
pub const TCP_SEGMENTS_MAX: usize = 2_048;
/// Segments that a UDP super-packet may be cut into (UDP_MAX_SEGMENTS in linux/udp.h).
pub const UDP_SEGMENTS_MAX: usize = 128;

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
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// The ten bytes to put before a packet.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Checks this header against the packet it came with and keeps what cannot be derived.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] where header and packet contradict each other.
    pub fn offload(&self, headers: &Headers) -> Result<Offload, DropReason> {
        if self.flags & !(FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0 {
            return Err(DropReason::BadOffload);
        }
        let needs_checksum = self.flags & FLAG_NEEDS_CSUM != 0;
        if needs_checksum && !self.points_at_checksum(headers) {
            return Err(DropReason::BadOffload);
        }
        let offload = Offload {
            needs_checksum,
            gso: self.gso(headers)?,
        };
        check(offload, headers)?;
        Ok(offload)
    }

    /// As [`Self::offload`], for a packet that a kernel of this node handed over. A pod that builds
    /// tunnels of its own leaves the partial checksum in an inner header, which no [`Offload`] can
    /// name: such a checksum is completed here, in `packet`. Nothing that `headers` say is changed by
    /// that, for the inner header lies in the payload.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] where header and packet contradict each other.
    pub fn offload_of_local(
        &self,
        packet: &mut [u8],
        headers: &Headers,
    ) -> Result<Offload, DropReason> {
        let Some(inner) = self.inner_checksum_start(headers) else {
            return self.offload(headers);
        };
        // The offset tells UDP from other protocols, as no parser has seen the inner header.
        let is_udp = self.csum_offset == 6;
        usize::try_from(headers.packet_len)
            .ok()
            .and_then(|len| packet.get_mut(usize::from(inner)..len))
            .and_then(|covered| {
                checksum::complete_at(covered, usize::from(self.csum_offset), is_udp)
            })
            .map(|()| Offload::NONE)
            .ok_or(DropReason::BadOffload)
    }

    /// Where the checksum begins if it is that of a header inside a tunnel of the pod's own: over
    /// UDP (VXLAN, GENEVE) or directly over IP (GRE, IP in IP).
    fn inner_checksum_start(&self, headers: &Headers) -> Option<u16> {
        let inside = match (headers.transport, headers.fragment) {
            (Transport::Udp { .. }, Fragment::Whole) => headers.payload_offset()?,
            (Transport::Other, Fragment::Whole) => headers.transport_offset,
            _ => return None,
        };
        let asked = self.flags == FLAG_NEEDS_CSUM && self.gso_type == GSO_NONE;
        (asked && self.csum_start >= inside).then_some(self.csum_start)
    }

    /// The header that tells a TUN device what `offload` leaves to be done for this packet.
    ///
    /// # Errors
    ///
    /// [`DropReason::BadOffload`] if `offload` cannot apply to such a packet (it came from a peer).
    pub fn for_packet(offload: Offload, headers: &Headers) -> Result<Self, DropReason> {
        check(offload, headers)?;
        if !offload.needs_checksum {
            return Ok(Self::default());
        }
        let bad = DropReason::BadOffload;
        let (gso_type, gso_size) = match offload.gso {
            None => (GSO_NONE, 0),
            Some(gso) => (gso_type(gso.kind, headers), gso.size.get()),
        };
        Ok(Self {
            flags: FLAG_NEEDS_CSUM,
            gso_type,
            hdr_len: headers.payload_offset().ok_or(bad)?,
            gso_size,
            csum_start: headers.transport_offset,
            csum_offset: headers.checksum_offset().ok_or(bad)?,
        })
    }

    fn points_at_checksum(&self, headers: &Headers) -> bool {
        headers.checksum_offset() == Some(self.csum_offset)
            && headers.transport_offset == self.csum_start
    }

    fn gso(&self, headers: &Headers) -> Result<Option<Gso>, DropReason> {
        let kind = match (self.gso_type & !GSO_ECN, headers.is_ipv6()) {
            (GSO_NONE, _) if self.gso_type == GSO_NONE => return Ok(None),
            (GSO_TCPV4, false) | (GSO_TCPV6, true) if self.gso_type & GSO_ECN != 0 => {
                GsoKind::TcpEcn
            }
            (GSO_TCPV4, false) | (GSO_TCPV6, true) => GsoKind::Tcp,
            (GSO_UDP_L4, _) if self.gso_type == GSO_UDP_L4 => GsoKind::Udp,
            _ => return Err(DropReason::BadOffload),
        };
        let size = NonZeroU16::new(self.gso_size).ok_or(DropReason::BadOffload)?;
        Ok(Some(Gso { kind, size }))
    }
}

fn gso_type(kind: GsoKind, headers: &Headers) -> u8 {
    let tcp = if headers.is_ipv6() {
        GSO_TCPV6
    } else {
        GSO_TCPV4
    };
    match kind {
        GsoKind::Tcp => tcp,
        GsoKind::TcpEcn => tcp | GSO_ECN,
        GsoKind::Udp => GSO_UDP_L4,
    }
}

/// What must hold of any offload, whoever claims it.
fn check(offload: Offload, headers: &Headers) -> Result<(), DropReason> {
    if offload.needs_checksum && headers.checksum_offset().is_none() {
        return Err(DropReason::BadOffload);
    }
    let Some(gso) = offload.gso else {
        return Ok(());
    };
    let fits = offload.needs_checksum
        && gso.kind.applies_to(headers.transport)
        && headers.payload_len().is_some_and(|len| len > 0)
        && segment_count(headers, gso) <= gso.kind.segments_max();
    if fits {
        Ok(())
    } else {
        Err(DropReason::BadOffload)
    }
}

impl GsoKind {
    fn segments_max(self) -> usize {
        match self {
            Self::Tcp | Self::TcpEcn => TCP_SEGMENTS_MAX,
            Self::Udp => UDP_SEGMENTS_MAX,
        }
    }

    /// True if packets of this upper layer can be cut so.
    pub(super) fn applies_to(self, transport: Transport) -> bool {
        match self {
            Self::Tcp | Self::TcpEcn => matches!(transport, Transport::Tcp { .. }),
            Self::Udp => matches!(transport, Transport::Udp { .. }),
        }
    }
}

#[cfg(test)]
mod tests;
