//! FabricNodes in, the desired state out, with a finding for each that is left out. Pure.
//!
//! Never done here: refusing everything because of one object. Of two objects that claim the same
//! address the older one has it, of two of the same age the one whose name comes first: all nodes
//! come to the same answer without asking each other. This node itself is always part of its own
//! state, with what its Node says; who contradicts it is left out, and if the other one has the older
//! claim, that is a finding about this node.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;

use super::crd::{ENDPOINTS_MAX, FabricNodeSpec, HOST_ADDRESSES_MAX, KEYS_MAX, POD_CIDRS_MAX};
use crate::{
    control::{
        desired::{DesiredState, NodeSpec},
        file::NODES_MAX,
        value,
    },
    node_id::NodeId,
};

/// What is wrong with an object, in the words of an Event's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its name is no node's name.
    InvalidName,
    /// A field has a value that no node can use.
    InvalidSpec,
    /// It claims what is another's.
    AddressConflict,
    /// There are more than a fabric can have.
    TooManyNodes,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An object that is not, or not everywhere, in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The name of the FabricNode.
    pub node: String,
    /// Which field of it, as a path.
    pub field: String,
    /// The kind of fault.
    pub reason: Reason,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            field,
            problem,
            cure,
            ..
        } = self;
        write!(f, "FabricNode {node}: {field}: {problem}; {cure}")
    }
}

/// One object, as far as it counts here.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// Its name.
    pub name: &'a str,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// It is no longer there and only kept for a while: everybody else goes first.
    pub leaving: bool,
    /// What it says, or why that cannot be read.
    pub spec: &'a Result<NodeSpec, Finding>,
}

/// The state, and what is not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversion {
    /// This node and all that do not contradict each other.
    pub desired: DesiredState,
    /// What was left out, and what of this node others will leave out. In order of the names.
    pub findings: Vec<Finding>,
}

/// Reads a spec.
///
/// # Errors
///
/// The first field that no node can use.
pub fn node_spec(name: &str, spec: &Result<FabricNodeSpec, String>) -> Result<NodeSpec, Finding> {
    let invalid = |field: String, problem: String| Finding {
        node: name.to_owned(),
        field,
        reason: Reason::InvalidSpec,
        problem,
        cure: OWNER_CURE.to_owned(),
    };
    let spec = spec
        .as_ref()
        .map_err(|problem| invalid("spec".to_owned(), problem.clone()))?;
    for (field, count, min, max) in [
        ("spec.podCIDRs", spec.pod_cidrs.len(), 1, POD_CIDRS_MAX),
        ("spec.endpoints", spec.endpoints.len(), 1, ENDPOINTS_MAX),
        (
            "spec.hostAddresses",
            spec.host_addresses.len(),
            0,
            HOST_ADDRESSES_MAX,
        ),
        ("spec.identity.keys", spec.identity.keys.len(), 0, KEYS_MAX),
    ] {
        if !(min..=max).contains(&count) {
            let problem = format!("it has {count} entries: expected {min} to {max}");
            return Err(invalid(field.to_owned(), problem));
        }
    }
    let mut read = NodeSpec::default();
    for (i, text) in spec.pod_cidrs.iter().enumerate() {
        let range = value::pod_cidr(text);
        let at = || format!("spec.podCIDRs[{i}]");
        read.pod_cidrs
            .push(range.map_err(|problem| invalid(at(), problem))?);
    }
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        let address = value::host_address(&endpoint.address)
            .map_err(|problem| invalid(format!("spec.endpoints[{i}].address"), problem))?;
        if !(1..=value::UNDERLAY_PORT_MAX).contains(&endpoint.port) {
            let problem = format!(
                "port {} is out of range: expected 1 to {}",
                endpoint.port,
                value::UNDERLAY_PORT_MAX
            );
            return Err(invalid(format!("spec.endpoints[{i}].port"), problem));
        }
        read.underlay.push((address, endpoint.port).into());
    }
    for (i, text) in spec.host_addresses.iter().enumerate() {
        let address = value::host_address(text);
        let at = || format!("spec.hostAddresses[{i}]");
        read.host_addresses
            .push(address.map_err(|problem| invalid(at(), problem))?);
    }
    for (i, key) in spec.identity.keys.iter().enumerate() {
        let hash = key.sha256.parse();
        let at = || format!("spec.identity.keys[{i}].sha256");
        read.identity_keys
            .push(hash.map_err(|problem| invalid(at(), problem))?);
    }
    Ok(read)
}

const OWNER_CURE: &str =
    "the node's own daemon writes this object: see that fabric-node runs there";

/// Brings `others` together with this node, `local`, whose own object was made at `created`.
/// O(n log n).
#[must_use]
pub fn convert(
    local: (&NodeId, &NodeSpec, Option<Timestamp>),
    others: &[Claimant<'_>],
) -> Conversion {
    let (local_id, local_spec, local_created) = local;
    let mut conversion = Conversion::default();
    let mut taken = Claims::default();
    taken.take(local_id.as_str(), local_spec);
    conversion
        .desired
        .nodes
        .insert(local_id.clone(), local_spec.clone());
    let mut ordered: Vec<&Claimant<'_>> = others
        .iter()
        .filter(|other| other.name != local_id.as_str())
        .collect();
    ordered.sort_by_key(|other| (other.leaving, precedence(other.created, other.name)));
    for other in ordered {
        match admit(other, &conversion.desired, &mut taken) {
            Ok((id, spec)) => drop(conversion.desired.nodes.insert(id, spec)),
            // What has gone is no fault of anybody's.
            Err(_) if other.leaving => {}
            Err(mut finding) => {
                let with_local = finding.reason == Reason::AddressConflict
                    && taken.last_conflict.as_deref() == Some(local_id.as_str());
                let older = precedence(other.created, other.name)
                    < precedence(local_created, local_id.as_str());
                if with_local && older {
                    finding.node = local_id.to_string();
                    finding.field = "spec".to_owned();
                    finding.problem = format!(
                        "it claims what FabricNode {}, which is older, has: {}",
                        other.name, finding.problem
                    );
                }
                conversion.findings.push(finding);
            }
        }
    }
    conversion.findings.sort();
    conversion
}

/// Who comes first has what both claim. An object without a time is not stored yet: it comes last.
fn precedence(created: Option<Timestamp>, name: &str) -> (bool, Option<Timestamp>, &str) {
    (created.is_none(), created, name)
}

fn admit(
    claimant: &Claimant<'_>,
    desired: &DesiredState,
    taken: &mut Claims,
) -> Result<(NodeId, NodeSpec), Finding> {
    taken.last_conflict = None;
    let spec = claimant.spec.as_ref().map_err(Finding::clone)?;
    let refused = |field: &str, reason, problem, cure: &str| Finding {
        node: claimant.name.to_owned(),
        field: field.to_owned(),
        reason,
        problem,
        cure: cure.to_owned(),
    };
    let id = NodeId::new(claimant.name).map_err(|problem| {
        let cure = "delete it: no Node has such a name";
        refused("metadata.name", Reason::InvalidName, problem, cure)
    })?;
    if desired.nodes.len() >= NODES_MAX {
        let problem = format!("there are {NODES_MAX} nodes already, and no room for more");
        let cure = "delete FabricNodes of nodes that are no more";
        return Err(refused(
            "metadata.name",
            Reason::TooManyNodes,
            problem,
            cure,
        ));
    }
    let mut own = Claims::default();
    for (field, net, kind) in nets(spec) {
        if let Some(conflict) = own.conflict(&net, kind, claimant.name) {
            let problem = format!("{net} overlaps {} of the same object", conflict.net);
            return Err(refused(&field, Reason::InvalidSpec, problem, OWNER_CURE));
        }
        own.insert(claimant.name, net, kind);
        if let Some(conflict) = taken.conflict(&net, kind, claimant.name) {
            let problem = format!(
                "{net} overlaps {} of FabricNode {}",
                conflict.net, conflict.node
            );
            let with = conflict.node.clone();
            taken.last_conflict = Some(with);
            let cure = "give each Node ranges and addresses of its own, or delete the FabricNode of the one that is no more";
            return Err(refused(&field, Reason::AddressConflict, problem, cure));
        }
    }
    taken.take(claimant.name, spec);
    Ok((id, spec.clone()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Range,
    Address,
}

/// Everything that `spec` claims, with the field that claims it.
fn nets(spec: &NodeSpec) -> Vec<(String, IpNet, Kind)> {
    let ranges = spec.pod_cidrs.iter().enumerate();
    let underlay = spec.underlay.iter().enumerate();
    let hosts = spec.host_addresses.iter().enumerate();
    ranges
        .map(|(i, range)| (format!("spec.podCIDRs[{i}]"), *range, Kind::Range))
        .chain(underlay.map(|(i, address)| {
            let field = format!("spec.endpoints[{i}].address");
            (field, address.ip().into(), Kind::Address)
        }))
        .chain(hosts.map(|(i, address)| {
            let field = format!("spec.hostAddresses[{i}]");
            (field, IpNet::from(*address), Kind::Address)
        }))
        .collect()
}

/// Who has which addresses. What is in it does not overlap, so of all that begin at or before the end
/// of a new net only the last can overlap it.
#[derive(Default)]
struct Claims {
    by_start: BTreeMap<(bool, u128), Claim>,
    last_conflict: Option<String>,
}

struct Claim {
    node: String,
    net: IpNet,
    kind: Kind,
}

impl Claims {
    fn take(&mut self, node: &str, spec: &NodeSpec) {
        for (_, net, kind) in nets(spec) {
            self.insert(node, net, kind);
        }
    }

    fn insert(&mut self, node: &str, net: IpNet, kind: Kind) {
        let claim = Claim {
            node: node.to_owned(),
            net,
            kind,
        };
        self.by_start.insert(key(net.network()), claim);
    }

    /// A node may name an address of its own as often as it likes.
    fn conflict(&self, net: &IpNet, kind: Kind, node: &str) -> Option<&Claim> {
        let (family, _) = key(net.network());
        let upto = ..=key(net.broadcast());
        let (_, last) = self.by_start.range(upto).next_back()?;
        let same_family = key(last.net.network()).0 == family;
        let overlaps = same_family && key(last.net.broadcast()) >= key(net.network());
        let is_same = last.node == node && last.kind == Kind::Address && kind == Kind::Address;
        (overlaps && !is_same).then_some(last)
    }
}

fn key(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(ip) => (false, u32::from(ip).into()),
        IpAddr::V6(ip) => (true, ip.into()),
    }
}

#[cfg(test)]
mod tests;
