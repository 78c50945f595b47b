//! Carries out the writes of this node's own objects, one at a time.
//!
//! Comes in: [`Facts`], as they change. Goes out: requests, spaced by the rules of [`super::own`] and,
//! after a failure, by a back-off. Never done here: deciding what to write.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc::Sender, watch},
    time::{sleep, sleep_until, timeout},
};

use super::{
    backoff::{Backoff, random},
    crd::FabricNode,
    own::{FABRIC_IS_UP, Facts, Memory, Note, Step, Write},
    trouble::Trouble,
};

/// Who writes, as server-side apply and Events name it.
pub const FIELD_MANAGER: &str = "fabric-node";
/// How long a request may take.
pub const REQUEST_MAX: Duration = Duration::from_secs(30);
/// Longest words of an Event (bytes): the API server refuses more than 1024.
pub const NOTE_BYTES_MAX: usize = 1000;

/// How an attempt to write went.
#[derive(Debug)]
pub enum Outcome {
    /// It failed.
    Failed(Trouble),
    /// What is named was written.
    Written(&'static str),
}

/// Writes this node's own objects.
pub struct Writer {
    client: Client,
    name: String,
    facts: watch::Receiver<Facts>,
    memory: Memory,
    recorder: Recorder,
}

impl Writer {
    /// For the node `name`, by what `facts` says.
    #[must_use]
    pub fn new(client: Client, name: &str, facts: watch::Receiver<Facts>) -> Self {
        let reporter = Reporter {
            controller: "fabric.dev/node".to_owned(),
            instance: Some(name.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            name: name.to_owned(),
            facts,
            memory: Memory::default(),
        }
    }

    /// Runs until the facts' sender or the receiver of the outcomes is gone.
    pub async fn run<I: From<Outcome>>(mut self, outcomes: Sender<I>) {
        let mut backoff = Backoff::new();
        let mut failing: Option<&'static str> = None;
        loop {
            let facts = self.facts.borrow_and_update().clone();
            match self.memory.next(&facts, Instant::now(), Timestamp::now()) {
                Step::Write(write) => {
                    let what = write.what();
                    let outcome = self.attempt(&facts, write).await;
                    failing = matches!(outcome, Outcome::Failed(_)).then_some(what);
                    let wait = match &outcome {
                        Outcome::Failed(trouble) => {
                            backoff.next(Instant::now(), trouble.retry_after, random())
                        }
                        Outcome::Written(_) => Duration::ZERO,
                    };
                    if outcomes.send(outcome.into()).await.is_err() {
                        return;
                    }
                    sleep(wait).await;
                }
                Step::Wait(until) => tokio::select! {
                    changed = self.facts.changed() => if changed.is_err() { return },
                    () = sleep_until(until.into()) => {}
                },
                Step::Rest => {
                    // What failed is no longer to be done: somebody else did it, or undid the reason.
                    if let Some(what) = failing.take()
                        && outcomes.send(Outcome::Written(what).into()).await.is_err()
                    {
                        return;
                    }
                    if self.facts.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, facts: &Facts, write: Write) -> Outcome {
        let what = write.what();
        tracing::debug!(?write, "writing");
        let done = timeout(REQUEST_MAX, self.carry_out(facts, &write)).await;
        let trouble = match done {
            Ok(Ok(())) => {
                self.memory.done(&self.name, write, Instant::now());
                return Outcome::Written(what);
            }
            Ok(Err(error)) => Trouble::of_request(what, &error),
            Err(_) => Trouble::of_silence(what, REQUEST_MAX),
        };
        if let Write::Event(note) = &write {
            // An Event is news: later it is none.
            self.memory.forget(note);
        } else if trouble.is_refused {
            let note = Note {
                reason: "RequestRefused".to_owned(),
                action: "Write",
                note: trouble.to_string(),
            };
            self.memory.tell(note, Instant::now());
        }
        Outcome::Failed(trouble)
    }

    async fn carry_out(&self, facts: &Facts, write: &Write) -> kube::Result<()> {
        let objects: Api<FabricNode> = Api::all(self.client.clone());
        let nodes: Api<Node> = Api::all(self.client.clone());
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        let ours = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match write {
            Write::Spec(spec, uid) => {
                let owner =
                    json!({"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": uid});
                let object = self.object(json!({
                    "metadata": {"name": self.name, "ownerReferences": [owner]},
                    "spec": spec,
                }));
                objects
                    .patch(&self.name, &apply, &Patch::Apply(object))
                    .await
                    .map(drop)
            }
            Write::Status(conditions) => {
                let object = self.object(json!({
                    "metadata": {"name": self.name},
                    "status": {"conditions": conditions},
                }));
                objects
                    .patch_status(&self.name, &apply, &Patch::Apply(object))
                    .await
                    .map(drop)
            }
            Write::NetworkUp => {
                let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let condition = json!({
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": FABRIC_IS_UP,
                    "message": "fabric-node attaches pods on this node",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                });
                let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
                nodes
                    .patch_status(&self.name, &ours, &patch)
                    .await
                    .map(drop)
            }
            Write::Taints(taints, version) => {
                let patch = Patch::Merge(json!({
                    "metadata": {"resourceVersion": version},
                    "spec": {"taints": taints},
                }));
                nodes.patch(&self.name, &ours, &patch).await.map(drop)
            }
            Write::Event(note) => self.publish(facts, note).await,
        }
    }

    fn object(&self, mut content: Value) -> Value {
        content["apiVersion"] = "fabric.dev/v1alpha1".into();
        content["kind"] = "FabricNode".into();
        content
    }

    async fn publish(&self, facts: &Facts, note: &Note) -> kube::Result<()> {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.name.clone()),
            uid: facts.node.as_ref().map(|node| node.uid.clone()),
            ..ObjectReference::default()
        };
        let mut words = note.note.clone();
        words.truncate(words.floor_char_boundary(NOTE_BYTES_MAX));
        let event = Event {
            type_: EventType::Warning,
            reason: note.reason.clone(),
            note: Some(words),
            action: note.action.to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, &regarding).await
    }
}
