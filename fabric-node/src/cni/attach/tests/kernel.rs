//! The same against the kernel: real namespaces, real TUN devices. Needs root.

use std::sync::atomic::AtomicU32;

use super::{super::*, add, add_answered, key, used};
use crate::{
    cni::{links::InterfaceState, roots::NetnsRoots},
    sys::{netlink::Netlink, netns::Netns, tun::TunOffloads},
};

pub(super) fn kernel(pods: &Pods) -> KernelLinks {
    KernelLinks::new(TunOffloads::ALL, NetnsRoots::only(pods.folder.path())).unwrap()
}

/// Namespaces named in a folder of their own.
pub(super) struct Pods {
    folder: tempfile::TempDir,
    names: Mutex<Vec<PathBuf>>,
}

impl Pods {
    pub(super) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            names: Mutex::default(),
        }
    }

    pub(super) fn make(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        Netns::create_named(&path).expect("this test makes network namespaces: run it as root");
        lock(&self.names).push(path.clone());
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for path in lock(&self.names).iter() {
            let _ = Netns::remove_named(path);
        }
    }
}

#[derive(Default)]
pub(super) struct Devices {
    open: Mutex<HashMap<AttachmentKey, Tun>>,
    ports: AtomicU32,
}

impl Fabric for Devices {
    fn attach(&self, attachment: Attachment, device: Tun) -> Result<PortId, String> {
        lock(&self.open).insert(attachment.key, device);
        Ok(PortId(
            self.ports.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
        ))
    }

    fn detach(&self, key: &AttachmentKey) -> Option<Arc<Tun>> {
        lock(&self.open).remove(key).map(Arc::new)
    }

    fn pod_cidrs(&self) -> Vec<IpNet> {
        ["10.0.0.0/24", "fd00::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec()
    }

    fn gateways(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

pub(super) fn inspect(netns: &str) -> Option<InterfaceState> {
    let links = KernelLinks::new(TunOffloads::ALL, NetnsRoots::new(&[])).unwrap();
    let (namespace, _) = links.open(Path::new(netns)).unwrap();
    links.inspect(&namespace, "eth0").unwrap()
}

/// As a pod does that deletes its interface.
pub(super) fn remove_interface(netns: &str) {
    let netns = Netns::open(netns).unwrap();
    netns
        .run(|| {
            let netlink = Netlink::connect().unwrap();
            let index = netlink.link("eth0").unwrap().unwrap().index;
            netlink.delete_link(index).unwrap();
        })
        .unwrap();
}

/// ADD makes the interface with addresses, MTU and default routes of both families and nothing
/// else; CHECK agrees; DEL removes it.
#[test]
fn add_check_del() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let netns = pods.make("pod");
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    let attached = add_answered(&attacher, "c1", &netns);
    let expected = InterfaceState {
        up: true,
        mtu: 1500,
        addresses: attached.addresses.clone(),
        default_v4: true,
        default_v6: true,
    };
    assert_eq!(inspect(&netns), Some(expected));
    attacher
        .check(&key("c1"), Path::new(&netns), &attached.addresses)
        .unwrap();
    let error = add(&attacher, "c1", &netns).unwrap_err();
    assert!(matches!(error, AttachError::InterfaceExists { .. }));
    attacher.del(&key("c1")).unwrap();
    assert_eq!(inspect(&netns), None);
}

/// A foreign interface of the name is refused by ADD and survives the DEL.
#[test]
fn foreign_interface() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let netns = pods.make("pod");
    let inside = Netns::open(&netns).unwrap();
    inside
        .run(|| Netlink::connect().unwrap().add_bridge("eth0").unwrap())
        .unwrap();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    let error = add(&attacher, "c1", &netns).unwrap_err();
    assert!(
        matches!(error, AttachError::InterfaceExists { .. }),
        "{error}"
    );
    attacher.del(&key("c1")).unwrap();
    assert!(inspect(&netns).is_some());
    assert_eq!(used(&attacher), [(0, 0), (0, 0)]);
}

/// The interface outlives the daemon and is taken up with all it had; one that has vanished is made
/// anew; a namespace that has gone is released.
#[test]
fn restart() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let [kept, lost, gone] = ["kept", "lost", "gone"].map(|name| pods.make(name));
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    for (container, netns) in [("kept", &kept), ("lost", &lost), ("gone", &gone)] {
        add_answered(&attacher, container, netns);
    }
    let before = [inspect(&kept), inspect(&lost)];
    drop(attacher);
    assert!(inspect(&kept).is_some(), "the device is persistent");
    remove_interface(&lost);
    Netns::remove_named(&gone).unwrap();

    let devices = Arc::<Devices>::default();
    let attacher =
        Arc::new(Attacher::open(state.path(), Arc::clone(&devices) as _, kernel(&pods)).unwrap());
    let report = attacher.restore();
    assert_eq!((report.restored, report.released, report.failed), (2, 1, 0));
    assert_eq!([inspect(&kept), inspect(&lost)], before);
    assert_eq!(lock(&devices.open).len(), 2);
}

/// Killed after any step, the daemon leaves no interface that its next start does not remove or
/// take up.
#[test]
fn killed_at_any_step() {
    for at in Step::ALL {
        let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
        let netns = pods.make("pod");
        let mut attacher =
            Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
        attacher.on_step = Box::new(move |step| {
            if step == at {
                std::panic::panic_any("killed");
            }
        });
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            add(&attacher, "c1", &netns)
        }));
        assert!(killed.is_err());
        drop(attacher);
        let devices = Arc::<Devices>::default();
        let attacher = Arc::new(
            Attacher::open(state.path(), Arc::clone(&devices) as _, kernel(&pods)).unwrap(),
        );
        attacher.restore();
        let taken_up = at == Step::Attached;
        assert_eq!(inspect(&netns).is_some(), taken_up, "{at:?}");
        assert_eq!(lock(&devices.open).len(), usize::from(taken_up), "{at:?}");
        attacher.del(&key("c1")).unwrap();
        assert_eq!(inspect(&netns), None, "{at:?}");
        add_answered(&attacher, "c1", &netns);
    }
}

/// Attaching keeps no descriptor of the pod's namespace, and DEL succeeds when its name has gone.
#[test]
fn namespaces_are_not_pinned() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let netns = pods.make("pod");
    let id = Netns::open(&netns).unwrap().identity();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    add_answered(&attacher, "c1", &netns);
    let name = format!("net:[{}]", id.ino);
    let held = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_str() == Some(&name))
        .count();
    assert_eq!(held, 0);
    Netns::remove_named(&netns).unwrap();
    attacher.del(&key("c1")).unwrap();
    assert_eq!(used(&attacher), [(0, 1), (0, 1)]);
}

/// Processor time that the calling thread has used, as the scheduler counts it.
fn processor_time() -> std::time::Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    std::time::Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// A sweep over 100 pods that are in order costs so little that 250 take less than 1 % of a core, at one
/// sweep every 3 s.
#[test]
fn sweeps_are_cheap() {
    const SWEEPS: u32 = 10;
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    for index in 0..100 {
        let netns = pods.make(&format!("pod-{index}"));
        add_answered(&attacher, &format!("c{index}"), &netns);
    }
    let before = processor_time();
    for _ in 0..SWEEPS {
        assert_eq!(attacher.sweep(), SweepReport::default());
    }
    let each = (processor_time() - before) / SWEEPS;
    assert!(each < std::time::Duration::from_millis(12), "{each:?}");
}
