//! What pods and containers may leave behind: counted before, and compared afterwards.
//!
//! A lab, and places of runtimes in it, come in. Goes out: an [`Inventory`], whose lines are the daemons' attachments,
//! their addresses, records, kept DELs, descriptors and TUN queues; interfaces of the workers; namespace files;
//! namespaces that processes hold; mounts, control groups and processes of the runtimes. Never done here: changing
//! anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, Worker, underlay::inside},
    sys::netlink::Netlink,
};

use super::place::{Place, below, mount_points};
use crate::{eventually::eventually, operator::pods, stage::Stage};

/// Folder of named network namespaces: `ip netns` and container runtimes use the same.
const NETNS: &str = "/run/netns";
/// Begin of the names that containerd and podman give to namespaces.
const RUNTIME_NETNS: &str = "cni-";

/// What the record of a detached attachment says of it.
const RELEASED: &str = r#""is":"released""#;

/// How often there is what, by a line of words for each kind of thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, usize>);

impl Inventory {
    /// How often there is `line`.
    #[must_use]
    pub fn count(&self, line: &str) -> usize {
        self.0.get(line).copied().unwrap_or_default()
    }

    /// The lines and how often each of them is there.
    pub fn lines(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(line, count)| (line.as_str(), *count))
    }

    /// What is there more often or less often than in `before`, a line each; empty if all is the same.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let lines: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        lines
            .into_iter()
            .map(|line| (line, before.count(line), self.count(line)))
            .filter(|(_, then, now)| then != now)
            .map(|(line, then, now)| format!("{line}: {then} before, {now} after"))
            .collect()
    }

    fn add(&mut self, line: String) {
        *self.0.entry(line).or_default() += 1;
    }
}

/// What there is at this moment, of all workers of `lab` and of the runtimes in `places`.
///
/// # Errors
///
/// A daemon does not run or does not answer, or `/proc` cannot be read.
pub fn snapshot(stage: &Stage, lab: &Lab, places: &[&Place]) -> anyhow::Result<Inventory> {
    let mut found = Inventory::default();
    for worker in lab.workers() {
        add_attachments(&mut found, stage, worker)?;
        add_files(&mut found, worker)?;
        add_descriptors(&mut found, worker)?;
        let links = inside(&worker.netns, || Ok(Netlink::connect()?.links()?))?;
        for link in links {
            found.add(format!("{}: interface {}", worker.name, link.name));
        }
    }
    add_namespaces(&mut found, &lab.state().name)?;
    for place in places {
        add_place(&mut found, place)?;
    }
    if !places.is_empty() {
        // Outside of a sandbox, where no place is, others' processes come and go.
        add_processes(&mut found)?;
    }
    Ok(found)
}

/// Waits until there is again exactly what there was `before`; how long that took.
///
/// # Errors
///
/// It is not so within `limit`; with all differences.
pub fn check(
    before: &Inventory,
    stage: &Stage,
    lab: &Lab,
    places: &[&Place],
    limit: Duration,
) -> anyhow::Result<Duration> {
    let look = || {
        let changes = snapshot(stage, lab, places)?.changes_since(before);
        ensure!(changes.is_empty(), "{}", changes.join("\n  "));
        Ok(())
    };
    eventually("nothing is left behind", limit, look).map(|((), took)| took)
}

/// Attachments and addresses, as the daemon tells them.
fn add_attachments(found: &mut Inventory, stage: &Stage, worker: &Worker) -> anyhow::Result<()> {
    let name = &worker.name;
    for pod in pods(stage, worker)?.items {
        found.add(format!("{name}: attachment of {}", pod.container_id));
        for address in pod.addresses {
            found.add(format!("{name}: address {address}"));
        }
    }
    Ok(())
}

/// How many attachments of `worker` are on record only because their addresses rest.
///
/// # Errors
///
/// The daemon's state cannot be read.
pub fn resting(worker: &Worker) -> anyhow::Result<usize> {
    let files = state_files(worker)?;
    Ok(files.iter().filter(|file| is_resting(file)).count())
}

/// Files of the daemon's state: records and kept DELs are among them. Not those of addresses that rest, as they should.
fn add_files(found: &mut Inventory, worker: &Worker) -> anyhow::Result<()> {
    for file in state_files(worker)? {
        if !is_resting(&file) {
            let file = file.strip_prefix(worker.state_dir())?.display();
            found.add(format!("{}: file {file}", worker.name));
        }
    }
    Ok(())
}

fn state_files(worker: &Worker) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in below(&worker.state_dir()) {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Whether `file` is the record of a detached attachment, as the daemon writes it.
fn is_resting(file: &Path) -> bool {
    let is_record = file.extension().is_some_and(|kind| kind == "record");
    is_record && fs::read(file).is_ok_and(|text| String::from_utf8_lossy(&text).contains(RELEASED))
}

/// Descriptors of the daemon by what they are, and queues of TUN devices by name.
fn add_descriptors(found: &mut Inventory, worker: &Worker) -> anyhow::Result<()> {
    let pid = worker.pid.context("the daemon does not run")?;
    let process = PathBuf::from(format!("/proc/{pid}"));
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else {
            // Closed meanwhile.
            continue;
        };
        let target = target.to_string_lossy();
        // The number of a socket or pipe says nothing.
        let kind = target.split(":[").next().unwrap_or_default();
        found.add(format!("{}: descriptor {kind}", worker.name));
        if kind.ends_with("/net/tun") {
            let info = process.join("fdinfo").join(entry.file_name());
            let info = fs::read_to_string(info).unwrap_or_default();
            let device = info.lines().find_map(|line| line.strip_prefix("iff:"));
            let device = device.unwrap_or("none").trim();
            found.add(format!("{}: queue of {device}", worker.name));
        }
    }
    Ok(())
}

/// Namespace files of the lab and of runtimes, and what is mounted on them.
fn add_namespaces(found: &mut Inventory, lab: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(NETNS)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.contains(lab) || name.starts_with(RUNTIME_NETNS) {
            found.add(format!("namespace {name}"));
        }
    }
    for point in mount_points()? {
        let name = point.strip_prefix(NETNS).ok().and_then(Path::to_str);
        if let Some(name) =
            name.filter(|name| name.contains(lab) || name.starts_with(RUNTIME_NETNS))
        {
            found.add(format!("mounted namespace {name}"));
        }
    }
    Ok(())
}

/// Mounts and control groups of a place.
fn add_place(found: &mut Inventory, place: &Place) -> anyhow::Result<()> {
    for point in place.mounts()? {
        found.add(format!("mount {}", point.display()));
    }
    for top in place.cgroup_folders() {
        for group in below(&top).iter().filter(|group| **group != top) {
            found.add(format!("control group {}", group.display()));
        }
    }
    Ok(())
}

/// Processes by name, and how many network namespaces they are in.
fn add_processes(found: &mut Inventory) -> anyhow::Result<()> {
    let mut namespaces = BTreeSet::new();
    for pid in pids()? {
        // A process may end at any moment.
        let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
            continue;
        };
        found.add(format!("process {}", name.trim()));
        if let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) {
            namespaces.insert((namespace.dev(), namespace.ino()));
        }
    }
    for _ in namespaces {
        found.add("namespace that a process is in".to_owned());
    }
    Ok(())
}

/// All processes that this one sees: in the sandbox those are the tests', the labs' and the runtimes'.
fn pids() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(lines: &[&str]) -> Inventory {
        let mut found = Inventory::default();
        for line in lines {
            found.add((*line).to_owned());
        }
        found
    }

    /// What is more, less or new is told with both counts; what is the same is not.
    #[test]
    fn changes_are_told() {
        let before = inventory(&["socket", "socket", "file a", "file b"]);
        let after = inventory(&["socket", "socket", "socket", "file b", "file c"]);
        assert_eq!(
            after.changes_since(&before),
            [
                "file a: 1 before, 0 after",
                "file c: 0 before, 1 after",
                "socket: 2 before, 3 after"
            ]
        );
        assert!(after.changes_since(&after).is_empty());
    }
}
