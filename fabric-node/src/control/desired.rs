//! What the cluster should look like: nodes and their ranges.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use fabric_core::ids::PeerId;
use ipnet::IpNet;

/// Name of a node, as in its certificate. `[a-z0-9]([-a-z0-9.]*[a-z0-9])?`, at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(String);

impl NodeId {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// One line saying what is wrong with it.
    pub fn new(name: &str) -> Result<Self, String> {
        let ok = !name.is_empty()
            && name.len() <= 253
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
            && name
                .as_bytes()
                .first()
                .is_some_and(u8::is_ascii_alphanumeric)
            && name
                .as_bytes()
                .last()
                .is_some_and(u8::is_ascii_alphanumeric);
        if ok {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!(
                "{name:?} is not a node name: use lower-case letters, digits, '-' and '.', at most 253 bytes"
            ))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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

/// A peer to hold connections with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTarget {
    /// Its number in snapshots, the same for the life of the daemon.
    pub id: PeerId,
    /// Its name, which its certificate must bear.
    pub node: NodeId,
    /// Where its workers listen, as in [`NodeSpec::underlay`].
    pub underlay: Vec<SocketAddr>,
}
