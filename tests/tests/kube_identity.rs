//! Certificates from a real API server: who gets one, who does not, and what happens when something is away.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "kube_identity/cluster.rs"]
mod cluster;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    node_id::NodeId,
    pki::{LiveIdentity, NodeIdentity, authority, kubernetes::Enrollment, validity::unix_now},
};
use fabric_tests::eventually::eventually;

use self::cluster::{Cluster, Signer, enrollment, pod};

/// Anything that is answered, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A deleted Node is cut off within this.
const CUT_OFF_MAX: Duration = Duration::from_secs(5);

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// Waits for the first certificate; an error is the first that is told.
async fn first(enrollment: &Enrollment) -> Result<NodeIdentity, String> {
    let (told, mut telling) = tokio::sync::mpsc::unbounded_channel();
    let obtained = enrollment.first(move |error| {
        let _ = told.send(error.to_string());
    });
    tokio::select! {
        identity = obtained => Ok(identity),
        Some(error) = telling.recv() => Err(error),
        () = tokio::time::sleep(PATIENCE * 2) => Err("nothing was told".to_owned()),
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A node's own request is signed, whatever else asks is denied with the reason, and what is on disk is used
/// without the API server.
#[test]
fn who_gets_a_certificate() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    let mut signer = cluster.signer("one", &[])?;
    let runtime = runtime()?;
    let home = tempfile::tempdir()?;
    let own = home.path().join("a");
    runtime.block_on(async {
        let begun = Instant::now();
        let enrollment = cluster.enrollment("worker-a", "worker-a", &own).await?;
        let identity = first(&enrollment).await.map_err(anyhow::Error::msg)?;
        println!(
            "first certificate: {:?} after the signer's start",
            begun.elapsed()
        );
        ensure!(identity.node_id().as_str() == "worker-a");
        ensure!(identity.trust_domain().as_str() == "cluster.local");
        let seconds = identity.validity().not_after - unix_now();
        ensure!(
            (7 * 86_400 - 60..=7 * 86_400).contains(&seconds),
            "{seconds}"
        );
        ensure!(mode(&own) == 0o700 && mode(&own.join("current/node-key.pem")) == 0o600);
        let again = enrollment.stored().context("nothing is stored")?;
        ensure!(again.key() == identity.key());
        deny_others(&cluster, home.path()).await
    })?;
    ensure!(signer.ask("/healthz")?.contains("200") && signer.ask("/readyz")?.contains("200"));
    let requests = cluster.kubectl(&["get", "csr", "-o", "jsonpath={.items[*].spec.request}"])?;
    let key = fs::read_to_string(own.join("current/node-key.pem"))?;
    ensure!(
        !requests.contains(&key),
        "the private key has left the node"
    );
    // Without the API server: the identity on disk is used, and a new one is not to be had.
    cluster.pause();
    runtime.block_on(async {
        let nowhere = "http://127.0.0.1:1".parse()?;
        let client = kube::Client::try_from(kube::Config::new(nowhere))?;
        let begun = Instant::now();
        first(&enrollment(client.clone(), "worker-a", &own)?)
            .await
            .map_err(anyhow::Error::msg)?;
        ensure!(begun.elapsed() < Duration::from_secs(1));
        let error = first(&enrollment(client, "worker-b", &home.path().join("new"))?).await;
        let error = error.err().context("a certificate without an API server")?;
        println!("without an API server: {error}");
        ensure!(error.contains("cannot create CertificateSigningRequest fabric-node-worker-b-"));
        anyhow::Ok(())
    })?;
    signer.stop()
}

/// Another node's name, another ServiceAccount, a token of no Pod, no rights: each is told.
async fn deny_others(cluster: &Cluster, home: &Path) -> anyhow::Result<()> {
    let foreign = cluster
        .enrollment("worker-a", "worker-b", &home.join("foreign"))
        .await?;
    let error = first(&foreign).await.err().context("another node's name")?;
    println!("another node's name: {error}");
    ensure!(error.contains("denied (NameOfAnotherNode)"), "{error}");
    ensure!(
        error.contains("worker-b") && error.contains("worker-a"),
        "{error}"
    );
    ensure!(
        !home.join("foreign/pending-key.pem").exists(),
        "the next request is another one"
    );

    cluster.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: { name: default, namespace: fabric-system }\n",
    )?;
    cluster.apply(&pod("default", "worker-b"))?;
    let client = cluster.client("default", Some("worker-b")).await?;
    let without = first(&enrollment(client, "worker-b", &home.join("rights"))?).await;
    let without = without.err().context("no rights")?;
    println!("without rights: {without}");
    ensure!(
        without.contains("403 Forbidden") && without.contains("apply the ClusterRole"),
        "{without}"
    );

    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        "too-much",
        "--clusterrole=fabric-node-identity",
        "--serviceaccount=fabric-system:default",
    ])?;
    let client = cluster.client("default", Some("worker-b")).await?;
    let other = first(&enrollment(client, "worker-b", &home.join("other"))?).await;
    let other = other.err().context("another ServiceAccount")?;
    println!("another ServiceAccount: {other}");
    ensure!(other.contains("denied (OtherRequester)"), "{other}");

    let client = cluster.client("fabric-node", None).await?;
    let unbound = first(&enrollment(client, "worker-b", &home.join("unbound"))?).await;
    let unbound = unbound.err().context("a token of no Pod")?;
    println!("a token of no Pod: {unbound}");
    ensure!(unbound.contains("denied (NoNodeName)"), "{unbound}");

    // A Node that is gone, and its token still there.
    cluster.add_node("worker-x")?;
    let gone = cluster
        .enrollment("worker-x", "worker-x", &home.join("gone"))
        .await?;
    cluster.kubectl(&["delete", "node", "worker-x", "--wait=false"])?;
    let gone = first(&gone).await.err().context("a Node that is gone")?;
    println!("a Node that is gone: {gone}");
    ensure!(gone.contains("denied (NoSuchNode)"), "{gone}");
    Ok(())
}

/// A certificate is renewed before its end, with another key, while the API server is away for a while; a
/// new CA is trusted beside the old one, signs, and when the old one goes certificates of it are replaced.
#[test]
fn certificates_and_authorities_are_renewed() -> anyhow::Result<()> {
    const LIFE: i64 = 40;
    let mut cluster = Cluster::start()?;
    let life = LIFE.to_string();
    let _signer = cluster.signer("one", &["--lifetime-max", &life])?;
    let runtime = runtime()?;
    let home = tempfile::tempdir()?;
    let (live, _keeping) = runtime.block_on(async {
        let enrollment = cluster
            .enrollment("worker-a", "worker-a", home.path())
            .await?;
        let live = LiveIdentity::of(first(&enrollment).await.map_err(anyhow::Error::msg)?);
        let kept = live.clone();
        let mut keeping = tokio::task::JoinSet::new();
        keeping.spawn(async move { enrollment.keep(kept).await });
        anyhow::Ok((live, keeping))
    })?;
    // Five minutes of each life are in the past: renewal is due at once, and again and again.
    let renewed = |what: &str| {
        let before = live.current().key();
        let (_, took) = eventually(what, PATIENCE, || {
            ensure!(live.current().key() != before, "{:?}", live.noted());
            Ok(())
        })?;
        ensure!(live.expiry().is_none(), "{:?}", live.expiry());
        anyhow::Ok(took)
    };
    println!("renewed after {:?}", renewed("a renewal")?);
    let stored = |path: &str| fs::read_to_string(home.path().join("current").join(path));
    ensure!(stored("node-key.pem")?.contains("PRIVATE KEY"));

    // The API server is away: the running identity stays, and says why there is no newer one.
    cluster.pause();
    eventually("the outage is named", PATIENCE, || {
        let noted = live.noted().context("nothing is noted")?;
        ensure!(
            noted.contains("cannot") && noted.contains("API server"),
            "{noted}"
        );
        println!("during an outage: {noted}");
        Ok(())
    })?;
    cluster.resume()?;
    println!(
        "after an outage: renewed after {:?}",
        renewed("a renewal after the outage")?
    );
    eventually("nothing is wrong", PATIENCE, || {
        ensure!(live.noted().is_none(), "{:?}", live.noted());
        Ok(())
    })?;
    rotate_authority(&cluster, &live)?;
    runtime.shutdown_background();
    Ok(())
}

fn rotate_authority(cluster: &Cluster, live: &Arc<LiveIdentity>) -> anyhow::Result<()> {
    let old = ca_of(cluster)?;
    let new = authority::init("cluster.local", 100)?;
    let trusted = |what: &str, accepts_old: bool| {
        let peer = |authority: &authority::Authority| chain(authority);
        let peer_of_new = peer(&new)?;
        eventually(what, PATIENCE, || {
            let current = live.current();
            current
                .verify_again(&peer_of_new)
                .map_err(anyhow::Error::msg)?;
            ensure!(
                accepts_old == ca_count(cluster)?.ge(&2),
                "the ConfigMap is late"
            );
            Ok(())
        })
    };
    let secret = |certificates: &str, key: &str| {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ name: fabric-ca-key, namespace: fabric-system }}\ntype: fabric.dev/ca\nstringData:\n  ca.pem: {certificates:?}\n  ca-key.pem: {key:?}\n"
        ))
    };
    secret(&[new.certificate_pem(), &old].concat(), new.key_pem())?;
    let (_, took) = trusted("the new CA is trusted beside the old one", true)?;
    println!("a new CA is trusted after {took:?}");
    secret(new.certificate_pem(), new.key_pem())?;
    let (_, took) = trusted("the old CA is gone", false)?;
    println!("the old CA is gone, with certificates of the new one, after {took:?}");
    // Garbage in the Secret: the CA in use stays.
    secret("hello", new.key_pem())?;
    let before = live.current().key();
    eventually("certificates are signed on", PATIENCE, || {
        ensure!(live.current().key() != before);
        Ok(())
    })?;
    Ok(())
}

fn chain(
    authority: &authority::Authority,
) -> anyhow::Result<Vec<rustls_pki_types::CertificateDer<'static>>> {
    use rustls_pki_types::pem::PemObject as _;
    let node = NodeId::new("peer").map_err(anyhow::Error::msg)?;
    let credentials = authority::issue(authority, &node, 1)?;
    let der = rustls_pki_types::CertificateDer::from_pem_slice(credentials.chain_pem.as_bytes())?;
    Ok(vec![der])
}

fn ca_of(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.kubectl(&[
        "get",
        "configmap",
        "-n",
        "fabric-system",
        "fabric-ca",
        "-o",
        "jsonpath={.data.ca\\.pem}",
    ])
}

fn ca_count(cluster: &Cluster) -> anyhow::Result<usize> {
    Ok(ca_of(cluster)?.matches("BEGIN CERTIFICATE").count())
}

/// Two signers that start together make one CA; when the leader is killed the other one goes on, and what
/// was approved and not signed is signed; who ends in order is followed at once.
#[test]
fn signers_take_over() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let runtime = runtime()?;
    let home = tempfile::tempdir()?;
    let mut signers = [cluster.signer("one", &[])?, cluster.signer("two", &[])?];
    let leading = |limit, other_than: &str| {
        eventually("somebody leads", limit, || {
            let leader = cluster.leader()?;
            ensure!(leader != other_than, "{leader} leads");
            Ok(leader)
        })
    };
    let (leader, _) = leading(PATIENCE, "")?;
    let ask = |name: &str| {
        let dir = home.path().join(name);
        runtime.block_on(async {
            let enrollment = cluster.enrollment("worker-a", "worker-a", &dir).await?;
            first(&enrollment).await.map_err(anyhow::Error::msg)
        })
    };
    ask("before")?;
    let ca = ca_of(&cluster)?;
    for signer in &signers {
        ensure!(signer.ask("/readyz")?.contains("200"), "{}", signer.log());
    }
    let position = signers
        .iter()
        .position(|signer| signer.name == leader)
        .context("who leads?")?;
    signers[position].kill();
    // A request that is approved while nobody signs, as a leader leaves it that ends in between.
    let killed = Instant::now();
    let (next, _) = leading(PATIENCE, &leader)?;
    let took = killed.elapsed();
    println!("killed leader: the other one leads after {took:?}");
    ensure!(took < Duration::from_secs(20), "{took:?}");
    ask("after")?;
    ensure!(ca_of(&cluster)? == ca, "another CA was made");
    let made: usize = signers
        .iter()
        .map(|signer| signer.log().matches("made the cluster's CA").count())
        .sum();
    ensure!(made == 1, "{made} CAs were made");

    signers[position] = cluster.signer(&leader, &[])?;
    signers[position].wait_for_log("signer started", PATIENCE)?;
    eventually("the new one is ready", PATIENCE, || {
        ensure!(signers[position].ask("/readyz")?.contains("200"));
        Ok(())
    })?;
    signers[1 - position].stop()?;
    let (_, took) = leading(PATIENCE, &next)?;
    println!("stopped leader: the other one leads after {took:?}");
    ensure!(took < Duration::from_secs(8), "{took:?}");
    ask("last")?;
    approved_is_signed(&cluster, &runtime, home.path(), &mut signers[position])
}

/// What was approved is signed by the next signer, and what somebody else approved against the rules is not.
fn approved_is_signed(
    cluster: &Cluster,
    runtime: &tokio::runtime::Runtime,
    home: &Path,
    signer: &mut Signer,
) -> anyhow::Result<()> {
    signer.stop()?;
    let waiting = |runs_on: &'static str, node: &'static str| {
        let dir = home.join(format!("{runs_on}-as-{node}"));
        let enrollment = runtime.block_on(cluster.enrollment(runs_on, node, &dir))?;
        anyhow::Ok(runtime.spawn(async move {
            first(&enrollment)
                .await
                .map(|found| found.node_id().clone())
        }))
    };
    let good = waiting("worker-b", "worker-b")?;
    let bad = waiting("worker-b", "worker-a")?;
    let (names, _) = eventually("both ask", PATIENCE, || {
        let list = cluster.kubectl(&["get", "csr", "-o", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let items = list["items"].as_array().context("no list")?;
        let waiting = items
            .iter()
            .filter(|item| item["status"]["certificate"].is_null());
        let names: Vec<String> = waiting
            .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        ensure!(names.len() == 2, "{names:?}");
        Ok(names)
    })?;
    for name in &names {
        cluster.kubectl(&["certificate", "approve", name])?;
    }
    let _signer = cluster.signer("three", &[])?;
    let good = runtime.block_on(good)?.map_err(anyhow::Error::msg)?;
    ensure!(good.as_str() == "worker-b");
    let bad = runtime
        .block_on(bad)?
        .err()
        .context("a hostile request was signed")?;
    println!("approved by a person against the rules: {bad}");
    ensure!(bad.contains("was not signed"), "{bad}");
    Ok(())
}

/// A deleted Node's FabricNode goes within 5 s, also one that comes back while the Node is away, and also what
/// was deleted while no signer ran; no outage takes one away.
#[test]
fn deleted_nodes_are_cut_off() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.add_node("worker-c")?;
    cluster.add_node("worker-d")?;
    let mut signer = cluster.signer("one", &[])?;
    signer.wait_for_log("this instance leads", PATIENCE)?;
    let left = |cluster: &Cluster| cluster.kubectl(&["get", "fabricnodes", "-o", "name"]);
    let gone = |cluster: &Cluster, name: &str, limit| {
        let begun = Instant::now();
        eventually("the FabricNode is gone", limit, || {
            let left = left(cluster)?;
            ensure!(!left.contains(name), "{left}");
            Ok(())
        })?;
        anyhow::Ok(begun.elapsed())
    };
    cluster.kubectl(&["delete", "node", "worker-c", "--wait=false"])?;
    println!(
        "cut off after {:?}",
        gone(&cluster, "worker-c", CUT_OFF_MAX)?
    );
    cluster.apply("apiVersion: fabric.dev/v1alpha1\nkind: FabricNode\nmetadata: { name: worker-c }\nspec: {}\n")?;
    println!(
        "one that came back without its Node: cut off after {:?}",
        gone(&cluster, "worker-c", CUT_OFF_MAX)?
    );
    // The API server goes and comes back: nobody is cut off.
    cluster.pause();
    std::thread::sleep(Duration::from_secs(3));
    cluster.resume()?;
    std::thread::sleep(Duration::from_secs(5));
    let names = left(&cluster)?;
    ensure!(
        ["worker-a", "worker-b", "worker-d"]
            .iter()
            .all(|name| names.contains(name)),
        "{names}"
    );
    signer.kill();
    cluster.kubectl(&["delete", "node", "worker-d", "--wait=false"])?;
    let next = cluster.signer("two", &[])?;
    next.wait_for_log("this instance leads", PATIENCE)?;
    println!(
        "deleted while no signer ran: cut off after {:?} of the next one's",
        gone(&cluster, "worker-d", CUT_OFF_MAX)?
    );
    // The last Nodes, one by one, until there is none: each deletion is seen as one.
    for name in ["worker-a", "worker-b"] {
        cluster.kubectl(&["delete", "node", name, "--wait=false"])?;
        gone(&cluster, name, CUT_OFF_MAX)?;
    }
    Ok(())
}
