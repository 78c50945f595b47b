//! What a cluster takes of the machine: a folder in memory, one on a disk, a name for control groups.
//!
//! Comes in: nothing but the sandbox that this process is in. Dropping the site takes the folders away. Never done
//! here: anything outside of the sandbox.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;

use super::cgroups;
use crate::runtime::place::sandbox_cgroup;

/// Folder of all clusters: short, as paths of sockets below it stay within the 107 bytes that unix(7) grants.
const BASE: &str = "/run/kc";
/// Folder on a disk that the sandbox removes: `scripts/sandbox` sets it.
const DISK_VARIABLE: &str = "FABRIC_SANDBOX_DISK";

static SITES: AtomicU32 = AtomicU32::new(0);

/// See the module's documentation.
#[derive(Debug)]
pub struct Site {
    folder: PathBuf,
    disk: PathBuf,
    cgroup: String,
}

impl Site {
    /// Folders that nobody else has.
    ///
    /// # Errors
    ///
    /// This process is not in a sandbox, or a folder cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let root = sandbox_cgroup()?;
        let name = format!(
            "{}-{}",
            std::process::id(),
            SITES.fetch_add(1, Ordering::Relaxed)
        );
        let disk = env::var_os(DISK_VARIABLE).context(DISK_VARIABLE)?;
        let site = Self {
            folder: Path::new(BASE).join(&name),
            disk: PathBuf::from(disk).join(&name),
            cgroup: format!("{root}/{name}"),
        };
        for folder in [&site.folder, &site.disk] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(site)
    }

    /// The folder in memory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder on a disk.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The control group of the cluster, as a path in each hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The sandbox's end removes whatever withstands this.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.disk);
        cgroups::remove(&self.cgroup);
        if let Some((sandbox, _)) = self.cgroup.rsplit_once('/') {
            // Others of this sandbox keep it.
            cgroups::remove_empty(sandbox);
        }
    }
}
