//! The state in force: the one place where a changed desire or attachment becomes a new snapshot.
//!
//! Comes in: desired states from a source, attachments from the CNI side. Goes out: snapshots to the
//! data plane, addresses and routes on `fabric0`. All changes pass one lock, so snapshots follow each
//! other in order; readers of the data plane never take it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::Context as _;
use dashmap::DashMap;
use fabric_core::{
    ids::{Generation, PeerId, PortId},
    verdict::NextHop,
};
use fabric_proto::cni::AttachmentKey;
use ipnet::IpNet;

use super::{
    desired::{DesiredState, NodeId, NodeSpec},
    host,
    reconcile::{PeerIds, allocation_range, gateway_of, host_routes, snapshot_inputs},
};
use crate::{
    cni::attach::{Attachment, Fabric},
    dataplane::{Dataplane, published::Published},
    sys::tun::Tun,
    tunnel::membership::{Peer, PeerShared},
};

/// The node's state: what is desired, what is attached, and the snapshot made of both.
pub struct InForce {
    local: NodeId,
    dataplane: Arc<Dataplane>,
    host_tun: Arc<Tun>,
    attached: DashMap<AttachmentKey, Attached>,
    state: Mutex<State>,
    started: Instant,
}

/// One attached pod.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its port.
    pub port: PortId,
    /// Its device.
    pub tun: Arc<Tun>,
    /// Who it is.
    pub attachment: Attachment,
}

struct State {
    desired: DesiredState,
    peer_ids: PeerIds,
    shared: HashMap<PeerId, Arc<PeerShared>>,
    generation: Generation,
    next_port: u32,
    problem: Option<String>,
}

impl InForce {
    /// Begins with the host's port alone; [`Self::set_desired`] makes it a node.
    #[must_use]
    pub fn new(local: NodeId, dataplane: Arc<Dataplane>, host_tun: Arc<Tun>) -> Self {
        Self {
            local,
            dataplane,
            host_tun,
            attached: DashMap::new(),
            state: Mutex::new(State {
                desired: DesiredState::default(),
                peer_ids: PeerIds::default(),
                shared: HashMap::new(),
                generation: Generation(0),
                next_port: PortId::HOST.0 + 1,
                problem: None,
            }),
            started: Instant::now(),
        }
    }

    /// Puts a new desired state in force. What cannot be put in force changes nothing.
    ///
    /// # Errors
    ///
    /// Contradictions in the state, or the host's device cannot be configured.
    pub fn set_desired(&self, desired: DesiredState) -> anyhow::Result<()> {
        let mut state = self.lock();
        let result = self.try_set_desired(&mut state, desired);
        state.problem = result.as_ref().err().map(|error| format!("{error:#}"));
        result
    }

    fn try_set_desired(&self, state: &mut State, desired: DesiredState) -> anyhow::Result<()> {
        let ranges = host_routes(&desired, &self.local)?;
        let gateways = desired
            .nodes
            .get(&self.local)
            .map(gateways_of)
            .unwrap_or_default();
        let previous = std::mem::replace(&mut state.desired, desired);
        if let Err(error) = self.publish(state) {
            state.desired = previous;
            return Err(error);
        }
        host::configure(&gateways, &ranges).context("fabric0")
    }

    /// Takes over a pod's device. Routes to it are live when this returns.
    ///
    /// # Errors
    ///
    /// Its addresses contradict the state, or no worker takes it; nothing has changed then.
    pub fn attach(&self, attachment: Attachment, tun: Tun) -> anyhow::Result<PortId> {
        let key = attachment.key.clone();
        let tun = Arc::new(tun);
        let mut state = self.lock();
        let port = PortId(state.next_port);
        state.next_port = state
            .next_port
            .checked_add(1)
            .context("no port number is left: restart fabric-node")?;
        let entry = Attached {
            port,
            tun: tun.clone(),
            attachment,
        };
        let before = self.attached.insert(key.clone(), entry);
        let opened = self
            .publish(&mut state)
            .and_then(|()| self.dataplane.open_port(port, tun));
        if let Err(error) = opened {
            self.attached.remove(&key);
            if let Some(before) = before {
                self.attached.insert(key, before);
            }
            if let Err(error) = self.publish(&mut state) {
                tracing::error!(%error, "undoing an attachment");
            }
            return Err(error);
        }
        drop(state);
        if let Some(before) = before {
            self.let_go(&before);
        }
        Ok(port)
    }

    /// Withdraws a pod's routes and closes its device. Does nothing for one that is not there.
    pub fn detach(&self, key: &AttachmentKey) {
        let mut state = self.lock();
        let Some((_, attached)) = self.attached.remove(key) else {
            return;
        };
        if let Err(error) = self.publish(&mut state) {
            tracing::error!(%error, "withdrawing a pod's routes");
        }
        drop(state);
        self.let_go(&attached);
    }

    fn let_go(&self, attached: &Attached) {
        if let Err(error) = self.dataplane.close_port(attached.port) {
            tracing::error!(%error, "closing a port");
        }
    }

    /// Builds a snapshot of what is desired and attached, and hands it to the workers.
    fn publish(&self, state: &mut State) -> anyhow::Result<()> {
        let pods: Vec<(PortId, Vec<IpAddr>)> = self
            .attached
            .iter()
            .map(|entry| (entry.port, entry.attachment.addresses.clone()))
            .collect();
        let generation = Generation(state.generation.0 + 1);
        let (builder, targets) = snapshot_inputs(
            &state.desired,
            &self.local,
            &pods,
            &mut state.peer_ids,
            generation,
        )?;
        let snapshot = builder
            .build()
            .with_context(|| format!("the state of node {} cannot be put in force", self.local))?;
        let peers = targets
            .into_iter()
            .map(|target| Peer {
                shared: state.shared.entry(target.id).or_default().clone(),
                target,
            })
            .collect();
        let mut ports: crate::dataplane::published::Ports = self
            .attached
            .iter()
            .map(|entry| (entry.port, entry.tun.clone()))
            .collect();
        ports.insert(PortId::HOST, self.host_tun.clone());
        state.generation = generation;
        self.dataplane.publish(Published {
            snapshot,
            ports,
            peers,
        });
        Ok(())
    }

    /// This node's name.
    #[must_use]
    pub fn local(&self) -> &NodeId {
        &self.local
    }

    /// When the daemon started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The workers.
    #[must_use]
    pub fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    /// The host's device.
    #[must_use]
    pub fn host_tun(&self) -> &Tun {
        &self.host_tun
    }

    /// Everything attached, by key.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        let mut all: Vec<Attached> = self.attached.iter().map(|entry| entry.clone()).collect();
        all.sort_by(|a, b| a.attachment.key.cmp(&b.attachment.key));
        all
    }

    /// This node as the state in force describes it.
    #[must_use]
    pub fn local_spec(&self) -> Option<NodeSpec> {
        self.lock().desired.nodes.get(&self.local).cloned()
    }

    /// All nodes in force.
    #[must_use]
    pub fn desired(&self) -> DesiredState {
        self.lock().desired.clone()
    }

    /// This node's gateway addresses.
    #[must_use]
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.local_spec()
            .as_ref()
            .map(gateways_of)
            .unwrap_or_default()
    }

    /// Number of the snapshot in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.lock().generation
    }

    /// Why the node is not in order, if it is not.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let state = self.lock();
        let mut problems: Vec<String> = state.problem.iter().cloned().collect();
        if state.generation == Generation(0) {
            problems.push("no state is in force yet".to_owned());
        }
        if !self.dataplane.is_running() {
            problems.push("a data-plane worker has ended: restart fabric-node".to_owned());
        }
        problems
    }

    /// All routes in force, with the name of whoever they lead to.
    #[must_use]
    pub fn routes(&self) -> Vec<(IpNet, NextHop, String)> {
        let published = self.dataplane.published();
        let names: HashMap<PeerId, String> = published
            .peers
            .iter()
            .map(|peer| (peer.target.id, peer.target.node.to_string()))
            .collect();
        let pod_names: HashMap<PortId, String> = self
            .attached()
            .iter()
            .map(|a| (a.port, a.attachment.display_name()))
            .collect();
        published
            .snapshot
            .routes()
            .into_iter()
            .map(|(prefix, hop)| {
                let name = match hop {
                    NextHop::Local(PortId::HOST) => self.local.to_string(),
                    NextHop::Local(port) => pod_names.get(&port).cloned().unwrap_or_default(),
                    NextHop::Peer(peer) => names.get(&peer).cloned().unwrap_or_default(),
                    NextHop::Unassigned => String::new(),
                };
                (prefix, hop, name)
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fabric for InForce {
    fn attach(&self, attachment: Attachment, device: Tun) -> Result<PortId, String> {
        Self::attach(self, attachment, device).map_err(|error| format!("{error:#}"))
    }

    fn detach(&self, key: &AttachmentKey) {
        Self::detach(self, key);
    }

    fn pod_cidrs(&self) -> Vec<IpNet> {
        let spec = self.local_spec();
        let first = |ipv4| allocation_range(spec.as_ref()?, ipv4);
        [true, false].into_iter().filter_map(first).collect()
    }

    fn gateways(&self) -> Vec<IpAddr> {
        Self::gateways(self)
    }

    fn ready(&self) -> Result<(), String> {
        match self.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(problems.join("; ")),
        }
    }
}

/// The gateway of the first range of each family.
fn gateways_of(spec: &NodeSpec) -> Vec<IpAddr> {
    [true, false]
        .into_iter()
        .filter_map(|ipv4| allocation_range(spec, ipv4))
        .filter_map(|range| gateway_of(&range))
        .collect()
}
