//! Two data planes in one process, joined by a veth pair between two network namespaces: real TUN
//! devices, real QUIC, real sockets in the pods. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use fabric_core::{
    ids::{Generation, PeerId, PortId},
    snapshot::SnapshotBuilder,
    verdict::DropReason,
};
use fabric_node::{
    control::desired::{NodeId, PeerTarget},
    dataplane::{
        Dataplane,
        published::{Ports, Published},
    },
    pki::{self, NodeIdentity},
    sys::{
        netlink::{LinkSettings, Netlink, RouteSpec, enable_ipv6},
        netns::Netns,
        tun::{Tun, TunOffloads},
    },
    tunnel::{
        endpoint::EndpointContext,
        membership::{Peer, PeerShared},
        report::PeerState,
        secrets::Secrets,
        transport::{Congestion, TunnelSettings},
    },
};

const UNDERLAY: [&str; 2] = ["10.90.0.1", "10.90.0.2"];
const PODS: [[&str; 2]; 2] = [
    ["10.244.1.2", "fd44:0:0:1::2"],
    ["10.244.2.2", "fd44:0:0:2::2"],
];

struct Node {
    pod: Netns,
    dataplane: Dataplane,
    _host: Netns,
}

struct TwoNodes {
    nodes: Vec<Node>,
}

impl TwoNodes {
    fn start(offloads: TunOffloads, workers: [u32; 2]) -> Self {
        let authority = pki::init("test", 1).unwrap();
        let hosts = [Netns::create().unwrap(), Netns::create().unwrap()];
        join(&hosts);
        let shared: [Arc<PeerShared>; 2] = Default::default();
        let nodes = hosts
            .into_iter()
            .enumerate()
            .map(|(index, host)| {
                node(
                    index,
                    host,
                    &authority,
                    offloads,
                    workers[index],
                    &shared[index],
                )
            })
            .collect();
        let both = Self { nodes };
        both.wait_connected();
        both
    }

    fn wait_connected(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let connected = |node: &Node| {
            node.dataplane.reports().iter().all(|report| {
                report
                    .peers
                    .iter()
                    .any(|peer| peer.state == PeerState::Connected)
            })
        };
        while !self.nodes.iter().all(connected) {
            assert!(
                Instant::now() < deadline,
                "not connected: {:?}",
                self.reports()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn reports(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("{:?}", node.dataplane.reports()))
            .collect()
    }

    /// Waits until nothing is under way, then checks the accounts.
    fn assert_conserved(&self) {
        for node in &self.nodes {
            let counters = node.dataplane.counters();
            assert!(counters.is_conserved(), "{counters:?}");
            assert!(counters.received().packets > 0, "{counters:?}");
        }
    }
}

impl Drop for TwoNodes {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.dataplane.shut_down();
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
            let address = format!("{}/24", UNDERLAY[index]).parse().unwrap();
            netlink.add_address(link, address).unwrap();
            netlink
                .configure_link(
                    link,
                    LinkSettings {
                        up: Some(true),
                        ..Default::default()
                    },
                )
                .unwrap();
        })
        .unwrap();
    }
}

fn node(
    index: usize,
    host: Netns,
    authority: &pki::Authority,
    offloads: TunOffloads,
    workers: u32,
    shared: &Arc<PeerShared>,
) -> Node {
    let names = ["worker-a", "worker-b"].map(|name| NodeId::new(name).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let credentials = pki::issue(authority, &names[index], 1).unwrap();
    let [ca, certificate, key] = ["ca", "cert", "key"].map(|name| dir.path().join(name));
    std::fs::write(&ca, &credentials.ca_pem).unwrap();
    std::fs::write(&certificate, &credentials.chain_pem).unwrap();
    std::fs::write(&key, &credentials.key_pem).unwrap();
    let identity = Arc::new(NodeIdentity::load(&ca, &certificate, &key).unwrap());
    let context = EndpointContext {
        node: names[index].clone(),
        identity,
        worker: 0,
        workers,
        boot_id: index as u64 + 1,
        underlay_mtu: 1500,
        settings: TunnelSettings {
            congestion: Congestion::Cubic,
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(1),
        },
        secrets: Secrets::random().unwrap(),
    };
    let underlay = [SocketAddr::new(UNDERLAY[index].parse().unwrap(), 7946)];
    let dataplane = host
        .run(|| Dataplane::start(&context, &underlay).unwrap())
        .unwrap();
    let (pod, tun) = pod(index, offloads);
    let tun = Arc::new(tun);
    let other = 1 - index;
    let range = |n: usize| {
        vec![
            format!("10.244.{}.0/24", n + 1).parse().unwrap(),
            format!("fd44:0:0:{}::/64", n + 1).parse().unwrap(),
        ]
    };
    let snapshot = SnapshotBuilder {
        generation: Generation(1),
        gateway_v4: Some(format!("10.244.{}.1", index + 1).parse().unwrap()),
        gateway_v6: Some(format!("fd44:0:0:{}::1", index + 1).parse().unwrap()),
        local_ranges: range(index),
        host_addresses: Vec::new(),
        pods: vec![(
            PortId(1),
            PODS[index].map(|ip| ip.parse().unwrap()).to_vec(),
        )],
        peers: vec![(PeerId(1), range(other))],
    }
    .build()
    .unwrap();
    let mut ports = Ports::default();
    ports.insert(PortId(1), tun.clone());
    let target = PeerTarget {
        id: PeerId(1),
        node: names[other].clone(),
        underlay: vec![SocketAddr::new(UNDERLAY[other].parse().unwrap(), 7946)],
    };
    let peers = vec![Peer {
        target,
        shared: shared.clone(),
    }];
    dataplane.publish(Published {
        snapshot,
        ports,
        peers,
    });
    dataplane.open_port(PortId(1), tun).unwrap();
    Node {
        pod,
        dataplane,
        _host: host,
    }
}

fn pod(index: usize, offloads: TunOffloads) -> (Netns, Tun) {
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
            for address in PODS[index] {
                let address: IpAddr = address.parse().unwrap();
                netlink.add_address(link, address.into()).unwrap();
            }
            for destination in ["0.0.0.0/0", "::/0"] {
                let destination = destination.parse().unwrap();
                let route = RouteSpec {
                    destination,
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

/// Echoes every size over TCP and UDP between the pods, and checks who is seen.
fn echo_all(both: &TwoNodes) {
    for (client, server) in PODS[0].iter().zip(PODS[1]) {
        let server: IpAddr = server.parse().unwrap();
        let client: IpAddr = client.parse().unwrap();
        for size in [1, 1400, 8000, 60_000] {
            tcp_echo(both, server, client, size);
            udp_echo(both, server, client, size);
        }
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 31 % 251) as u8).collect()
}

fn tcp_echo(both: &TwoNodes, server: IpAddr, client: IpAddr, size: usize) {
    let listener = both.nodes[1]
        .pod
        .run(|| TcpListener::bind((server, 0)).unwrap())
        .unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), client);
            let mut data = vec![0; size];
            stream.read_exact(&mut data).unwrap();
            stream.write_all(&data).unwrap();
        });
        let timeout = Duration::from_secs(5);
        let mut stream = both.nodes[0]
            .pod
            .run(|| TcpStream::connect_timeout(&address, timeout).unwrap())
            .unwrap();
        stream.set_read_timeout(Some(timeout)).unwrap();
        let sent = pattern(size);
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; size];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, sent, "{size} bytes of TCP to {server}");
    });
}

fn udp_echo(both: &TwoNodes, server: IpAddr, client: IpAddr, size: usize) {
    let bind = |node: usize, ip: IpAddr| {
        let socket = both.nodes[node]
            .pod
            .run(|| UdpSocket::bind((ip, 0)).unwrap())
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    };
    let listener = bind(1, server);
    let sender = bind(0, client);
    let sent = pattern(size);
    sender
        .send_to(&sent, listener.local_addr().unwrap())
        .unwrap();
    let mut buffer = vec![0; 65_536];
    let (len, from) = listener
        .recv_from(&mut buffer)
        .unwrap_or_else(|e| panic!("{size} to {server}: {e}; {:?}", both.reports()));
    assert_eq!(from.ip(), client);
    listener.send_to(&buffer[..len], from).unwrap();
    let (len, from) = sender.recv_from(&mut buffer).unwrap();
    assert_eq!(from.ip(), server);
    assert_eq!(&buffer[..len], &sent[..], "{size} bytes of UDP to {server}");
}

/// Every size crosses between nodes over TCP and UDP, both families, with the sender's own address
/// seen, and the accounts hold.
#[test]
fn every_size_crosses() {
    let both = TwoNodes::start(TunOffloads::ALL, [1, 1]);
    echo_all(&both);
    both.assert_conserved();
}

/// The same without any offload of the TUN devices.
#[test]
fn every_size_crosses_without_offloads() {
    let both = TwoNodes::start(TunOffloads::NONE, [1, 1]);
    echo_all(&both);
    both.assert_conserved();
}

/// Nodes with different numbers of workers connect every worker and carry packets.
#[test]
fn workers_of_unequal_number_connect() {
    for workers in [[2, 1], [1, 3]] {
        let both = TwoNodes::start(TunOffloads::ALL, workers);
        echo_all(&both);
        both.assert_conserved();
    }
}

/// A pod that sends from an address that is not its own reaches nobody, and each packet is counted.
#[test]
fn spoofed_sources_are_dropped_and_counted() {
    let both = TwoNodes::start(TunOffloads::ALL, [1, 1]);
    let spoofer = both.nodes[0]
        .pod
        .run(|| {
            let netlink = Netlink::connect().unwrap();
            let link = netlink.link("eth0").unwrap().unwrap().index;
            netlink
                .add_address(link, "10.244.1.77/32".parse().unwrap())
                .unwrap();
            UdpSocket::bind("10.244.1.77:0").unwrap()
        })
        .unwrap();
    let dropped = || {
        both.nodes[0]
            .dataplane
            .counters()
            .dropped(DropReason::SourceNotAllowed)
    };
    let before = dropped();
    for _ in 0..100 {
        spoofer.send_to(b"spoofed", "10.244.2.2:9").unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while dropped() < before + 100 {
        assert!(
            Instant::now() < deadline,
            "only {} of 100 counted",
            dropped() - before
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    both.assert_conserved();
}
