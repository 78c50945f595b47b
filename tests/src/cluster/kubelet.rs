//! A node's kubelet: what it is told.

use std::{fs, path::Path};

use super::{
    containerd::SOCKET,
    daemon::{Daemon, Program},
    pki::{NODES, Pki, Subject},
    plan::{self, Machine},
    programs::Programs,
    realm::Realm,
};

/// Pods that a node runs at most: a scale test on two nodes wants more than the usual 110.
const PODS_MAX: u32 = 200;

/// A node, as its kubelet and kube-proxy are told of it.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its addresses.
    pub machine: Machine,
    /// Where its programs run.
    pub realm: &'a Realm,
    /// Folder in memory that is the node's alone.
    pub folder: &'a Path,
}

/// Starts the kubelet of `who`, with containers below the control group `cgroup`. Its kubeconfig is where kubeadm puts
/// it: `/etc/kubernetes/kubelet.conf` of the node.
///
/// # Errors
///
/// A file cannot be written, or it cannot be started.
pub fn start(who: Who<'_>, cgroup: &str, pki: &Pki, programs: &Programs) -> anyhow::Result<Daemon> {
    let user = format!("system:node:{}", who.name);
    let subject = Subject {
        user: &user,
        group: Some(NODES),
    };
    let file = format!("kubelet-{}", who.name);
    let client = pki.client(&file, subject)?;
    let kubeconfig = pki.kubeconfig(&file, &plan::api_url(), &client)?;
    // The holder has it at /etc/kubernetes.
    let place = who.folder.join("kubernetes");
    fs::copy(kubeconfig, place.join("kubelet.conf"))?;
    let server = pki.kubelet_server(who.name, who.machine)?;
    // Pods that want the node's own resolver get one that nobody answers for.
    let resolver = place.join("resolv.conf");
    fs::write(&resolver, format!("nameserver {}\n", plan::ROUTER.v4()))?;
    let configuration = place.join("kubelet.yaml");
    fs::write(
        &configuration,
        text(&[
            ("authority", &pki.file("ca.crt")),
            ("certificate", &server.certificate),
            ("key", &server.key),
            ("resolver", Path::new("/etc/kubernetes/resolv.conf")),
            ("cgroup", Path::new(cgroup)),
        ]),
    )?;
    let [v4, v6] = who.machine.addresses();
    let arguments = [
        "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
        "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
        format!("--hostname-override={}", who.name),
        format!("--node-ip={v4},{v6}"),
    ];
    Daemon::start(Program {
        name: format!("kubelet of {}", who.name),
        file: programs.kubelet(),
        arguments: arguments.map(Into::into).to_vec(),
        realm: who.realm.clone(),
        // Its own, or else it deletes what it finds in another: see `Realm::command`.
        folder: who.folder.join("kubelet"),
    })
}

/// Its configuration, with the paths that are called by name.
fn text(paths: &[(&str, &Path)]) -> String {
    let mut text = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: {{authority}}
authorization:
  mode: Webhook
tlsCertFile: {{certificate}}
tlsPrivateKeyFile: {{key}}
cgroupDriver: cgroupfs
cgroupRoot: {{cgroup}}
# Control groups of this machine are those of version 1.
failCgroupV1: false
failSwapOn: false
# Lowering it needs CAP_SYS_RESOURCE.
oomScoreAdj: 0
clusterDNS: ["{dns4}", "{dns6}"]
clusterDomain: {domain}
resolvConf: {{resolver}}
containerRuntimeEndpoint: unix://{SOCKET}
serializeImagePulls: false
maxPods: {PODS_MAX}
# The disk is the machine's, and how full it is is not the cluster's business.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard:
  memory.available: "1%"
"#,
        dns4 = plan::DNS_SERVICE[0],
        dns6 = plan::DNS_SERVICE[1],
        domain = plan::DOMAIN,
    );
    for (name, path) in paths {
        text = text.replace(&format!("{{{name}}}"), &path.to_string_lossy());
    }
    text
}
