//! A kernel and a fabric of maps, which outlive the attacher as the real ones outlive the daemon.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use fabric_core::snapshot::POD_MTU;

use super::super::*;
use crate::cni::{
    links::InterfaceState,
    store::tests::moment,
    survey::{Stray, Survey},
};

pub(in crate::cni) const POD: &str = "/run/netns/pod";
pub(in crate::cni) const OTHER: &str = "/run/netns/other";
const OWN: NetnsId = NetnsId { dev: 4, ino: 1 };

type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
pub(in crate::cni) struct World {
    pub(in crate::cni) namespaces: Mutex<HashMap<PathBuf, NetnsId>>,
    pub(in crate::cni) interfaces: Mutex<BTreeMap<(NetnsId, String), InterfaceState>>,
    /// Pods that the fabric has, and whether it takes more.
    pub(in crate::cni) attached: Mutex<HashMap<AttachmentKey, Attachment>>,
    pub(in crate::cni) refuse: Mutex<Option<&'static str>>,
    /// Called while an interface is being made.
    pub(in crate::cni) on_create: Mutex<Option<Hook>>,
    ports: AtomicU32,
    pub(in crate::cni) uptime_s: AtomicU64,
}

/// Another owner of the same world.
#[derive(Clone)]
pub(in crate::cni) struct Hand(pub(in crate::cni) Arc<World>);

impl World {
    pub(in crate::cni) fn begin() -> Hand {
        let world = Self::default();
        world.uptime_s.store(1_000, Ordering::SeqCst);
        for (path, ino) in [("/proc/self/ns/net", OWN.ino), (POD, 10), (OTHER, 11)] {
            lock(&world.namespaces).insert(path.into(), NetnsId { dev: 4, ino });
        }
        Hand(Arc::new(world))
    }

    pub(in crate::cni) fn refuse(&self, what: Option<&'static str>) {
        *lock(&self.refuse) = what;
    }

    fn refuses(&self, what: &'static str) -> bool {
        *lock(&self.refuse) == Some(what)
    }
}

impl Hand {
    pub(in crate::cni) fn attacher(&self, state: &Path) -> Attacher<Self> {
        let world = Arc::clone(&self.0);
        let clock = Box::new(move || Ok(moment(world.uptime_s.load(Ordering::SeqCst))));
        Attacher::with(self.clone(), state, Arc::new(self.clone()), clock).unwrap()
    }

    pub(in crate::cni) fn attached(&self) -> usize {
        lock(&self.0.attached).len()
    }

    pub(in crate::cni) fn interfaces(&self) -> usize {
        lock(&self.0.interfaces).len()
    }

    /// The daemon's end: its fabric forgets, the kernel does not.
    pub(in crate::cni) fn die(&self) {
        lock(&self.0.attached).clear();
    }

    pub(in crate::cni) fn add_namespace(&self, path: &str, id: NetnsId) {
        lock(&self.0.namespaces).insert(path.into(), id);
    }

    /// The pod's end: its namespace goes away with its interfaces.
    pub(in crate::cni) fn remove_namespace(&self, path: &str) {
        let id = lock(&self.0.namespaces).remove(Path::new(path)).unwrap();
        lock(&self.0.interfaces).retain(|(netns, _), _| *netns != id);
    }
}

impl Links for Hand {
    type Device = ();
    type Namespace = NetnsId;

    fn open(&self, path: &Path) -> Result<(NetnsId, NetnsId), LinkError> {
        if self.0.refuses("open") {
            return Err(LinkError::Failed("no descriptors".into()));
        }
        let found = lock(&self.0.namespaces).get(path).copied();
        found
            .map(|id| (id, id))
            .ok_or_else(|| LinkError::Gone(format!("{} is missing", path.display())))
    }

    fn is_at(&self, path: &Path, id: NetnsId) -> bool {
        !self.0.refuses("open") && lock(&self.0.namespaces).get(path) == Some(&id)
    }

    fn ready(&self) -> Result<(), LinkError> {
        if self.0.refuses("devices") {
            return Err(LinkError::Failed("/dev/net/tun is missing".into()));
        }
        Ok(())
    }

    fn admit(&self, _: &Path) -> Result<(), LinkError> {
        Ok(())
    }

    fn own(&self) -> Result<NetnsId, LinkError> {
        Ok(OWN)
    }

    fn create(&self, namespace: &NetnsId, plan: &InterfacePlan) -> Result<(), LinkError> {
        let hook = lock(&self.0.on_create).clone();
        if let Some(hook) = hook {
            hook();
        }
        if self.0.refuses("create") {
            return Err(LinkError::Failed("no TUN".into()));
        }
        let key = (*namespace, plan.ifname.clone());
        let mut interfaces = lock(&self.0.interfaces);
        if interfaces.contains_key(&key) {
            return Err(LinkError::Exists(plan.ifname.clone()));
        }
        interfaces.insert(key, state_of(plan));
        Ok(())
    }

    fn reopen(&self, namespace: &NetnsId, plan: &InterfacePlan) -> Result<(), LinkError> {
        if self.0.refuses("reopen") {
            return Err(LinkError::Failed("busy".into()));
        }
        lock(&self.0.interfaces).insert((*namespace, plan.ifname.clone()), state_of(plan));
        Ok(())
    }

    fn inspect(
        &self,
        namespace: &NetnsId,
        ifname: &str,
    ) -> Result<Option<InterfaceState>, LinkError> {
        let key = (*namespace, ifname.to_owned());
        Ok(lock(&self.0.interfaces).get(&key).cloned())
    }

    fn survey(&self, settled: &HashSet<NetnsId>) -> Result<Survey, LinkError> {
        let mut survey = Survey::default();
        for (path, id) in lock(&self.0.namespaces)
            .iter()
            .filter(|(_, id)| **id != OWN)
        {
            survey.present.insert(*id);
            if settled.contains(id) {
                continue;
            }
            for ((netns_id, ifname), state) in lock(&self.0.interfaces).iter() {
                if netns_id == id {
                    survey.strays.push(Stray {
                        netns_id: *id,
                        netns: path.clone(),
                        ifname: ifname.clone(),
                        index: 2,
                        addresses: state.addresses.clone(),
                    });
                }
            }
        }
        Ok(survey)
    }

    fn remove_stray(&self, stray: &Stray) -> Result<(), LinkError> {
        let key = (stray.netns_id, stray.ifname.clone());
        lock(&self.0.interfaces).remove(&key);
        Ok(())
    }

    fn discard(&self, _: Arc<()>) {}

    fn delete(&self, namespace: &NetnsId, plan: &InterfacePlan) -> Result<(), LinkError> {
        lock(&self.0.interfaces).remove(&(*namespace, plan.ifname.clone()));
        Ok(())
    }
}

fn state_of(plan: &InterfacePlan) -> InterfaceState {
    InterfaceState {
        up: true,
        mtu: POD_MTU,
        addresses: plan.addresses.clone(),
        default_v4: true,
        default_v6: true,
    }
}

impl Fabric<()> for Hand {
    fn attach(&self, attachment: Attachment, (): ()) -> Result<PortId, String> {
        if self.0.refuses("attach") {
            return Err("no port".into());
        }
        let mut attached = lock(&self.0.attached);
        let clash = attached
            .values()
            .flat_map(|other| &other.addresses)
            .any(|address| attachment.addresses.contains(address));
        assert!(!clash, "an address with two owners: {attachment:?}");
        let before = attached.insert(attachment.key.clone(), attachment);
        assert_eq!(before, None, "attached twice");
        Ok(PortId(self.0.ports.fetch_add(1, Ordering::SeqCst)))
    }

    fn detach(&self, key: &AttachmentKey) -> Option<Arc<()>> {
        lock(&self.0.attached).remove(key).map(|_| Arc::default())
    }

    fn pod_cidrs(&self) -> Vec<IpNet> {
        ["10.0.0.0/24", "fd00::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec()
    }

    fn gateways(&self) -> Vec<IpAddr> {
        ["10.0.0.1", "fd00::1"]
            .map(|address| address.parse().unwrap())
            .to_vec()
    }

    fn ready(&self) -> Result<(), String> {
        if self.0.refuses("ready") {
            Err("no state yet".into())
        } else {
            Ok(())
        }
    }
}
