//! One immutable view of the whole fabric, as this node sees it.
//!
//! In: the complete desired state ([`SnapshotBuilder`]). Out: a [`Snapshot`] in which every address
//! has at most one owner, or the first contradiction found. A snapshot is never changed: readers
//! load it once per batch; writers build a new one and replace it whole.

mod ownership;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use thiserror::Error;

use crate::{
    detour::Detours,
    ids::{Generation, PeerId, PortId},
    route::RouteTable,
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
    /// Addresses of the peers' hosts: their packets may come over the underlay, too.
    pub peer_hosts: Vec<IpAddr>,
    /// Where the host's kernel carries what is not for the fabric: the flows that pass through it. None:
    /// such packets have no route.
    pub detours: Option<Arc<Detours>>,
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
    /// A pod on the host's port would be allowed to send as the host.
    #[error("pod address {0} is on the host's port; a pod needs a port of its own")]
    PodOnHostPort(IpAddr),
}

/// The immutable view.
#[derive(Debug)]
pub struct Snapshot {
    generation: Generation,
    gateway_v4: Option<Ipv4Addr>,
    gateway_v6: Option<Ipv6Addr>,
    routes: RouteTable,
    /// What each port may send from, sorted.
    sources: Box<[(PortId, IpAddr)]>,
    /// Sorted.
    peer_hosts: Box<[IpAddr]>,
    detours: Option<Arc<Detours>>,
}

impl SnapshotBuilder {
    /// Checks the state and builds the view, in O(n log n) of all addresses and ranges.
    ///
    /// The same address or range given twice by one owner is no contradiction, nor is a host address
    /// inside a pod range of its own node.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] names the first contradiction found.
    pub fn build(mut self) -> Result<Snapshot, SnapshotError> {
        let hosts = self.host_addresses();
        ownership::check_nodes(&self.local_ranges, &hosts, &self.peers)?;
        ownership::check_pods(&self.local_ranges, &hosts, &self.pods)?;

        let pods = self
            .pods
            .iter()
            .flat_map(|(port, addrs)| addrs.iter().map(|&addr| (*port, addr)));
        let mut sources: Vec<_> = hosts
            .into_iter()
            .map(|addr| (PortId::HOST, addr))
            .chain(pods)
            .collect();
        sources.sort_unstable();
        sources.dedup();

        Ok(Snapshot {
            generation: self.generation,
            gateway_v4: self.gateway_v4,
            gateway_v6: self.gateway_v6,
            routes: self.routes(&sources),
            sources: sources.into_boxed_slice(),
            peer_hosts: {
                self.peer_hosts.sort_unstable();
                self.peer_hosts.into_boxed_slice()
            },
            detours: self.detours,
        })
    }

    /// The host's addresses; a gateway address is one of them even if it was not listed.
    fn host_addresses(&self) -> Vec<IpAddr> {
        let gateways = [
            self.gateway_v4.map(IpAddr::V4),
            self.gateway_v6.map(IpAddr::V6),
        ];
        let mut hosts = self.host_addresses.clone();
        hosts.extend(gateways.into_iter().flatten());
        hosts
    }

    fn routes(&self, sources: &[(PortId, IpAddr)]) -> RouteTable {
        let peers = self
            .peers
            .iter()
            .flat_map(|(peer, nets)| nets.iter().map(|&net| (net, NextHop::Peer(*peer))));
        let unassigned = self
            .local_ranges
            .iter()
            .map(|&net| (net, NextHop::Unassigned));
        let local = sources
            .iter()
            .map(|&(port, addr)| (IpNet::from(addr), NextHop::Local(port)));
        // Addresses come after ranges: a range of a single address must not hide its pod.
        peers.chain(unassigned).chain(local).collect()
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
        self.routes.lookup(addr)
    }

    /// Whether `port` may send from `source`: it must be one of its exact addresses.
    ///
    /// O(log n) in the addresses of this node; neither hashes nor allocates.
    #[must_use]
    pub fn may_send(&self, port: PortId, source: IpAddr) -> bool {
        self.sources.binary_search(&(port, source)).is_ok()
    }

    /// Whether `source` belongs to `peer`, by the longest prefix covering it: a range of another
    /// node inside a range of `peer` is not the peer's.
    #[must_use]
    pub fn peer_owns(&self, peer: PeerId, source: IpAddr) -> bool {
        self.next_hop(source) == Some(NextHop::Peer(peer))
    }

    /// Whether `addr` is of a peer's host, whose packets may come over the underlay, too.
    ///
    /// O(log n) in the peers.
    #[must_use]
    pub fn is_peer_host(&self, addr: IpAddr) -> bool {
        self.peer_hosts.binary_search(&addr).is_ok()
    }

    /// The flows that pass through the host, where its kernel carries what is not for the fabric.
    #[must_use]
    pub fn detours(&self) -> Option<&Detours> {
        self.detours.as_deref()
    }

    /// This node's gateway address in the family of `addr`, if the fabric has that family here.
    #[must_use]
    pub fn gateway(&self, addr: IpAddr) -> Option<IpAddr> {
        match addr {
            IpAddr::V4(_) => self.gateway_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.gateway_v6.map(IpAddr::V6),
        }
    }

    /// All routes, most specific last within a family: for the operator, not for the packet path.
    #[must_use]
    pub fn routes(&self) -> Vec<(IpNet, NextHop)> {
        self.routes.routes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn node() -> SnapshotBuilder {
        SnapshotBuilder {
            generation: Generation(7),
            gateway_v4: Some("10.0.1.1".parse().unwrap()),
            gateway_v6: Some("fd00:1::1".parse().unwrap()),
            local_ranges: vec![net("10.0.1.0/24"), net("fd00:1::/64")],
            host_addresses: vec![ip("10.0.1.1"), ip("fd00:1::1"), ip("192.168.0.1")],
            pods: vec![
                (PortId(1), vec![ip("10.0.1.2"), ip("fd00:1::2")]),
                (PortId(2), vec![ip("10.0.1.3"), ip("fd00:1::3")]),
            ],
            peers: vec![
                (PeerId(1), vec![net("10.0.2.0/24"), net("192.168.0.2/32")]),
                (PeerId(2), vec![net("10.0.3.0/24"), net("10.0.3.1/32")]),
            ],
            ..SnapshotBuilder::default()
        }
    }

    /// Each address leads to its owner, and an address of a local range without a pod to nobody.
    #[test]
    fn every_address_leads_to_its_owner() {
        let snapshot = node().build().unwrap();
        let expected = [
            ("10.0.1.1", Some(NextHop::Local(PortId::HOST))),
            ("192.168.0.1", Some(NextHop::Local(PortId::HOST))),
            ("10.0.1.2", Some(NextHop::Local(PortId(1)))),
            ("fd00:1::3", Some(NextHop::Local(PortId(2)))),
            ("10.0.1.4", Some(NextHop::Unassigned)),
            ("fd00:1::4", Some(NextHop::Unassigned)),
            ("10.0.2.200", Some(NextHop::Peer(PeerId(1)))),
            ("192.168.0.2", Some(NextHop::Peer(PeerId(1)))),
            ("10.0.3.1", Some(NextHop::Peer(PeerId(2)))),
            ("10.0.4.1", None),
            ("192.168.0.3", None),
        ];
        for (addr, next) in expected {
            assert_eq!(snapshot.next_hop(ip(addr)), next, "{addr}");
        }
        assert_eq!(snapshot.generation(), Generation(7));
    }

    /// A port sends from its exact addresses, the host from the host's, and nobody from another's.
    #[test]
    fn ports_send_from_their_own_addresses_only() {
        let snapshot = node().build().unwrap();
        assert!(snapshot.may_send(PortId(1), ip("10.0.1.2")));
        assert!(snapshot.may_send(PortId(1), ip("fd00:1::2")));
        assert!(snapshot.may_send(PortId::HOST, ip("10.0.1.1")));
        assert!(snapshot.may_send(PortId::HOST, ip("192.168.0.1")));
        for other in [
            "10.0.1.3", "10.0.1.1", "10.0.1.4", "10.0.2.1", "0.0.0.0", "::",
        ] {
            assert!(!snapshot.may_send(PortId(1), ip(other)), "{other}");
        }
        assert!(!snapshot.may_send(PortId::HOST, ip("10.0.1.2")));
        assert!(!snapshot.may_send(PortId(9), ip("10.0.1.2")));
    }

    /// A peer owns its ranges and addresses, and nothing of this node or of other peers.
    #[test]
    fn peers_own_their_ranges_only() {
        let snapshot = node().build().unwrap();
        assert!(snapshot.peer_owns(PeerId(1), ip("10.0.2.9")));
        assert!(snapshot.peer_owns(PeerId(1), ip("192.168.0.2")));
        for other in ["10.0.3.9", "10.0.1.2", "10.0.1.9", "192.168.0.1", "8.8.8.8"] {
            assert!(!snapshot.peer_owns(PeerId(1), ip(other)), "{other}");
        }
    }

    /// ICMP errors have a source in the family of the packet they are about, where there is one.
    #[test]
    fn gateway_is_of_the_family_asked_for() {
        let mut builder = node();
        builder.gateway_v6 = None;
        let snapshot = builder.build().unwrap();
        assert_eq!(snapshot.gateway(ip("10.9.9.9")), Some(ip("10.0.1.1")));
        assert_eq!(snapshot.gateway(ip("fd00::9")), None);
    }

    /// A gateway address belongs to the host even if it is not listed among the host's addresses.
    #[test]
    fn gateway_is_a_host_address() {
        let mut builder = node();
        builder.host_addresses.clear();
        let snapshot = builder.build().unwrap();
        let host = Some(NextHop::Local(PortId::HOST));
        assert_eq!(snapshot.next_hop(ip("10.0.1.1")), host);
        assert!(snapshot.may_send(PortId::HOST, ip("fd00:1::1")));
    }

    /// A pod whose address is a local range by itself is reached.
    #[test]
    fn a_range_of_one_address_does_not_hide_its_pod() {
        let mut builder = node();
        builder.local_ranges.push(net("10.7.7.7/32"));
        builder.pods.push((PortId(3), vec![ip("10.7.7.7")]));
        let snapshot = builder.build().unwrap();
        let pod = Some(NextHop::Local(PortId(3)));
        assert_eq!(snapshot.next_hop(ip("10.7.7.7")), pod);
    }

    /// Routes are listed with IPv4 first and the most specific last.
    #[test]
    fn routes_are_listed_by_family_and_length() {
        let routes = node().build().unwrap().routes();
        assert_eq!(routes.len(), 13);
        assert!(routes.is_sorted_by_key(|(net, _)| (net.addr().is_ipv6(), net.prefix_len())));
        assert!(routes.contains(&(net("10.0.1.0/24"), NextHop::Unassigned)));
        assert!(routes.contains(&(net("fd00:1::2/128"), NextHop::Local(PortId(1)))));
    }

    /// Five thousand peers, a full node of pods and 150 000 single addresses make one snapshot.
    #[test]
    fn a_large_fabric_builds() {
        let range = |n: u32| IpNet::new(Ipv4Addr::from((11 << 24) | (n << 8)).into(), 24).unwrap();
        let single = |n: u32| IpNet::from(IpAddr::from(Ipv4Addr::from((100 << 24) | n)));
        let mut builder = node();
        builder.peers = (0..5_000)
            .map(|n| {
                let mut nets = vec![range(n)];
                nets.extend((0..30).map(|m| single(n * 30 + m)));
                (PeerId(n), nets)
            })
            .collect();
        builder.pods = (0..110)
            .map(|n| {
                let v4 = Ipv4Addr::new(10, 0, 1, 2 + n as u8);
                (PortId(n + 1), vec![v4.into()])
            })
            .collect();

        let snapshot = builder.build().unwrap();
        for n in [0, 1, 2_499, 4_999] {
            let peer = Some(NextHop::Peer(PeerId(n)));
            assert_eq!(snapshot.next_hop(range(n).broadcast()), peer);
            assert_eq!(snapshot.next_hop(single(n * 30 + 29).addr()), peer);
        }
        assert_eq!(snapshot.next_hop(ip("100.2.73.240")), None);
        assert!(snapshot.may_send(PortId(110), ip("10.0.1.111")));
    }
}
