//! What the cluster should look like: nodes and their ranges.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

pub use crate::pki::key::KeyHash;

use crate::node_id::NodeId;

/// One node as the state source describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// Where its workers listen: worker 0's address and UDP port; worker i uses port + i.
    pub underlay: Vec<SocketAddr>,
    /// Ranges its pods get their addresses from, at most one per family is used for allocation.
    pub pod_cidrs: Vec<IpNet>,
    /// Further addresses the host answers on inside the fabric, beside the underlay addresses.
    pub host_addresses: Vec<IpAddr>,
    /// The keys that the node proves itself with, two while it changes them. Empty where the source
    /// names none: then any key that the CA vouches for is the node's.
    pub identity_keys: Vec<KeyHash>,
}

/// The complete state, this node included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// All nodes by name.
    pub nodes: BTreeMap<NodeId, NodeSpec>,
}
