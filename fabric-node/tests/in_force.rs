//! The state in force, with a real host device in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fabric_core::{
    ids::{Generation, PortId},
    snapshot::SnapshotBuilder,
};
use fabric_node::{
    cni::attach::Fabric as _,
    control::{
        desired::{DesiredState, NodeSpec},
        host::{self, HOST_DEVICE},
        in_force::InForce,
    },
    dataplane::{
        Dataplane,
        published::{Ports, Published},
    },
    node_id::NodeId,
    pki::{self, LiveIdentity, NodeIdentity},
    sys::{
        netlink::{LinkSettings, Netlink},
        netns::Netns,
        sysctl::Sysctl,
        tun::{Tun, TunError, TunOffloads},
    },
    tunnel::{
        endpoint::EndpointContext,
        secrets::Secrets,
        transport::{Congestion, TunnelSettings},
    },
};

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A cluster of this node, "a", and of `others`; node n has 10.`n`.0.0/24.
fn cluster(others: &[&str]) -> DesiredState {
    let nodes = std::iter::once(&"a").chain(others).enumerate();
    let spec = |n: usize| NodeSpec {
        underlay: vec![format!("127.0.0.{}:7946", n + 1).parse().unwrap()],
        pod_cidrs: vec![format!("10.{}.0.0/24", n + 1).parse().unwrap()],
        host_addresses: Vec::new(),
        identity_keys: Vec::new(),
    };
    DesiredState {
        nodes: nodes.map(|(n, name)| (id(name), spec(n))).collect(),
    }
}

fn load(ca: &str, chain: &str, key: &str) -> NodeIdentity {
    let dir = tempfile::tempdir().unwrap();
    let [ca, chain, key] = [("ca", ca), ("chain", chain), ("key", key)].map(|(name, pem)| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    });
    NodeIdentity::load(&ca, &chain, &key).unwrap()
}

/// Starts node "a" in the calling thread's namespace.
fn start() -> InForce {
    let authority = pki::init("test", 1).unwrap();
    let credentials = pki::issue(&authority, &id("a"), 1).unwrap();
    let pems = [
        &credentials.ca_pem,
        &credentials.chain_pem,
        &credentials.key_pem,
    ];
    let [ca, chain, key] = pems.map(String::as_str);
    let context = EndpointContext {
        node: id("a"),
        identity: LiveIdentity::of(load(ca, chain, key)),
        worker: 0,
        workers: 1,
        boot_id: 1,
        underlay_mtu: 1500,
        settings: TunnelSettings {
            congestion: Congestion::Cubic,
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(1),
            offloads: fabric_node::tunnel::socket::WantedOffloads::default(),
        },
        secrets: Secrets::random().unwrap(),
    };
    Netlink::connect().unwrap().set_loopback_up().unwrap();
    let underlay = ["127.0.0.1:7946".parse().unwrap()];
    let dataplane = Arc::new(Dataplane::start(&context, &underlay).unwrap());
    let host_tun = Arc::new(host::open(TunOffloads::ALL, &Sysctl::default()).unwrap());
    InForce::new(id("a"), dataplane, host_tun)
}

fn in_a_namespace(test: impl FnOnce() + Send) {
    let namespace = Netns::create().unwrap();
    namespace.run(test).unwrap();
}

fn host_link() -> u32 {
    let netlink = Netlink::connect().unwrap();
    netlink.link(HOST_DEVICE).unwrap().unwrap().index
}

fn set_host_up(up: bool) {
    let settings = LinkSettings {
        up: Some(up),
        ..Default::default()
    };
    let netlink = Netlink::connect().unwrap();
    netlink.configure_link(host_link(), settings).unwrap();
}

fn host_route_exists(range: &str) -> bool {
    let routes = Netlink::connect().unwrap().routes(host_link()).unwrap();
    let range = range.parse().unwrap();
    routes.iter().any(|route| route.destination == range)
}

/// A host device that cannot be configured keeps no state from being in force: peers are there, the
/// node says what is wrong, pods can be attached, and once the cause is gone the device is mended.
#[test]
fn the_host_device_is_mended() {
    in_a_namespace(|| {
        let node = start();
        node.set_desired(cluster(&[])).unwrap();
        assert_eq!(node.problems(), [""; 0]);
        set_host_up(false);
        node.set_desired(cluster(&["b"])).unwrap();
        assert_eq!(node.dataplane().published().peers.len(), 1);
        assert_eq!(node.desired(), cluster(&["b"]));
        assert!(
            node.problems()[0].starts_with("fabric0: "),
            "{:?}",
            node.problems()
        );
        assert_eq!(node.ready(), Ok(()));
        node.mend_host();
        assert_eq!(node.problems().len(), 1);
        set_host_up(true);
        node.mend_host();
        assert_eq!(node.problems(), [""; 0]);
        assert!(host_route_exists("10.2.0.0/24"));
        node.dataplane().shut_down();
    });
}

/// A node whose certificate has expired is not ready for pods and says since when; until the last
/// second of it the node is in order.
#[test]
fn an_expired_certificate_is_a_problem() {
    in_a_namespace(|| {
        let identity = |seconds| {
            let authority = pki::init("test", 1).unwrap();
            let issued = pki::authority::issue_for_seconds(&authority, &id("a"), seconds).unwrap();
            LiveIdentity::of(load(&issued.ca_pem, &issued.chain_pem, &issued.key_pem))
        };
        let node = start().with_identity(identity(3_600));
        node.set_desired(cluster(&["b"])).unwrap();
        assert_eq!((node.ready(), node.problems().len()), (Ok(()), 0));
        let brief = identity(1);
        let node = node.with_identity(brief.clone());
        let until = brief.current().validity().not_after;
        while pki::validity::unix_now() <= until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let reason = node.ready().unwrap_err();
        assert!(reason.contains("certificate expired at 2"), "{reason}");
        assert_eq!(node.problems(), [reason]);
        node.dataplane().shut_down();
    });
}

/// While no daemon runs, nobody without CAP_NET_ADMIN can attach to fabric0, whatever the mode of
/// /dev/net/tun.
#[test]
fn the_host_device_is_for_nobody_else() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    in_a_namespace(|| {
        drop(host::open(TunOffloads::ALL, &Sysctl::default()).unwrap());
        drop(host::open(TunOffloads::ALL, &Sysctl::default()).expect("the daemon itself can"));
        let nothing = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, nothing).unwrap();
        let error = Tun::open(HOST_DEVICE, TunOffloads::ALL).unwrap_err();
        assert!(matches!(error, TunError::NotCapable { .. }), "{error}");
    });
}

/// A state that contradicts itself changes nothing, is named as a problem until a good one comes,
/// and keeps no pod from its network.
#[test]
fn a_refused_state_changes_nothing() {
    in_a_namespace(|| {
        let node = start();
        assert!(node.ready().is_err());
        node.set_desired(cluster(&["b"])).unwrap();
        let generation = node.generation();
        let mut bad = cluster(&["b"]);
        let stolen = bad.nodes[&id("a")].pod_cidrs.clone();
        bad.nodes.get_mut(&id("b")).unwrap().pod_cidrs = stolen;
        assert!(node.set_desired(bad).is_err());
        assert!(node.set_desired(DesiredState::default()).is_err());
        assert_eq!(node.desired(), cluster(&["b"]));
        assert_eq!(node.generation(), generation);
        assert!(host_route_exists("10.2.0.0/24"));
        assert_eq!(node.problems().len(), 1);
        assert_eq!(node.ready(), Ok(()));
        node.set_desired(cluster(&[])).unwrap();
        assert_eq!(node.problems(), [""; 0]);
        assert!(!host_route_exists("10.2.0.0/24"));
        node.dataplane().shut_down();
    });
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A host device that somebody deletes is named as a problem; pods can still be attached.
#[test]
fn a_deleted_host_device_is_a_problem() {
    in_a_namespace(|| {
        let node = start();
        node.set_desired(cluster(&["b"])).unwrap();
        let tun = node.dataplane().published().ports[&PortId::HOST].clone();
        node.dataplane().open_port(PortId::HOST, tun).unwrap();
        Netlink::connect()
            .unwrap()
            .delete_link(host_link())
            .unwrap();
        wait_until("the deletion is not noticed", || {
            node.problems() == ["fabric0 was deleted: restart fabric-node"]
        });
        assert_eq!(node.ready(), Ok(()));
        node.dataplane().shut_down();
    });
}

/// Every state reaches the workers, however soon it follows the one before, without any packet or
/// timer that would wake them.
#[test]
fn no_state_is_overlooked() {
    in_a_namespace(|| {
        let node = start();
        let dataplane = node.dataplane();
        // The name with the smaller letter dials: towards "0" this node has no timers.
        node.set_desired(cluster(&["0"])).unwrap();
        let peers = dataplane.published().peers.clone();
        let mut generation = 100;
        let mut publish = |peers| {
            generation += 1;
            let builder = SnapshotBuilder {
                generation: Generation(generation),
                ..Default::default()
            };
            dataplane.publish(Published {
                snapshot: builder.build().unwrap(),
                ports: Ports::default(),
                peers,
            });
        };
        for round in 0..5_000 {
            // Bursts of different length, so that the last state comes at any place of a turn.
            for _ in 0..round % 50 {
                publish(peers.clone());
            }
            publish(Vec::new());
            wait_until("a state was overlooked", || {
                dataplane.reports()[0].peers.is_empty()
            });
        }
        dataplane.shut_down();
    });
}
