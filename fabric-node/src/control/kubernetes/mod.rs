//! State source `kubernetes`: the FabricNodes of a cluster, watched; this node's own one, written.
//!
//! Comes in: what the API server streams. Goes out: complete [`DesiredState`]s, and this node's own
//! objects. Never done here: putting a state in force; changing it because the API server is away.
//!
//! | file | what |
//! |---|---|
//! | [`client`], [`connector`], [`candidates`] | the way to an API server, without its ClusterIP |
//! | [`watch`], [`pruned`] | one watch of one kind of object; the objects cut down |
//! | [`roster`] | which FabricNodes count, after losses and outages too |
//! | [`mod@convert`] | FabricNodes to a state, with a finding for each that is left out |
//! | [`own`], [`writer`] | this node's FabricNode and Node: what to write, and writing it |
//! | [`trouble`], [`backoff`] | what is wrong, said once; when to try again |
//! | [`crd`] | the resource's types and schema |

pub mod backoff;
pub mod candidates;
pub mod client;
pub mod connector;
pub mod convert;
pub mod crd;
mod events;
pub mod own;
pub mod pruned;
pub mod roster;
pub mod trouble;
pub mod watch;
pub mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Api, Client};
use tokio::{
    sync::{mpsc, watch as latest},
    time::sleep_until,
};

use self::{
    candidates::Candidates,
    convert::{Claimant, Finding, convert, node_spec},
    events::Input,
    own::{Facts, Health, Settings, Shown, local_spec},
    pruned::{Backends, Listed, OwnNode, WireFabricNode, WireNode, WireSlice},
    roster::Roster,
    trouble::Troubles,
    watch::{Change, Watch},
    writer::{Outcome, Writer},
};
use super::desired::{DesiredState, KeyHash, NodeSpec};

/// This much quiet ends a burst of changes.
pub const QUIET: Duration = Duration::from_millis(100);
/// A burst is not waited for any longer than this.
pub const BURST_MAX: Duration = Duration::from_secs(1);
/// Changes that wait to be looked at; beyond it the watches wait.
const INPUTS_MAX: usize = 256;

/// What the rest of the daemon tells the source.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The keys of this node's certificates.
    pub keys: latest::Receiver<Vec<KeyHash>>,
    /// How the daemon is; none while it does not know.
    pub health: latest::Receiver<Option<Health>>,
}

/// What the source tells the rest of the daemon.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The state; none until the API server has shown one of which this node is a part.
    pub desired: latest::Receiver<Option<DesiredState>>,
    /// How the source is.
    pub status: latest::Receiver<SourceStatus>,
}

/// How the source is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it waits for before there is a state, with the cure; none once there was one.
    pub waiting_for: Option<String>,
    /// What does not work, a line each.
    pub troubles: Vec<String>,
}

/// The source, to be run.
pub struct KubernetesSource {
    client: Client,
    candidates: Arc<Candidates>,
    settings: Settings,
    inputs: Inputs,
    known: DesiredState,
    desired: latest::Sender<Option<DesiredState>>,
    status: latest::Sender<SourceStatus>,
}

impl KubernetesSource {
    /// Asks `client`, which finds API servers by `candidates`, for the node of `settings`. `known` is
    /// the last good state: it counts until the API server shows another.
    #[must_use]
    pub fn new(
        client: Client,
        candidates: Arc<Candidates>,
        settings: Settings,
        inputs: Inputs,
        known: DesiredState,
    ) -> (Self, Outputs) {
        let (desired, desired_out) = latest::channel(None);
        let (status, status_out) = latest::channel(SourceStatus::default());
        let source = Self {
            client,
            candidates,
            settings,
            inputs,
            known,
            desired,
            status,
        };
        let outputs = Outputs {
            desired: desired_out,
            status: status_out,
        };
        (source, outputs)
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let name = self.settings.node.to_string();
        let field = Some(format!("metadata.name={name}"));
        let node = Watch {
            api: Api::<WireNode>::all(self.client.clone()),
            fields: field,
            what: "watching this node's Node",
            prune: WireNode::prune,
        };
        let local = name.clone();
        let fabric_nodes = Watch {
            api: Api::<WireFabricNode>::all(self.client.clone()),
            fields: None,
            what: "watching FabricNodes",
            prune: move |object: WireFabricNode| object.prune(&local),
        };
        let servers = Watch {
            api: Api::<WireSlice>::namespaced(self.client.clone(), "default"),
            fields: Some("metadata.name=kubernetes".to_owned()),
            what: "watching the EndpointSlice default/kubernetes",
            prune: WireSlice::prune,
        };
        let (facts, facts_out) = latest::channel(Facts::default());
        let writer = Writer::new(self.client.clone(), &name, facts_out);
        let core = Core::new(self, facts);
        tokio::select! {
            () = node.run::<OwnNode, Input>(sender.clone()) => {}
            () = fabric_nodes.run::<Listed, Input>(sender.clone()) => {}
            () = servers.run::<Backends, Input>(sender.clone()) => {}
            () = writer.run::<Input>(sender) => {}
            () = core.run(inputs) => {}
        }
    }
}

/// A FabricNode as it is kept.
#[derive(Clone, Debug)]
struct Object {
    created: Option<jiff::Timestamp>,
    spec: Result<NodeSpec, Finding>,
    shown: Option<Shown>,
}

impl Object {
    fn new(name: &str, listed: Listed) -> Self {
        Self {
            created: listed.created,
            spec: node_spec(name, &listed.spec),
            shown: listed.own.map(|own| Shown {
                spec: listed.spec,
                own,
            }),
        }
    }

    /// Of a state that was good before.
    fn known(spec: NodeSpec) -> Self {
        Self {
            created: None,
            spec: Ok(spec),
            shown: None,
        }
    }
}

/// Brings everything together.
struct Core {
    settings: Settings,
    candidates: Arc<Candidates>,
    inputs: Inputs,
    node: Option<OwnNode>,
    node_listed: bool,
    /// What this node is, as long as nothing better is known.
    local: Option<NodeSpec>,
    roster: Roster<Object>,
    troubles: Troubles,
    findings: BTreeSet<Finding>,
    facts: latest::Sender<Facts>,
    desired: latest::Sender<Option<DesiredState>>,
    status: latest::Sender<SourceStatus>,
}

impl Core {
    fn new(source: KubernetesSource, facts: latest::Sender<Facts>) -> Self {
        let KubernetesSource {
            candidates,
            settings,
            inputs,
            mut known,
            desired,
            status,
            ..
        } = source;
        let local = known.nodes.remove(&settings.node);
        let known: BTreeMap<String, Object> = known
            .nodes
            .into_iter()
            .map(|(id, spec)| (id.to_string(), Object::known(spec)))
            .collect();
        Self {
            roster: Roster::new(settings.node.as_str(), known, Instant::now()),
            settings,
            candidates,
            inputs,
            node: None,
            node_listed: false,
            local,
            troubles: Troubles::default(),
            findings: BTreeSet::new(),
            facts,
            desired,
            status,
        }
    }

    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        self.compile(Instant::now());
        let mut due: Option<Instant> = None;
        let mut burst: Option<Instant> = None;
        loop {
            tokio::select! {
                input = inputs.recv() => {
                    let Some(input) = input else { return };
                    let now = Instant::now();
                    if !self.take(now, input) {
                        self.show_status();
                        continue;
                    }
                    let end = *burst.get_or_insert(now + BURST_MAX);
                    due = Some((now + QUIET).min(end));
                }
                // Their senders outlive the source; one that is gone has nothing more to say.
                Ok(()) = self.inputs.keys.changed() => due = Some(Instant::now()),
                Ok(()) = self.inputs.health.changed() => self.tell_writer(),
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    burst = None;
                    due = self.compile(Instant::now());
                }
            }
        }
    }

    /// Takes an input; true if the state may have changed by it.
    fn take(&mut self, now: Instant, input: Input) -> bool {
        match input {
            Input::Node(change) => match change {
                Change::Listed(mut nodes) => {
                    self.node = nodes.remove(self.settings.node.as_str());
                    self.node_listed = true;
                    if self.node.is_none() {
                        tracing::warn!(node = %self.settings.node, "this node's Node is not there: nothing is written until it is; see that `node` is the name that the kubelet registers");
                    }
                }
                Change::Applied(_, node) => self.node = Some(node),
                Change::Deleted(_) => {
                    tracing::warn!(node = %self.settings.node, "this node's Node was deleted: others cut this node off until it is back");
                    self.node = None;
                }
                Change::Failed(trouble) => return self.note(&trouble),
                Change::Works => return self.works("watching this node's Node"),
            },
            Input::FabricNodes(change) => match change {
                Change::Listed(listed) => {
                    let objects = listed.into_iter().map(|(name, listed)| {
                        let object = Object::new(&name, listed);
                        (name, object)
                    });
                    self.roster.list(now, objects.collect());
                }
                Change::Applied(name, listed) => {
                    let object = Object::new(&name, listed);
                    self.roster.apply(now, name, object);
                }
                Change::Deleted(name) => self.roster.delete(now, &name),
                Change::Failed(trouble) => return self.note(&trouble),
                Change::Works => return self.works("watching FabricNodes"),
            },
            Input::Servers(change) => {
                return match change {
                    Change::Listed(mut slices) => slices
                        .pop_first()
                        .is_some_and(|(_, slice)| self.keep(&slice)),
                    Change::Applied(_, slice) => self.keep(&slice),
                    // Better old addresses than none.
                    Change::Deleted(_) => false,
                    Change::Failed(trouble) => self.note(&trouble),
                    Change::Works => self.works("watching the EndpointSlice default/kubernetes"),
                };
            }
            Input::Outcome(Outcome::Failed(trouble)) => return self.note(&trouble),
            Input::Outcome(Outcome::Written(what)) => return self.works(what),
        }
        true
    }

    fn note(&mut self, trouble: &trouble::Trouble) -> bool {
        self.troubles.begin(trouble);
        false
    }

    fn works(&mut self, what: &str) -> bool {
        self.troubles.end(what);
        false
    }

    fn keep(&self, slice: &Backends) -> bool {
        if let Err(error) = self.candidates.keep(slice) {
            tracing::warn!(%error, "the addresses of the API servers cannot be kept for the next start; check that state_dir is writable and has room");
        }
        false
    }

    /// Makes the state anew, and says when that must be done again if nothing happens before.
    fn compile(&mut self, now: Instant) -> Option<Instant> {
        let next = self.roster.settle(now);
        let keys = self.inputs.keys.borrow_and_update().clone();
        let local = self
            .node
            .as_ref()
            .map(|node| local_spec(&self.settings, node, &keys));
        let mut facts = Facts {
            name: self.settings.node.to_string(),
            startup_taint: self.settings.startup_taint.clone(),
            node: self.node.clone(),
            listed: self.roster.is_listed(),
            shown: self.roster.own().and_then(|own| own.shown.clone()),
            health: self.inputs.health.borrow().clone(),
            ..Facts::default()
        };
        match local {
            Some(Ok((spec, wanted))) => {
                self.local = Some(spec);
                facts.wanted = Some(wanted);
            }
            Some(Err(lack)) => facts.lack = Some(lack),
            None => {}
        }
        if let Some(local) = self.local.clone().filter(|_| facts.listed) {
            facts.conflict = self.convert(&local);
        }
        if let Some(lack) = facts.lack.clone()
            && self.facts.borrow().lack.as_ref() != Some(&lack)
        {
            tracing::warn!(reason = lack.reason, "{}", lack.note);
        }
        self.facts.send_if_modified(|before| {
            let changed = *before != facts;
            *before = facts;
            changed
        });
        self.show_status();
        next
    }

    /// Brings all FabricNodes together with this node; the finding about this node, if there is one.
    fn convert(&mut self, local: &NodeSpec) -> Option<Finding> {
        let claimants: Vec<Claimant<'_>> = self
            .roster
            .entries()
            .map(|(name, object, leaving)| Claimant {
                name,
                created: object.created,
                leaving,
                spec: &object.spec,
            })
            .collect();
        let created = self.roster.own().and_then(|own| own.created);
        let converted = convert((&self.settings.node, local, created), &claimants);
        let findings: BTreeSet<Finding> = converted.findings.into_iter().collect();
        for new in findings.difference(&self.findings) {
            tracing::warn!(reason = %new.reason, "not in force: {new}");
        }
        for old in self.findings.difference(&findings) {
            tracing::info!(node = old.node, field = old.field, reason = %old.reason, "no longer a problem");
        }
        self.findings = findings;
        self.desired.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&converted.desired);
            *before = Some(converted.desired);
            changed
        });
        let of_local = |finding: &&Finding| finding.node == self.settings.node.as_str();
        self.findings.iter().find(of_local).cloned()
    }

    fn tell_writer(&mut self) {
        let health = self.inputs.health.borrow_and_update().clone();
        self.facts.send_if_modified(|facts| {
            let changed = facts.health != health;
            facts.health = health;
            changed
        });
    }

    fn show_status(&self) {
        let troubles = self.troubles.lines();
        let waiting_for = self.desired.borrow().is_none().then(|| {
            let lack = self
                .facts
                .borrow()
                .lack
                .as_ref()
                .map(|lack| lack.note.clone());
            if let Some(lack) = lack {
                lack
            } else if let Some(trouble) = troubles.first() {
                trouble.clone()
            } else if self.node_listed && self.node.is_none() {
                format!(
                    "Node {} is not there yet: start its kubelet, or correct `node`",
                    self.settings.node
                )
            } else {
                "the API server has not answered yet".to_owned()
            }
        });
        let status = SourceStatus {
            waiting_for,
            troubles,
        };
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            *before = status;
            changed
        });
    }
}
