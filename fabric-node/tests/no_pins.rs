//! Attaching pods keeps no namespace alive. A process of its own, because it counts descriptors. Needs
//! root.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fabric_core::ids::PortId;
use fabric_node::{
    cni::{
        attach::{AddRequest, Attacher, Attachment, Fabric},
        links::KernelLinks,
        roots::NetnsRoots,
    },
    sys::{
        netlink::Netlink,
        netns::Netns,
        tun::{Tun, TunOffloads},
    },
};
use fabric_proto::cni::{AttachmentKey, PodIdentity};
use ipnet::IpNet;

/// Holds the devices as the data plane does.
#[derive(Default)]
struct Devices(Mutex<HashMap<AttachmentKey, Tun>>);

impl Fabric for Devices {
    fn attach(&self, attachment: Attachment, device: Tun) -> Result<PortId, String> {
        let mut open = self.0.lock().map_err(|error| error.to_string())?;
        open.insert(attachment.key, device);
        Ok(PortId(1))
    }

    fn detach(&self, key: &AttachmentKey) -> Option<Arc<Tun>> {
        self.0.lock().unwrap().remove(key).map(Arc::new)
    }

    fn pod_cidrs(&self) -> Vec<IpNet> {
        vec!["10.0.0.0/16".parse().unwrap()]
    }

    fn gateways(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

fn key(container_id: &str) -> AttachmentKey {
    AttachmentKey {
        network: "fabric".into(),
        container_id: container_id.into(),
        ifname: "eth0".into(),
    }
}

fn add(attacher: &Attacher, container_id: &str, netns: &Path) {
    let ticket = attacher.begin_add(key(container_id));
    let request = AddRequest {
        netns: netns.to_owned(),
        pod: PodIdentity::default(),
        addresses: Vec::new(),
    };
    attacher.add(&ticket, request).unwrap();
    attacher.answered(&ticket);
}

/// What this process has open, and what it has mounted.
fn open_and_mounted() -> (Vec<PathBuf>, usize) {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    // Reading the folder is a descriptor too, under another number each time.
    let mut open: Vec<PathBuf> = links.filter(|it| !it.ends_with("fd")).collect();
    open.sort();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let namespaces = mounts.lines().filter(|line| line.contains(" - nsfs "));
    let own = namespaces.filter(|line| line.contains(env!("CARGO_CRATE_NAME")));
    (open, own.count())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// After 100 pods have come and gone, with a sweep after each, the daemon has open and mounted what it
/// had before, and nothing else. The namespace of a pod whose name is taken away without a DEL is gone
/// after two sweeps: until then the kernel keeps it for the sake of the device's descriptor, which
/// belongs to it.
#[test]
fn nothing_is_kept() {
    let folder = tempfile::Builder::new()
        .prefix(env!("CARGO_CRATE_NAME"))
        .tempdir()
        .unwrap();
    let state = tempfile::tempdir().unwrap();
    let links = KernelLinks::new(
        TunOffloads::ALL,
        NetnsRoots::new(&[folder.path().to_owned()]),
    );
    let devices = Arc::<Devices>::default();
    let attacher = Attacher::open(state.path(), Arc::clone(&devices) as _, links.unwrap()).unwrap();
    // The first use of a runtime opens descriptors that the process then keeps, two sockets for signals.
    drop(Netlink::connect().unwrap());
    attacher.sweep();
    let before = open_and_mounted();
    for index in 0..100 {
        let netns = folder.path().join(format!("pod-{index}"));
        let made = Netns::create_named(&netns);
        drop(made.expect("this test makes network namespaces: run it as root"));
        add(&attacher, "c1", &netns);
        attacher.sweep();
        attacher.del(&key("c1")).unwrap();
        Netns::remove_named(&netns).unwrap();
    }
    assert_eq!(open_and_mounted(), before);

    let (netns, home) = (folder.path().join("held"), Netns::create().unwrap());
    let pod = Netns::create_named(&netns).unwrap();
    // The end of a veth pair goes with the namespace that the other end is in.
    let veth = |netlink: &Netlink| netlink.link("witness").unwrap();
    home.run(|| {
        let netlink = Netlink::connect().unwrap();
        netlink.add_veth("witness", "inside").unwrap();
        let index = netlink.link("inside").unwrap().unwrap().index;
        netlink.move_to_netns(index, &pod).unwrap();
    })
    .unwrap();
    drop(pod);
    add(&attacher, "c2", &netns);
    attacher.sweep();
    let exists = || home.run(|| veth(&Netlink::connect().unwrap()).is_some());
    assert!(exists().unwrap());
    Netns::remove_named(&netns).unwrap();
    assert_eq!(
        (attacher.sweep().released, attacher.sweep().released),
        (0, 1)
    );
    assert!(devices.0.lock().unwrap().is_empty());
    eventually("the namespace without a name is still there", || {
        !exists().unwrap()
    });
}
