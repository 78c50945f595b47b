//! Where states come from: opened before there is a node, followed once there is one.

use std::{path::Path, sync::Arc, time::SystemTime};

use tokio::runtime::Runtime;

use super::{
    Node, follow,
    identity::load_files,
    kubernetes::{Cluster, Followed},
};
use crate::{
    admin::view::SourceContact,
    config::{NodeConfig, SourceConfig},
    control::{
        desired::DesiredState,
        file::{self, FileWatch},
        last_good::LastGood,
    },
    pki::LiveIdentity,
    signals::terminated,
};

/// What a node begins with.
pub(super) struct Begun {
    /// The first state.
    pub(super) desired: DesiredState,
    /// Who it is.
    pub(super) identity: Arc<LiveIdentity>,
}

/// A source before there is a node to put its states in force.
pub(super) enum Source<'a> {
    /// A directory.
    File(&'a Path),
    /// The API of a cluster.
    Kubernetes(Box<Cluster>),
}

/// The same, once there is one.
pub(super) enum Following {
    /// Follows by itself, and ends when it is dropped.
    File(FileWatch),
    /// To be run.
    Kubernetes(Box<Followed>),
}

/// The source, and what to begin with. None if a signal came before there was that.
///
/// # Errors
///
/// There is nothing to begin with, and waiting would not help.
pub(super) fn open<'a>(
    config: &'a NodeConfig,
    runtime: &Runtime,
    last_good: &LastGood,
    contact: &SourceContact,
) -> anyhow::Result<Option<(Source<'a>, Begun)>> {
    match &config.source {
        SourceConfig::File { path } => {
            let identity = LiveIdentity::of(load_files(config)?);
            let read = file::read_directory(path);
            if read.is_ok() {
                contact.confirm(SystemTime::now());
            }
            let desired = last_good.begin_with(read, SystemTime::now())?;
            Ok(Some((Source::File(path), Begun { desired, identity })))
        }
        SourceConfig::Kubernetes(kubernetes) => runtime.block_on(async {
            let cluster = Box::new(Cluster::open(config, kubernetes, last_good).await?);
            tokio::select! {
                begun = cluster.begin(config) => Ok(Some((Source::Kubernetes(cluster), begun?))),
                signal = terminated() => {
                    tracing::info!(signal = signal?, "stopping");
                    Ok(None)
                }
            }
        }),
    }
}

impl Source<'_> {
    /// Puts every further state in force at `node`.
    ///
    /// # Errors
    ///
    /// The source cannot be followed.
    pub(super) fn follow(self, node: &Node, last_good: LastGood) -> anyhow::Result<Following> {
        let target = follow::Target {
            in_force: node.in_force.clone(),
            last_good,
            contact: node.contact.clone(),
        };
        match self {
            Self::File(path) => {
                follow::files(path, node.desired.clone(), target).map(Following::File)
            }
            Self::Kubernetes(cluster) => {
                let followed = cluster.follow(node.identity.clone(), target);
                Ok(Following::Kubernetes(Box::new(followed)))
            }
        }
    }
}
