//! A node's containerd, at the paths where nodes have it: what it is told, and images that are imported.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;

use super::{
    daemon::{Daemon, Program},
    images,
    plan::{CONTROL_PLANE, REGISTRY_PORT},
    realm::{Realm, found},
};

/// Where it listens, as the node sees it.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// How long it may take to answer.
const READY_MAX: Duration = Duration::from_secs(30);
/// How long a question may take.
const ASK_MAX: Duration = Duration::from_secs(20);
/// How long an import may take.
const IMPORT_MAX: Duration = Duration::from_secs(120);

/// Starts containerd on the node of `realm`; its files are in `folder`.
///
/// # Errors
///
/// It is not installed or cannot be started.
pub fn start(node: &str, realm: &Realm, folder: &Path) -> anyhow::Result<Daemon> {
    let registries = folder.join("certs.d");
    fs::create_dir_all(registries.join("_default"))?;
    fs::write(registries.join("_default/hosts.toml"), hosts())?;
    let configuration = folder.join("config.toml");
    fs::write(&configuration, text(&registries))?;
    Daemon::start(Program {
        name: format!("containerd of {node}"),
        file: found("containerd")?,
        arguments: vec!["--config".into(), configuration.into()],
        realm: realm.clone(),
        folder: folder.to_owned(),
    })
}

/// Waits until it answers.
///
/// # Errors
///
/// It does not, within 30 s.
pub fn await_ready(daemon: &mut Daemon, realm: &Realm) -> anyhow::Result<()> {
    daemon.await_that("containerd answers", READY_MAX, || {
        ctr(realm, &["version".into()], ASK_MAX).map(drop)
    })
}

/// Gives a node the images of an archive (Docker's or the Open Container Initiative's), for its pods.
///
/// # Errors
///
/// There is no such archive, or containerd refuses it.
pub fn import(realm: &Realm, archive: &Path) -> anyhow::Result<()> {
    let archive = fs::canonicalize(archive)
        .with_context(|| format!("there is no image archive {}", archive.display()))?;
    let words = ["-n", "k8s.io", "images", "import"].map(OsString::from);
    let mut words = words.to_vec();
    words.push(archive.into());
    ctr(realm, &words, IMPORT_MAX).map(drop)
}

fn ctr(realm: &Realm, words: &[OsString], limit: Duration) -> anyhow::Result<String> {
    let mut ctr = realm.command(&found("ctr")?, &PathBuf::from("/"))?;
    ctr.args(words);
    let answer = command::run(ctr, b"", limit)?;
    ensure!(
        answer.status.success(),
        "ctr {words:?} ended with {}: {}",
        answer.status,
        answer.last_line()
    );
    Ok(answer.stdout)
}

/// All images of all registries come from the one beside the API server: there is no other to be reached.
fn hosts() -> String {
    let registry = format!("http://{}:{REGISTRY_PORT}", CONTROL_PLANE.v4());
    format!(
        "server = \"{registry}\"\n\n[host.\"{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    )
}

/// Configuration of version 2: containerd 1.5 to 1.7.
fn text(registries: &Path) -> String {
    format!(
        r#"version = 2
# It makes a folder in /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Lowering a score needs CAP_SYS_RESOURCE, which root of a container has not.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = {registries:?}

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
        pause = images::PAUSE,
    )
}
