//! The only place that wires and spawns.
//!
//! In order: configuration, the first desired state and the identity, the data plane, `fabric0`, the pods
//! that were attached before, the sockets, and then whatever changes until a signal comes. On SIGTERM
//! and SIGINT pods keep their devices; their traffic waits for the next daemon.

mod follow;
mod identity;
mod kubernetes;
mod source;
mod waiting;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use fabric_core::ids::PortId;
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};

use self::{
    identity::{follow_files, load_files},
    source::{Begun, Following},
};
use crate::{
    admin::{
        metrics::{self, MetricsListener},
        server as admin_server,
        view::{NodeView, SourceContact},
    },
    cli::install::write_list,
    cni::{
        attach::{Attacher, Fabric as _},
        conflist,
        links::KernelLinks,
        roots::NetnsRoots,
        server::CniServer,
    },
    config::{self, NodeConfig, SourceConfig},
    control::{
        desired::{DesiredState, NodeSpec},
        file, host,
        in_force::InForce,
        last_good::LastGood,
        outside::Outside,
    },
    dataplane::Dataplane,
    offloads,
    pki::{LiveIdentity, follow::IdentityWatch},
    signals::terminated,
    sys::{
        sysctl::Sysctl,
        tun::{Tun, TunOffloads},
    },
    tunnel::{
        endpoint::EndpointContext,
        secrets::Secrets,
        transport::{Congestion, TunnelSettings},
    },
};

/// Threads of the control plane's runtime; the data plane has its own.
const CONTROL_THREADS: usize = 2;
/// How often the data-plane threads are looked after.
const WORKER_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How often attachments are compared with the namespaces that exist.
///
/// A namespace counts as gone when two looks in a row found it gone, so what lost its namespace
/// without a DEL is free again after two intervals at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3);

/// Runs a node until a signal ends it.
///
/// # Errors
///
/// Whatever keeps the node from starting; the message says what to mend.
pub fn run(config: NodeConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("fabric-control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    make_folders(&config)?;
    let last_good = LastGood::new(&config.state_dir);
    let contact = Arc::new(SourceContact::default());
    let Some((source, begun)) = source::open(&config, &runtime, &last_good, &contact)? else {
        return Ok(());
    };
    // Netlink and namespaces block, so the node is put together outside the runtime.
    let node = Node::start(&config, begun, contact)?;
    let source = source.follow(&node, last_good)?;
    runtime.block_on(node.serve(&config, source))
}

/// Reads everything that a start would read, and changes nothing.
///
/// # Errors
///
/// The first thing that would keep the node from starting.
pub fn check(config: &NodeConfig) -> anyhow::Result<()> {
    match &config.source {
        SourceConfig::File { path } => {
            load_files(config)?;
            local_node(config, &file::read_directory(path)?).map(drop)
        }
        // Whether the API server answers is for the running daemon to find out, again and again.
        SourceConfig::Kubernetes(kubernetes) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?
            .block_on(async {
                kubernetes::access(config, kubernetes).await?.client()?;
                Ok(())
            }),
    }
}

struct Node {
    in_force: Arc<InForce>,
    desired: DesiredState,
    identity: Arc<LiveIdentity>,
    wanted: TunOffloads,
    attacher: Arc<Attacher>,
    contact: Arc<SourceContact>,
    /// Ends when it is dropped.
    _identity_watch: Option<IdentityWatch>,
}

impl Node {
    fn start(
        config: &NodeConfig,
        begun: Begun,
        contact: Arc<SourceContact>,
    ) -> anyhow::Result<Self> {
        let Begun { desired, identity } = begun;
        let dataplane = Arc::new(start_dataplane(config, identity.clone(), &desired)?);
        let wanted = offloads::of_devices(config.dataplane.offloads);
        let sysctl = Sysctl::at(&config.host.proc_sys);
        let host_tun = Arc::new(host::open(wanted, &sysctl)?);
        log_offloads(wanted, &host_tun, &dataplane);
        let in_force = InForce::new(config.node.clone(), dataplane.clone(), host_tun.clone())
            .with_identity(identity.clone())
            .with_outside(Outside::begin(config.outside, &config.host)?);
        let in_force = Arc::new(in_force);
        in_force.set_desired(desired.clone())?;
        in_force.restore_detours();
        dataplane.open_port(PortId::HOST, host_tun)?;
        let links =
            KernelLinks::new(wanted, NetnsRoots::new(&config.cni.netns_roots))?.with_sysctl(sysctl);
        let attacher = Arc::new(Attacher::open(&config.state_dir, in_force.clone(), links)?);
        attacher.restore();
        let identity_watch = follow_files(config, &identity, &in_force)?;
        Ok(Self {
            in_force,
            desired,
            identity,
            wanted,
            attacher,
            contact,
            _identity_watch: identity_watch,
        })
    }

    async fn serve(self, config: &NodeConfig, source: Following) -> anyhow::Result<()> {
        let (stop, stopped) = watch::channel(false);
        let listener = admin_server::AdminListener::bind(&config.admin.socket)?;
        let view = NodeView::new(
            self.in_force.clone(),
            self.wanted,
            self.attacher.add_times(),
        );
        let view = Arc::new(view.with_contact(self.contact));
        let mut servers = JoinSet::new();
        if let Some(address) = config.metrics.listen {
            let listener = MetricsListener::bind(address)?;
            tracing::info!(%address, "health and metrics");
            let served = metrics::serve(listener, view.clone(), until(stopped.clone()));
            servers.spawn(async {
                served.await;
                Ok(())
            });
        }
        let admin = admin_server::serve(listener, view, until(stopped.clone()));
        servers.spawn(async { admin.await.context("the admin socket") });
        let cni = serve_cni(
            CniServer::bind(&config.cni.socket)?,
            self.attacher,
            self.in_force.clone(),
            stopped.clone(),
        );
        let list = write_list_when_ready(config, self.in_force.clone(), stopped.clone());
        servers.spawn(async {
            list.await;
            Ok(())
        });
        servers.spawn(async {
            cni.await;
            Ok(())
        });
        let _watch = match source {
            Following::File(watch) => Some(watch),
            Following::Kubernetes(cluster) => {
                servers.spawn(cluster.run(stopped));
                None
            }
        };
        tracing::info!(node = %config.node, admin = %config.admin.socket.display(), cni = %config.cni.socket.display(), "ready");
        // A node that has lost a part of itself ends, so that whoever supervises it starts it anew.
        let end = tokio::select! {
            signal = terminated() => signal.map(|signal| tracing::info!(signal, "stopping")),
            () = workers_ended(&self.in_force) => Err(anyhow::anyhow!("a data-plane worker has ended")),
            Some(ended) = servers.join_next() => ended?.and(Err(anyhow::anyhow!("a socket or the state source is no longer served"))),
        };
        let _ = stop.send(true);
        while let Some(ended) = servers.join_next().await {
            ended??;
        }
        self.in_force.dataplane().shut_down();
        if self.in_force.attached().is_empty() {
            tokio::task::spawn_blocking(host::remove)
                .await?
                .context("removing fabric0")?;
        } else {
            tracing::info!(
                "pods keep their devices and fabric0 its routes; the next start takes them over"
            );
        }
        end
    }
}

/// Returns once a data-plane thread is no longer there.
async fn workers_ended(in_force: &InForce) {
    let mut interval = tokio::time::interval(WORKER_CHECK_INTERVAL);
    while in_force.dataplane().is_running() {
        interval.tick().await;
    }
}

/// Answers the plugin, and from time to time frees what lost its namespace and mends the host's
/// device, until told to stop.
async fn serve_cni(
    server: CniServer,
    attacher: Arc<Attacher>,
    in_force: Arc<InForce>,
    stopped: watch::Receiver<bool>,
) {
    let sweeps = async {
        // The first tick is at once: a DEL that the plugin kept on disk after the start had read
        // them, and before the socket was there, is carried out now.
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let (attacher, in_force) = (attacher.clone(), in_force.clone());
            let sweep = move || {
                in_force.mend_host();
                attacher.sweep()
            };
            match tokio::task::spawn_blocking(sweep).await {
                Ok(report) => tracing::debug!(?report, "swept"),
                Err(error) => tracing::error!(%error, "sweeping attachments"),
            }
        }
    };
    tokio::select! {
        () = server.serve(attacher.clone()) => {}
        () = sweeps => {}
        () = until(stopped) => {}
    }
}

/// Tells runtimes that pods can be attached, if that is the daemon's to do, and waits until told to stop.
fn write_list_when_ready(
    config: &NodeConfig,
    in_force: Arc<InForce>,
    stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    let (socket, state_dir) = (config.cni.socket.clone(), config.state_dir.clone());
    let dir = config.cni.conflist_dir.clone();
    async move {
        let written = async {
            if let Some(dir) = dir {
                let write = move || write_list(&dir, &socket, &state_dir);
                conflist::write_when_ready(|| in_force.ready().err(), write).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = written => {}
            () = until(stopped) => {}
        }
    }
}

fn start_dataplane(
    config: &NodeConfig,
    identity: Arc<LiveIdentity>,
    desired: &DesiredState,
) -> anyhow::Result<Dataplane> {
    let local = local_node(config, desired)?;
    let underlay: Vec<SocketAddr> = local.underlay.clone();
    let context = EndpointContext {
        node: config.node.clone(),
        identity,
        worker: 0,
        workers: config.dataplane.worker_count(),
        boot_id: boot_id()?,
        underlay_mtu: host::underlay_mtu(&underlay)?,
        settings: TunnelSettings {
            congestion: match config.tunnel.congestion {
                config::Congestion::Cubic => Congestion::Cubic,
                config::Congestion::Bbr => Congestion::Bbr,
            },
            idle_timeout: config.tunnel.idle_timeout(),
            keep_alive: config.tunnel.keep_alive(),
            reconnect_max: config.tunnel.reconnect_max(),
            offloads: offloads::of_sockets(config.dataplane.offloads),
        },
        secrets: Secrets::load_or_create(&config.state_dir)?,
    };
    tracing::info!(workers = context.workers, underlay = ?underlay, underlay_mtu = context.underlay_mtu, "starting the data plane");
    Dataplane::start(&context, &underlay)
}

fn local_node<'a>(config: &NodeConfig, desired: &'a DesiredState) -> anyhow::Result<&'a NodeSpec> {
    desired.nodes.get(&config.node).with_context(|| {
        format!(
            "node {} is not in the desired state: add it to the state source, or correct `node` in the configuration",
            config.node
        )
    })
}

fn make_folders(config: &NodeConfig) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    for dir in [&config.state_dir, &config.run_dir] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(())
}

/// Says once what the kernel gave. Pods' devices get the same as the host's: the kernel is the same.
fn log_offloads(wanted: TunOffloads, host_tun: &Tun, dataplane: &Dataplane) {
    let (device, sockets) = (host_tun.offloads(), dataplane.offloads());
    let in_use = [
        offloads::device_names(device),
        offloads::socket_names(sockets),
    ]
    .concat()
    .join(",");
    tracing::info!(device = host::HOST_DEVICE, in_use, "offloads");
    for lacking in offloads::lacking(wanted, (device, host_tun.refused_offloads()), sockets) {
        tracing::info!(
            offload = lacking.name,
            reason = lacking.reason,
            "offload not in use"
        );
    }
}

fn boot_id() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("no randomness"))?;
    Ok(u64::from_ne_bytes(bytes))
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // The sender lives until after the signal; its end means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
