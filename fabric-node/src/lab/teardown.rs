//! Taking a lab down: whole, half-built or with its daemons dead. Every step is tried, whatever the
//! others did, and doing it twice is no error.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    daemon::{self, DAEMON, STOP_MAX},
    name::LabName,
    place::Place,
    plugin,
    process::{self, Process},
    rootless,
    state::LabState,
};
use crate::sys::netns::Netns;

/// How long programs that a person left running inside the lab may take to end.
const STRAY_MAX: Duration = Duration::from_secs(2);

/// What there still is of a lab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Namespace files.
    pub namespaces: Vec<PathBuf>,
    /// Processes of the lab's programs that have its folder among their arguments.
    pub processes: Vec<u32>,
    /// The lab's folder.
    pub folder: Option<PathBuf>,
}

impl Remains {
    /// Looks for everything that bears the lab's name.
    #[must_use]
    pub fn of(name: &LabName, place: &Place) -> Self {
        let folder = place.folder(name);
        Self {
            namespaces: namespaces(name, &place.netns_dir(name)),
            processes: process::mentioning(&folder)
                .into_iter()
                .filter(|&pid| process::is_of_the_lab(pid))
                .collect(),
            folder: folder.symlink_metadata().is_ok().then_some(folder),
        }
    }

    /// What is left, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let paths = self.namespaces.iter().chain(&self.folder);
        let paths = paths.map(|path| path.display().to_string());
        let processes = self.processes.iter().map(|pid| format!("process {pid}"));
        paths.chain(processes).collect::<Vec<_>>().join(", ")
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Takes a lab down; whether there was anything of it.
///
/// # Errors
///
/// All steps that failed, one a line; the others were done nevertheless.
pub fn take_down(name: &LabName, place: &Place) -> anyhow::Result<bool> {
    let before = Remains::of(name, place);
    let folder = place.folder(name);
    let mut failures = Vec::new();
    let state = LabState::read(&folder).unwrap_or_else(|e| {
        failures.push(format!("{e:#}"));
        None
    });
    if let Some(state) = &state {
        // From outside the namespaces the plugin cannot be run where it belongs.
        if place.can_build() {
            detach_pods(state, &mut failures);
        }
        stop_daemons(state);
    }
    stop_strays(&before, state.as_ref().and_then(|state| state.holder));
    for namespace in namespaces(name, &place.netns_dir(name)) {
        if let Err(e) = remove_namespace(&namespace, place) {
            failures.push(format!("{e:#}"));
        }
    }
    match fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            failures.push(format!("cannot remove {}: {e}", folder.display()));
        }
        _ => {}
    }
    place.tidy();
    if state.as_ref().is_some_and(|state| state.netns_dir_made) {
        place.remove_netns_dir();
    }
    // Last: the namespaces that this very process may live in go away with it.
    if let Some(holder) = state
        .and_then(|s| s.holder)
        .and_then(|pid| rootless::holder(pid, &folder))
    {
        process::stop_all(&[holder], STOP_MAX);
    }
    if failures.is_empty() {
        Ok(!before.is_empty())
    } else {
        bail!(
            "lab {name} is not taken down entirely:\n  {}",
            failures.join("\n  ")
        )
    }
}

/// Detaches what was attached, through the plugin, while its daemon still runs. With a dead daemon
/// there is nobody to tell, and the pod's device has gone with it.
fn detach_pods(state: &LabState, failures: &mut Vec<String>) {
    for pod in state.pods.iter().filter(|pod| !pod.addresses.is_empty()) {
        let Ok(worker) = state.worker(&pod.worker) else {
            continue;
        };
        if daemon::running(state, worker).is_none() {
            continue;
        }
        if let Err(e) = plugin::delete(state, worker, pod) {
            failures.push(format!("{e:#}"));
        }
    }
}

/// Stops the daemons that are on record, and those that a command started and could not record.
fn stop_daemons(state: &LabState) {
    let program = state.bin_dir.join(DAEMON);
    let recorded = state
        .workers
        .iter()
        .filter_map(|worker| daemon::running(state, worker));
    let found = process::mentioning(&state.folder)
        .into_iter()
        .filter_map(|pid| Process::open_checked(pid, &program, &state.folder));
    let daemons: Vec<Process> = recorded.chain(found).collect();
    process::stop_all(&daemons, STOP_MAX);
}

/// Stops what people left running in the lab's namespaces: it would keep them alive unseen.
fn stop_strays(before: &Remains, holder: Option<u32>) {
    let own = fs::metadata("/proc/self/ns/net")
        .map(|ns| (ns.dev(), ns.ino()))
        .ok();
    let identities: Vec<(u64, u64)> = before
        .namespaces
        .iter()
        .filter_map(|path| Netns::open(path).ok())
        .map(|netns| (netns.identity().dev, netns.identity().ino))
        // Never the namespace this command runs in, whatever is mounted there.
        .filter(|identity| Some(*identity) != own)
        .collect();
    let strays: Vec<Process> = process::inside(&identities)
        .into_iter()
        .filter(|pid| Some(*pid) != holder)
        .filter_map(Process::open)
        .collect();
    process::stop_all(&strays, STRAY_MAX);
}

fn remove_namespace(path: &Path, place: &Place) -> anyhow::Result<()> {
    if place.can_build() {
        return Ok(Netns::remove_named(path)?);
    }
    // Outside of the user namespace that mounted it, the file is an ordinary one.
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Files in `dir` that are namespaces of lab `name`.
fn namespaces(name: &LabName, dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let file = path.file_name().and_then(|file| file.to_str());
            file.is_some_and(|file| name.member_of(file).is_some())
        })
        .collect();
    found.sort();
    found
}
