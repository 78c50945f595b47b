//! This node's identity where it is in files that somebody puts in place.

use std::sync::Arc;

use anyhow::Context as _;

use crate::{
    config::{IdentityKind, NodeConfig},
    control::in_force::InForce,
    pki::{
        LiveIdentity, NodeIdentity,
        files::NodeFiles,
        follow::{self, IdentityWatch},
    },
};

/// The identity in the files of the configuration.
///
/// # Errors
///
/// They hold none that can be used, or another node's.
pub(super) fn load_files(config: &NodeConfig) -> anyhow::Result<NodeIdentity> {
    anyhow::ensure!(
        config.identity.kind == IdentityKind::Files,
        "identity.kind = \"kubernetes\" goes with source.kind = \"kubernetes\": set both, or neither"
    );
    let files = &config.identity;
    let identity = NodeIdentity::load(&files.ca, &files.certificate, &files.key)?;
    anyhow::ensure!(
        *identity.node_id() == config.node,
        "the certificate {} is for node {}, but this node is {}: issue one with `fabric pki issue {}`",
        files.certificate.display(),
        identity.node_id(),
        config.node,
        config.node,
    );
    Ok(identity)
}

/// Takes new files of the identity into use; the data plane then makes new connections with it. None where
/// the identity is not in files.
///
/// # Errors
///
/// They cannot be followed.
pub(super) fn follow_files(
    config: &NodeConfig,
    identity: &Arc<LiveIdentity>,
    in_force: &Arc<InForce>,
) -> anyhow::Result<Option<IdentityWatch>> {
    if config.identity.kind != IdentityKind::Files {
        return Ok(None);
    }
    let files = NodeFiles {
        ca: config.identity.ca.clone(),
        certificate: config.identity.certificate.clone(),
        key: config.identity.key.clone(),
    };
    let in_force = in_force.clone();
    follow::follow(files, identity.clone(), move || in_force.dataplane().wake())
        .context("cannot follow the identity's files")
        .map(Some)
}
