//! What the cluster should look like: nodes and their ranges.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::node_id::NodeId;

/// One node as the state source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Where its workers listen: worker 0's address and UDP port; worker i uses port + i.
    pub underlay: Vec<SocketAddr>,
    /// Ranges its pods get their addresses from, at most one per family is used for allocation.
    pub pod_cidrs: Vec<IpNet>,
    /// Further addresses the host answers on inside the fabric, beside the underlay addresses.
    pub host_addresses: Vec<IpAddr>,
}

/// The complete state, this node included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// All nodes by name.
    pub nodes: BTreeMap<NodeId, NodeSpec>,
}
