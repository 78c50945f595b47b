//! Nodes as a kubelet registers them, and the state source of one.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fabric_node::{
    control::{
        desired::{DesiredState, KeyHash},
        kubernetes::{
            Inputs, KubernetesSource, Outputs,
            client::Access,
            crd::FabricNode,
            own::{Health, Settings},
        },
    },
    node_id::NodeId,
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::sleep};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The state source of one node; it ends with this.
pub(crate) struct Source {
    pub(crate) outputs: Outputs,
    pub(crate) health: watch::Sender<Option<Health>>,
    pub(crate) keys: watch::Sender<Vec<KeyHash>>,
    _tasks: JoinSet<()>,
}

/// A connection that is silent for longer than this is ended, in these tests.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(4);

impl Source {
    /// For the node `name`, which last knew `known`.
    pub(crate) async fn start(
        kubeconfig: &Path,
        name: &str,
        known: DesiredState,
        silence_max: Option<Duration>,
    ) -> anyhow::Result<Self> {
        let mut access = Access::of_kubeconfig(kubeconfig).await?;
        if let Some(silence_max) = silence_max {
            access = access.with_silence_max(silence_max);
        }
        let settings = Settings {
            node: id(name),
            port: 7946,
            underlay: Vec::new(),
            host_addresses: Vec::new(),
            startup_taint: Some("fabric.dev/agent-not-ready".to_owned()),
        };
        let (keys, keys_out) = watch::channel(Vec::new());
        let (health, health_out) = watch::channel(None);
        let inputs = Inputs {
            keys: keys_out,
            health: health_out,
        };
        let (source, outputs) = KubernetesSource::new(
            access.client()?,
            access.candidates(),
            settings,
            inputs,
            known,
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(source.run());
        Ok(Self {
            outputs,
            health,
            keys,
            _tasks: tasks,
        })
    }

    pub(crate) fn state(&self) -> DesiredState {
        self.outputs.desired.borrow().clone().unwrap_or_default()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.state();
        state.nodes.keys().map(NodeId::to_string).collect()
    }

    /// Waits until exactly these nodes are in the state.
    pub(crate) async fn sees(&self, names: &[&str]) -> anyhow::Result<()> {
        eventually(&format!("a state of {names:?}"), async || {
            let seen = self.names();
            if seen == names {
                Ok(())
            } else {
                bail!("{seen:?}: {:?}", *self.outputs.status.borrow())
            }
        })
        .await
    }

    pub(crate) fn is_ready(&self) {
        let health = Health {
            ready: true,
            message: "pods can be attached".to_owned(),
        };
        self.health.send_replace(Some(health));
    }
}

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// Asks until it is so.
pub(crate) async fn eventually<T>(
    what: &str,
    ask: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("not within {PATIENCE:?}: {what}"));
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Registers a Node with the pod range 10.244.`n`.0/24 and the address 192.0.2.`n`.
pub(crate) async fn register(client: &Client, name: &str, n: u8) -> anyhow::Result<()> {
    register_with(client, name, n, &[&format!("10.244.{n}.0/24")]).await
}

/// The same, with other pod ranges.
pub(crate) async fn register_with(
    client: &Client,
    name: &str,
    n: u8,
    pod_cidrs: &[&str],
) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut spec = json!({
        "taints": [
            {"key": "fabric.dev/agent-not-ready", "effect": "NoSchedule"},
            {"key": "other", "effect": "NoSchedule"},
        ],
    });
    if let Some(first) = pod_cidrs.first() {
        spec["podCIDR"] = json!(first);
        spec["podCIDRs"] = json!(pod_cidrs);
    }
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec});
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node)?)
        .await?;
    let status = json!({"status": {
        "addresses": [
            {"type": "InternalIP", "address": format!("192.0.2.{n}")},
            {"type": "InternalIP", "address": format!("2001:db8::{n}")},
            {"type": "Hostname", "address": name},
        ],
        "conditions": [{
            "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// Writes a FabricNode as its daemon would: pod range and address as of [`register`].
pub(crate) async fn put_peer(client: &Client, name: &str, n: u8) -> anyhow::Result<()> {
    put(
        client,
        name,
        json!({
            "podCIDRs": [format!("10.244.{n}.0/24")],
            "endpoints": [{"address": format!("192.0.2.{n}"), "port": 7946}],
        }),
    )
    .await?;
    Ok(())
}

pub(crate) async fn put(
    client: &Client,
    name: &str,
    spec: serde_json::Value,
) -> kube::Result<FabricNode> {
    let objects: Api<FabricNode> = Api::all(client.clone());
    let object = json!({
        "apiVersion": "fabric.dev/v1alpha1", "kind": "FabricNode",
        "metadata": {"name": name}, "spec": spec,
    });
    let apply = PatchParams::apply("somebody").force();
    objects.patch(name, &apply, &Patch::Apply(object)).await
}

pub(crate) async fn delete_peer(client: &Client, name: &str) -> anyhow::Result<()> {
    let objects: Api<FabricNode> = Api::all(client.clone());
    objects.delete(name, &DeleteParams::default()).await?;
    Ok(())
}
