//! The steps of ADD, and their undoing.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use fabric_core::snapshot::POD_MTU;
use fabric_proto::cni::{Attached, PodIdentity};
use tracing::{info, warn};

use super::{AddTicket, AttachError, Attacher, Entry, Turn, Where, attachment, lock, plan_of};
use crate::{
    cni::{
        links::{LinkError, Links},
        store::{Record, State},
    },
    sys::netns::NetnsId,
};

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

impl<L: Links> Attacher<L> {
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
        ticket.check()?;
        // Whether the interface exists is seen when it is made: to ask beforehand would prove nothing.
        let record = self.plan(&turn, request, netns_id)?;
        let _busy = self.precedence.begin_add();
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
        self.links
            .admit(path)
            .map_err(|error| netns(error.to_string()))?;
        let (namespace, id) = self
            .links
            .open(path)
            .map_err(|error| netns(error.to_string()))?;
        let own = self.links.own().map_err(|error| netns(error.to_string()))?;
        if id == own {
            return Err(netns(
                "this is the daemon's own network namespace, into which no pod is attached, with CNI_NETNS_OVERRIDE neither".into(),
            ));
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
        if let Err(error) = self.store.put_new(&record) {
            self.give_back(&record);
            return Err(error.into());
        }
        let entry = Entry {
            record: record.clone(),
            published: false,
            seen_gone: false,
            trouble: None,
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
        let device = (done >= Step::Published)
            .then(|| self.fabric.detach(turn.key()))
            .flatten();
        if done >= Step::InterfaceMade
            && let Err(error) = self.links.delete(namespace, &plan_of(&record))
        {
            warn!(netns = %record.netns.display(), %error, "cannot remove the interface of a failed ADD");
        }
        if let Some(device) = device {
            self.links.discard(device);
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

    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests stop here"))]
    fn step(&self, step: Step) {
        #[cfg(test)]
        (self.on_step)(step);
        let _ = step;
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
