//! The daemon in a Kubernetes cluster: the state source, what it needs of the node, and the beginning,
//! which may be a long time coming.

use std::{
    net::UdpSocket,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use kube::Client;
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};

use super::{follow::Target, identity::load_files, source::Begun, until, waiting};
use crate::{
    cni::attach::Fabric as _,
    config::{IdentityKind, KubernetesConfig, NodeConfig},
    control::{
        desired::{DesiredState, NodeSpec},
        in_force::InForce,
        kubernetes::{
            Inputs, KubernetesSource, Outputs, SourceStatus,
            candidates::{Candidates, from_environment},
            client::Access,
            own::{Health, Settings},
        },
        last_good::LastGood,
    },
    pki::{LiveIdentity, key::KeyHash, kubernetes::Enrollment, spiffe::TrustDomain},
};

/// How often the node's health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// How long after a state was refused it is tried again: pods whose addresses contradict it may have
/// gone.
const RETRY: Duration = Duration::from_secs(5);
/// Folder of keys and certificates below the state directory.
const IDENTITY_DIR: &str = "identity";

/// The cluster, as seen from this node.
pub(super) struct Cluster {
    outputs: Outputs,
    keys: watch::Sender<Vec<KeyHash>>,
    health: watch::Sender<Option<Health>>,
    /// The last good state, if this node can begin with it.
    known: Option<DesiredState>,
    /// The way to certificates, where the cluster gives them.
    enrollment: Option<Enrollment>,
    /// The source and what keeps the identity valid; they end when this is dropped.
    tasks: JoinSet<()>,
}

/// The same, once there is a node to put states in force; to be run.
pub(super) struct Followed {
    cluster: Cluster,
    identity: Arc<LiveIdentity>,
    target: Target,
}

/// What the API server is asked with, and where it is looked for.
///
/// # Errors
///
/// The credentials are not there or cannot be used.
pub(super) async fn access(
    config: &NodeConfig,
    kubernetes: &KubernetesConfig,
) -> anyhow::Result<Access> {
    let access = match &kubernetes.kubeconfig {
        Some(path) => Access::of_kubeconfig(path).await?,
        None => {
            let environment = from_environment(
                std::env::var("KUBERNETES_SERVICE_HOST").ok(),
                std::env::var("KUBERNETES_SERVICE_PORT").ok(),
            );
            let candidates = Candidates::new(&config.state_dir, &kubernetes.host_root, environment);
            Access::of_service_account(&kubernetes.service_account, candidates)?
        }
    };
    Ok(access)
}

impl Cluster {
    /// Begins to watch the cluster. It may be away.
    ///
    /// # Errors
    ///
    /// There is nothing to ask it with, or no place to keep keys.
    pub(super) async fn open(
        config: &NodeConfig,
        kubernetes: &KubernetesConfig,
        last_good: &LastGood,
    ) -> anyhow::Result<Self> {
        let access = access(config, kubernetes).await?;
        let client = access.client()?;
        let settings = Settings {
            node: config.node.clone(),
            port: kubernetes.port,
            underlay: kubernetes.underlay.clone(),
            host_addresses: kubernetes.host_addresses.clone(),
            startup_taint: kubernetes.startup_taint.clone(),
        };
        let known = known(config, last_good);
        let enrollment = enrollment(config, client.clone())?;
        let (keys, keys_out) = watch::channel(Vec::new());
        let (health, health_out) = watch::channel(None);
        let inputs = Inputs {
            keys: keys_out,
            health: health_out,
        };
        let (source, outputs) = KubernetesSource::new(
            client,
            access.candidates(),
            settings,
            inputs,
            known.clone().unwrap_or_default(),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(source.run());
        Ok(Self {
            outputs,
            keys,
            health,
            known,
            enrollment,
            tasks,
        })
    }

    /// What to begin with: the last good state, else what the API server says, and the identity on disk,
    /// else a new one, however long that takes; the sockets answer meanwhile.
    ///
    /// # Errors
    ///
    /// A socket cannot be opened, the source has ended, or the identity's files cannot be used.
    pub(super) async fn begin(&self, config: &NodeConfig) -> anyhow::Result<Begun> {
        let no_certificate = Arc::new(Mutex::new(None));
        let status = self.outputs.status.clone();
        let noted = no_certificate.clone();
        let reason = move || waiting_for(&status.borrow(), &noted);
        let both = async {
            let identity = self.identity(config, &no_certificate);
            let (desired, identity) = tokio::try_join!(self.first_state(), identity)?;
            Ok(Begun { desired, identity })
        };
        let mut both = pin!(both);
        // What is there already needs no sockets to say that it is waited for.
        tokio::select! {
            biased;
            begun = &mut both => return begun,
            () = tokio::task::yield_now() => {}
        }
        tracing::info!(
            "waiting for the cluster to show this node's Node, the FabricNodes and a certificate"
        );
        tokio::select! {
            begun = both => begun,
            ended = waiting::answer(config, Arc::new(reason)) => {
                ended.and_then(|()| anyhow::bail!("the sockets are no longer served"))
            }
        }
    }

    async fn first_state(&self) -> anyhow::Result<DesiredState> {
        if let Some(known) = &self.known {
            return Ok(known.clone());
        }
        let mut desired = self.outputs.desired.clone();
        let first = desired.wait_for(Option::is_some).await;
        let first = first.context("the state source has ended")?.clone();
        first.context("the state source said nothing")
    }

    async fn identity(
        &self,
        config: &NodeConfig,
        no_certificate: &Mutex<Option<String>>,
    ) -> anyhow::Result<Arc<LiveIdentity>> {
        let identity = match &self.enrollment {
            None => load_files(config)?,
            Some(enrollment) => {
                let note = |error: &_| {
                    let mut noted = no_certificate
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    *noted = Some(format!("{error}"));
                };
                enrollment.first(note).await
            }
        };
        let identity = LiveIdentity::of(identity);
        self.keys.send_replace(identity.keys());
        Ok(identity)
    }

    /// Keeps the identity valid from now on.
    pub(super) fn follow(mut self, identity: Arc<LiveIdentity>, target: Target) -> Followed {
        if let Some(enrollment) = self.enrollment.clone() {
            let identity = identity.clone();
            self.tasks
                .spawn(async move { enrollment.keep(identity).await });
        }
        Followed {
            cluster: self,
            identity,
            target,
        }
    }
}

impl Followed {
    /// Puts every further state in force, tells the source how the node is and by which keys peers know
    /// it, until stopped.
    ///
    /// # Errors
    ///
    /// The source has ended, or this node's addresses are others now: a daemon that is started anew
    /// listens on them.
    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut health = tokio::time::interval(HEALTH_INTERVAL);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut desired = self.cluster.outputs.desired.clone();
        desired.mark_changed();
        let mut identities = self.identity.subscribe();
        let mut stopped = pin!(until(stopped));
        loop {
            tokio::select! {
                () = &mut stopped => return Ok(()),
                _ = self.cluster.tasks.join_next() => anyhow::bail!("the state source has ended"),
                _ = health.tick() => self.tell_health(),
                changed = identities.changed() => {
                    changed.context("the identity is gone")?;
                    self.tell_keys();
                }
                changed = desired.changed() => {
                    changed.context("the state source has ended")?;
                    let Some(next) = desired.borrow_and_update().clone() else { continue };
                    if let Some(spec) = next.nodes.get(self.target.in_force.local()) {
                        self.identity.note_published(&spec.identity_keys);
                    }
                    if next == self.target.in_force.desired() {
                        continue;
                    }
                    if !put(&self.target, next).await? {
                        tokio::time::sleep(RETRY).await;
                        desired.mark_changed();
                    }
                }
            }
        }
    }

    fn tell_keys(&self) {
        // The data plane begins new connections with the identity that is in use now.
        self.target.in_force.dataplane().wake();
        let now = self.identity.keys();
        self.cluster.keys.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    fn tell_health(&self) {
        let status = self.cluster.outputs.status.borrow();
        if status.waiting_for.is_none() && status.troubles.is_empty() {
            self.target.contact.confirm(SystemTime::now());
        }
        let now = Some(health(&self.target.in_force));
        self.cluster.health.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn health(in_force: &InForce) -> Health {
    let ready = in_force.ready();
    let problems = in_force.problems();
    let message = match (&ready, problems.is_empty()) {
        (Err(obstacle), true) => obstacle.clone(),
        (_, false) => problems.join("; "),
        (Ok(()), true) => "pods can be attached".to_owned(),
    };
    Health {
        ready: ready.is_ok(),
        message,
    }
}

/// The way to certificates, where the cluster gives them.
fn enrollment(config: &NodeConfig, client: Client) -> anyhow::Result<Option<Enrollment>> {
    let identity = &config.identity;
    if identity.kind == IdentityKind::Files {
        return Ok(None);
    }
    let lifetime = Duration::from_secs(u64::from(identity.lifetime_hours) * 3600);
    let enrollment = Enrollment::new(
        client,
        config.node.clone(),
        TrustDomain::new(&identity.trust_domain)?,
        &identity.namespace,
        &config.state_dir.join(IDENTITY_DIR),
        lifetime,
    )?;
    Ok(Some(enrollment))
}

/// False if the state was refused.
async fn put(target: &Target, next: DesiredState) -> anyhow::Result<bool> {
    let in_force = &target.in_force;
    let underlay = |spec: Option<&NodeSpec>| spec.map(|spec| spec.underlay.clone());
    let moved =
        underlay(in_force.local_spec().as_ref()) != underlay(next.nodes.get(in_force.local()));
    if moved {
        target.last_good.save(&next, SystemTime::now())?;
        anyhow::bail!(
            "this node's underlay addresses have changed: the daemon ends, to listen on the new ones when it is started again"
        );
    }
    let target = target.clone();
    let applied = tokio::task::spawn_blocking(move || target.apply(next));
    applied.await.context("putting a state in force")
}

fn waiting_for(status: &SourceStatus, no_certificate: &Mutex<Option<String>>) -> String {
    let no_certificate = no_certificate
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match (&status.waiting_for, &*no_certificate) {
        (Some(reason), _) => format!("this node has no state yet: {reason}"),
        (None, Some(reason)) => format!("this node has no certificate yet: {reason}"),
        (None, None) => "the data plane is being started".to_owned(),
    }
}

/// The last good state, where this node can still begin with it.
fn known(config: &NodeConfig, last_good: &LastGood) -> Option<DesiredState> {
    let saved = match last_good.load() {
        Ok(saved) => saved?,
        Err(error) => {
            tracing::error!(%error, "there is no last good state to begin with; the API server is waited for");
            return None;
        }
    };
    let local = saved.state.nodes.get(&config.node)?;
    let lost = local
        .underlay
        .iter()
        .find(|address| UdpSocket::bind((address.ip(), 0)).is_err());
    if let Some(address) = lost {
        tracing::warn!(address = %address.ip(), "the last good state is of a time when this node had another address; the API server is waited for");
        return None;
    }
    tracing::info!(
        nodes = saved.state.nodes.len(),
        age = saved.age(SystemTime::now()),
        "beginning with the last good state, until the API server shows another"
    );
    Some(saved.state)
}
