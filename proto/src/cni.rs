//! The CNI socket: one request and one response per connection.
//!
//! A frame is a 4-byte big-endian length and that many bytes of JSON, at most [`FRAME_BYTES_MAX`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Largest frame either side reads (bytes).
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// Which interface of which container: the key of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachmentKey {
    /// Name of the network in the CNI configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// The Kubernetes pod behind a container, where the runtime says so (CNI_ARGS).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodIdentity {
    /// K8S_POD_NAMESPACE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// K8S_POD_UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Attach a pod.
    Add {
        /// The attachment.
        key: AttachmentKey,
        /// CNI_NETNS: path of the pod's network namespace.
        netns: String,
        /// Who the pod is.
        #[serde(default)]
        pod: PodIdentity,
        /// Addresses asked for; empty: the daemon chooses.
        #[serde(default)]
        addresses: Vec<IpAddr>,
    },
    /// Detach a pod. Always succeeds unless the record cannot be written.
    Del {
        /// The attachment.
        key: AttachmentKey,
        /// CNI_NETNS, where it was given.
        #[serde(default)]
        netns: Option<String>,
    },
    /// Verify an attachment against what the runtime believes.
    Check {
        /// The attachment.
        key: AttachmentKey,
        /// CNI_NETNS.
        netns: String,
        /// Addresses in the runtime's prevResult.
        addresses: Vec<IpAddr>,
    },
    /// Could an ADD succeed now?
    Status,
    /// Free what is not listed and whose namespace is gone.
    Gc {
        /// Name of the network.
        network: String,
        /// Attachments that are still valid.
        valid: Vec<AttachmentKey>,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Response {
    /// ADD done.
    Attached(Attached),
    /// The other verbs: done.
    Done,
    /// The request failed.
    Failed(Failure),
}

/// Result of an ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// MTU of the pod's interface (bytes).
    pub mtu: u32,
    /// The pod's addresses, IPv4 first; each a single host (/32, /128).
    pub addresses: Vec<IpAddr>,
}

/// A CNI error: code as in the specification (1..=99) or ours (>= 100).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// CNI error code.
    pub code: u32,
    /// One line: what is wrong and where.
    pub msg: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// CNI error codes used by plugin and daemon (CNI specification 1.1.0, "Error").
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO: u32 = 5;
    /// Failed to decode content.
    pub const DECODE: u32 = 6;
    /// Invalid network config.
    pub const INVALID_CONFIG: u32 = 7;
    /// Invalid network namespace.
    pub const INVALID_NETNS: u32 = 8;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin is not available (STATUS).
    pub const NOT_AVAILABLE: u32 = 50;
    /// Not available, and existing containers may have limited connectivity (STATUS).
    pub const LIMITED: u32 = 51;
    /// The interface name is taken in the pod's namespace.
    pub const INTERFACE_EXISTS: u32 = 100;
    /// CHECK found a difference.
    pub const CHECK_FAILED: u32 = 101;
}
