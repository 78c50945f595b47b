//! Labs for tests: the release binaries, names that no other run uses, one lab at a time.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, LabName, LabOptions};

/// The programs that the tests drive.
const PROGRAMS: [&str; 3] = ["fabric", "fabric-node", "fabric-cni"];

/// Names the folder of the binaries; default: `target/release` of the workspace.
const BIN_DIR_VARIABLE: &str = "FABRIC_BIN_DIR";

/// Two labs at once would measure each other on a machine with two processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static LABS: AtomicU32 = AtomicU32::new(0);

/// The right to have a lab up, and what is needed for that.
#[derive(Debug)]
pub struct Stage {
    bin_dir: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Waits for its turn.
    ///
    /// # Errors
    ///
    /// This process is not root, or a binary is missing: a test that cannot run has failed.
    pub fn enter() -> anyhow::Result<Self> {
        ensure!(
            fs_owner_of_self()? == 0,
            "the lab tests make network namespaces: run them as root"
        );
        let bin_dir = bin_dir()?;
        Ok(Self {
            bin_dir,
            _turn: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }

    /// A name that no other lab has.
    ///
    /// # Errors
    ///
    /// `purpose` is no name of a lab.
    pub fn name(&self, purpose: &str) -> anyhow::Result<LabName> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        format!("{purpose}-{}-{number}", std::process::id())
            .parse()
            .map_err(anyhow::Error::msg)
    }

    /// Options of a dual-stack lab of `workers` workers with `pods` pods each.
    ///
    /// # Errors
    ///
    /// As [`Stage::name`].
    pub fn options(
        &self,
        purpose: &str,
        workers: usize,
        pods: usize,
    ) -> anyhow::Result<LabOptions> {
        Ok(LabOptions::new(
            self.name(purpose)?,
            workers,
            pods,
            self.bin_dir.clone(),
        ))
    }

    /// Builds such a lab.
    ///
    /// # Errors
    ///
    /// It cannot be built; the message has the end of the daemon's log.
    pub fn lab(&self, purpose: &str, workers: usize, pods: usize) -> anyhow::Result<Lab> {
        Lab::up(&self.options(purpose, workers, pods)?)
    }

    /// Path of a program of the product.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The folder of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir)
}

/// The folder of the programs under test.
///
/// # Errors
///
/// One of them is missing.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    let dir = match env::var_os(BIN_DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => workspace().join("target/release"),
    };
    for program in PROGRAMS {
        ensure!(
            dir.join(program).is_file(),
            "there is no program {program} in {}: run `make build`, or name the folder that has it \
             in {BIN_DIR_VARIABLE}",
            dir.display()
        );
    }
    dir.canonicalize()
        .with_context(|| format!("no folder {}", dir.display()))
}

/// The effective user of this process owns its entries in `/proc`.
fn fs_owner_of_self() -> anyhow::Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata("/proc/self/stat")
        .context("/proc is not mounted")?
        .uid())
}
