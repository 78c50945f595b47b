//! ADD, DEL, CHECK, GC and STATUS, and taking pods up again after a restart.
//!
//! Comes in: requests of the plugin, one at a time per attachment, any number side by side. Goes
//! out: devices to the [`Fabric`], records to the [`Store`]. Never done here: sockets, system calls.
//!
//! **ADD** is a sequence of steps (`Step`), each written down or undoable before the next begins:
//! addresses are chosen, the record says `Planned`, the interface is made, the fabric takes the
//! device, the record says `Attached`. A failure undoes the steps done in reverse; a crash leaves a
//! record from which [`Attacher::restore`] does the same.
//!
//! **ADD again.** The specification wants an error when the interface exists; a runtime whose first
//! attempt got no answer wants success. The record tells them apart: it says `answered` only after
//! the result was sent. An ADD that meets an unanswered attachment in the same namespace gets its
//! result; one that meets an answered one gets error 100; one that meets the remains of a namespace
//! or interface that has gone, or of an attempt that was cut short, clears them away first.
//!
//! **DEL wins.** It is counted when it arrives; an ADD that began earlier sees that at its next
//! step, undoes itself and fails, and the DEL then has its turn.

mod add;
mod error;
mod keys;
mod pending;
mod precedence;
mod recovery;
mod requests;
mod strays;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use fabric_core::ids::PortId;
use fabric_proto::cni::{AttachmentKey, PodIdentity};
use ipnet::IpNet;
use tracing::warn;

use super::{
    clock::Moment,
    ipam::{ADDRESS_COOLDOWN_S, Ipam},
    links::{InterfacePlan, KernelLinks, LinkError, Links},
    store::{Record, State, Store, StoreError},
    times::AddTimes,
};
use crate::sys::{netns::NetnsId, tun::Tun};
pub use add::AddRequest;
#[cfg(test)]
use add::Step;
pub use error::AttachError;
pub use keys::AddTicket;
use keys::{KeyTable, Turn};
use precedence::Precedence;
pub use recovery::{RestoreReport, SweepReport};
use strays::Strays;

/// A pod on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// Who the pod is.
    pub pod: PodIdentity,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Identity of that namespace.
    pub netns_id: NetnsId,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// When ADD began.
    pub attached_at: Moment,
}

impl Attachment {
    /// `namespace/name` of the pod where the runtime told, else the container's id.
    #[must_use]
    pub fn display_name(&self) -> String {
        match (&self.pod.namespace, &self.pod.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            (None, Some(name)) => name.clone(),
            (_, None) => self.key.container_id.clone(),
        }
    }
}

/// What attaching needs of the rest of the daemon.
pub trait Fabric<D = Tun>: Send + Sync {
    /// Takes over the device; routes to the addresses are live when it returns.
    ///
    /// # Errors
    ///
    /// One line; the device is closed then and nothing is published.
    fn attach(&self, attachment: Attachment, device: D) -> Result<PortId, String>;
    /// Withdraws the routes and takes the device out of use; without effect on what is not attached.
    /// The device: its end may block, so it should be the caller's.
    fn detach(&self, key: &AttachmentKey) -> Option<Arc<D>>;
    /// Ranges that the pods of this node get their addresses from.
    fn pod_cidrs(&self) -> Vec<IpNet>;
    /// Addresses of the node itself inside those ranges.
    fn gateways(&self) -> Vec<IpAddr>;
    /// Whether pods can be attached.
    ///
    /// # Errors
    ///
    /// One line: what is missing.
    fn ready(&self) -> Result<(), String>;
}

/// An attachment in memory.
#[derive(Clone, Debug)]
struct Entry {
    record: Record,
    /// The fabric has its device.
    published: bool,
    /// The last sweep found its namespace gone.
    seen_gone: bool,
    /// Why the last attempt to take it up failed.
    trouble: Option<String>,
}

type Clock = Box<dyn Fn() -> std::io::Result<Moment> + Send + Sync>;

/// Attaches and detaches pods. All calls may block; [`Attacher::status`] does not wait for others.
pub struct Attacher<L: Links = KernelLinks> {
    links: L,
    fabric: Arc<dyn Fabric<L::Device>>,
    store: Store,
    state_dir: PathBuf,
    clock: Clock,
    keys: Arc<KeyTable>,
    ipam: Mutex<Ipam>,
    entries: Mutex<HashMap<AttachmentKey, Entry>>,
    /// An entry has changed.
    entries_changed: Condvar,
    precedence: Precedence,
    /// Records of released addresses, kept until they have rested.
    resting: Mutex<Vec<Record>>,
    /// Pods that no record knows.
    strays: Mutex<Strays>,
    add_times: Arc<AddTimes>,
    #[cfg(test)]
    on_step: Box<dyn Fn(Step) + Send + Sync>,
}

impl<L: Links> std::fmt::Debug for Attacher<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attacher")
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

impl Attacher<KernelLinks> {
    /// Opens the record beneath `state_dir`. From here on no address that a pod may have is handed
    /// out; the pods themselves are taken up by [`Attacher::restore`].
    ///
    /// # Errors
    ///
    /// [`AttachError::Store`] or [`AttachError::Clock`].
    pub fn open(
        state_dir: &Path,
        fabric: Arc<dyn Fabric>,
        links: KernelLinks,
    ) -> Result<Self, AttachError> {
        Self::with(links, state_dir, fabric, Box::new(Moment::now))
    }
}

impl<L: Links> Attacher<L> {
    fn with(
        links: L,
        state_dir: &Path,
        fabric: Arc<dyn Fabric<L::Device>>,
        clock: Clock,
    ) -> Result<Self, AttachError> {
        let now = clock()?;
        let (store, loaded) = Store::open(state_dir, &now)?;
        let mut ipam = Ipam::new(&fabric.pod_cidrs(), &fabric.gateways());
        let (entries, resting) = recovery::take_up(&mut ipam, loaded, &now);
        Ok(Self {
            links,
            fabric,
            store,
            state_dir: state_dir.to_owned(),
            clock,
            keys: Arc::default(),
            ipam: Mutex::new(ipam),
            entries: Mutex::new(entries),
            entries_changed: Condvar::new(),
            precedence: Precedence::default(),
            resting: Mutex::new(resting),
            strays: Mutex::default(),
            add_times: Arc::default(),
            #[cfg(test)]
            on_step: Box::new(|_| {}),
        })
    }

    /// Registers an ADD at the moment it arrives: a DEL that is registered later cancels it.
    #[must_use]
    pub fn begin_add(&self, key: AttachmentKey) -> AddTicket {
        self.keys.begin_add(key)
    }

    /// Where the server notes how long ADDs took.
    #[must_use]
    pub fn add_times(&self) -> Arc<AddTimes> {
        Arc::clone(&self.add_times)
    }

    /// All attachments, in no particular order.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        lock(&self.entries)
            .values()
            .filter(|entry| entry.published)
            .map(|entry| attachment(&entry.record))
            .collect()
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.keys.is_empty()
    }

    /// Detaches what the record knows of a key; nothing known is fine.
    fn detach(&self, turn: &Turn<'_>) -> Result<(), AttachError> {
        let Some(Entry { record, .. }) = self.entry(turn.key()) else {
            return Ok(());
        };
        let now = (self.clock)()?;
        let device = self.fabric.detach(turn.key());
        self.change(turn.key(), |entry| entry.published = false);
        let removed = match self.namespace_of(&record, &now) {
            Where::There(namespace) => self
                .links
                .delete(&namespace, &plan_of(&record))
                .map_err(|error| error.to_string()),
            Where::Gone => Ok(()),
            Where::Unknown(reason) => Err(reason),
        };
        if let Err(reason) = removed {
            // Without a device behind it the interface is dead; it goes away with
            // its namespace.
            warn!(netns = %record.netns.display(), reason, "cannot remove the interface");
        }
        if let Some(device) = device {
            self.links.discard(device);
        }
        self.release(record).inspect_err(|_| {
            // So that no sweep takes up again what was to be removed.
            self.change(turn.key(), |entry| entry.record.state = State::Planned);
        })?;
        Ok(())
    }

    /// Lets the addresses of a record rest. On a full disk the record is removed: the rest is then
    /// not kept across a restart, but the DEL succeeds.
    fn release(&self, mut record: Record) -> Result<(), StoreError> {
        let now = (self.clock)().unwrap_or_else(|_| record.attached_at.clone());
        record.state = State::Released { at: now.clone() };
        match self.store.put(&record) {
            Ok(()) => lock(&self.resting).push(record.clone()),
            Err(error) => {
                self.store.remove(&record)?;
                warn!(%error, "the rest of released addresses is not kept across a restart");
            }
        }
        lock(&self.entries).remove(&record.key);
        let mut ipam = lock(&self.ipam);
        for address in &record.addresses {
            ipam.release(*address, now.uptime_s);
        }
        Ok(())
    }

    fn give_back(&self, record: &Record) {
        let mut ipam = lock(&self.ipam);
        for address in &record.addresses {
            ipam.give_back(*address);
        }
    }

    /// Where the namespace of a record is.
    fn namespace_of(&self, record: &Record, now: &Moment) -> Where<L::Namespace> {
        if record.attached_at.boot != now.boot {
            return Where::Gone;
        }
        match self.links.open(&record.netns) {
            Ok((namespace, id)) if record.is_in(id, now) => Where::There(namespace),
            Ok(_) | Err(LinkError::Gone(_)) => Where::Gone,
            Err(error @ (LinkError::Exists(_) | LinkError::Failed(_))) => {
                Where::Unknown(error.to_string())
            }
        }
    }

    fn inspect(
        &self,
        namespace: &L::Namespace,
        ifname: &str,
        netns: &Path,
    ) -> Result<Option<super::links::InterfaceState>, AttachError> {
        self.links
            .inspect(namespace, ifname)
            .map_err(|error| AttachError::Netns {
                path: netns.to_owned(),
                reason: error.to_string(),
            })
    }

    fn entry(&self, key: &AttachmentKey) -> Option<Entry> {
        lock(&self.entries).get(key).cloned()
    }

    fn change(&self, key: &AttachmentKey, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = lock(&self.entries).get_mut(key) {
            change(entry);
        }
        self.entries_changed.notify_all();
    }
}

/// A record's namespace.
enum Where<N> {
    There(N),
    Gone,
    /// It cannot be examined, for this reason.
    Unknown(String),
}

impl Record {
    fn is_in(&self, netns_id: NetnsId, now: &Moment) -> bool {
        self.attached_at.boot == now.boot && NetnsId::from(self.netns_id) == netns_id
    }
}

fn attachment(record: &Record) -> Attachment {
    Attachment {
        key: record.key.clone(),
        pod: record.pod.clone(),
        netns: record.netns.clone(),
        netns_id: record.netns_id.into(),
        addresses: record.addresses.clone(),
        attached_at: record.attached_at.clone(),
    }
}

fn plan_of(record: &Record) -> InterfacePlan {
    InterfacePlan {
        ifname: record.key.ifname.clone(),
        addresses: record.addresses.clone(),
    }
}

/// A panic elsewhere does not make the maps inconsistent: each change is one insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests;
