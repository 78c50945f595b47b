//! The workers' daemons: their identity and configuration on disk, and their processes.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{
    command,
    plan::QUIC_PORT,
    plugin,
    process::Process,
    state::{LabState, Worker},
    underlay::inside,
};
use crate::{
    config::{offloads::Offloads, outside::OutsideConfig},
    node_id::NodeId,
    pki::{
        authority,
        files::{Overwrite, init_dir, save_node},
    },
};

/// Name of the daemon's program.
pub const DAEMON: &str = "fabric-node";
/// How long a daemon may take to end after it was asked to.
pub const STOP_MAX: Duration = Duration::from_secs(5);

/// Cluster that the lab's certificates speak for.
const TRUST_DOMAIN: &str = "fabric.lab";
/// Lifetime of the lab's certificates: no lab is left up for longer.
const CERTIFICATE_DAYS: u32 = 30;

/// `node.toml` as the daemon reads it.
#[derive(Serialize)]
struct NodeConfig<'a> {
    node: &'a str,
    state_dir: PathBuf,
    run_dir: PathBuf,
    source: Source,
    identity: Identity,
    cni: Cni<'a>,
    #[serde(skip_serializing_if = "OutsideConfig::is_none")]
    outside: OutsideConfig,
}

#[derive(Serialize)]
struct Source {
    kind: &'static str,
    path: PathBuf,
}

#[derive(Serialize)]
struct Identity {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Serialize)]
struct Cni<'a> {
    netns_roots: Vec<&'a Path>,
}

/// A file of the directory of nodes.
#[derive(Serialize)]
struct Nodes<'a> {
    node: [Node<'a>; 1],
}

#[derive(Serialize)]
struct Node<'a> {
    id: &'a str,
    underlay: Vec<String>,
    pod_cidrs: Vec<String>,
}

/// Writes everything the daemons read: folders, directory of nodes, certificates, configuration.
///
/// # Errors
///
/// A file cannot be written, or a certificate cannot be made.
pub fn prepare(state: &LabState) -> anyhow::Result<()> {
    let nodes_dir = nodes_dir(state);
    make_dir(&nodes_dir)?;
    let authority = init_dir(
        &state.folder.join("pki"),
        TRUST_DOMAIN,
        CERTIFICATE_DAYS,
        Overwrite::No,
    )?;
    for worker in &state.workers {
        for dir in [
            &worker.folder,
            &worker.state_dir(),
            &worker.run_dir(),
            &worker.cni_conf_dir(),
        ] {
            make_dir(dir)?;
        }
        let node = NodeId::new(&worker.name).map_err(anyhow::Error::msg)?;
        let credentials = authority::issue(&authority, &node, CERTIFICATE_DAYS)?;
        let files = save_node(&credentials, &worker.folder.join("pki"), Overwrite::No)?;
        let config = NodeConfig {
            node: &worker.name,
            state_dir: worker.state_dir(),
            run_dir: worker.run_dir(),
            source: Source {
                kind: "file",
                path: nodes_dir.clone(),
            },
            identity: Identity {
                ca: files.ca,
                certificate: files.certificate,
                key: files.key,
            },
            cni: Cni {
                // An ordinary user's namespaces are in the lab's own folder.
                netns_roots: worker.netns.parent().into_iter().collect(),
            },
            outside: state.outside,
        };
        write_toml(&worker.config_file(), &config)?;
        if !state.offloads.are_all() {
            configure_offloads(worker, state.offloads)?;
        }
        write_toml(
            &nodes_dir.join(format!("{}.toml", worker.name)),
            &nodes_file(worker),
        )?;
        plugin::write_network_list(worker)?;
    }
    Ok(())
}

/// Writes into the configuration of a worker which offloads its daemon uses, from its next start on.
///
/// # Errors
///
/// The file cannot be read or written.
pub fn configure_offloads(worker: &Worker, offloads: Offloads) -> anyhow::Result<()> {
    let file = worker.config_file();
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut config: toml::Table = text.parse()?;
    let dataplane = config
        .entry("dataplane")
        .or_insert_with(|| toml::Table::new().into())
        .as_table_mut()
        .with_context(|| format!("`dataplane` is no table in {}", file.display()))?;
    dataplane.insert("offloads".to_owned(), toml::Value::try_from(offloads)?);
    write_toml(&file, &config)
}

/// The directory of nodes that all daemons of the lab watch.
#[must_use]
pub fn nodes_dir(state: &LabState) -> PathBuf {
    state.folder.join("nodes.d")
}

/// Starts a worker's daemon in its namespace; its process id.
///
/// # Errors
///
/// The program cannot be started or the log cannot be opened.
pub fn start(state: &LabState, worker: &Worker) -> anyhow::Result<u32> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(worker.log_file())
        .with_context(|| format!("cannot open {}", worker.log_file().display()))?;
    let mut daemon = wrapped(&state.wrappers.daemon, &state.bin_dir.join(DAEMON));
    daemon
        .arg("run")
        .arg("--config")
        .arg(worker.config_file())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C in the terminal is for the lab, which takes its daemons down in order.
        .process_group(0);
    let child = inside(&worker.netns, move || Ok(daemon.spawn()?))
        .with_context(|| format!("cannot start the daemon of {}", worker.name))?;
    Ok(child.id())
}

/// The command that runs `program` under `wrapper`, or as it is where that is empty.
#[must_use]
pub fn wrapped(wrapper: &[String], program: &Path) -> Command {
    match wrapper.split_first() {
        Some((tool, arguments)) => {
            let mut command = Command::new(tool);
            command.args(arguments).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The daemon of a worker, if it runs.
#[must_use]
pub fn running(state: &LabState, worker: &Worker) -> Option<Process> {
    Process::open_checked(
        worker.pid?,
        &state.bin_dir.join(DAEMON),
        &worker.config_file(),
    )
}

/// Refuses a folder without the programs the lab starts.
///
/// # Errors
///
/// One is missing; the message says how to build it.
pub fn check_programs(bin_dir: &Path) -> anyhow::Result<()> {
    for program in [DAEMON, plugin::PLUGIN] {
        if !command::is_program(&bin_dir.join(program)) {
            bail!(
                "there is no program {program} in {}: build it with `cargo build --bins`, or name \
                 the folder that has it with --bin-dir or FABRIC_BIN_DIR",
                bin_dir.display()
            );
        }
    }
    Ok(())
}

fn nodes_file(worker: &Worker) -> Nodes<'_> {
    let endpoint = |address| std::net::SocketAddr::new(address, QUIC_PORT).to_string();
    Nodes {
        node: [Node {
            id: &worker.name,
            underlay: worker
                .underlay_addresses
                .iter()
                .copied()
                .map(endpoint)
                .collect(),
            pod_cidrs: worker.pod_cidrs.iter().map(ToString::to_string).collect(),
        }],
    }
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

fn write_toml(file: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    fs::write(file, toml::to_string(content)?)
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        config::{self, offloads::Offload},
        lab::{
            place::Place,
            plan::{LabOptions, lay_out},
        },
    };

    /// A node's file lists the carrier's address first, IPv6 in brackets, and all its ranges.
    #[test]
    fn a_node_is_described_for_the_file_source() {
        let options = LabOptions {
            underlay: Some(crate::lab::plan::Family::Ipv6),
            ..LabOptions::new("lab".parse().unwrap(), 2, 1, PathBuf::from("/bin"))
        };
        let state = lay_out(&options, &Place::root()).unwrap();
        let text = toml::to_string(&nodes_file(&state.workers[1])).unwrap();
        let parsed: toml::Table = text.parse().unwrap();
        let expected: toml::Table = r#"
            [[node]]
            id = "worker-b"
            underlay = ["[fd90::2]:7946", "10.90.0.2:7946"]
            pod_cidrs = ["10.244.2.0/24", "fd44:0:0:2::/64"]
        "#
        .parse()
        .unwrap();
        assert_eq!(parsed, expected);
    }

    /// Switching offloads leaves the rest of a configuration as it was, and the daemon reads it so.
    #[test]
    fn offloads_are_switched_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = lay_out(
            &LabOptions::new("lab".parse().unwrap(), 1, 0, PathBuf::from("/bin")),
            &Place::root(),
        )
        .unwrap();
        let worker = &mut state.workers[0];
        worker.folder = dir.path().to_owned();
        let text = "node = \"worker-a\"\n[dataplane]\nworkers = 3\n";
        fs::write(worker.config_file(), text).unwrap();
        for off in Offload::ALL {
            let offloads = Offloads::ALL.without(off);
            configure_offloads(worker, offloads).unwrap();
            let dataplane = config::load(&worker.config_file()).unwrap().dataplane;
            assert_eq!((dataplane.workers, dataplane.offloads), (Some(3), offloads));
        }
    }

    /// A folder without the programs is named, with the way to build them.
    #[test]
    fn missing_programs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_programs(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(DAEMON) && error.contains("--bin-dir"),
            "{error}"
        );
    }
}
