//! `fabric-node signer`: gives the cluster's nodes their certificates.
//!
//! Comes in: CertificateSigningRequests, Nodes. Goes out: approvals, denials and certificates ([`requests`],
//! which asks [`decide`]); a CA that is made once ([`authority`]); the end of what a deleted Node has left
//! ([`nodes`]). Never done here: anything with packets.
//!
//! Any number of instances may run; the one that holds the Lease acts ([`lease`]). Each thing it does can be
//! begun by one instance and ended by another, or be done twice: every write names the version that it is
//! about.

pub mod authority;
pub mod decide;
pub mod health;
pub mod lease;
pub mod nodes;
pub mod requests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::{sync::watch, task::JoinSet};

use self::{authority::Keeper, decide::Policy, health::Health, lease::Election};
use crate::pki::spiffe::TrustDomain;

/// Name of the Lease.
pub const LEASE: &str = "fabric-signer";
/// Threads of the runtime: what is done waits for the API server almost always.
const THREADS: usize = 2;
/// After an error of the leader's work, it begins anew after this.
const RESTART_AFTER: Duration = Duration::from_secs(2);

/// How a signer is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its Secret, ConfigMap and Lease are, and the daemons' ServiceAccount.
    pub namespace: String,
    /// Name of the cluster in certificates.
    pub trust_domain: TrustDomain,
    /// Longest certificate that is given (seconds).
    pub lifetime_seconds_max: i64,
    /// Where `/healthz` and `/readyz` are answered.
    pub health: SocketAddr,
    /// Name of this instance, unlike any other's.
    pub identity: String,
}

/// Runs a signer until a signal ends it.
///
/// # Errors
///
/// Whatever keeps it from starting.
pub fn run(options: Options) -> anyhow::Result<()> {
    // More than one provider may be compiled in; this one is meant. A second call changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("fabric-signer")
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let client = Client::try_default().await.context(
        "no way to the API server: run in a pod with a ServiceAccount, or set KUBECONFIG",
    )?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &options.namespace);
    let (election, leading, answers) = Election::new(leases, LEASE, &options.identity);
    let health = Health::bind(options.health, answers)
        .await
        .with_context(|| {
            format!(
                "cannot answer on {}: choose another --health-address",
                options.health
            )
        })?;
    tracing::info!(
        identity = options.identity,
        namespace = options.namespace,
        trust_domain = %options.trust_domain,
        health = %options.health,
        "signer started"
    );
    let (stop, stopped) = watch::channel(false);
    let mut elected = JoinSet::new();
    elected.spawn(election.run(until(stopped)));
    let ended = tokio::select! {
        signal = crate::signals::terminated() => signal.map(|signal| tracing::info!(signal, "stopping")),
        () = act_while_leading(&client, &options, leading) => Ok(()),
        served = health.serve() => served.context("the health address"),
    };
    // The work has ended before the Lease is given back.
    let _ = stop.send(true);
    while let Some(ended) = elected.join_next().await {
        ended?;
    }
    ended
}

/// Acts whenever this instance leads, and stops at once when it does not.
async fn act_while_leading(client: &Client, options: &Options, mut leading: watch::Receiver<bool>) {
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            () = act(client, options) => {}
            // Its end is the election's, and so ours.
            _ = leading.wait_for(|leads| !*leads) => {}
        }
    }
}

/// The leader's work, begun anew after errors.
async fn act(client: &Client, options: &Options) {
    let keeper = loop {
        match Keeper::open(client, &options.namespace, &options.trust_domain).await {
            Ok(keeper) => break Arc::new(keeper),
            Err(error) => {
                tracing::error!(%error, "there is no CA to sign with");
                tokio::time::sleep(RESTART_AFTER).await;
            }
        }
    };
    let policy = Policy {
        namespace: options.namespace.clone(),
        trust_domain: options.trust_domain.clone(),
    };
    tokio::join!(
        keeper.keep(),
        requests::serve(client, keeper.clone(), policy, options.lifetime_seconds_max),
        requests::clean(client),
        nodes::follow(client),
    );
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // The sender lives until after the work; its end means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// A name for this instance: `name`, usually the pod's, and something that no other has.
///
/// # Errors
///
/// The system has no randomness to give.
pub fn instance_name(name: &str) -> anyhow::Result<String> {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(format!("{name}_{:08x}", u32::from_be_bytes(bytes)))
}
