//! Why a request failed, and how the CNI specification numbers that.

use std::path::PathBuf;

use fabric_proto::cni::{Failure, code};
use thiserror::Error;

use crate::cni::{ipam::IpamError, store::StoreError};

/// Why a request failed.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The namespace cannot be used.
    #[error("CNI_NETNS {path}: {reason}", path = .path.display())]
    Netns {
        /// CNI_NETNS.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The interface name is taken.
    #[error("interface {ifname} exists in network namespace {netns}", netns = .netns.display())]
    InterfaceExists {
        /// CNI_IFNAME.
        ifname: String,
        /// CNI_NETNS.
        netns: PathBuf,
    },
    /// The container is attached under another namespace that still exists.
    #[error("container {container} is attached in network namespace {netns}, which still exists", netns = .netns.display())]
    AttachedElsewhere {
        /// CNI_CONTAINERID.
        container: String,
        /// The other namespace.
        netns: PathBuf,
    },
    /// A DEL for the same attachment came meanwhile, or the plugin has gone.
    #[error("given up: a DEL for the same attachment arrived or the plugin hung up")]
    Cancelled,
    /// No address.
    #[error(transparent)]
    Address(#[from] IpamError),
    /// The record cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The interface cannot be made.
    #[error("cannot make interface {ifname} in {netns}: {reason}", netns = .netns.display())]
    Interface {
        /// CNI_IFNAME.
        ifname: String,
        /// CNI_NETNS.
        netns: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The rest of the daemon cannot take the pod.
    #[error("the data plane does not take the pod: {0}")]
    Fabric(String),
    /// The clocks cannot be read.
    #[error("cannot read the clocks: {0}; check that /proc is mounted")]
    Clock(#[from] std::io::Error),
    /// CHECK found a difference.
    #[error("CHECK: {0}")]
    Differs(String),
    /// STATUS: no.
    #[error("{reason}")]
    NotReady {
        /// What is missing.
        reason: String,
        /// Whether pods are attached that may feel it.
        pods_affected: bool,
    },
    /// GC could not free everything.
    #[error("GC freed {freed} attachments and failed on {}: {}", .failures.len(), .failures.join("; "))]
    Gc {
        /// How many were freed.
        freed: usize,
        /// One line each.
        failures: Vec<String>,
    },
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        let (code, details) = match &error {
            AttachError::Netns { .. } => (
                code::INVALID_NETNS,
                "the container needs a live network namespace of its own",
            ),
            AttachError::InterfaceExists { .. } => (
                code::INTERFACE_EXISTS,
                "DEL the attachment or remove the interface first",
            ),
            AttachError::AttachedElsewhere { .. } => {
                (code::INTERFACE_EXISTS, "DEL the attachment first")
            }
            AttachError::Cancelled => (code::TRY_AGAIN, ""),
            AttachError::Address(
                IpamError::Exhausted { .. } | IpamError::NoRange | IpamError::Resting { .. },
            ) => (
                code::TRY_AGAIN,
                "wait for addresses to cool down, or give the node a larger pod range",
            ),
            AttachError::Address(
                IpamError::OutOfRange { .. }
                | IpamError::Reserved(_)
                | IpamError::InUse(_)
                | IpamError::TwoOfAFamily(_),
            ) => (
                code::INVALID_CONFIG,
                "ask for another address, or for none and take what comes",
            ),
            AttachError::Store(_) | AttachError::Clock(_) | AttachError::Gc { .. } => {
                (code::IO, "see the log of fabric-node")
            }
            AttachError::Interface { .. } => (
                code::IO,
                "check /dev/net/tun and the capabilities of fabric-node (`fabric doctor`)",
            ),
            AttachError::Fabric(_) => (code::TRY_AGAIN, "see the log of fabric-node"),
            AttachError::Differs(_) => (
                code::CHECK_FAILED,
                "restart the pod: its network is not what ADD made",
            ),
            AttachError::NotReady {
                pods_affected: true,
                ..
            } => (code::LIMITED, "see `fabric status`"),
            AttachError::NotReady { .. } => (code::NOT_AVAILABLE, "see `fabric status`"),
        };
        Self {
            code,
            msg: error.to_string(),
            details: details.to_owned(),
        }
    }
}
