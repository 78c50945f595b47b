//! A daemon that is connected to many peers and has nothing to do.
//!
//! The daemon is a real one, in a lab. Its peers are data planes of the product that run in this
//! process, in the namespace of the lab's other worker: each has an address, a certificate and a
//! connection of its own, and none of them knows the others.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use fabric_core::{
    ids::{Generation, PeerId},
    snapshot::SnapshotBuilder,
};
use fabric_node::{
    config::TunnelConfig,
    dataplane::{
        Dataplane,
        published::{Ports, Published},
    },
    lab::{
        Families, Lab, LabOptions, Worker, daemon,
        plan::{QUIC_PORT, underlay_network},
        ready,
        underlay::{WORKER_IFNAME, inside},
    },
    node_id::NodeId,
    pki::{
        Authority, LiveIdentity, NodeIdentity, authority,
        files::{Overwrite, load_authority, save_node},
    },
    sys::netlink::Netlink,
    tunnel::{
        endpoint::EndpointContext,
        membership::{Peer, PeerShared, PeerTarget},
        secrets::Secrets,
        transport::{Congestion, TunnelSettings},
    },
};
use ipnet::{IpNet, Ipv4Net};

use super::{
    Stage,
    figures::{Figure, Limit},
};
use crate::usage;

/// Peers of the daemon.
const PEERS: u8 = 64;
/// The last number of the first peer's address, and the third of its range: above those of the lab.
const FIRST_NUMBER: u8 = 100;
/// How long the daemon may settle once all are connected: path MTU discovery ends in that time.
const SETTLE: Duration = Duration::from_secs(5);
/// How long its idling is watched.
const WATCH: Duration = Duration::from_secs(30);
/// Validity of the peers' certificates.
const CERTIFICATE_DAYS: u32 = 1;
/// Most of one core (percent).
const CPU_PERCENT_MAX: f64 = 0.5;
/// Most memory (MiB).
const RSS_MIB_MAX: f64 = 64.0;

/// Connects the peers, waits, and reads what the daemon has used meanwhile.
///
/// # Errors
///
/// The lab cannot be built, or not all peers get connected.
pub fn measure(stage: &Stage) -> anyhow::Result<Vec<Figure>> {
    let options = LabOptions {
        families: Families::Ipv4,
        ..stage.lab(&[0, 0])
    };
    let mut lab = Lab::up_with(&options, &stage.progress, &stage.interrupt)?;
    let [measured, host] = lab.workers() else {
        anyhow::bail!("the lab has other workers than asked for")
    };
    let (measured, host) = (measured.clone(), host.clone());
    // Its namespace is where the peers are; it is none of them.
    lab.stop_daemon(&host.name)?;
    let nodes_dir = daemon::nodes_dir(lab.state());
    fs::remove_file(nodes_dir.join(format!("{}.toml", host.name)))?;
    stage.progress.step(&format!("connecting {PEERS} peers"));
    let unfinished = lab.state().folder.join("peers.unfinished");
    fs::write(&unfinished, nodes_text()?)?;
    fs::rename(&unfinished, nodes_dir.join("peers.toml"))?;
    let peers = Peers::start(&lab.state().folder.join("pki"), &measured, &host)?;
    ready::wait_peers(&measured, PEERS.into(), &stage.interrupt)?;
    stage.progress.step(&format!(
        "watching the daemon for {} s",
        WATCH.as_secs() + SETTLE.as_secs()
    ));
    thread::sleep(SETTLE);
    let pids = [measured.pid.context("the daemon has no process")?];
    usage::reset_peak_rss(&pids)?;
    let before = usage::cpu_seconds(&pids)?;
    thread::sleep(WATCH);
    let used = usage::cpu_seconds(&pids)? - before;
    let rss = usage::peak_rss_mib(&pids)?;
    // Idle is worth nothing if they had gone meanwhile.
    ready::wait_peers(&measured, PEERS.into(), &stage.interrupt)?;
    drop(peers);
    lab.down()?;
    let figure = |what: &str, value, unit, most| Figure {
        limit: Limit::Idle,
        what: format!("{PEERS} peers connected, idle: {what}"),
        value,
        unit,
        most: Some(most),
    };
    let share = used / WATCH.as_secs_f64() * 100.0;
    Ok(vec![
        figure("of a core", share, "%", CPU_PERCENT_MAX),
        figure("resident memory", rss, "MiB", RSS_MIB_MAX),
    ])
}

/// The data planes of all peers; their end closes their connections.
struct Peers(Vec<Dataplane>);

impl Peers {
    fn start(pki: &std::path::Path, measured: &Worker, host: &Worker) -> anyhow::Result<Self> {
        let authority = load_authority(pki)?;
        let folder = host.folder.join("peers");
        let mut peers = Self(Vec::new());
        for number in numbers() {
            let context = context(&authority, &folder, number)?;
            let dataplane = inside(&host.netns, || {
                let netlink = Netlink::connect()?;
                let link = netlink.link(WORKER_IFNAME)?.context("no underlay")?;
                let (address, prefix) = underlay_network(underlay(number).ip());
                netlink.add_address(link.index, IpNet::new(address, prefix)?)?;
                Dataplane::start(&context, &[underlay(number)])
            })?;
            dataplane.publish(state(number, measured)?);
            peers.0.push(dataplane);
        }
        Ok(peers)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.0.iter().for_each(Dataplane::shut_down);
    }
}

/// Who a peer is.
fn context(
    authority: &Authority,
    folder: &std::path::Path,
    number: u8,
) -> anyhow::Result<EndpointContext> {
    let node = node_id(number)?;
    let credentials = authority::issue(authority, &node, CERTIFICATE_DAYS)?;
    let files = save_node(&credentials, folder, Overwrite::No)?;
    let identity = NodeIdentity::load(&files.ca, &files.certificate, &files.key)?;
    let defaults = TunnelConfig::default();
    Ok(EndpointContext {
        node,
        identity: LiveIdentity::of(identity),
        worker: 0,
        workers: 1,
        boot_id: number.into(),
        underlay_mtu: 1500,
        settings: TunnelSettings {
            congestion: Congestion::default(),
            idle_timeout: defaults.idle_timeout(),
            keep_alive: defaults.keep_alive(),
            reconnect_max: defaults.reconnect_max(),
            offloads: fabric_node::tunnel::socket::WantedOffloads::default(),
        },
        secrets: Secrets::random()?,
    })
}

/// What a peer knows: itself and the daemon that is measured.
fn state(number: u8, measured: &Worker) -> anyhow::Result<Published> {
    let id = PeerId(0);
    let snapshot = SnapshotBuilder {
        generation: Generation(1),
        local_ranges: vec![range(number)?],
        peers: vec![(id, measured.pod_cidrs.clone())],
        ..SnapshotBuilder::default()
    }
    .build()?;
    let address = *measured
        .underlay_addresses
        .first()
        .context("no underlay address")?;
    let peer = Peer {
        target: PeerTarget {
            id,
            node: NodeId::new(&measured.name).map_err(anyhow::Error::msg)?,
            underlay: vec![SocketAddr::new(address, QUIC_PORT)],
            keys: Vec::new(),
        },
        shared: Arc::new(PeerShared::default()),
    };
    Ok(Published {
        snapshot,
        ports: Ports::default(),
        peers: vec![peer],
    })
}

/// What the daemon reads of all peers.
fn nodes_text() -> anyhow::Result<String> {
    numbers()
        .map(|number| {
            Ok(format!(
                "[[node]]\nid = \"{}\"\nunderlay = [\"{}\"]\npod_cidrs = [\"{}\"]\n",
                node_id(number)?,
                underlay(number),
                range(number)?
            ))
        })
        .collect()
}

fn numbers() -> impl Iterator<Item = u8> {
    (0..PEERS).map(|peer| FIRST_NUMBER + peer)
}

fn node_id(number: u8) -> anyhow::Result<NodeId> {
    NodeId::new(&format!("peer-{number}")).map_err(anyhow::Error::msg)
}

fn underlay(number: u8) -> SocketAddr {
    let address: IpAddr = Ipv4Addr::new(10, 90, 0, number).into();
    SocketAddr::new(address, QUIC_PORT)
}

fn range(number: u8) -> anyhow::Result<IpNet> {
    Ok(Ipv4Net::new(Ipv4Addr::new(10, 244, number, 0), 24)?.into())
}
