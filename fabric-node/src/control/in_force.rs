//! The state in force: the one place where a changed desire or attachment becomes a new snapshot.
//!
//! Comes in: desired states from a source, attachments from the CNI side. Goes out: snapshots to the
//! data plane, addresses and routes on `fabric0`. All changes pass one lock, so snapshots follow each
//! other in order; readers of the data plane never take it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
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
    desired::{DesiredState, NodeSpec},
    host,
    outside::Outside,
    reconcile::{
        PeerIds, allocation_range, gateway_of, host_routes, snapshot_inputs, surroundings,
    },
};
use crate::{
    causes::with_causes,
    cni::attach::{Attachment, Fabric},
    dataplane::{Dataplane, published::Published},
    node_id::NodeId,
    pki::LiveIdentity,
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
    /// The host as the way to what is not the fabric's, if it is that.
    outside: Option<Outside>,
    /// This node's identity, if what is wrong with it is to be shown.
    identity: Option<Arc<LiveIdentity>>,
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
    /// Why the last desired state was refused.
    refused: Option<String>,
    /// Why `fabric0` is not as the state in force wants it.
    host_problem: Option<String>,
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
                refused: None,
                host_problem: None,
            }),
            started: Instant::now(),
            outside: None,
            identity: None,
        }
    }

    /// Counts the node as not in order when something is wrong with its identity, and keeps pods away
    /// when its certificate has expired: no peer talks to it then.
    #[must_use]
    pub fn with_identity(self, identity: Arc<LiveIdentity>) -> Self {
        Self {
            identity: Some(identity),
            ..self
        }
    }

    /// Makes the host the way to what is not the fabric's, if it is to be that.
    #[must_use]
    pub fn with_outside(self, outside: Option<Outside>) -> Self {
        Self { outside, ..self }
    }

    /// Puts a new desired state in force. What cannot be put in force changes nothing.
    ///
    /// A host device that cannot be configured is no reason to refuse a state: pods do not need it.
    /// It is a problem of the node, and [`Self::mend_host`] tries again.
    ///
    /// # Errors
    ///
    /// Contradictions in the state.
    pub fn set_desired(&self, desired: DesiredState) -> anyhow::Result<()> {
        let mut state = self.lock();
        let underlay_before = self.underlay_of(&state.desired);
        let previous = std::mem::replace(&mut state.desired, desired);
        if let Err(error) = self.publish(&mut state) {
            state.desired = previous;
            state.refused = Some(with_causes(&error));
            return Err(error);
        }
        state.refused = None;
        let underlay = self.underlay_of(&state.desired);
        if underlay_before.is_some() && underlay != underlay_before {
            tracing::warn!(
                ?underlay,
                "the underlay addresses of this node have changed: restart fabric-node to listen on them"
            );
        }
        self.configure_host(&mut state);
        Ok(())
    }

    /// Configures the host's device again if the last attempt failed.
    pub fn mend_host(&self) {
        if let Some(outside) = &self.outside {
            outside.look();
        }
        let mut state = self.lock();
        if state.host_problem.is_some() {
            self.configure_host(&mut state);
        }
    }

    fn configure_host(&self, state: &mut State) {
        let gateways = state.desired.nodes.get(&self.local).map(gateways_of);
        let result = host_routes(&state.desired, &self.local)
            .map_err(Into::into)
            .and_then(|ranges| host::configure(&gateways.unwrap_or_default(), &ranges));
        let outside = self.outside.as_ref().map_or(Ok(()), |outside| {
            let surroundings = surroundings(&state.desired, &self.local)?;
            outside.configure(&surroundings)
        });
        let problem = result
            .and(outside)
            .err()
            .map(|error| format!("fabric0: {}", with_causes(&error)));
        if problem != state.host_problem {
            match &problem {
                Some(problem) => {
                    tracing::error!(problem, "the host's way to pods is not in order");
                }
                None => tracing::info!("the host's way to pods is in order again"),
            }
        }
        state.host_problem = problem;
    }

    fn underlay_of(&self, desired: &DesiredState) -> Option<Vec<SocketAddr>> {
        let spec = desired.nodes.get(&self.local)?;
        Some(spec.underlay.clone())
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
            drop(state);
            // A worker that was only slow has taken it by now.
            self.let_go(port);
            return Err(error);
        }
        drop(state);
        if let Some(before) = before {
            self.let_go(before.port);
        }
        Ok(port)
    }

    /// Withdraws a pod's routes and takes its device out of the data plane. The device, which the
    /// caller may be the last to hold. Does nothing for one that is not there.
    pub fn detach(&self, key: &AttachmentKey) -> Option<Arc<Tun>> {
        let mut state = self.lock();
        let (_, attached) = self.attached.remove(key)?;
        if let Err(error) = self.publish(&mut state) {
            tracing::error!(%error, "withdrawing a pod's routes");
        }
        drop(state);
        self.let_go(attached.port);
        Some(attached.tun)
    }

    fn let_go(&self, port: PortId) {
        if let Err(error) = self.dataplane.close_port(port) {
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
        let (mut builder, targets) = snapshot_inputs(
            &state.desired,
            &self.local,
            &pods,
            &mut state.peer_ids,
            generation,
        )?;
        builder.detours = self
            .outside
            .as_ref()
            .map(|outside| outside.detours().clone());
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

    /// Takes over the flows through the host that the kernel knows, before the first port is read.
    pub fn restore_detours(&self) {
        if let Some(outside) = &self.outside {
            outside.restore(&self.dataplane.published().snapshot);
        }
    }

    /// Flows through the host that are remembered now, and those that had to be forgotten for want of room
    /// since the start; `None` where nothing passes through the host.
    #[must_use]
    pub fn detours(&self) -> Option<(usize, u64)> {
        let detours = self.outside.as_ref()?.detours();
        Some((detours.len(Instant::now()), detours.evicted()))
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

    /// Last second in which this node's certificate is valid (since 1970), if there is one.
    #[must_use]
    pub fn certificate_end(&self) -> Option<i64> {
        let identity = self.identity.as_ref()?;
        Some(identity.current().validity().not_after)
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
        let noted = [&state.refused, &state.host_problem];
        let mut problems: Vec<String> = noted.into_iter().flatten().cloned().collect();
        problems.extend(self.obstacle(&state));
        problems.extend(self.identity.as_ref().and_then(|identity| identity.noted()));
        let reports = self.dataplane.reports();
        if reports
            .iter()
            .any(|report| report.gone.contains(&PortId::HOST))
        {
            problems.push("fabric0 was deleted: restart fabric-node".to_owned());
        }
        problems
    }

    /// What keeps pods from being attached.
    fn obstacle(&self, state: &State) -> Option<String> {
        if state.generation == Generation(0) {
            Some("no state is in force yet".to_owned())
        } else if !self.dataplane.is_running() {
            Some("a data-plane worker has ended: restart fabric-node".to_owned())
        } else {
            self.identity.as_ref()?.expiry()
        }
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
        Self::attach(self, attachment, device).map_err(|error| with_causes(&error))
    }

    fn detach(&self, key: &AttachmentKey) -> Option<Arc<Tun>> {
        Self::detach(self, key)
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
        // Not every problem: a runtime takes a node out of service whose network is not ready, and a
        // state that was refused or a host device that was deleted keeps no pod from its network.
        self.obstacle(&self.lock()).map_or(Ok(()), Err)
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
