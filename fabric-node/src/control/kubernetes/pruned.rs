//! The objects that are watched, cut down to what is used: as they are read from the wire, and as
//! they are kept.
//!
//! Comes in: JSON of the API server. Goes out: small values. Never done here: judging them. A field of
//! an unexpected shape is no reason to refuse a whole list, so what somebody may write by hand is
//! read as any JSON first.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Node,
    api::discovery::v1::EndpointSlice,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::Resource;
use serde::Deserialize;
use serde_json::Value;

use super::crd::{FabricNode, FabricNodeSpec, FabricNodeStatus};

/// A Node on the wire.
#[derive(Clone, Debug, Resource, Deserialize)]
#[resource(inherit = "Node")]
pub struct WireNode {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WireNodeSpec,
    #[serde(default)]
    status: WireNodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireNodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    taints: Vec<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireNodeStatus {
    addresses: Vec<WireNodeAddress>,
    conditions: Vec<WireNodeCondition>,
}

#[derive(Clone, Debug, Deserialize)]
struct WireNodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Deserialize)]
struct WireNodeCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
}

/// This node's Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnNode {
    /// Its unique id: another one means that the Node was replaced.
    pub uid: String,
    /// Its version, for changes that must not undo others'.
    pub resource_version: String,
    /// `spec.podCIDRs`, which may come late.
    pub pod_cidrs: Vec<String>,
    /// The addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.taints`, whole: they are written as a whole.
    pub taints: Vec<Value>,
    /// Status and reason of the condition NetworkUnavailable.
    pub network_unavailable: Option<(String, String)>,
}

impl WireNode {
    /// What is kept of it, with its name.
    #[must_use]
    pub fn prune(self) -> Option<(String, OwnNode)> {
        let internal_ips = self.status.addresses.iter();
        let internal_ips = internal_ips.filter(|address| address.kind == "InternalIP");
        let conditions = self.status.conditions.into_iter();
        let network_unavailable = conditions
            .filter(|condition| condition.kind == "NetworkUnavailable")
            .map(|condition| (condition.status, condition.reason))
            .next();
        let node = OwnNode {
            uid: self.metadata.uid?,
            resource_version: self.metadata.resource_version?,
            pod_cidrs: self.spec.pod_cidrs,
            internal_ips: internal_ips
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            taints: self.spec.taints,
            network_unavailable,
        };
        Some((self.metadata.name?, node))
    }
}

/// A FabricNode on the wire.
#[derive(Clone, Debug, Resource, Deserialize)]
#[resource(inherit = "FabricNode")]
pub struct WireFabricNode {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

/// A FabricNode: of others only what makes them peers.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// When it was made; with the name the order in which claims are honoured.
    pub created: Option<Timestamp>,
    /// Its spec, or what keeps it from being read.
    pub spec: Result<FabricNodeSpec, String>,
    /// Of this node's own object, what is needed to write it.
    pub own: Option<Box<Own>>,
}

/// This node's own FabricNode, beside its spec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Own {
    /// Its unique id.
    pub uid: String,
    /// The version of its spec.
    pub generation: i64,
    /// The unique ids of the Nodes that own it.
    pub owners: Vec<String>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// It is being deleted.
    pub deleting: bool,
}

impl WireFabricNode {
    /// What is kept of it, with its name; more of the one that has the name `local`.
    #[must_use]
    pub fn prune(self, local: &str) -> Option<(String, Listed)> {
        let metadata = self.metadata;
        let name = metadata.name?;
        let own = (name == local).then(|| {
            let owners = metadata.owner_references.unwrap_or_default().into_iter();
            let status: FabricNodeStatus = serde_json::from_value(self.status).unwrap_or_default();
            Box::new(Own {
                uid: metadata.uid.unwrap_or_default(),
                generation: metadata.generation.unwrap_or_default(),
                owners: owners
                    .filter(|owner| owner.kind == "Node")
                    .map(|owner| owner.uid)
                    .collect(),
                conditions: status.conditions,
                deleting: metadata.deletion_timestamp.is_some(),
            })
        });
        let listed = Listed {
            created: metadata.creation_timestamp.map(|time| time.0),
            spec: serde_json::from_value(self.spec).map_err(|error| error.to_string()),
            own,
        };
        Some((name, listed))
    }
}

/// An EndpointSlice on the wire.
#[derive(Clone, Debug, Resource, Deserialize)]
#[resource(inherit = "EndpointSlice")]
pub struct WireSlice {
    metadata: ObjectMeta,
    #[serde(default)]
    endpoints: Option<Vec<WireEndpoint>>,
    #[serde(default)]
    ports: Option<Vec<WirePort>>,
}

#[derive(Clone, Debug, Deserialize)]
struct WireEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Option<WireEndpointConditions>,
}

#[derive(Clone, Debug, Deserialize)]
struct WireEndpointConditions {
    ready: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct WirePort {
    name: Option<String>,
    port: Option<u16>,
}

/// Addresses and port of what answers for a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// The addresses that are ready, or do not say.
    pub addresses: Vec<IpAddr>,
    /// The port named `https`, else the first one.
    pub port: Option<u16>,
}

impl WireSlice {
    /// What is kept of it, with its name.
    #[must_use]
    pub fn prune(self) -> Option<(String, Backends)> {
        let ready = |endpoint: &WireEndpoint| {
            endpoint
                .conditions
                .as_ref()
                .is_none_or(|conditions| conditions.ready != Some(false))
        };
        let endpoints = self.endpoints.unwrap_or_default();
        let ports = self.ports.unwrap_or_default();
        let named = |port: &&WirePort| port.name.as_deref() == Some("https");
        let backends = Backends {
            addresses: endpoints
                .iter()
                .filter(|endpoint| ready(endpoint))
                .flat_map(|endpoint| &endpoint.addresses)
                .filter_map(|address| address.parse().ok())
                .collect(),
            port: ports
                .iter()
                .find(named)
                .or_else(|| ports.first())
                .and_then(|port| port.port),
        };
        Some((self.metadata.name?, backends))
    }
}
