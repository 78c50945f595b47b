//! A node's kube-proxy: what it is told, in each of its modes.

use std::{fmt, fs, path::PathBuf, time::Duration};

use anyhow::ensure;
use fabric_node::lab::command;

use super::{
    daemon::{Daemon, Program},
    kubelet::Who,
    pki::{Credentials, Pki, Subject},
    plan,
    programs::Programs,
};

/// How long taking the rules away may take.
const CLEANUP_MAX: Duration = Duration::from_secs(60);

/// How it translates addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// By rules of iptables.
    Iptables,
    /// By rules of nftables.
    Nftables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// The credentials that the kube-proxies of a cluster share.
///
/// # Errors
///
/// A file cannot be written.
pub fn credentials(pki: &Pki) -> anyhow::Result<Credentials> {
    let subject = Subject {
        user: "system:kube-proxy",
        group: None,
    };
    pki.client("kube-proxy", subject)
}

/// Starts the kube-proxy of `who`.
///
/// # Errors
///
/// A file cannot be written, or it cannot be started.
pub fn start(
    who: Who<'_>,
    mode: Mode,
    pki: &Pki,
    credentials: &Credentials,
    programs: &Programs,
) -> anyhow::Result<Daemon> {
    let kubeconfig = pki.kubeconfig("kube-proxy", &plan::api_url(), credentials)?;
    let folder = who.folder.join("kube-proxy");
    fs::create_dir_all(&folder)?;
    let configuration = configuration(who);
    let text = format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
bindAddress: 0.0.0.0
hostnameOverride: {name}
clusterCIDR: "{cidrs}"
clientConnection:
  kubeconfig: {kubeconfig}
# These belong to the whole machine.
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
"#,
        name = who.name,
        cidrs = plan::POD_CIDRS,
        kubeconfig = kubeconfig.display(),
    );
    fs::write(&configuration, text)?;
    Daemon::start(Program {
        name: format!("kube-proxy of {}", who.name),
        file: programs.kube_proxy(),
        arguments: vec!["--config".into(), configuration.into()],
        realm: who.realm.clone(),
        folder,
    })
}

/// Takes the rules of every mode away, as an operator does who changes the mode; kube-proxy does not run then.
///
/// # Errors
///
/// It says that it could not.
pub fn clean_up(who: Who<'_>, programs: &Programs) -> anyhow::Result<()> {
    let folder = who.folder.join("kube-proxy");
    let mut cleanup = who.realm.command(&programs.kube_proxy(), &folder)?;
    cleanup
        .arg("--cleanup")
        .arg("--config")
        .arg(configuration(who));
    let answer = command::run(cleanup, b"", CLEANUP_MAX)?;
    ensure!(
        answer.status.success(),
        "kube-proxy --cleanup ended with {}: {}",
        answer.status,
        answer.last_line()
    );
    Ok(())
}

fn configuration(who: Who<'_>) -> PathBuf {
    who.folder.join("kube-proxy/config.yaml")
}
