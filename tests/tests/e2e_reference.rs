//! The cluster that the product is proved on, without the product: with the reference plugins as its network, everything
//! that the other tests rely on works, and nothing of it stays.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_tests::{
    cluster::{
        Cluster, Options, control_plane::Component, proxy::Mode, steps::Steps, survey::Survey,
    },
    eventually::eventually,
};

/// How long pods may take to run, and a Service to be there.
const PODS_MAX: Duration = Duration::from_secs(60);
/// How long pods that run may take to reach each other.
const REACH_MAX: Duration = Duration::from_secs(10);
/// How long what a cluster leaves may stay.
const GONE_MAX: Duration = Duration::from_secs(20);

/// Two pods of busybox, one on each node, and a web server with a Service that has an address of each family.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: pod-a, labels: {app: ping}}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, command: [sleep, "86400"]}
---
apiVersion: v1
kind: Pod
metadata: {name: pod-b, labels: {app: ping}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, command: [sleep, "86400"]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
    args: [netexec, --http-port=8080]
    readinessProbe:
      httpGet: {path: /healthz, port: 8080}
      periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
  - {port: 80, targetPort: 8080}
"#;

/// Nodes are Ready, pods of two nodes ping each other over IPv4 and IPv6, a Service answers on both of its addresses and
/// by its name, with kube-proxy in iptables and in nftables mode; the API server may be away for a while; a node that lost its
/// power is replaced under its name; a third node joins; and when the cluster is dropped the machine is as it was.
#[test]
fn a_cluster_of_the_reference_plugins_works_and_leaves_nothing() -> anyhow::Result<()> {
    let before = Survey::take()?;
    let steps = Steps::new(false);
    let mut cluster = Cluster::up(&Options::default(), &steps)?;
    println!("cluster up after {:.1} s", steps.elapsed().as_secs_f64());

    steps.step("pods run", || start_pods(&cluster))?;
    steps.step("pods ping each other", || ping_each_other(&cluster))?;
    steps.step("a Service answers, kube-proxy in iptables mode", || {
        ask_service(&cluster)
    })?;
    cluster.set_proxy_mode(Mode::Nftables)?;
    steps.step("a Service answers, kube-proxy in nftables mode", || {
        ensure!(
            !rules(&cluster, "n1")?.contains("KUBE-SERVICES"),
            "old rules"
        );
        ask_service(&cluster)
    })?;
    steps.step("the API server comes back", || {
        let plane = cluster.control_plane();
        plane.component(Component::ApiServer).kill()?;
        ensure!(
            cluster.kubectl().run(&["get", "nodes"]).is_err(),
            "it answers"
        );
        let plane = cluster.control_plane();
        plane.component(Component::ApiServer).start_again()?;
        plane.await_ready()?;
        ping_each_other(&cluster)
    })?;
    steps.step("n2 is replaced, n3 joins", || {
        cluster.kill_node("n2")?;
        let kubectl = cluster.kubectl();
        kubectl.run(&["delete", "node", "n2", "--wait=true"])?;
        kubectl.run(&["delete", "pod", "pod-b", "web", "--force"])?;
        cluster.add_node("n2", &steps)?;
        cluster.add_node("n3", &steps)?;
        start_pods(&cluster)?;
        ping_each_other(&cluster)?;
        ask_service(&cluster)
    })?;
    cluster.check()?;
    drop(cluster);
    println!("cluster down after {:.1} s", steps.elapsed().as_secs_f64());
    let (_, took) = eventually("nothing is left behind", GONE_MAX, || {
        let changes = Survey::take()?.changes_since(&before);
        ensure!(changes.is_empty(), "\n{}", changes.join("\n"));
        Ok(())
    })?;
    println!("nothing is left after {} ms", took.as_millis());
    Ok(())
}

fn start_pods(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.apply(MANIFEST)?;
    kubectl.wait(
        "condition=Ready",
        &["pod", "pod-a", "pod-b", "web"],
        PODS_MAX,
    )?;
    println!("{}", kubectl.run(&["get", "pods", "-A", "-o", "wide"])?);
    Ok(())
}

/// All addresses of a pod, IPv4 first.
fn addresses(cluster: &Cluster, pod: &str) -> anyhow::Result<Vec<IpAddr>> {
    let path = "jsonpath={.status.podIPs[*].ip}";
    let said = cluster.kubectl().run(&["get", "pod", pod, "-o", path])?;
    let found: Vec<IpAddr> = said
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let families: Vec<bool> = found.iter().map(IpAddr::is_ipv4).collect();
    ensure!(families == [true, false], "{pod} has {found:?}");
    Ok(found)
}

fn ping_each_other(cluster: &Cluster) -> anyhow::Result<()> {
    for (from, to) in [("pod-a", "pod-b"), ("pod-b", "pod-a")] {
        for address in addresses(cluster, to)? {
            let address = address.to_string();
            let words = ["ping", "-c", "2", "-W", "5", &address];
            // A node that is new is Ready before its pods are reached: ten seconds are granted.
            eventually("the ping is answered", REACH_MAX, || {
                let said = cluster.kubectl().exec(from, &words)?;
                ensure!(said.contains(" 0% packet loss"), "{said}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// From both nodes: one of the clients is on the server's own.
fn ask_service(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = cluster.kubectl();
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let found = kubectl.run(&["get", "service", "web", "-o", path])?;
    ensure!(found.split_whitespace().count() == 2, "{found}");
    for client in ["pod-a", "pod-b"] {
        for address in found.split_whitespace() {
            let ask = format!("printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80");
            eventually("the Service answers", PODS_MAX, || {
                let said = kubectl.exec(client, &["sh", "-c", &ask])?;
                let last = said.lines().last().context("nothing")?;
                ensure!(last == "web", "{said}");
                Ok(())
            })?;
        }
    }
    let words = ["/agnhost", "connect", "web.default.svc.cluster.local:80"];
    eventually("the Service is found by name", PODS_MAX, || {
        kubectl.exec("web", &words)
    })?;
    Ok(())
}

/// The rules of iptables on a node.
fn rules(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    let node = cluster
        .nodes()
        .find(|found| found.name() == node)
        .context("no such node")?;
    let mut save = node
        .realm()
        .command("/usr/sbin/iptables-save".as_ref(), "/".as_ref())?;
    Ok(String::from_utf8(save.output()?.stdout)?)
}
