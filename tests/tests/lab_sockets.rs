//! The daemon's sockets are for its own user and root. Here folders and sockets are opened to
//! everybody, so that the credentials alone keep another user out.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Worker, command, plugin::PLUGIN, underlay::inside};
use fabric_proto::admin::PodList;
use fabric_tests::{
    eventually::eventually,
    machine::copy_programs,
    operator::{LogMark, pods as pods_now},
    plugin::Container,
    stage::Stage,
};
use serde_json::{Value, json};

/// Another user: nobody.
const OTHER: u32 = 65_534;
/// How long a program may take to be refused.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the line of the log may take.
const SOON: Duration = Duration::from_secs(3);

/// The pods of a worker, as if they had all been attached just now: they get older while one looks.
fn pods(stage: &Stage, worker: &Worker) -> anyhow::Result<PodList> {
    let mut list = pods_now(stage, worker)?;
    list.items.iter_mut().for_each(|pod| pod.age_seconds = 0);
    Ok(list)
}

/// On a CNI socket that everybody can reach, ADD and DEL of another user fail, the log names the
/// user, and the pods stay as they were; root is served as before.
#[test]
fn another_user_on_the_cni_socket() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("foreigncni", 1, 1)?;
    let worker = lab.state().worker("worker-a")?;
    let programs = tempfile::tempdir()?;
    copy_programs(&stage.program(""), programs.path())?;
    let socket = open_to_all(worker, &worker.cni_socket())?;
    let before = pods(&stage, worker)?;
    let fresh = Container::make(&lab, worker, 7)?;
    let attached = lab.state().pod("pod-a-1")?;
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "fabric",
        "type": PLUGIN,
        "socket": socket,
        "stateDir": worker.state_dir(),
    });
    for (verb, id, netns) in [
        ("ADD", &fresh.id, &fresh.netns),
        ("DEL", &attached.container_id, &attached.netns),
    ] {
        let log = LogMark::at_end(worker);
        let mut plugin = as_other(&programs.path().join(PLUGIN), worker)?;
        plugin
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", programs.path())
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0");
        let text = config.to_string();
        let answer = inside(&worker.netns, move || {
            command::run(plugin, text.as_bytes(), LIMIT)
        })?;
        ensure!(!answer.status.success(), "{verb}: {}", answer.stdout);
        let told: Value = serde_json::from_str(&answer.stdout)
            .with_context(|| format!("{verb}: {} {}", answer.stdout, answer.stderr))?;
        ensure!(told.get("code").is_some(), "{verb}: {told}");
        refused(worker, &log, "CNI socket")?;
        assert_eq!(pods(&stage, worker)?, before, "{verb}");
    }
    fresh.call(&stage, worker, "ADD")?.done()?;
    assert_eq!(pods(&stage, worker)?.items.len(), before.items.len() + 1);
    Ok(())
}

/// On an admin socket that everybody can reach, another user learns nothing, and the log names the
/// user; root is served as before.
#[test]
fn another_user_on_the_admin_socket() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("foreignadmin", 1, 1)?;
    let worker = lab.state().worker("worker-a")?;
    let programs = tempfile::tempdir()?;
    copy_programs(&stage.program(""), programs.path())?;
    let socket = open_to_all(worker, &worker.admin_socket())?;
    let before = pods(&stage, worker)?;
    let log = LogMark::at_end(worker);
    let mut fabric = as_other(&programs.path().join("fabric"), worker)?;
    fabric.args(["pods", "--socket", &socket, "-o", "json"]);
    let answer = command::run(fabric, b"", LIMIT)?;
    ensure!(!answer.status.success(), "served: {}", answer.stdout);
    for secret in ["pod-a-1", "10.244."] {
        let said = [&answer.stdout, &answer.stderr];
        ensure!(!said.iter().any(|text| text.contains(secret)), "{said:?}");
    }
    refused(worker, &log, "admin connection")?;
    assert_eq!(pods(&stage, worker)?, before);
    Ok(())
}

/// Opens the folder of `socket` and the socket itself; the socket's name for a program in that
/// folder. That name leads past the folders above, which stay closed to others.
fn open_to_all(worker: &Worker, socket: &Path) -> anyhow::Result<String> {
    fs::set_permissions(worker.run_dir(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    ensure!(socket.parent() == Some(&worker.run_dir()), "{socket:?}");
    let name = socket.file_name().context("a socket without a name")?;
    Ok(format!("/proc/self/cwd/{}", name.display()))
}

/// `program` as another user, in the folder of the sockets.
fn as_other(program: &Path, worker: &Worker) -> anyhow::Result<Command> {
    let setpriv = command::find("setpriv").context("there is no program setpriv: util-linux")?;
    let user = OTHER.to_string();
    let mut command = Command::new(setpriv);
    command
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(program)
        .current_dir(worker.run_dir());
    Ok(command)
}

fn refused(worker: &Worker, log: &LogMark, place: &str) -> anyhow::Result<()> {
    let user = OTHER.to_string();
    eventually("the refusal is in the log", SOON, || {
        log.line(worker, &["refused", place, "uid", &user])
    })?;
    Ok(())
}
