//! Data planes in one process: real TUN devices, real QUIC, real sockets in the pods. Needs root.
//!
//! Node `n` owns 10.`n+1`.0.0/16 and fd00:`n+1`::/32, its pod has the address ending in 2. A stranger
//! is a node that all others know, but that the test plays itself; its number comes after theirs.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses its part, and a harness that fails fails its test"
)]

pub mod hostile;
pub mod one_rogue;
pub mod rogue;
pub mod traffic;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use fabric_core::{
    ids::{Generation, PeerId, PortId},
    snapshot::SnapshotBuilder,
};
use fabric_node::{
    dataplane::{
        Dataplane,
        published::{Ports, Published},
    },
    node_id::NodeId,
    pki::{self, LiveIdentity, NodeIdentity},
    sys::{
        netlink::{LinkSettings, Netlink, RouteSpec, enable_ipv6},
        netns::Netns,
        tun::{Tun, TunOffloads},
    },
    tunnel::membership::PeerTarget,
    tunnel::{
        endpoint::EndpointContext,
        membership::{Peer, PeerShared},
        report::{PeerReport, PeerState},
        secrets::Secrets,
        transport::{Congestion, TunnelSettings},
    },
};
use ipnet::IpNet;

/// UDP port of worker 0 of every node.
pub const UNDERLAY_PORT: u16 = 7946;
/// How long anything may take that the tests wait for.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Port of each node's pod.
pub const POD_PORT: PortId = PortId(1);
/// Port of the device that [`Plan::adopted`] gives to node 0.
pub const ADOPTED_PORT: PortId = PortId(2);
/// Last number of the addresses behind [`ADOPTED_PORT`].
pub const ADOPTED_HOST: u8 = 99;

/// What the underlay is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// A namespace for each of two nodes, joined by a veth pair.
    Veth,
    /// One namespace, an address on its loopback for each of any number of nodes.
    Loopback,
}

/// What to start.
pub struct Plan {
    pub wire: Wire,
    pub offloads: TunOffloads,
    /// Workers of each node.
    pub workers: Vec<u32>,
    /// Nodes known to all others that the test plays itself.
    pub strangers: Vec<&'static str>,
    pub idle_timeout: Duration,
    /// A further port of node 0.
    pub adopted: Option<Tun>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            wire: Wire::Veth,
            offloads: TunOffloads::ALL,
            workers: vec![1, 1],
            strangers: Vec::new(),
            idle_timeout: Duration::from_secs(5),
            adopted: None,
        }
    }
}

pub struct Node {
    pub pod: Netns,
    pub host: Arc<Netns>,
    pub dataplane: Dataplane,
}

pub struct Fabric {
    pub nodes: Vec<Node>,
    pub authority: pki::Authority,
    boot_id: u64,
    workers: Vec<u32>,
    strangers: Vec<&'static str>,
}

/// Name of a node that the harness runs.
pub fn node_name(node: usize) -> NodeId {
    NodeId::new(["worker-a", "worker-b", "worker-c"][node]).unwrap()
}

/// Address of the pod of `node` (or, with another `host` than 2, of another pod there).
pub fn pod_address(node: usize, host: u8, ipv6: bool) -> IpAddr {
    let number = u8::try_from(node + 1).unwrap();
    if ipv6 {
        Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(10, number, 0, host).into()
    }
}

/// Address of `node` on the underlay.
pub fn underlay(node: usize) -> SocketAddr {
    let host = u8::try_from(node + 1).unwrap();
    SocketAddr::new(Ipv4Addr::new(10, 90, 0, host).into(), UNDERLAY_PORT)
}

fn ranges(node: usize) -> Vec<IpNet> {
    [(false, 16), (true, 32)]
        .map(|(ipv6, len)| IpNet::new(pod_address(node, 0, ipv6), len).unwrap().trunc())
        .to_vec()
}

impl Fabric {
    /// Starts all nodes and waits until they are connected.
    pub fn start(plan: Plan) -> Self {
        let fabric = Self::start_apart(plan);
        fabric.wait_connected();
        fabric
    }

    /// Starts all nodes.
    pub fn start_apart(plan: Plan) -> Self {
        let Plan {
            wire,
            offloads,
            workers,
            strangers,
            idle_timeout,
            adopted,
        } = plan;
        let hosts = make_wire(wire, workers.len(), strangers.len());
        let mut fabric = Self {
            nodes: Vec::new(),
            authority: pki::init("test", 1).unwrap(),
            boot_id: 1,
            workers,
            strangers,
        };
        let mut adopted = adopted.map(Arc::new);
        for (index, host) in hosts.into_iter().enumerate() {
            let node = fabric.start_node(index, host, offloads, idle_timeout, adopted.take());
            fabric.nodes.push(node);
        }
        fabric
    }

    fn start_node(
        &self,
        index: usize,
        host: Arc<Netns>,
        offloads: TunOffloads,
        idle_timeout: Duration,
        adopted: Option<Arc<Tun>>,
    ) -> Node {
        let context = context(
            node_name(index),
            self.identity(&node_name(index)),
            self.workers[index],
            self.boot_id + index as u64,
            idle_timeout,
        );
        let dataplane = host
            .run(|| Dataplane::start(&context, &[underlay(index)]).unwrap())
            .unwrap();
        let (pod, tun) = make_pod(index, offloads);
        let mut ports = vec![(POD_PORT, 2, Arc::new(tun))];
        ports.extend(adopted.map(|tun| (ADOPTED_PORT, ADOPTED_HOST, tun)));
        dataplane.publish(self.state(index, &ports));
        for (id, _, tun) in ports {
            dataplane.open_port(id, tun).unwrap();
        }
        Node {
            pod,
            host,
            dataplane,
        }
    }

    fn state(&self, index: usize, ports: &[(PortId, u8, Arc<Tun>)]) -> Published {
        let others: Vec<(usize, NodeId)> = (0..self.workers.len() + self.strangers.len())
            .filter(|other| *other != index)
            .map(|other| (other, self.name(other)))
            .collect();
        let peer_id = |other: usize| PeerId(u32::try_from(other).unwrap());
        let gateway = |ipv6| pod_address(index, 1, ipv6);
        let (IpAddr::V4(gateway_v4), IpAddr::V6(gateway_v6)) = (gateway(false), gateway(true))
        else {
            panic!("families")
        };
        let snapshot = SnapshotBuilder {
            generation: Generation(1),
            gateway_v4: Some(gateway_v4),
            gateway_v6: Some(gateway_v6),
            local_ranges: ranges(index),
            host_addresses: Vec::new(),
            pods: ports
                .iter()
                .map(|(id, host, _)| {
                    (
                        *id,
                        [false, true]
                            .map(|ipv6| pod_address(index, *host, ipv6))
                            .to_vec(),
                    )
                })
                .collect(),
            peers: others
                .iter()
                .map(|(other, _)| (peer_id(*other), ranges(*other)))
                .collect(),
            ..SnapshotBuilder::default()
        }
        .build()
        .unwrap();
        let peers = others
            .into_iter()
            .map(|(other, node)| Peer {
                target: PeerTarget {
                    id: peer_id(other),
                    node,
                    underlay: vec![underlay(other)],
                    keys: Vec::new(),
                },
                shared: Arc::new(PeerShared::default()),
            })
            .collect();
        let mut table = Ports::default();
        table.extend(ports.iter().map(|(id, _, tun)| (*id, tun.clone())));
        Published {
            snapshot,
            ports: table,
            peers,
        }
    }

    /// Name of a node or stranger.
    pub fn name(&self, index: usize) -> NodeId {
        match index.checked_sub(self.workers.len()) {
            Some(stranger) => NodeId::new(self.strangers[stranger]).unwrap(),
            None => node_name(index),
        }
    }

    /// A valid identity of this fabric.
    pub fn identity(&self, node: &NodeId) -> NodeIdentity {
        identity_of(&self.authority, node)
    }

    /// Waits until every node that runs is connected to every other that runs.
    pub fn wait_connected(&self) {
        let names: Vec<NodeId> = (0..self.nodes.len()).map(node_name).collect();
        self.wait_for("connections between all nodes", || {
            self.nodes.iter().enumerate().all(|(index, node)| {
                node.dataplane.reports().iter().all(|report| {
                    names.iter().enumerate().all(|(other, name)| {
                        other == index
                            || report.peers.iter().any(|peer| {
                                peer.node == *name && peer.state == PeerState::Connected
                            })
                    })
                })
            })
        });
    }

    /// Waits until `holds`, for [`PATIENCE`].
    pub fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.reports());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What `node` says of a peer, by its first worker.
    pub fn peer(&self, node: usize, peer: usize) -> Option<PeerReport> {
        let name = self.name(peer);
        let reports = self.nodes[node].dataplane.reports();
        reports[0].peers.iter().find(|p| p.node == name).cloned()
    }

    pub fn reports(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("{:?}", node.dataplane.reports()))
            .collect()
    }

    /// Every worker runs and every packet has one outcome.
    pub fn assert_conserved(&self) {
        for node in &self.nodes {
            assert!(node.dataplane.is_running(), "a worker has ended");
            let counters = node.dataplane.counters();
            assert!(counters.is_conserved(), "{counters:?}");
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.dataplane.shut_down();
        }
    }
}

/// Who an endpoint of worker 0 of `node` is.
pub fn context(
    node: NodeId,
    identity: NodeIdentity,
    workers: u32,
    boot_id: u64,
    idle_timeout: Duration,
) -> EndpointContext {
    EndpointContext {
        node,
        identity: LiveIdentity::of(identity),
        worker: 0,
        workers,
        boot_id,
        underlay_mtu: 1500,
        settings: TunnelSettings {
            congestion: Congestion::Cubic,
            idle_timeout,
            keep_alive: idle_timeout / 5,
            reconnect_max: Duration::from_secs(1),
            offloads: fabric_node::tunnel::socket::WantedOffloads::default(),
        },
        secrets: Secrets::random().unwrap(),
    }
}

/// A valid identity of `node` under `authority`.
pub fn identity_of(authority: &pki::Authority, node: &NodeId) -> NodeIdentity {
    let dir = tempfile::tempdir().unwrap();
    let credentials = pki::issue(authority, node, 1).unwrap();
    let [ca, certificate, key] = ["ca", "cert", "key"].map(|name| dir.path().join(name));
    std::fs::write(&ca, &credentials.ca_pem).unwrap();
    std::fs::write(&certificate, &credentials.chain_pem).unwrap();
    std::fs::write(&key, &credentials.key_pem).unwrap();
    NodeIdentity::load(&ca, &certificate, &key).unwrap()
}

fn make_wire(wire: Wire, nodes: usize, strangers: usize) -> Vec<Arc<Netns>> {
    match wire {
        Wire::Veth => {
            assert_eq!((nodes, strangers), (2, 0), "a veth pair has two ends");
            let hosts = [Netns::create().unwrap(), Netns::create().unwrap()];
            join(&hosts);
            hosts.map(Arc::new).to_vec()
        }
        Wire::Loopback => {
            let host = Arc::new(Netns::create().unwrap());
            host.run(|| {
                let netlink = Netlink::connect().unwrap();
                netlink.set_loopback_up().unwrap();
                let link = netlink.link("lo").unwrap().unwrap().index;
                // One more than there are nodes: an address of nobody.
                for node in 0..=nodes + strangers {
                    netlink
                        .add_address(link, underlay(node).ip().into())
                        .unwrap();
                }
            })
            .unwrap();
            vec![host; nodes]
        }
    }
}

fn join(hosts: &[Netns; 2]) {
    hosts[0]
        .run(|| {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("under0", "under1").unwrap();
            let other = netlink.link("under1").unwrap().unwrap().index;
            netlink.move_to_netns(other, &hosts[1]).unwrap();
        })
        .unwrap();
    for (index, host) in hosts.iter().enumerate() {
        host.run(|| {
            let netlink = Netlink::connect().unwrap();
            let link = netlink
                .link(&format!("under{index}"))
                .unwrap()
                .unwrap()
                .index;
            let address = IpNet::new(underlay(index).ip(), 24).unwrap();
            netlink.add_address(link, address).unwrap();
            set_link(&netlink, link, true);
        })
        .unwrap();
    }
}

/// Cuts the veth pair of [`Wire::Veth`], or mends it.
pub fn set_underlay(host: &Netns, index: usize, up: bool) {
    host.run(|| {
        let netlink = Netlink::connect().unwrap();
        let name = format!("under{index}");
        let link = netlink.link(&name).unwrap().unwrap().index;
        set_link(&netlink, link, up);
    })
    .unwrap();
}

fn set_link(netlink: &Netlink, link: u32, up: bool) {
    let settings = LinkSettings {
        up: Some(up),
        ..Default::default()
    };
    netlink.configure_link(link, settings).unwrap();
}

fn make_pod(index: usize, offloads: TunOffloads) -> (Netns, Tun) {
    let pod = Netns::create().unwrap();
    let tun = pod
        .run(|| {
            let tun = Tun::create("eth0", offloads).unwrap();
            let netlink = Netlink::connect().unwrap();
            netlink.set_loopback_up().unwrap();
            enable_ipv6("eth0").unwrap();
            let link = netlink.link("eth0").unwrap().unwrap().index;
            let settings = LinkSettings {
                mtu: Some(1500),
                ipv6_addr_gen_none: true,
                up: Some(true),
                ..Default::default()
            };
            netlink.configure_link(link, settings).unwrap();
            for ipv6 in [false, true] {
                let address = pod_address(index, 2, ipv6);
                netlink.add_address(link, address.into()).unwrap();
            }
            for destination in ["0.0.0.0/0", "::/0"] {
                let route = RouteSpec {
                    destination: destination.parse().unwrap(),
                    index: link,
                    source: None,
                    gateway: None,
                    mtu: None,
                };
                netlink.replace_route(&route).unwrap();
            }
            tun
        })
        .unwrap();
    (pod, tun)
}
