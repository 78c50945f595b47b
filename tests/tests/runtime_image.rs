//! The image of `make image` in real container runtimes: they take it, its programs run there although nothing else
//! is in it, and they do so with as little as the manifest grants them.
//!
//! `FABRIC_IMAGE` names the archive; without it that of `make image` is taken.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, plugin::network_list};
use fabric_tests::{
    runtime::{containerd::Containerd, place::Place, podman::Podman},
    stage::{Stage, workspace},
};

/// How long an import or a container may take.
const STEP_MAX: Duration = Duration::from_secs(60);

/// What the manifests start in containers, and what it says.
const CALLS: [(&[&str], &str); 4] = [
    (&["fabric-node", "--version"], "fabric-node"),
    (&["fabric", "--version"], "fabric"),
    (
        &["kubectl-fabric", "peers", "--help"],
        "Usage: kubectl fabric",
    ),
    (&["/bin/fabric-node", "run", "--help"], "FABRIC_NODE_NAME"),
];

fn archive() -> anyhow::Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let made = || workspace().join(format!("target/image/fabric-{version}.tar"));
    let archive = env::var_os("FABRIC_IMAGE").map_or_else(made, PathBuf::from);
    ensure!(
        archive.is_file(),
        "there is no {}: `make image` makes it",
        archive.display()
    );
    Ok(archive)
}

fn name() -> String {
    format!("localhost/fabric:{}", env!("CARGO_PKG_VERSION"))
}

/// containerd imports it under its name, and its programs run by each of their names, with a read-only root and
/// without any capability.
#[test]
fn containerd_takes_it() -> anyhow::Result<()> {
    let archive = archive()?;
    let stage = Stage::enter()?;
    let lab = stage.lab("image-ctr", 1, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    let containerd = Containerd::start(&place, &networks(&lab, &place)?)?;
    let file = archive.to_str().context("the archive's path is no text")?;
    println!("{}", containerd.ctr(&["images", "import", file], STEP_MAX)?);
    let listed = containerd.ctr(&["images", "list", "-q"], STEP_MAX)?;
    assert_eq!(listed.lines().collect::<Vec<_>>(), [name()]);
    for (number, (command, expected)) in CALLS.iter().enumerate() {
        let cgroup = format!("{}/{number}", place.cgroup());
        let (image, id) = (name(), format!("call-{number}"));
        let mut words = vec!["run", "--rm", "--read-only", "--cgroup", &cgroup];
        for capability in [
            "CAP_SYS_ADMIN",
            "CAP_NET_ADMIN",
            "CAP_DAC_OVERRIDE",
            "CAP_NET_RAW",
        ] {
            words.extend(["--cap-drop", capability]);
        }
        words.extend([image.as_str(), &id]);
        words.extend(*command);
        let said = containerd.ctr(&words, STEP_MAX)?;
        println!("{command:?}: {}", said.lines().next().unwrap_or_default());
        ensure!(said.contains(expected), "{command:?}: {said}");
    }
    Ok(())
}

/// podman loads it under its name, and its programs run by each of their names; the plugin answers as one.
#[test]
fn podman_takes_it() -> anyhow::Result<()> {
    let archive = archive()?;
    let stage = Stage::enter()?;
    let lab = stage.lab("image-podman", 1, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    let podman = Podman::new(&place, &networks(&lab, &place)?)?;
    let file = archive.to_str().context("the archive's path is no text")?;
    println!("{}", podman.done(&["load", "--input", file])?);
    let image = name();
    let mut how = vec![
        "run",
        "--rm",
        "--network",
        "none",
        "--cap-drop",
        "all",
        "--read-only",
    ];
    how.extend(["--cgroup-parent", place.cgroup()]);
    for (command, expected) in CALLS {
        let said = podman.done(&[&how[..], &[&image], command].concat())?;
        ensure!(said.contains(expected), "{command:?}: {said}");
    }
    let plugin = ["--env", "CNI_COMMAND=VERSION", &image, "fabric-cni"];
    let said = podman.done(&[&how[..], &plugin].concat())?;
    ensure!(said.contains("supportedVersions"), "{said}");
    Ok(())
}

fn networks(lab: &Lab, place: &Place) -> anyhow::Result<serde_json::Value> {
    Ok(network_list(lab.state().worker(place.worker())?))
}
