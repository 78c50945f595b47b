//! This node's own objects: what its FabricNode and its Node should say, and the next write that makes
//! it so. Pure.
//!
//! Comes in: what the watches show, how the daemon is. Goes out: one write at a time, none when all is
//! as it should be: an idle cluster has no writes. Never done here: writing.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::Value;

use super::{
    convert::{Finding, node_spec},
    crd::{Endpoint, FabricNodeSpec, Identity, Key},
    pruned::{Own, OwnNode},
};
use crate::{
    control::desired::{KeyHash, NodeSpec},
    node_id::NodeId,
};

/// Between two writes of the status, unless Ready changes.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(60);
/// After a write, how long to wait for the watch to show it until it is written again.
pub const SHOWN_MAX: Duration = Duration::from_secs(10);
/// Shortest time between two corrections of what others changed; it doubles with each, so that two
/// who disagree do not write against each other for ever.
pub const CORRECT_MIN: Duration = Duration::from_secs(1);
/// Longest time between two corrections.
pub const CORRECT_MAX: Duration = Duration::from_secs(60);
/// Time without a correction after which the next one is the first.
pub const CORRECT_FORGET: Duration = Duration::from_secs(300);
/// Between two Events of the same reason and words.
pub const EVENT_INTERVAL: Duration = Duration::from_secs(3_600);

/// Reason of the conditions Ready and NetworkUnavailable when all is well.
pub const FABRIC_IS_UP: &str = "FabricIsUp";

/// What is configured for this node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name.
    pub node: NodeId,
    /// The first worker's UDP port.
    pub port: u16,
    /// Addresses to listen on, if not the Node's.
    pub underlay: Vec<IpAddr>,
    /// Further addresses of the host.
    pub host_addresses: Vec<IpAddr>,
    /// The taint to take away once the node is ready.
    pub startup_taint: Option<String>,
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Pods can be attached.
    pub ready: bool,
    /// Why not, or what else is wrong. The same words for as long as it is the same.
    pub message: String,
}

/// Why this node cannot be a part of the fabric yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// In the words of an Event's reason.
    pub reason: &'static str,
    /// What is missing, and the cure.
    pub note: String,
}

/// What this node is, from its Node: as the data plane takes it, and as it is written.
///
/// # Errors
///
/// [`Lack`], which passes when the Node changes.
pub fn local_spec(
    settings: &Settings,
    node: &OwnNode,
    keys: &[KeyHash],
) -> Result<(NodeSpec, FabricNodeSpec), Lack> {
    let name = &settings.node;
    if node.pod_cidrs.is_empty() {
        return Err(Lack {
            reason: "PodCIDRsMissing",
            note: format!(
                "Node {name} has no spec.podCIDRs: run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr (kubeadm: --pod-network-cidr), or set spec.podCIDRs"
            ),
        });
    }
    let underlay = if settings.underlay.is_empty() {
        &node.internal_ips
    } else {
        &settings.underlay
    };
    if underlay.is_empty() {
        return Err(Lack {
            reason: "AddressMissing",
            note: format!(
                "Node {name} has no address of type InternalIP: see the kubelet's --node-ip, or name addresses in source.underlay"
            ),
        });
    }
    let spec = FabricNodeSpec {
        pod_cidrs: node.pod_cidrs.clone(),
        endpoints: underlay
            .iter()
            .map(|address| Endpoint {
                address: address.to_string(),
                port: settings.port,
            })
            .collect(),
        host_addresses: settings
            .host_addresses
            .iter()
            .map(IpAddr::to_string)
            .collect(),
        identity: Identity {
            keys: keys
                .iter()
                .map(|hash| Key {
                    sha256: hash.to_string(),
                })
                .collect(),
        },
    };
    let invalid = |field: &str, problem: &str| Lack {
        reason: "InvalidNode",
        note: format!(
            "Node {name}, as {field} of its FabricNode: {problem}; correct the Node, or source.underlay and source.host_addresses"
        ),
    };
    let read = node_spec(name.as_str(), &Ok(spec.clone()))
        .map_err(|finding| invalid(&finding.field, &finding.problem))?;
    let addresses = read.underlay.iter().map(|address| address.ip());
    for address in addresses.chain(read.host_addresses.iter().copied()) {
        if let Some(range) = read.pod_cidrs.iter().find(|range| range.contains(&address)) {
            let problem = format!("the node's own address {address} lies in its pod range {range}");
            return Err(invalid("spec.endpoints", &problem));
        }
    }
    Ok((read, spec))
}

/// This node's FabricNode, as the API server shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its spec, or why that cannot be read.
    pub spec: Result<FabricNodeSpec, String>,
    /// The rest.
    pub own: Box<Own>,
}

/// Everything that a write depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// This node's name.
    pub name: String,
    /// The taint to take away once the node is ready.
    pub startup_taint: Option<String>,
    /// This node's Node; none while it is not there.
    pub node: Option<OwnNode>,
    /// The FabricNodes were listed.
    pub listed: bool,
    /// This node's FabricNode; none while it is not there.
    pub shown: Option<Shown>,
    /// What it should say; none while that is not known.
    pub wanted: Option<FabricNodeSpec>,
    /// Why it is not known.
    pub lack: Option<Lack>,
    /// What others will leave out of this node.
    pub conflict: Option<Finding>,
    /// How the daemon is.
    pub health: Option<Health>,
}

/// Something to be told to whoever looks at the Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// PascalCase.
    pub reason: String,
    /// What was done or was to be done, a verb in PascalCase.
    pub action: &'static str,
    /// What is wrong, and the cure.
    pub note: String,
}

/// A write.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The FabricNode's spec, owned by the Node with this unique id.
    Spec(FabricNodeSpec, String),
    /// The FabricNode's conditions.
    Status(Vec<Condition>),
    /// The Node's condition NetworkUnavailable: False.
    NetworkUp,
    /// The Node's taints, if it still has this resourceVersion.
    Taints(Vec<Value>, String),
    /// An Event about the Node.
    Event(Note),
}

impl Write {
    /// In words, as in "writing the FabricNode".
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Spec(..) => "writing the FabricNode",
            Self::Status(_) => "writing the FabricNode's status",
            Self::NetworkUp => "writing the Node's condition NetworkUnavailable",
            Self::Taints(..) => "removing the Node's start-up taint",
            Self::Event(_) => "writing an Event",
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// This.
    Write(Write),
    /// Nothing before this time, if nothing changes.
    Wait(Instant),
    /// Nothing, if nothing changes.
    Rest,
}

/// What was written, and when.
#[derive(Debug, Default)]
pub struct Memory {
    last: BTreeMap<&'static str, (Write, Instant)>,
    corrections: u32,
    /// This spec, with this owner, was seen in place: another one is somebody else's work.
    in_place: Option<(FabricNodeSpec, String)>,
    notes: BTreeMap<Note, Instant>,
    pending: Vec<Note>,
}

impl Memory {
    /// Notes that a write was carried out for the node `name`.
    pub fn done(&mut self, name: &str, write: Write, now: Instant) {
        if let Write::Event(note) = write {
            self.pending.retain(|pending| *pending != note);
            self.notes.retain(|_, told| now - *told < EVENT_INTERVAL);
            self.notes.insert(note, now);
            return;
        }
        if let Write::Spec(spec, uid) = &write
            && (self.in_place.as_ref()).is_some_and(|it| it.0 == *spec && it.1 == *uid)
        {
            let last = self.last.get(write.what()).map(|(_, last)| *last);
            if last.is_none_or(|last| now - last >= CORRECT_FORGET) {
                self.corrections = 0;
            }
            self.corrections += 1;
            let note = Note {
                reason: "ForeignChangeReverted".to_owned(),
                action: "Write",
                note: format!(
                    "FabricNode {name} was changed or deleted by somebody else and is put back: the daemon of Node {name} alone writes it"
                ),
            };
            self.tell(note, now);
        }
        self.last.insert(write.what(), (write, now));
    }

    /// Has something told at the next step, unless it was told in the last hour.
    pub fn tell(&mut self, note: Note, now: Instant) {
        let told = self.notes.get(&note);
        if told.is_none_or(|told| now - *told >= EVENT_INTERVAL) && !self.pending.contains(&note) {
            self.pending.push(note);
        }
    }

    /// Gives up an Event that could not be written: it is told again when it happens again.
    pub fn forget(&mut self, note: &Note) {
        self.pending.retain(|pending| pending != note);
    }

    /// The next step, at `now`, which is `clock` on the wall.
    pub fn next(&mut self, facts: &Facts, now: Instant, clock: Timestamp) -> Step {
        let Some(node) = &facts.node else {
            // Without its Node there is nothing that an object could belong to.
            return Step::Rest;
        };
        let mut wait: Option<Instant> = None;
        let mut later = |until: Instant| wait = Some(wait.map_or(until, |wait| wait.min(until)));
        self.notice(facts, now);
        if let Some(note) = self.pending.first() {
            return Step::Write(Write::Event(note.clone()));
        }
        for step in [
            self.spec(facts, node, now),
            self.status(facts, now, clock),
            self.network(facts, node, now),
            taints(facts, node).map_or(Step::Rest, |write| self.unless_shown(write, now)),
        ] {
            match step {
                Step::Write(_) => return step,
                Step::Wait(until) => later(until),
                Step::Rest => {}
            }
        }
        wait.map_or(Step::Rest, Step::Wait)
    }

    /// What is wrong with this node becomes an Event.
    fn notice(&mut self, facts: &Facts, now: Instant) {
        if let Some(lack) = &facts.lack {
            let note = Note {
                reason: lack.reason.to_owned(),
                action: "Join",
                note: lack.note.clone(),
            };
            self.tell(note, now);
        }
        if let Some(conflict) = &facts.conflict {
            let note = Note {
                reason: conflict.reason.to_string(),
                action: "Join",
                note: conflict.to_string(),
            };
            self.tell(note, now);
        }
    }

    fn spec(&mut self, facts: &Facts, node: &OwnNode, now: Instant) -> Step {
        let Some(wanted) = facts.wanted.as_ref().filter(|_| facts.listed) else {
            return Step::Rest;
        };
        let shown = facts.shown.as_ref();
        if shown.is_some_and(|shown| shown.own.deleting) {
            return Step::Rest;
        }
        let wanted = (wanted.clone(), node.uid.clone());
        if shown.is_some_and(|it| {
            it.spec.as_ref() == Ok(&wanted.0) && it.own.owners.contains(&wanted.1)
        }) {
            self.in_place = Some(wanted);
            return Step::Rest;
        }
        let is_foreign = self.in_place.as_ref() == Some(&wanted);
        let write = Write::Spec(wanted.0, wanted.1);
        if !is_foreign {
            return self.unless_shown(write, now);
        }
        let next = self
            .last
            .get(write.what())
            .map(|(_, last)| match self.corrections {
                0 => *last,
                _ if now - *last >= CORRECT_FORGET => *last,
                n => {
                    *last
                        + CORRECT_MIN
                            .saturating_mul(1 << (n - 1).min(16))
                            .min(CORRECT_MAX)
                }
            });
        match next {
            Some(next) if now < next => Step::Wait(next),
            _ => Step::Write(write),
        }
    }

    fn status(&self, facts: &Facts, now: Instant, clock: Timestamp) -> Step {
        let (Some(shown), Some(health)) = (&facts.shown, &facts.health) else {
            return Step::Rest;
        };
        if shown.own.deleting {
            return Step::Rest;
        }
        let present = &shown.own.conditions;
        let wanted = conditions(
            present,
            health,
            facts.conflict.as_ref(),
            shown.own.generation,
            clock,
        );
        let find = |kind: &str| present.iter().find(|condition| condition.type_ == kind);
        if wanted
            .iter()
            .all(|wanted| find(&wanted.type_) == Some(wanted))
        {
            return Step::Rest;
        }
        let flips = wanted.iter().any(|wanted| {
            wanted.type_ == "Ready" && find("Ready").is_none_or(|it| it.status != wanted.status)
        });
        let what = Write::Status(Vec::new()).what();
        let next = self.last.get(what).map(|(last, at)| {
            // What was written and is not shown yet is not written again at once either.
            let is_same = matches!(last, Write::Status(last) if same_states(last, &wanted));
            if flips && !is_same {
                *at
            } else {
                *at + STATUS_INTERVAL
            }
        });
        match next {
            Some(next) if now < next => Step::Wait(next),
            _ => Step::Write(Write::Status(wanted)),
        }
    }

    fn network(&self, facts: &Facts, node: &OwnNode, now: Instant) -> Step {
        let is_up = node
            .network_unavailable
            .as_ref()
            .is_some_and(|(status, reason)| status == "False" && reason == FABRIC_IS_UP);
        if is_up || !facts.is_ready() {
            return Step::Rest;
        }
        self.unless_shown(Write::NetworkUp, now)
    }

    /// A write that was done is not done again before the watch had time to show it.
    fn unless_shown(&self, write: Write, now: Instant) -> Step {
        match self.last.get(write.what()) {
            Some((last, at)) if *last == write && now < *at + SHOWN_MAX => {
                Step::Wait(*at + SHOWN_MAX)
            }
            _ => Step::Write(write),
        }
    }
}

impl Facts {
    fn is_ready(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.ready)
    }
}

/// The Node's taints without the one that keeps pods away until the node is ready.
fn taints(facts: &Facts, node: &OwnNode) -> Option<Write> {
    let taint = facts
        .startup_taint
        .as_deref()
        .filter(|_| facts.is_ready())?;
    let others: Vec<Value> = node
        .taints
        .iter()
        .filter(|it| it.get("key").and_then(Value::as_str) != Some(taint))
        .cloned()
        .collect();
    (others.len() < node.taints.len()).then(|| Write::Taints(others, node.resource_version.clone()))
}

/// The conditions as they should be. The time of the last change is kept where nothing changes.
fn conditions(
    present: &[Condition],
    health: &Health,
    conflict: Option<&Finding>,
    generation: i64,
    clock: Timestamp,
) -> Vec<Condition> {
    let ready = if health.ready {
        ("True", FABRIC_IS_UP)
    } else {
        ("False", "NotReady")
    };
    let accepted = match conflict {
        None => (
            "True",
            "NoConflict".to_owned(),
            "no other node claims these addresses".to_owned(),
        ),
        Some(finding) => ("False", finding.reason.to_string(), finding.to_string()),
    };
    let condition = |kind: &str, status: &str, reason: String, message: String| {
        let before = present.iter().find(|it| it.type_ == kind);
        let same = before.filter(|it| it.status == status);
        // The API server stores whole seconds.
        let second = Timestamp::from_second(clock.as_second()).unwrap_or(clock);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            observed_generation: Some(generation),
            last_transition_time: same.map_or(Time(second), |it| it.last_transition_time.clone()),
        }
    };
    vec![
        condition("Ready", ready.0, ready.1.to_owned(), health.message.clone()),
        condition("AddressesAccepted", accepted.0, accepted.1, accepted.2),
    ]
}

/// Whether two sets of conditions say the same, whenever they began to.
fn same_states(a: &[Condition], b: &[Condition]) -> bool {
    let state = |it: &Condition| {
        (
            it.type_.clone(),
            it.status.clone(),
            it.reason.clone(),
            it.message.clone(),
        )
    };
    a.iter().map(state).eq(b.iter().map(state))
}

#[cfg(test)]
mod tests;
