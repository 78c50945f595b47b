//! A cluster that stands for a person: made and taken down by the program `cluster`, as `make cluster-up` and
//! `make cluster-down` call it.
#![allow(clippy::print_stdout)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{command, process::Process};
use fabric_tests::{cluster::survey::Survey, eventually::eventually, gotools::Tool};
use rustix::process::Signal;

/// How long the cluster may take to stand, and to be taken down.
const UP_MAX: Duration = Duration::from_secs(240);
/// How long kubectl may take.
const ASK_MAX: Duration = Duration::from_secs(60);
/// How long the sandbox may take to end after the process in it.
const GONE_MAX: Duration = Duration::from_secs(60);

/// `up` leaves a cluster that answers kubectl from outside of all its namespaces; when the process that holds it is killed
/// with SIGKILL, everything of it ends, and the machine is as it was; `down` then says that no cluster stands.
#[test]
fn a_standing_cluster_ends_with_the_process_that_holds_it() -> anyhow::Result<()> {
    let target = tempfile::tempdir()?;
    let before = Survey::take()?;
    let words = ["up", "--nodes", "1", "--no-dns"];
    let said = cluster(&words, target.path())?;
    ensure!(said.stdout.contains("export KUBECONFIG="), "{said:?}");

    let mut kubectl = Command::new(Tool::Kubectl.program()?);
    let kubeconfig = target.path().join("cluster/kubeconfig");
    kubectl
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["get", "nodes"]);
    let nodes = command::run(kubectl, b"", ASK_MAX)?;
    ensure!(nodes.stdout.contains(" Ready "), "{nodes:?}");

    let holder = holder(target.path()).context("nobody holds the cluster")?;
    holder.signal(Signal::KILL);
    eventually("nothing is left behind", GONE_MAX, || {
        let changes = Survey::take()?.changes_since(&before);
        ensure!(changes.is_empty(), "\n{}", changes.join("\n"));
        Ok(())
    })?;
    let said = cluster(&["down"], target.path())?;
    ensure!(said.stderr.contains("no cluster stands"), "{said:?}");
    Ok(())
}

/// Runs the program with a folder of its own for the cluster.
fn cluster(words: &[&str], target: &Path) -> anyhow::Result<command::Answer> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_cluster"));
    program.args(words).env("CARGO_TARGET_DIR", target);
    let said = command::run(program, b"", UP_MAX)?;
    println!("{}{}", said.stderr, said.stdout);
    ensure!(said.status.success(), "it ended with {}", said.status);
    Ok(said)
}

/// The process in the sandbox: the one that runs this program as `hold`, for this folder.
fn holder(target: &Path) -> Option<Process> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_cluster"));
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pid = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let of = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
            let environment = fs::read(of("environ")).unwrap_or_default();
            let folder = format!("CARGO_TARGET_DIR={}", target.display());
            fs::read_link(of("exe")).is_ok_and(|exe| exe == program)
                && environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == folder.as_bytes())
        })?;
    Process::open(pid)
}
