//! ADD, DEL, CHECK, GC and STATUS, and taking pods up again after a restart.
//!
//! Comes in: requests of the plugin, one at a time per attachment, any number side by side. Goes
//! out: devices to the [`Fabric`], records to the [`Store`]. Never done here: sockets, system calls.
//!
//! **ADD** is a sequence of [`Step`]s, each written down or undoable before the next begins:
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

mod keys;
mod pending;
mod recovery;
mod requests;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fabric_core::{ids::PortId, snapshot::POD_MTU};
use fabric_proto::cni::{Attached, AttachmentKey, Failure, PodIdentity, code};
use ipnet::IpNet;
use thiserror::Error;
use tracing::{info, warn};

use super::{
    clock::Moment,
    ipam::{ADDRESS_COOLDOWN_S, Ipam, IpamError},
    links::{InterfacePlan, KernelLinks, LinkError, Links},
    store::{Record, State, Store, StoreError},
};
use crate::sys::{netns::NetnsId, tun::Tun};
pub use keys::AddTicket;
use keys::{KeyTable, Turn};
pub use recovery::{RestoreReport, SweepReport};

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

/// What attaching needs of the rest of the daemon.
pub trait Fabric<D = Tun>: Send + Sync {
    /// Takes over the device; routes to the addresses are live when it returns.
    ///
    /// # Errors
    ///
    /// One line; the device is closed then and nothing is published.
    fn attach(&self, attachment: Attachment, device: D) -> Result<PortId, String>;
    /// Withdraws the routes and closes the device; without effect on what is not attached.
    fn detach(&self, key: &AttachmentKey);
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

/// What ADD is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddRequest {
    /// CNI_NETNS.
    pub netns: PathBuf,
    /// Who the pod is.
    pub pod: PodIdentity,
    /// Addresses asked for; empty: any.
    pub addresses: Vec<IpAddr>,
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The namespace cannot be used.
    #[error("CNI_NETNS {path}: {reason}", path = .path.display())]
    Netns {
        /// CNI_NETNS.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The interface name is taken.
    #[error("interface {ifname} exists in network namespace {netns}", netns = .netns.display())]
    InterfaceExists {
        /// CNI_IFNAME.
        ifname: String,
        /// CNI_NETNS.
        netns: PathBuf,
    },
    /// The container is attached under another namespace that still exists.
    #[error("container {container} is attached in network namespace {netns}, which still exists", netns = .netns.display())]
    AttachedElsewhere {
        /// CNI_CONTAINERID.
        container: String,
        /// The other namespace.
        netns: PathBuf,
    },
    /// A DEL for the same attachment came meanwhile, or the plugin has gone.
    #[error("given up: a DEL for the same attachment arrived or the plugin hung up")]
    Cancelled,
    /// No address.
    #[error(transparent)]
    Address(#[from] IpamError),
    /// The record cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The interface cannot be made.
    #[error("cannot make interface {ifname} in {netns}: {reason}", netns = .netns.display())]
    Interface {
        /// CNI_IFNAME.
        ifname: String,
        /// CNI_NETNS.
        netns: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The rest of the daemon cannot take the pod.
    #[error("the data plane does not take the pod: {0}")]
    Fabric(String),
    /// The clocks cannot be read.
    #[error("cannot read the clocks: {0}; check that /proc is mounted")]
    Clock(#[from] std::io::Error),
    /// CHECK found a difference.
    #[error("CHECK: {0}")]
    Differs(String),
    /// STATUS: no.
    #[error("{reason}")]
    NotReady {
        /// What is missing.
        reason: String,
        /// Whether pods are attached that may feel it.
        pods_affected: bool,
    },
    /// GC could not free everything.
    #[error("GC freed {freed} attachments and failed on {}: {}", .failures.len(), .failures.join("; "))]
    Gc {
        /// How many were freed.
        freed: usize,
        /// One line each.
        failures: Vec<String>,
    },
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        let (code, details) = match &error {
            AttachError::Netns { .. } => (
                code::INVALID_NETNS,
                "the container needs a live network namespace of its own",
            ),
            AttachError::InterfaceExists { .. } => (
                code::INTERFACE_EXISTS,
                "DEL the attachment or remove the interface first",
            ),
            AttachError::AttachedElsewhere { .. } => {
                (code::INTERFACE_EXISTS, "DEL the attachment first")
            }
            AttachError::Cancelled => (code::TRY_AGAIN, ""),
            AttachError::Address(
                IpamError::Exhausted { .. } | IpamError::NoRange | IpamError::Resting { .. },
            ) => (
                code::TRY_AGAIN,
                "wait for addresses to cool down, or give the node a larger pod range",
            ),
            AttachError::Address(
                IpamError::OutOfRange { .. }
                | IpamError::Reserved(_)
                | IpamError::InUse(_)
                | IpamError::TwoOfAFamily(_),
            ) => (
                code::INVALID_CONFIG,
                "ask for another address, or for none and take what comes",
            ),
            AttachError::Store(_) | AttachError::Clock(_) | AttachError::Gc { .. } => {
                (code::IO, "see the log of fabric-node")
            }
            AttachError::Interface { .. } => (
                code::IO,
                "check /dev/net/tun and the capabilities of fabric-node (`fabric doctor`)",
            ),
            AttachError::Fabric(_) => (code::TRY_AGAIN, "see the log of fabric-node"),
            AttachError::Differs(_) => (
                code::CHECK_FAILED,
                "restart the pod: its network is not what ADD made",
            ),
            AttachError::NotReady {
                pods_affected: true,
                ..
            } => (code::LIMITED, "see `fabric status`"),
            AttachError::NotReady { .. } => (code::NOT_AVAILABLE, "see `fabric status`"),
        };
        Self {
            code,
            msg: error.to_string(),
            details: details.to_owned(),
        }
    }
}

/// The steps of ADD, in order; each has been done when it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    AddressesChosen,
    Planned,
    InterfaceMade,
    Published,
    Attached,
}

impl Step {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 5] = [
        Self::AddressesChosen,
        Self::Planned,
        Self::InterfaceMade,
        Self::Published,
        Self::Attached,
    ];
}

/// An attachment in memory.
#[derive(Clone, Debug)]
struct Entry {
    record: Record,
    /// The fabric has its device.
    published: bool,
    /// The last sweep found its namespace gone.
    seen_gone: bool,
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
    /// Records of released addresses, kept until they have rested.
    resting: Mutex<Vec<Record>>,
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
    pub fn open(state_dir: &Path, fabric: Arc<dyn Fabric>) -> Result<Self, AttachError> {
        Self::with(KernelLinks, state_dir, fabric, Box::new(Moment::now))
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
            resting: Mutex::new(resting),
            #[cfg(test)]
            on_step: Box::new(|_| {}),
        })
    }

    /// Registers an ADD at the moment it arrives: a DEL that is registered later cancels it.
    #[must_use]
    pub fn begin_add(&self, key: AttachmentKey) -> AddTicket {
        self.keys.begin_add(key)
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

    /// Attaches a pod. After the result has been sent, call [`Attacher::answered`]; if it could not
    /// be, [`Attacher::del`].
    ///
    /// # Errors
    ///
    /// [`AttachError`]; everything this call did has been undone then.
    pub fn add(&self, ticket: &AddTicket, request: AddRequest) -> Result<Attached, AttachError> {
        let turn = ticket.turn();
        ticket.check()?;
        self.drain_pending(&turn)?;
        let (namespace, netns_id) = self.open_for_add(&request.netns)?;
        if let Some(addresses) = self.settle_earlier(&turn, &request, &namespace, netns_id)? {
            return Ok(attached(addresses));
        }
        let ifname = &turn.key().ifname;
        if self.inspect(&namespace, ifname, &request.netns)?.is_some() {
            return Err(exists(ifname, &request.netns));
        }
        ticket.check()?;
        let record = self.plan(&turn, request, netns_id)?;
        match self.carry_out(ticket, &namespace, record) {
            Ok(addresses) => Ok(attached(addresses)),
            Err((error, done)) => {
                self.undo(&turn, &namespace, done);
                Err(error)
            }
        }
    }

    /// Says that the plugin has its result: another ADD is an error from here on.
    pub fn answered(&self, ticket: &AddTicket) {
        let turn = ticket.turn();
        if ticket.check().is_err() {
            return;
        }
        let Some(mut record) = self.entry(turn.key()).map(|entry| entry.record) else {
            return;
        };
        if record.state != (State::Attached { answered: false }) {
            return;
        }
        record.state = State::Attached { answered: true };
        if let Err(error) = self.store.put(&record) {
            // A repeated ADD would succeed where it should fail: harmless.
            warn!(container = record.key.container_id, %error, "cannot note that ADD was answered");
        }
        self.change(turn.key(), |entry| entry.record = record);
    }

    fn open_for_add(&self, path: &Path) -> Result<(L::Namespace, NetnsId), AttachError> {
        let netns = |reason: String| AttachError::Netns {
            path: path.to_owned(),
            reason,
        };
        let (namespace, id) = self
            .links
            .open(path)
            .map_err(|error| netns(error.to_string()))?;
        let own = self.links.own().map_err(|error| netns(error.to_string()))?;
        if id == own {
            return Err(netns("this is the daemon's own network namespace".into()));
        }
        Ok((namespace, id))
    }

    /// Deals with what an earlier ADD of the same key left. The addresses, if that ADD has done the
    /// work already.
    fn settle_earlier(
        &self,
        turn: &Turn<'_>,
        request: &AddRequest,
        namespace: &L::Namespace,
        netns_id: NetnsId,
    ) -> Result<Option<Vec<IpAddr>>, AttachError> {
        let Some(Entry {
            record, published, ..
        }) = self.entry(turn.key())
        else {
            return Ok(None);
        };
        let now = (self.clock)()?;
        let here = record.is_in(netns_id, &now);
        if !here
            && let State::Attached { .. } = record.state
            && !matches!(self.namespace_of(&record, &now), Where::Gone)
        {
            return Err(AttachError::AttachedElsewhere {
                container: record.key.container_id,
                netns: record.netns,
            });
        }
        let ifname = &turn.key().ifname;
        let is_there = here && self.inspect(namespace, ifname, &request.netns)?.is_some();
        match record.state {
            State::Attached { answered: true } if is_there => Err(exists(ifname, &request.netns)),
            State::Attached { answered: false } if is_there && published => {
                Ok(Some(record.addresses))
            }
            State::Attached { .. } | State::Planned | State::Released { .. } => {
                self.detach(turn)?;
                Ok(None)
            }
        }
    }

    /// Chooses addresses and writes the plan down.
    fn plan(
        &self,
        turn: &Turn<'_>,
        request: AddRequest,
        netns_id: NetnsId,
    ) -> Result<Record, AttachError> {
        let now = (self.clock)()?;
        let addresses = {
            let (ranges, gateways) = (self.fabric.pod_cidrs(), self.fabric.gateways());
            let mut ipam = lock(&self.ipam);
            ipam.set_ranges(&ranges, &gateways);
            ipam.allocate(&request.addresses, now.uptime_s)?
        };
        self.step(Step::AddressesChosen);
        let record = Record {
            id: self.store.new_id(),
            key: turn.key().clone(),
            pod: request.pod,
            netns: request.netns,
            netns_id: netns_id.into(),
            addresses,
            attached_at: now,
            state: State::Planned,
        };
        if let Err(error) = self.store.put(&record) {
            self.give_back(&record);
            return Err(error.into());
        }
        let entry = Entry {
            record: record.clone(),
            published: false,
            seen_gone: false,
        };
        lock(&self.entries).insert(record.key.clone(), entry);
        self.step(Step::Planned);
        Ok(record)
    }

    /// The steps from `Planned` on. On failure: the error, and the last step that was done.
    fn carry_out(
        &self,
        ticket: &AddTicket,
        namespace: &L::Namespace,
        mut record: Record,
    ) -> Result<Vec<IpAddr>, (AttachError, Step)> {
        let plan = plan_of(&record);
        ticket.check().map_err(|error| (error, Step::Planned))?;
        let device = self
            .links
            .create(namespace, &plan)
            .map_err(|error| (interface(&record, error), Step::Planned))?;
        self.step(Step::InterfaceMade);
        ticket
            .check()
            .map_err(|error| (error, Step::InterfaceMade))?;
        self.fabric
            .attach(attachment(&record), device)
            .map_err(|error| (AttachError::Fabric(error), Step::InterfaceMade))?;
        self.step(Step::Published);
        record.state = State::Attached { answered: false };
        self.store
            .put(&record)
            .map_err(|error| (error.into(), Step::Published))?;
        self.change(&record.key, |entry| {
            entry.record = record.clone();
            entry.published = true;
        });
        self.step(Step::Attached);
        ticket.check().map_err(|error| (error, Step::Attached))?;
        info!(
            container = record.key.container_id,
            interface = record.key.ifname,
            pod = record.pod.name,
            namespace = record.pod.namespace,
            "attached"
        );
        Ok(record.addresses)
    }

    /// Undoes the steps up to `done`, the last one first. What cannot be undone is in the log, and
    /// the rest is undone all the same.
    fn undo(&self, turn: &Turn<'_>, namespace: &L::Namespace, done: Step) {
        let Some(Entry { record, .. }) = self.entry(turn.key()) else {
            return;
        };
        if done >= Step::Published {
            self.fabric.detach(turn.key());
        }
        if done >= Step::InterfaceMade
            && let Err(error) = self.links.delete(namespace, &turn.key().ifname)
        {
            warn!(netns = %record.netns.display(), %error, "cannot remove the interface of a failed ADD");
        }
        let undone = if done >= Step::Published {
            self.release(record)
        } else {
            // Nobody has ever sent from the addresses or to them: they need no rest.
            self.store.remove(&record).map(|()| {
                lock(&self.entries).remove(turn.key());
                self.give_back(&record);
            })
        };
        if let Err(error) = undone {
            warn!(container = turn.key().container_id, %error, "the record of a failed ADD stays; DEL or a restart clears it");
        }
    }

    /// Detaches what the record knows of a key; nothing known is fine.
    fn detach(&self, turn: &Turn<'_>) -> Result<(), AttachError> {
        let Some(Entry { record, .. }) = self.entry(turn.key()) else {
            return Ok(());
        };
        let now = (self.clock)()?;
        self.fabric.detach(turn.key());
        self.change(turn.key(), |entry| entry.published = false);
        if let Where::There(namespace) = self.namespace_of(&record, &now)
            && let Err(error) = self.links.delete(&namespace, &turn.key().ifname)
        {
            // The daemon no longer holds the device, so the interface is dead; it goes away with
            // its namespace.
            warn!(netns = %record.netns.display(), %error, "cannot remove the interface");
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
    }

    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests stop here"))]
    fn step(&self, step: Step) {
        #[cfg(test)]
        (self.on_step)(step);
        let _ = step;
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

fn attached(addresses: Vec<IpAddr>) -> Attached {
    Attached {
        mtu: POD_MTU,
        addresses,
    }
}

fn exists(ifname: &str, netns: &Path) -> AttachError {
    AttachError::InterfaceExists {
        ifname: ifname.to_owned(),
        netns: netns.to_owned(),
    }
}

fn interface(record: &Record, error: LinkError) -> AttachError {
    let netns = record.netns.clone();
    match error {
        LinkError::Exists(ifname) => AttachError::InterfaceExists { ifname, netns },
        LinkError::Gone(reason) => AttachError::Netns {
            path: netns,
            reason,
        },
        LinkError::Failed(reason) => AttachError::Interface {
            ifname: record.key.ifname.clone(),
            netns,
            reason,
        },
    }
}

/// A panic elsewhere does not make the maps inconsistent: each change is one insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
