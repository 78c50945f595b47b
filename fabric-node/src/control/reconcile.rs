//! Pure: desired state and live attachments in, snapshot inputs out.
//!
//! Never done here: checking for overlaps, which [`SnapshotBuilder::build`] does for every source.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use fabric_core::{
    ids::{Generation, PeerId, PortId},
    snapshot::SnapshotBuilder,
};
use ipnet::IpNet;
use thiserror::Error;

use super::{
    desired::{DesiredState, NodeSpec},
    outside::Surroundings,
};
use crate::{node_id::NodeId, tunnel::membership::PeerTarget};

/// Why a desired state cannot be put in force.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReconcileError {
    /// This node is not part of the state.
    #[error(
        "node {local} is not in the desired state ({nodes} nodes): add it to the state source, or correct `node` in this node's configuration"
    )]
    LocalNodeMissing {
        /// This node.
        local: NodeId,
        /// Nodes in the state.
        nodes: usize,
    },
    /// More peers were seen in this daemon's life than there are numbers.
    #[error("no peer number is left for node {node}: restart fabric-node")]
    PeerIdsExhausted {
        /// The node without a number.
        node: NodeId,
    },
}

/// Numbers of the peers seen in this daemon's life. A node that goes and comes back has its old
/// number; a number never goes to another node, so that a late packet cannot be taken for another's.
#[derive(Debug, Default)]
pub struct PeerIds {
    ids: HashMap<NodeId, PeerId>,
}

impl PeerIds {
    /// The number of `node`, a new one the first time.
    ///
    /// # Errors
    ///
    /// [`ReconcileError::PeerIdsExhausted`].
    pub fn id_of(&mut self, node: &NodeId) -> Result<PeerId, ReconcileError> {
        if let Some(id) = self.ids.get(node) {
            return Ok(*id);
        }
        // Nothing is ever removed, so the count is the next number.
        let next = u32::try_from(self.ids.len())
            .map_err(|_| ReconcileError::PeerIdsExhausted { node: node.clone() })?;
        self.ids.insert(node.clone(), PeerId(next));
        Ok(PeerId(next))
    }
}

/// What the snapshot is built from, and the peers to hold connections with, in order of their names.
///
/// A peer owns its pod ranges, its underlay addresses and its further host addresses, nothing else.
///
/// # Errors
///
/// [`ReconcileError`]; `peer_ids` may have grown then, which does no harm.
pub fn snapshot_inputs(
    desired: &DesiredState,
    local: &NodeId,
    attachments: &[(PortId, Vec<IpAddr>)],
    peer_ids: &mut PeerIds,
    generation: Generation,
) -> Result<(SnapshotBuilder, Vec<PeerTarget>), ReconcileError> {
    let spec = local_spec(desired, local)?;
    let (mut gateway_v4, mut gateway_v6) = (None, None);
    for gateway in gateways(spec) {
        match gateway {
            IpAddr::V4(ip) => gateway_v4 = Some(ip),
            IpAddr::V6(ip) => gateway_v6 = Some(ip),
        }
    }
    let mut peers = Vec::new();
    let mut peer_hosts = Vec::new();
    let mut targets = Vec::new();
    for (node, spec) in desired.nodes.iter().filter(|(node, _)| *node != local) {
        let id = peer_ids.id_of(node)?;
        peers.push((id, owned_ranges(spec)));
        peer_hosts.extend(node_addresses(spec));
        targets.push(PeerTarget {
            id,
            node: node.clone(),
            underlay: spec.underlay.clone(),
            keys: spec.identity_keys.clone(),
        });
    }
    let host_addresses: BTreeSet<IpAddr> = gateways(spec).chain(node_addresses(spec)).collect();
    let builder = SnapshotBuilder {
        generation,
        gateway_v4,
        gateway_v6,
        local_ranges: spec.pod_cidrs.clone(),
        host_addresses: host_addresses.into_iter().collect(),
        pods: attachments.to_vec(),
        peers,
        peer_hosts,
        detours: None,
    };
    Ok((builder, targets))
}

/// The pod ranges of the whole cluster, this node's included, that the host must route to `fabric0`:
/// in the families in which this node has pods, because only there the host has a source address.
/// Underlay addresses are never among them: the tunnel's own packets would return to it.
///
/// # Errors
///
/// [`ReconcileError::LocalNodeMissing`].
pub fn host_routes(desired: &DesiredState, local: &NodeId) -> Result<Vec<IpNet>, ReconcileError> {
    let families: Vec<bool> = gateways(local_spec(desired, local)?)
        .map(|gateway| gateway.is_ipv4())
        .collect();
    let routes: BTreeSet<IpNet> = desired
        .nodes
        .values()
        .flat_map(|spec| &spec.pod_cidrs)
        .filter(|range| families.contains(&range.addr().is_ipv4()))
        .copied()
        .collect();
    Ok(routes.into_iter().collect())
}

/// What the host must know of the nodes to be the way to the outside.
///
/// # Errors
///
/// [`ReconcileError::LocalNodeMissing`].
pub fn surroundings(
    desired: &DesiredState,
    local: &NodeId,
) -> Result<Surroundings, ReconcileError> {
    let spec = local_spec(desired, local)?;
    let others = desired.nodes.iter().filter(|(node, _)| *node != local);
    Ok(Surroundings {
        gateways: gateways(spec).collect(),
        ranges: spec.pod_cidrs.clone(),
        own_hosts: node_addresses(spec).collect(),
        peer_hosts: others.flat_map(|(_, spec)| node_addresses(spec)).collect(),
    })
}

/// The gateway address of a pod range: the first address after the network's own. None where the
/// range has no second address.
#[must_use]
pub fn gateway_of(range: &IpNet) -> Option<IpAddr> {
    let gateway = match range.network() {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|ip| IpAddr::V4(ip.into())),
        IpAddr::V6(ip) => u128::from(ip)
            .checked_add(1)
            .map(|ip| IpAddr::V6(ip.into())),
    };
    gateway.filter(|gateway| range.contains(gateway))
}

/// The range of `family` that a node's pods get their addresses from: the first one it has.
#[must_use]
pub fn allocation_range(spec: &NodeSpec, ipv4: bool) -> Option<IpNet> {
    spec.pod_cidrs
        .iter()
        .find(|range| range.addr().is_ipv4() == ipv4)
        .copied()
}

fn local_spec<'a>(
    desired: &'a DesiredState,
    local: &NodeId,
) -> Result<&'a NodeSpec, ReconcileError> {
    desired
        .nodes
        .get(local)
        .ok_or_else(|| ReconcileError::LocalNodeMissing {
            local: local.clone(),
            nodes: desired.nodes.len(),
        })
}

/// At most one of each family.
fn gateways(spec: &NodeSpec) -> impl Iterator<Item = IpAddr> {
    [true, false]
        .into_iter()
        .filter_map(|ipv4| gateway_of(&allocation_range(spec, ipv4)?))
}

/// What the host of a node answers on, gateways aside: those lie in its pod ranges.
fn node_addresses(spec: &NodeSpec) -> impl Iterator<Item = IpAddr> {
    let underlay = spec.underlay.iter().map(|address| address.ip());
    underlay.chain(spec.host_addresses.iter().copied())
}

fn owned_ranges(spec: &NodeSpec) -> Vec<IpNet> {
    let hosts = node_addresses(spec).map(IpNet::from);
    let ranges: BTreeSet<IpNet> = spec.pod_cidrs.iter().copied().chain(hosts).collect();
    ranges.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn spec(underlay: &[&str], pod_cidrs: &[&str], host_addresses: &[&str]) -> NodeSpec {
        NodeSpec {
            underlay: underlay.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: nets(pod_cidrs),
            host_addresses: ips(host_addresses),
            identity_keys: Vec::new(),
        }
    }

    fn three_nodes() -> DesiredState {
        let a = spec(
            &["192.0.2.1:7946", "[2001:db8::1]:7946"],
            &["10.244.1.0/24", "fd00:1::/64", "10.245.1.0/24"],
            &["192.0.2.1", "198.51.100.1"],
        );
        let b = spec(
            &["192.0.2.2:7946", "192.0.2.2:8946"],
            &["10.244.2.0/24"],
            &["2001:db8::2"],
        );
        let c = spec(&["[2001:db8::3]:7946"], &["fd00:3::/64"], &[]);
        DesiredState {
            nodes: [(id("a"), a), (id("b"), b), (id("c"), c)].into(),
        }
    }

    /// The local node gives gateways, ranges and host addresses, each address once; attachments and
    /// generation pass through.
    #[test]
    fn the_local_node_is_described() {
        let pods = [(PortId(7), ips(&["10.244.1.2", "fd00:1::2"]))];
        let (builder, _) = snapshot_inputs(
            &three_nodes(),
            &id("a"),
            &pods,
            &mut PeerIds::default(),
            Generation(42),
        )
        .unwrap();
        assert_eq!(builder.generation, Generation(42));
        assert_eq!(builder.gateway_v4, Some("10.244.1.1".parse().unwrap()));
        assert_eq!(builder.gateway_v6, Some("fd00:1::1".parse().unwrap()));
        assert_eq!(
            builder.local_ranges,
            nets(&["10.244.1.0/24", "fd00:1::/64", "10.245.1.0/24"])
        );
        assert_eq!(
            builder.host_addresses,
            ips(&[
                "10.244.1.1",
                "192.0.2.1",
                "198.51.100.1",
                "2001:db8::1",
                "fd00:1::1",
            ])
        );
        assert_eq!(builder.pods, pods);
    }

    /// A peer owns its pod ranges and single host addresses, each once and nothing else, and is to
    /// be reached at its underlay addresses; the local node is no peer.
    #[test]
    fn peers_own_what_is_theirs() {
        let (builder, targets) = snapshot_inputs(
            &three_nodes(),
            &id("a"),
            &[],
            &mut PeerIds::default(),
            Generation(1),
        )
        .unwrap();
        let wanted = [
            (
                PeerId(0),
                nets(&["10.244.2.0/24", "192.0.2.2/32", "2001:db8::2/128"]),
            ),
            (PeerId(1), nets(&["2001:db8::3/128", "fd00:3::/64"])),
        ];
        assert_eq!(builder.peers, wanted);
        assert_eq!(
            builder.peer_hosts,
            ips(&["192.0.2.2", "192.0.2.2", "2001:db8::2", "2001:db8::3"])
        );
        let underlay: Vec<SocketAddr> = vec!["[2001:db8::3]:7946".parse().unwrap()];
        assert_eq!(targets.len(), 2);
        assert_eq!(
            targets.last().unwrap(),
            &PeerTarget {
                id: PeerId(1),
                node: id("c"),
                underlay,
                keys: Vec::new(),
            }
        );
    }

    /// A node keeps its number while others come and go, and its number goes to nobody else.
    #[test]
    fn peer_numbers_are_never_reused() {
        let mut peer_ids = PeerIds::default();
        let mut numbers = |desired: &DesiredState| -> Vec<(String, u32)> {
            snapshot_inputs(desired, &id("a"), &[], &mut peer_ids, Generation(1))
                .unwrap()
                .1
                .into_iter()
                .map(|target| (target.node.to_string(), target.id.0))
                .collect()
        };
        let pair = |name: &str, number| (name.to_owned(), number);
        let mut desired = three_nodes();
        assert_eq!(numbers(&desired), [pair("b", 0), pair("c", 1)]);
        let b = desired.nodes.remove(&id("b")).unwrap();
        assert_eq!(numbers(&desired), [pair("c", 1)]);
        desired.nodes.insert(id("aa"), b.clone());
        assert_eq!(numbers(&desired), [pair("aa", 2), pair("c", 1)]);
        desired.nodes.insert(id("b"), b);
        assert_eq!(
            numbers(&desired),
            [pair("aa", 2), pair("b", 0), pair("c", 1)]
        );
    }

    /// Without the local node nothing is put in force, and the message says what to correct.
    #[test]
    fn a_missing_local_node_is_an_error() {
        let error = snapshot_inputs(
            &three_nodes(),
            &id("z"),
            &[],
            &mut PeerIds::default(),
            Generation(1),
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "node z is not in the desired state (3 nodes): add it to the state source, or correct `node` in this node's configuration"
        );
        assert_eq!(host_routes(&three_nodes(), &id("z")), Err(error));
    }

    /// The host routes every pod range of its families, its own included, and no underlay address.
    #[test]
    fn the_host_routes_pod_ranges() {
        assert_eq!(
            host_routes(&three_nodes(), &id("a")).unwrap(),
            nets(&[
                "10.244.1.0/24",
                "10.244.2.0/24",
                "10.245.1.0/24",
                "fd00:1::/64",
                "fd00:3::/64",
            ])
        );
        assert_eq!(
            host_routes(&three_nodes(), &id("c")).unwrap(),
            nets(&["fd00:1::/64", "fd00:3::/64"])
        );
    }

    /// The gateway is the address after the network's, whatever address names the range.
    #[test]
    fn gateways_come_first() {
        for (range, gateway) in [
            ("10.0.0.0/24", Some("10.0.0.1")),
            ("10.0.0.77/24", Some("10.0.0.1")),
            ("10.0.0.4/30", Some("10.0.0.5")),
            ("fd00::/64", Some("fd00::1")),
            ("10.0.0.1/32", None),
            ("255.255.255.255/32", None),
        ] {
            let gateway = gateway.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(gateway_of(&range.parse().unwrap()), gateway, "{range}");
        }
    }
}
