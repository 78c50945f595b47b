//! The state source `kubernetes` against a real API server, and against bad ways to it.
//!
//! The folder with kube-apiserver is named by FABRIC_K8S_BIN; etcd is the machine's.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "kube_source/apiserver.rs"]
mod apiserver;
#[path = "kube_source/daemon.rs"]
mod daemon;
#[path = "kube_source/node.rs"]
mod node;
#[path = "kube_source/proxy.rs"]
mod proxy;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::control::{
    desired::DesiredState,
    kubernetes::{crd::FabricNode, own::Health},
};
use k8s_openapi::api::{core::v1::Node, events::v1::Event};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::sleep,
};

use self::{
    apiserver::ApiServer,
    daemon::{Daemon, in_a_namespace},
    node::{
        PATIENCE, SILENCE_MAX, Source, delete_peer, eventually, put, put_peer, register,
        register_with,
    },
    proxy::{Fault, Proxy},
};

/// API servers are large: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn server() -> anyhow::Result<(MutexGuard<'static, ()>, ApiServer, Client)> {
    let turn = ONE_AT_A_TIME.lock().await;
    let server = ApiServer::start().await?;
    let client = server.client().await?;
    Ok((turn, server, client))
}

async fn object(client: &Client, name: &str) -> anyhow::Result<FabricNode> {
    Ok(Api::<FabricNode>::all(client.clone()).get(name).await?)
}

/// Status, reason and message of a condition.
fn condition(object: &FabricNode, kind: &str) -> anyhow::Result<(String, String, String)> {
    let conditions = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice());
    let condition = conditions
        .unwrap_or_default()
        .iter()
        .find(|it| it.type_ == kind);
    let it = condition.with_context(|| format!("no condition {kind}"))?;
    Ok((it.status.clone(), it.reason.clone(), it.message.clone()))
}

/// The schema takes what a daemon writes, and refuses what no node could use, with words that help.
#[tokio::test]
async fn the_schema_refuses_bad_objects() -> anyhow::Result<()> {
    let (_turn, _server, client) = server().await?;
    let good = json!({
        "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"],
        "endpoints": [{"address": "192.0.2.1", "port": 7946}, {"address": "2001:db8::1", "port": 7946}],
        "hostAddresses": ["198.51.100.1"],
        "identity": {"keys": [{"sha256": "0a".repeat(32)}, {"sha256": "0b".repeat(32)}]},
    });
    put(&client, "good", good.clone()).await?;
    for (path, value, words) in [
        ("/podCIDRs", json!([]), "podCIDRs"),
        (
            "/podCIDRs/0",
            json!("10.244.1.1/24"),
            "without bits beyond its prefix",
        ),
        (
            "/podCIDRs/0",
            json!("10.244.1.0"),
            "range of unicast addresses",
        ),
        ("/podCIDRs/0", json!("10.0.0.0/7"), "/8 to /30"),
        ("/podCIDRs/1", json!("fd00::/16"), "/32 to /126"),
        ("/podCIDRs/0", json!("224.0.0.0/24"), "unicast"),
        ("/endpoints", json!([]), "endpoints"),
        ("/endpoints/0/address", json!("worker-a"), "unicast address"),
        (
            "/endpoints/0/address",
            json!("127.0.0.1"),
            "unicast address",
        ),
        ("/endpoints/1/address", json!("fe80::1"), "unicast address"),
        ("/endpoints/0/port", json!(0), "port"),
        ("/endpoints/0/port", json!(65_535), "65472"),
        (
            "/hostAddresses/0",
            json!("192.0.2.0/24"),
            "without a prefix length",
        ),
        (
            "/hostAddresses",
            json!(vec!["192.0.2.7"; 33]),
            "hostAddresses",
        ),
        ("/identity/keys/0/sha256", json!("zz"), "sha256"),
        (
            "/identity/keys",
            json!(vec![json!({"sha256": "0a".repeat(32)}); 3]),
            "keys",
        ),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value.clone();
        match put(&client, "bad", bad).await {
            Err(kube::Error::Api(status)) if status.code == 422 || status.code == 400 => {
                let said = status.message.contains(words);
                ensure!(said, "{path} = {value}: {}", status.message);
            }
            other => bail!("{path} = {value}: {other:?}"),
        }
    }
    let table = hyper::Request::get("/apis/fabric.dev/v1alpha1/fabricnodes")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())?;
    let table: Value = client.request(table).await?;
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .context("no columns")?
        .iter()
        .filter_map(|column| column["name"].as_str())
        .collect();
    ensure!(
        columns == ["Name", "READY", "POD-CIDRS", "ADDRESS", "AGE"],
        "{columns:?}"
    );
    println!("columns: {columns:?}, row: {}", table["rows"][0]["cells"]);
    Ok(())
}

/// A node writes its object when its Node has all that is needed, owned by the Node, and opens the Node
/// when it is ready. Then there are no writes, until somebody changes something: that is put back.
#[tokio::test]
async fn a_node_writes_only_on_change() -> anyhow::Result<()> {
    let (_turn, _server, client) = server().await?;
    let proxy = Proxy::start(client.clone()).await?;
    let source = Source::start(&proxy.kubeconfig(), "a", DesiredState::default(), None).await?;
    let waits = |words: &'static str| {
        let status = source.outputs.status.clone();
        async move {
            eventually(words, async || {
                let waiting = status
                    .borrow()
                    .waiting_for
                    .clone()
                    .context("it does not wait")?;
                ensure!(waiting.contains(words), "{waiting}");
                Ok(())
            })
            .await
        }
    };
    waits("Node a is not there yet").await?;
    register_with(&client, "a", 1, &[]).await?;
    waits("Node a has no spec.podCIDRs").await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let ranges =
        json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}});
    nodes
        .patch("a", &PatchParams::default(), &Patch::Merge(ranges))
        .await?;
    source.sees(&["a"]).await?;
    let written = eventually("the object of a", async || object(&client, "a").await).await?;
    let endpoints: Vec<String> = (written.spec.endpoints.iter())
        .map(|endpoint| format!("{} {}", endpoint.address, endpoint.port))
        .collect();
    ensure!(
        endpoints == ["192.0.2.1 7946", "2001:db8::1 7946"],
        "{endpoints:?}"
    );
    ensure!(written.spec.pod_cidrs == ["10.244.1.0/24", "fd00:1::/64"]);
    let uid = nodes.get("a").await?.metadata.uid;
    let owner = written
        .metadata
        .owner_references
        .as_deref()
        .and_then(|it| it.first());
    ensure!(owner.map(|owner| &owner.uid) == uid.as_ref(), "{owner:?}");
    // Ready.
    source.health.send_replace(Some(Health {
        ready: false,
        message: "not yet".into(),
    }));
    eventually("Ready=False", async || {
        let ready = condition(&object(&client, "a").await?, "Ready")?;
        ensure!(ready.0 == "False" && ready.2 == "not yet", "{ready:?}");
        Ok(())
    })
    .await?;
    source.is_ready();
    eventually("Ready, and the Node opened", async || {
        let ready = condition(&object(&client, "a").await?, "Ready")?;
        ensure!(ready.0 == "True" && ready.1 == "FabricIsUp", "{ready:?}");
        let node = nodes.get("a").await?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let taints: Vec<&str> = taints.iter().map(|taint| taint.key.as_str()).collect();
        // The API server adds one of its own.
        let is_open = !taints.contains(&"fabric.dev/agent-not-ready");
        ensure!(is_open && taints.contains(&"other"), "{taints:?}");
        let conditions = node
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let network = conditions
            .iter()
            .find(|it| it.type_ == "NetworkUnavailable");
        let up = network.map(|it| (it.status.as_str(), it.reason.as_deref().unwrap_or_default()));
        ensure!(up == Some(("False", "FabricIsUp")), "{network:?}");
        Ok(())
    })
    .await?;
    // Peers, and then an idle minute.
    put_peer(&client, "b", 2).await?;
    source.sees(&["a", "b"]).await?;
    sleep(Duration::from_secs(2)).await;
    proxy.take_passed();
    sleep(Duration::from_secs(60)).await;
    let idle = proxy.take_passed();
    println!(
        "an idle minute: {} writes, {} reads, {} bytes of watches",
        idle.writes.len(),
        idle.reads,
        idle.bytes
    );
    ensure!(idle.writes.is_empty(), "{:?}", idle.writes);
    ensure!(idle.reads <= 1, "{idle:?}");
    // A change by hand.
    let foreign = json!({"podCIDRs": ["10.99.0.0/24"], "endpoints": [{"address": "192.0.2.99", "port": 1}], "hostAddresses": ["192.0.2.98"]});
    put(&client, "a", foreign).await?;
    let changed = Instant::now();
    eventually("the change is put back", async || {
        let spec = object(&client, "a").await?.spec;
        ensure!(spec == written.spec, "{spec:?}");
        Ok(())
    })
    .await?;
    println!(
        "a change by hand was put back after {:?}",
        changed.elapsed()
    );
    event(&client, "ForeignChangeReverted").await?;
    // Deleted by hand: made anew, and nothing that was in force goes.
    delete_peer(&client, "a").await?;
    eventually("the object is made anew", async || {
        object(&client, "a").await
    })
    .await?;
    source.sees(&["a", "b"]).await?;
    // Another key.
    source
        .keys
        .send_replace(vec!["0c".repeat(32).parse().unwrap()]);
    eventually("the key is written", async || {
        let keys = object(&client, "a").await?.spec.identity.keys;
        ensure!(
            keys.len() == 1 && keys[0].sha256 == "0c".repeat(32),
            "{keys:?}"
        );
        Ok(())
    })
    .await?;
    // The Node is replaced under the same name, with another range.
    nodes.delete("a", &DeleteParams::default()).await?;
    register_with(&client, "a", 1, &["10.244.7.0/24"]).await?;
    let uid = nodes.get("a").await?.metadata.uid;
    eventually("the new Node owns the object", async || {
        let object = object(&client, "a").await?;
        ensure!(
            object.spec.pod_cidrs == ["10.244.7.0/24"],
            "{:?}",
            object.spec
        );
        let owners = object.metadata.owner_references.unwrap_or_default();
        let uids: Vec<_> = owners.iter().map(|owner| &owner.uid).collect();
        ensure!(uids == uid.iter().collect::<Vec<_>>(), "{owners:?}");
        Ok(())
    })
    .await
}

async fn event(client: &Client, reason: &str) -> anyhow::Result<Event> {
    let events: Api<Event> = Api::all(client.clone());
    eventually(reason, async || {
        let all = events.list(&ListParams::default()).await?;
        let found = all
            .into_iter()
            .find(|event| event.reason.as_deref() == Some(reason));
        found.with_context(|| format!("no Event {reason}"))
    })
    .await
}

/// Two nodes that claim the same range: the older one has it everywhere else, the younger one says what
/// is wrong by a condition and an Event, and a third node is not touched. A bad object alone is left out.
#[tokio::test]
async fn conflicts_are_told_and_stay_alone() -> anyhow::Result<()> {
    let (_turn, _server, client) = server().await?;
    let kubeconfig = Proxy::start(client.clone()).await?;
    register(&client, "a", 1).await?;
    let first = Source::start(&kubeconfig.kubeconfig(), "a", DesiredState::default(), None).await?;
    first.is_ready();
    eventually("the object of a", async || object(&client, "a").await).await?;
    put_peer(&client, "c", 3).await?;
    // Creation times are whole seconds.
    sleep(Duration::from_millis(1_100)).await;
    register_with(&client, "z", 26, &["10.244.1.0/25"]).await?;
    let second =
        Source::start(&kubeconfig.kubeconfig(), "z", DesiredState::default(), None).await?;
    second.is_ready();
    first.sees(&["a", "c"]).await?;
    second.sees(&["c", "z"]).await?;
    eventually("the condition of z", async || {
        let (status, reason, message) =
            condition(&object(&client, "z").await?, "AddressesAccepted")?;
        ensure!(
            status == "False" && reason == "AddressConflict",
            "{status} {reason}"
        );
        ensure!(
            message.contains("FabricNode a") && message.contains("10.244.1.0/24"),
            "{message}"
        );
        Ok(())
    })
    .await?;
    let told = event(&client, "AddressConflict").await?;
    let about = told.regarding.and_then(|it| it.name);
    ensure!(about.as_deref() == Some("z"), "{about:?}");
    println!("Event AddressConflict: {}", told.note.unwrap_or_default());
    ensure!(condition(&object(&client, "a").await?, "AddressesAccepted")?.0 == "True");
    // Gone, and all is well again.
    let nodes: Api<Node> = Api::all(client.clone());
    drop(second);
    nodes.delete("z", &DeleteParams::default()).await?;
    delete_peer(&client, "z").await?;
    put_peer(&client, "d", 4).await?;
    first.sees(&["a", "c", "d"]).await
}

/// Whatever the API server answers or does not, what is in force stays, and what has changed meanwhile
/// is seen when it answers again, without a restart.
#[tokio::test]
async fn bad_answers_are_survived() -> anyhow::Result<()> {
    let (_turn, _server, client) = server().await?;
    let proxy = Proxy::start(client.clone()).await?;
    register(&client, "a", 1).await?;
    put_peer(&client, "b", 2).await?;
    let source = Source::start(
        &proxy.kubeconfig(),
        "a",
        DesiredState::default(),
        Some(SILENCE_MAX),
    )
    .await?;
    source.is_ready();
    source.sees(&["a", "b"]).await?;
    for (n, fault) in [
        Fault::Cut,
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(403),
        Fault::Garbage,
        Fault::Gone,
        Fault::Slow,
        Fault::Hang,
    ]
    .into_iter()
    .enumerate()
    {
        let n = u8::try_from(n).unwrap() + 10;
        proxy.set(fault);
        let name = format!("n{n}");
        put_peer(&client, &name, n).await?;
        proxy.take_passed();
        let lasts = Duration::from_secs(8);
        sleep(lasts).await;
        let asked = proxy.take_passed();
        let before = source.names();
        ensure!(before.contains(&"b".to_owned()), "{fault:?}: {before:?}");
        ensure!(
            asked.reads + asked.writes.len() <= 60,
            "{fault:?}: {asked:?}"
        );
        let troubles = source.outputs.status.borrow().troubles.clone();
        proxy.set(Fault::None);
        let healed = Instant::now();
        let mut wanted: Vec<String> = (10..=n).map(|n| format!("n{n}")).collect();
        wanted.extend(["a".to_owned(), "b".to_owned()]);
        wanted.sort();
        source
            .sees(&wanted.iter().map(String::as_str).collect::<Vec<_>>())
            .await?;
        println!(
            "{fault:?} for {lasts:?}: {} requests, seen again after {:?}, said: {troubles:?}",
            asked.reads + asked.writes.len(),
            healed.elapsed()
        );
    }
    eventually("no trouble is left", async || {
        // These connections are ended sooner than bookmarks come.
        let troubles = source.outputs.status.borrow().troubles.clone();
        let others = troubles
            .iter()
            .filter(|trouble| !trouble.contains("timed out"));
        ensure!(others.count() == 0, "{troubles:?}");
        Ok(())
    })
    .await
}

/// The API server may be killed, lose everything it had, or lose the definition of FabricNode: what was
/// in force stays, and the nodes that are there come back by themselves.
#[tokio::test]
async fn a_lost_store_takes_nothing_away() -> anyhow::Result<()> {
    let (_turn, mut server, client) = server().await?;
    let kubeconfig = tempfile::tempdir()?;
    let path = kubeconfig.path().join("kubeconfig");
    server.copy_kubeconfig(&path)?;
    register(&client, "a", 1).await?;
    put_peer(&client, "b", 2).await?;
    let source = Source::start(&path, "a", DesiredState::default(), Some(SILENCE_MAX)).await?;
    source.is_ready();
    source.sees(&["a", "b"]).await?;
    eventually("the object of a", async || object(&client, "a").await).await?;

    server.kill_api()?;
    sleep(Duration::from_secs(3)).await;
    ensure!(source.names() == ["a", "b"]);
    server.start_api().await?;
    let restarted = Instant::now();
    put_peer(&client, "c", 3).await?;
    source.sees(&["a", "b", "c"]).await?;
    println!(
        "restarted with its data: seen {:?} after it was ready",
        restarted.elapsed()
    );

    server.kill_api()?;
    server.lose_data()?;
    server.start_api().await?;
    server.define().await?;
    sleep(Duration::from_secs(5)).await;
    ensure!(source.names() == ["a", "b", "c"], "{:?}", source.names());
    let restarted = Instant::now();
    register(&client, "a", 1).await?;
    eventually("the object of a is made anew", async || {
        object(&client, "a").await
    })
    .await?;
    put_peer(&client, "c", 3).await?;
    put_peer(&client, "d", 4).await?;
    source.sees(&["a", "b", "c", "d"]).await?;
    println!(
        "restarted without its data: whole again {:?} after the Node was back",
        restarted.elapsed()
    );

    let definitions: Api<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    > = Api::all(client.clone());
    definitions
        .delete("fabricnodes.fabric.dev", &DeleteParams::default())
        .await?;
    eventually("the definition is gone", async || {
        ensure!(definitions.get("fabricnodes.fabric.dev").await.is_err());
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(5)).await;
    ensure!(
        source.names() == ["a", "b", "c", "d"],
        "{:?}",
        source.names()
    );
    let troubles = source.outputs.status.borrow().troubles.clone();
    println!("without its definition: {troubles:?}");
    server.define().await?;
    eventually("the object of a is made anew", async || {
        object(&client, "a").await
    })
    .await?;
    ensure!(
        source.names() == ["a", "b", "c", "d"],
        "{:?}",
        source.names()
    );

    // A node that restarts meanwhile begins with what it knew.
    let known = source.state();
    drop(source);
    let source = Source::start(&path, "a", known, Some(SILENCE_MAX)).await?;
    source.sees(&["a"]).await
}

/// A daemon without a state answers on both sockets why it waits; once the API server and its Node are
/// there it becomes a node, and with the API server away it begins with what it knew. Needs root.
#[test]
fn a_daemon_waits_and_then_outlives_the_api_server() -> anyhow::Result<()> {
    in_a_namespace(async || {
        let mut daemon = Daemon::start()?;
        daemon.is("Starting", "Connection refused").await?;
        let (code, words) = daemon.cni_status()?.context("it takes pods")?;
        ensure!(
            code == 50 && words.contains("see that the API server runs"),
            "{code}: {words}"
        );
        println!("STATUS while it waits: {code} {words}");

        let (_turn, mut server, client) = server().await?;
        server.copy_kubeconfig(&daemon.kubeconfig())?;
        daemon.restart()?;
        daemon.is("Starting", "Node a is not there yet").await?;
        register(&client, "a", 1).await?;
        put_peer(&client, "b", 2).await?;
        let registered = Instant::now();
        daemon.is("Ready", "").await?;
        println!("ready {:?} after its Node was there", registered.elapsed());
        ensure!(daemon.cni_status()?.is_none());
        eventually("its object is Ready", async || {
            let object = object(&client, "a").await?;
            ensure!(condition(&object, "Ready")?.0 == "True");
            ensure!(object.spec.identity.keys.len() == 1, "{:?}", object.spec);
            Ok(())
        })
        .await?;
        ensure!(daemon.status().await?.peers_total == 1);

        server.kill_api()?;
        daemon.restart()?;
        daemon.is("Ready", "").await?;
        ensure!(daemon.status().await?.peers_total == 1);
        let log = daemon.log();
        ensure!(log.contains("beginning with the last good state"), "{log}");
        server.start_api().await?;
        put_peer(&client, "c", 3).await?;
        eventually("the new peer", async || {
            ensure!(daemon.status().await?.peers_total == 2);
            Ok(())
        })
        .await
    })
}

/// A node joins a cluster of 1,000 others: how long that takes, and what it costs.
#[tokio::test]
async fn a_thousand_nodes_converge() -> anyhow::Result<()> {
    const NODES: usize = 1_000;
    let (_turn, _server, client) = server().await?;
    for n in 0..NODES {
        let spec = json!({
            "podCIDRs": [format!("10.{}.{}.0/24", 1 + n / 256, n % 256), format!("fd00:{n:x}::/64")],
            "endpoints": [
                {"address": format!("172.16.{}.{}", n / 250, 1 + n % 250), "port": 7946},
                {"address": format!("2001:db8:1::{:x}", n + 1), "port": 7946},
            ],
            "identity": {"keys": [{"sha256": "0a".repeat(32)}]},
        });
        put(&client, &format!("n{n:04}"), spec).await?;
    }
    register_with(&client, "a", 1, &["10.200.0.0/24"]).await?;
    let proxy = Proxy::start(client.clone()).await?;
    let (before_memory, before_cpu) = (resident_kib()?, cpu()?);
    let began = Instant::now();
    let source = Source::start(&proxy.kubeconfig(), "a", DesiredState::default(), None).await?;
    source.is_ready();
    let mut desired = source.outputs.desired.clone();
    tokio::time::timeout(
        PATIENCE,
        desired.wait_for(|state| {
            state
                .as_ref()
                .is_some_and(|state| state.nodes.len() == NODES + 1)
        }),
    )
    .await??;
    let took = began.elapsed();
    println!(
        "{NODES} nodes: whole after {took:?}, {:?} of processor time and {} KiB more memory (this test's proxy included), {} bytes read",
        cpu()? - before_cpu,
        resident_kib()?.saturating_sub(before_memory),
        proxy.take_passed().bytes,
    );
    let before_cpu = cpu()?;
    let began = Instant::now();
    put_peer(&client, "n0500", 99).await?;
    let changed = "192.0.2.99:7946".parse()?;
    tokio::time::timeout(
        PATIENCE,
        desired.wait_for(|state| {
            let nodes = state.iter().flat_map(|state| state.nodes.values());
            nodes
                .into_iter()
                .any(|spec| spec.underlay.contains(&changed))
        }),
    )
    .await??;
    println!(
        "one change among them: {:?}, {:?} of processor time",
        began.elapsed(),
        cpu()? - before_cpu
    );
    Ok(())
}

/// Of this process, in KiB.
fn resident_kib() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

/// Of this process.
fn cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .context("no stat")?
        .split_whitespace()
        .collect();
    let ticks =
        |n: usize| -> anyhow::Result<u64> { Ok(fields.get(n).context("too few fields")?.parse()?) };
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}
