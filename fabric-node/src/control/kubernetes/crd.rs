//! The custom resource `FabricNode`: what each node tells the others through the API server.
//!
//! One object per Node, of the same name, owned by it, written by the node's own daemon alone. The
//! schema refuses what no node could use; [`mod@super::convert`] checks everything again.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::control::value::{
    POD_PREFIX_V4_MAX, POD_PREFIX_V4_MIN, POD_PREFIX_V6_MAX, POD_PREFIX_V6_MIN, UNDERLAY_PORT_MAX,
};

/// Ranges of one node.
pub const POD_CIDRS_MAX: usize = 8;
/// Endpoints of one node.
pub const ENDPOINTS_MAX: usize = 8;
/// Further addresses of one node's host.
pub const HOST_ADDRESSES_MAX: usize = 32;
/// Keys of one node: the old and the new one, side by side.
pub const KEYS_MAX: usize = 2;
/// Longest text of an address: an IPv6 address in full.
const ADDRESS_CHARS_MAX: usize = 39;
/// Longest text of a range.
const CIDR_CHARS_MAX: usize = 43;

/// What a node tells the others.
#[allow(clippy::duplicated_attributes, reason = "each column has its own")]
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "fabric.dev",
    version = "v1alpha1",
    kind = "FabricNode",
    plural = "fabricnodes",
    status = "FabricNodeStatus",
    doc = "A node of the fabric: where it is, which addresses are its own and how it proves itself. Written by the node's own daemon, which puts back what others change.",
    derive = "PartialEq",
    printcolumn(
        name = "READY",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "POD-CIDRS", type_ = "string", json_path = ".spec.podCIDRs"),
    printcolumn(
        name = "ADDRESS",
        type_ = "string",
        json_path = ".spec.endpoints[0].address"
    ),
    printcolumn(
        name = "AGE",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct FabricNodeSpec {
    /// Ranges that the node's pods have their addresses from; a copy of the Node's spec.podCIDRs.
    #[serde(rename = "podCIDRs")]
    #[schemars(schema_with = "pod_cidrs")]
    pub pod_cidrs: Vec<String>,
    /// Where the node's first worker listens (UDP); worker i uses the port + i.
    #[schemars(schema_with = "endpoints")]
    pub endpoints: Vec<Endpoint>,
    /// Further addresses of the node's host, beside those of the endpoints.
    #[serde(default)]
    #[schemars(schema_with = "host_addresses")]
    pub host_addresses: Vec<String>,
    /// How the node proves itself.
    #[serde(default)]
    pub identity: Identity,
}

/// An address and a UDP port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// IPv4 or IPv6, without a prefix length.
    pub address: String,
    /// The first worker's UDP port.
    pub port: u16,
}

/// How a node proves itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// The public keys that are the node's: two while it changes them; none: any key that the
    /// cluster's CA vouches for.
    #[serde(default)]
    #[schemars(schema_with = "keys")]
    pub keys: Vec<Key>,
}

/// A public key, named by its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    /// SHA-256 of its SubjectPublicKeyInfo, 64 hexadecimal digits.
    pub sha256: String,
}

/// What the node's daemon says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FabricNodeStatus {
    /// The latest observations of the node's state.
    #[serde(default)]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,
}

/// `deploy/kubernetes/crd.yaml`.
///
/// # Errors
///
/// The definition cannot be written as YAML, which is a mistake in the types.
pub fn definition() -> Result<String, String> {
    let definition = serde_json::to_value(FabricNode::crd()).map_err(|error| error.to_string())?;
    let yaml = serde_saphyr::to_string(&definition).map_err(|error| error.to_string())?;
    Ok(format!(
        "# Generated from the types in fabric-node/src/control/kubernetes/crd.rs; a test compares.\n{yaml}"
    ))
}

fn pod_cidrs(_: &mut SchemaGenerator) -> Schema {
    let sizes = format!(
        "cidr(self).ip().family() == 4 ? cidr(self).prefixLength() >= {POD_PREFIX_V4_MIN} && cidr(self).prefixLength() <= {POD_PREFIX_V4_MAX} : cidr(self).prefixLength() >= {POD_PREFIX_V6_MIN} && cidr(self).prefixLength() <= {POD_PREFIX_V6_MAX}"
    );
    json_schema!({
        "type": "array",
        "description": "Ranges that the node's pods have their addresses from; a copy of the Node's spec.podCIDRs.",
        "minItems": 1,
        "maxItems": POD_CIDRS_MAX,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "string",
            "maxLength": CIDR_CHARS_MAX,
            "x-kubernetes-validations": [
                {
                    "rule": "isCIDR(self) && cidr(self).masked() == cidr(self) && cidr(self).ip().isGlobalUnicast()",
                    "message": "must be a range of unicast addresses without bits beyond its prefix, such as 10.244.1.0/24 or fd00:244:1::/64",
                },
                {
                    "rule": format!("!isCIDR(self) || ({sizes})"),
                    "message": format!("must be /{POD_PREFIX_V4_MIN} to /{POD_PREFIX_V4_MAX} (IPv4) or /{POD_PREFIX_V6_MIN} to /{POD_PREFIX_V6_MAX} (IPv6)"),
                },
            ],
        },
    })
}

fn endpoints(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "Where the node's first worker listens (UDP); worker i uses the port + i.",
        "minItems": 1,
        "maxItems": ENDPOINTS_MAX,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "required": ["address", "port"],
            "properties": {
                "address": address(),
                "port": {
                    "type": "integer",
                    "format": "int32",
                    "description": "The first worker's UDP port.",
                    "minimum": 1,
                    "maximum": UNDERLAY_PORT_MAX,
                },
            },
        },
    })
}

fn host_addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "Further addresses of the node's host, beside those of the endpoints.",
        "maxItems": HOST_ADDRESSES_MAX,
        "x-kubernetes-list-type": "atomic",
        "items": address(),
    })
}

fn keys(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "The public keys that are the node's: two while it changes them; none: any key that the cluster's CA vouches for.",
        "maxItems": KEYS_MAX,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "required": ["sha256"],
            "properties": {
                "sha256": {
                    "type": "string",
                    "description": "SHA-256 of its SubjectPublicKeyInfo.",
                    "pattern": "^[0-9a-f]{64}$",
                },
            },
        },
    })
}

fn address() -> serde_json::Value {
    serde_json::json!({
        "type": "string",
        "description": "IPv4 or IPv6, without a prefix length.",
        "maxLength": ADDRESS_CHARS_MAX,
        "x-kubernetes-validations": [{
            "rule": "isIP(self) && ip(self).isGlobalUnicast()",
            "message": "must be a unicast address that other nodes can reach, without a prefix length, such as 192.0.2.1 or 2001:db8::1",
        }],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The file that users apply is what the types say. To write it anew:
    /// `FABRIC_WRITE_CRD=1 cargo test -p fabric-node crd`.
    #[test]
    fn the_file_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/crd.yaml");
        let wanted = definition().unwrap();
        if std::env::var_os("FABRIC_WRITE_CRD").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), wanted);
    }

    /// What is written always has all fields: server-side apply leaves alone what is not in it.
    #[test]
    fn empty_fields_are_written() {
        let written = serde_json::to_value(FabricNodeSpec::default()).unwrap();
        let wanted = serde_json::json!({
            "podCIDRs": [], "endpoints": [], "hostAddresses": [], "identity": {"keys": []},
        });
        assert_eq!(written, wanted);
    }
}
