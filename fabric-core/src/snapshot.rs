//! One immutable view of the whole fabric, as this node sees it.
//!
//! Readers load it once per batch; writers build a new one and replace it whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

use crate::{
    ids::{Generation, PeerId, PortId},
    verdict::NextHop,
};

/// MTU of every pod's `eth0` and of `fabric0` (bytes), whatever the underlay is.
pub const POD_MTU: u32 = 1500;

/// What a snapshot is built from: the complete state, not a delta.
#[derive(Clone, Debug, Default)]
pub struct SnapshotBuilder {
    /// Number of the snapshot.
    pub generation: Generation,
    /// This node's gateway addresses: the source of its ICMP errors, assigned to `fabric0`.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Ranges from which this node's pods get their addresses.
    pub local_ranges: Vec<IpNet>,
    /// Addresses the host itself answers on and may send from, gateway addresses included.
    pub host_addresses: Vec<IpAddr>,
    /// Pods of this node: port and its exact addresses.
    pub pods: Vec<(PortId, Vec<IpAddr>)>,
    /// Peers: all ranges and single host addresses they own.
    pub peers: Vec<(PeerId, Vec<IpNet>)>,
}

/// Why a desired state cannot become a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Two owners claim the same address or overlapping ranges.
    #[error("{first} of {first_owner} overlaps {second} of {second_owner}")]
    Overlap {
        /// A range.
        first: IpNet,
        /// Who has it.
        first_owner: String,
        /// A range that shares addresses with it.
        second: IpNet,
        /// Who claims that one.
        second_owner: String,
    },
    /// A pod address outside this node's ranges.
    #[error("pod address {0} is outside this node's pod ranges")]
    PodOutsideRanges(IpAddr),
}

/// The immutable view.
#[derive(Debug)]
pub struct Snapshot {
    generation: Generation,
}

impl SnapshotBuilder {
    /// Checks the state and builds the view.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] names the first contradiction found.
    pub fn build(self) -> Result<Snapshot, SnapshotError> {
        Ok(Snapshot {
            generation: self.generation,
        })
    }
}

impl Snapshot {
    /// Number of this snapshot.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The next hop of the longest prefix covering `addr`.
    #[must_use]
    pub fn next_hop(&self, addr: IpAddr) -> Option<NextHop> {
        let _ = addr;
        None
    }

    /// Whether `port` may send from `source`.
    #[must_use]
    pub fn may_send(&self, port: PortId, source: IpAddr) -> bool {
        let _ = (port, source);
        false
    }

    /// All routes, most specific last within a family: for the operator, not for the packet path.
    #[must_use]
    pub fn routes(&self) -> Vec<(IpNet, NextHop)> {
        Vec::new()
    }
}
