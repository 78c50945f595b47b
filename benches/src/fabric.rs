//! Fabrics of known sizes, as the packet decision sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric_core::{
    ids::{Generation, PeerId, PortId},
    snapshot::{Snapshot, SnapshotBuilder, SnapshotError},
    verdict::NextHop,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Pods on the node itself: what Kubernetes allows by default.
const PODS: u32 = 110;
/// Addresses that a lookup benchmark goes through: more than the caches next to the core remember.
const TARGETS: u32 = 16_384;

/// How large a fabric is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// For the name of a benchmark.
    pub name: &'static str,
    /// Peers, each with one range of each family.
    pub peers: u32,
    /// Further single IPv4 addresses, spread over the peers.
    pub singles: u32,
}

/// The sizes of the budget.
pub const SIZES: [Size; 3] = [
    size("10-peers", 10, 0),
    size("5k-peers", 5_000, 0),
    size("150k-addresses", 5_000, 150_000),
];

const fn size(name: &'static str, peers: u32, singles: u32) -> Size {
    Size {
        name,
        peers,
        singles,
    }
}

/// A fabric of [`PODS`] own pods and a number of peers.
#[derive(Clone, Copy, Debug)]
pub struct Fabric(Size);

impl Fabric {
    /// The first pod of this node.
    pub const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
    /// The same pod.
    pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
    /// Its port.
    pub const POD_PORT: PortId = PortId(1);

    /// A fabric of this size.
    #[must_use]
    pub fn new(size: Size) -> Self {
        Self(size)
    }

    /// First address of the /24 of a peer.
    #[must_use]
    pub fn peer_v4(peer: u32) -> u32 {
        11 << 24 | peer << 8
    }

    /// First address of the /64 of a peer.
    #[must_use]
    pub fn peer_v6(peer: u32) -> u128 {
        0xfd01 << 112 | u128::from(peer) << 64
    }

    /// The view of it.
    ///
    /// # Errors
    ///
    /// Two of its ranges overlap, which none do.
    pub fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        self.builder().build()
    }

    /// What the view is built from.
    #[must_use]
    pub fn builder(&self) -> SnapshotBuilder {
        let pods = (0..PODS).map(|pod| (PortId(pod + 1), Self::pod(pod).to_vec()));
        let peers = (0..self.0.peers).map(|peer| (PeerId(peer), self.nets(peer)));
        SnapshotBuilder {
            generation: Generation(1),
            gateway_v4: Some(Ipv4Addr::new(10, 0, 1, 1)),
            gateway_v6: Some(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1)),
            local_ranges: Self::local_ranges().to_vec(),
            host_addresses: Vec::new(),
            pods: pods.collect(),
            peers: peers.collect(),
            ..SnapshotBuilder::default()
        }
    }

    /// Its routes.
    #[must_use]
    pub fn routes(&self) -> Vec<(IpNet, NextHop)> {
        let peers = (0..self.0.peers).flat_map(|peer| {
            let nets = self.nets(peer).into_iter();
            nets.map(move |net| (net, NextHop::Peer(PeerId(peer))))
        });
        let local = Self::local_ranges().map(|net| (net, NextHop::Unassigned));
        let pods = (0..PODS).flat_map(|pod| {
            Self::pod(pod).map(|addr| (IpNet::from(addr), NextHop::Local(PortId(pod + 1))))
        });
        peers.chain(local).chain(pods).collect()
    }

    /// Addresses in no order that the processor could foresee: of single ones where there are, else
    /// of the peers' ranges; every sixteenth is of a pod of this node.
    #[must_use]
    pub fn targets_v4(&self) -> Vec<IpAddr> {
        let far = |n: u32| match self.0.singles {
            0 => Self::peer_v4(scatter(n) % self.0.peers) | 77,
            singles => Self::single(scatter(n) % singles),
        };
        targets(|n| Ipv4Addr::from(far(n)).into(), 0)
    }

    /// The same in IPv6; none for a fabric that is about single IPv4 addresses.
    #[must_use]
    pub fn targets_v6(&self) -> Vec<IpAddr> {
        if self.0.singles > 0 {
            return Vec::new();
        }
        let far = |n: u32| Self::peer_v6(scatter(n) % self.0.peers) | 77;
        targets(|n| Ipv6Addr::from(far(n)).into(), 1)
    }

    fn nets(&self, peer: u32) -> Vec<IpNet> {
        let ranges = [
            Ipv4Net::new_assert(Self::peer_v4(peer).into(), 24).into(),
            Ipv6Net::new_assert(Self::peer_v6(peer).into(), 64).into(),
        ];
        let each = self.0.singles / self.0.peers;
        let singles = (peer * each..(peer + 1) * each)
            .map(|n| IpNet::from(IpAddr::from(Ipv4Addr::from(Self::single(n)))));
        ranges.into_iter().chain(singles).collect()
    }

    fn local_ranges() -> [IpNet; 2] {
        [
            Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 1, 0), 24).into(),
            Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0), 64).into(),
        ]
    }

    fn pod(pod: u32) -> [IpAddr; 2] {
        [
            Ipv4Addr::from(Self::POD_V4.to_bits() + pod).into(),
            Ipv6Addr::from(Self::POD_V6.to_bits() + u128::from(pod)).into(),
        ]
    }

    fn single(n: u32) -> u32 {
        100 << 24 | n
    }
}

fn targets(far: impl Fn(u32) -> IpAddr, family: usize) -> Vec<IpAddr> {
    (0..TARGETS)
        .map(|n| match n % 16 {
            0 => Fabric::pod(scatter(n) % PODS)[family],
            _ => far(n),
        })
        .collect()
}

/// A number that looks like chance and is the same in every run.
fn scatter(n: u32) -> u32 {
    let mixed = (n ^ n >> 15).wrapping_mul(0x2c1b_3c6d);
    let mixed = (mixed ^ mixed >> 12).wrapping_mul(0x297a_2d39);
    mixed ^ mixed >> 15
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Every size builds, and every target has a next hop in it.
    #[test]
    fn all_targets_are_known() {
        for size in SIZES {
            let fabric = Fabric::new(size);
            let snapshot = fabric.snapshot().unwrap();
            let targets = [fabric.targets_v4(), fabric.targets_v6()].concat();
            assert!(
                targets
                    .iter()
                    .all(|addr| snapshot.next_hop(*addr).is_some())
            );
            assert!(fabric.routes().len() as u32 >= size.singles + 2 * size.peers);
        }
    }
}
