//! TUN devices with virtio headers and offloads.
//!
//! Comes in: an interface name. Goes out: a [`Tun`] whose reads and writes carry 64 KiB
//! super-packets. Never done here: looking into packets.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use fabric_core::offload::VnetHeader;
use thiserror::Error;

/// Which offloads the device accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunOffloads {
    /// Packets may carry partial checksums.
    pub checksum: bool,
    /// TCP over IPv4 super-packets.
    pub tso4: bool,
    /// TCP over IPv6 super-packets.
    pub tso6: bool,
    /// UDP over IPv4 super-packets.
    pub uso4: bool,
    /// UDP over IPv6 super-packets.
    pub uso6: bool,
}

/// Why a device could not be opened.
#[derive(Debug, Error)]
pub enum TunError {
    /// `/dev/net/tun` is missing or not permitted.
    #[error(
        "cannot open TUN device {name}: {source}; check that /dev/net/tun exists and is accessible and that CAP_NET_ADMIN is held"
    )]
    Open {
        /// Interface name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One TUN device, one queue, non-blocking, opened with `IFF_NO_PI | IFF_VNET_HDR`.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    offloads: TunOffloads,
}

impl Tun {
    /// Opens or creates the persistent device `name` in the calling thread's network namespace and
    /// turns on the offloads that `wanted` names and the kernel has.
    ///
    /// # Errors
    ///
    /// [`TunError`].
    pub fn open(name: &str, wanted: TunOffloads) -> Result<Self, TunError> {
        let _ = wanted;
        Err(TunError::Open {
            name: name.to_owned(),
            source: io::ErrorKind::Unsupported.into(),
        })
    }

    /// Interface name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Offloads in use.
    #[must_use]
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// Reads one packet: its virtio header into `vnet`, the packet into `packet`; returns the
    /// packet's length in bytes.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none; others mean that the device is gone.
    pub fn read(&self, vnet: &mut [u8; VnetHeader::LEN], packet: &mut [u8]) -> io::Result<usize> {
        let _ = (vnet, packet);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Writes one packet, gathered from `parts`; the first part is the encoded virtio header.
    ///
    /// # Errors
    ///
    /// What the kernel said; the packet is not delivered then.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let _ = parts;
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
