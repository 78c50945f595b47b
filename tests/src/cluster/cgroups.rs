//! Control groups of version 1 for what runs on a node: one group in each hierarchy, by one name.
//!
//! Comes in: a name below the sandbox's group. Dropping ends every process in the group and removes it. Never done
//! here: any change to a group that was there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::process::{self, Process};

use crate::{eventually::eventually, runtime::place::below};

/// Where the hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";
/// Those that the kubelet and runc need.
const NEEDED: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "devices", "freezer"];
/// How long killed processes may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(20);

/// See the module's documentation.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
}

impl Cgroup {
    /// Makes the group `name`, which begins with `/`, and those above it.
    ///
    /// # Errors
    ///
    /// This machine has no control groups of version 1, or they cannot be made.
    pub fn make(name: &str) -> anyhow::Result<Self> {
        for needed in NEEDED {
            ensure!(
                Path::new(ROOT).join(needed).join("cgroup.procs").exists(),
                "there is no {ROOT}/{needed}: the nodes of the test cluster need control groups of version 1"
            );
        }
        for hierarchy in hierarchies()? {
            let mut folder = hierarchy.clone();
            for level in name.trim_start_matches('/').split('/') {
                let above = folder.clone();
                folder.push(level);
                fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                inherit_cpuset(&above, &folder)?;
            }
        }
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Its name: a path in each hierarchy.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends all processes in it, and waits until they are gone.
    ///
    /// # Errors
    ///
    /// One of them does not end.
    pub fn kill(&self) -> anyhow::Result<()> {
        let gone = || {
            let found: Vec<Process> = self.pids().into_iter().filter_map(Process::open).collect();
            process::stop_all(&found, Duration::ZERO);
            let left = self.pids();
            ensure!(left.is_empty(), "{} processes are left", left.len());
            Ok(())
        };
        eventually("the node's containers end", GONE_MAX, gone).map(drop)
    }

    fn pids(&self) -> BTreeSet<u32> {
        let folders = self.folders();
        let groups = folders.iter().flat_map(|top| below(top));
        groups
            .filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Its folders: in the hierarchy of version 2 too, where runtimes make one if there is such a hierarchy.
    fn folders(&self) -> Vec<PathBuf> {
        folders(&self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The sandbox's end removes whatever withstands this.
        let _ = self.kill();
        remove(&self.name);
    }
}

/// Removes the groups called `name`, and those below them, where no process is in them any more.
pub fn remove(name: &str) {
    for group in folders(name).iter().flat_map(|top| below(top)) {
        let _ = fs::remove_dir(group);
    }
}

/// Removes the groups called `name`, where there is nothing in them or below them.
pub fn remove_empty(name: &str) {
    for group in folders(name) {
        let _ = fs::remove_dir(group);
    }
}

fn folders(name: &str) -> Vec<PathBuf> {
    let name = name.trim_start_matches('/');
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().join(name))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// The hierarchies of version 1: each has a file that version 2 has not.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(ROOT).with_context(|| format!("cannot read {ROOT}"))? {
        let folder = entry?.path();
        // Others have links, such as `cpu` to `cpu,cpuacct`, which would be made twice.
        if !folder.is_symlink() && folder.join("cgroup.clone_children").exists() {
            found.push(folder);
        }
    }
    Ok(found)
}

/// A new cpuset is empty, and no process may enter an empty one (cgroup-v1/cpusets in the kernel's documentation).
fn inherit_cpuset(above: &Path, folder: &Path) -> anyhow::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(here) = fs::read_to_string(folder.join(file)) else {
            // Another hierarchy.
            return Ok(());
        };
        if here.trim().is_empty() {
            fs::write(folder.join(file), fs::read(above.join(file))?)
                .with_context(|| format!("cannot set {file} of {}", folder.display()))?;
        }
    }
    Ok(())
}
