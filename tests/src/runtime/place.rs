//! A place for a container runtime on a worker of a lab: a folder with a short name, the worker's network
//! namespace, a control group.
//!
//! A lab and the name of a worker come in. Dropping the place ends every process of its control group, takes
//! away every mount below its folder, the folder and the group. Never done here: anything outside of the sandbox
//! that `scripts/sandbox` makes.

use std::{
    env, fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{
    Lab, Worker, command,
    plugin::PLUGIN,
    process::{self, Process},
    underlay::inside,
};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// Mount and process namespace that the sandbox was made from: `scripts/sandbox` sets it.
const OUTSIDE_VARIABLE: &str = "FABRIC_SANDBOX_OUTSIDE";
/// Control group that the sandbox removes: `scripts/sandbox` sets it.
const CGROUP_VARIABLE: &str = "FABRIC_SANDBOX_CGROUP";
/// Folder on a disk that the sandbox removes: `scripts/sandbox` sets it.
const DISK_VARIABLE: &str = "FABRIC_SANDBOX_DISK";
/// Folder of all places. Sockets below it stay within the 107 bytes that unix(7) grants them.
const BASE: &str = "/run/rt";
/// Where the kernel's control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Folder of all labs of root.
const LABS: &str = "/run/fabric-lab";
/// Name under which the plugin is containerd's `loopback` too.
const LOOPBACK: &str = "loopback";
/// How long killed processes may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);

static PLACES: AtomicU32 = AtomicU32::new(0);

/// See the module's documentation.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    netns: PathBuf,
    cgroup: String,
    worker: String,
}

impl Place {
    /// A place on `worker` of `lab`, with the product's plugin, and `loopback`, in [`Place::plugins`].
    ///
    /// # Errors
    ///
    /// This process is not in a sandbox, there is no such worker, or a folder cannot be made.
    pub fn new(lab: &Lab, worker: &str) -> anyhow::Result<Self> {
        let root = sandbox_cgroup()?;
        let found: &Worker = lab.state().worker(worker)?;
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", std::process::id());
        let place = Self {
            folder: Path::new(BASE).join(&name),
            netns: found.netns.clone(),
            cgroup: format!("{root}/{name}"),
            worker: worker.to_owned(),
        };
        for folder in [place.plugins(), place.networks()] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let plugin = lab.state().bin_dir.join(PLUGIN);
        place.add_plugin(&plugin)?;
        place.add_plugin_as(&plugin, LOOPBACK)?;
        Ok(place)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name of the worker.
    #[must_use]
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// The worker's network namespace.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The control group that containers belong below, as runtimes name it: a path in each hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Folder of plugins: `bin_dir` of a runtime.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Folder of network configurations: `conf_dir` of a runtime.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// Puts one more plugin into the folder of plugins, under its own name.
    ///
    /// # Errors
    ///
    /// There is no such program, or one of that name is there already.
    pub fn add_plugin(&self, program: &Path) -> anyhow::Result<()> {
        let name = program.file_name().context("a plugin has a name")?;
        self.add_plugin_as(program, &name.to_string_lossy())
    }

    /// As [`Place::add_plugin`], under another name.
    ///
    /// # Errors
    ///
    /// As [`Place::add_plugin`].
    pub fn add_plugin_as(&self, program: &Path, name: &str) -> anyhow::Result<()> {
        ensure!(
            command::is_program(program),
            "there is no plugin {}: `scripts/install-deps test` installs those of others, `make build` ours",
            program.display()
        );
        symlink(program, self.plugins().join(name))
            .with_context(|| format!("cannot add the plugin {name}"))
    }

    /// Runs `program` in the worker's network namespace to its end, at most `limit`.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end.
    pub fn run(&self, program: Command, limit: Duration) -> anyhow::Result<command::Answer> {
        inside(&self.netns, move || command::run(program, b"", limit))
    }

    /// Starts `program` in the worker's network namespace.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn spawn(&self, mut program: Command) -> anyhow::Result<Child> {
        program.current_dir("/");
        inside(&self.netns, move || {
            let name = program.get_program().to_string_lossy().into_owned();
            program
                .spawn()
                .with_context(|| format!("cannot start {name}"))
        })
    }

    /// The folders of the place's control group that there are, one for each hierarchy.
    #[must_use]
    pub fn cgroup_folders(&self) -> Vec<PathBuf> {
        cgroup_folders(&self.cgroup)
    }

    /// Ends all processes in the place's control group, at once.
    pub fn kill_containers(&self) {
        let mut pids = Vec::new();
        for folder in self.cgroup_folders().iter().flat_map(|top| below(top)) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        pids.sort_unstable();
        pids.dedup();
        let found: Vec<Process> = pids.into_iter().filter_map(Process::open).collect();
        process::stop_all(&found, Duration::ZERO);
        for process in &found {
            let _ = process.wait(GONE_MAX);
        }
    }

    /// Mount points below the place's folder, those made last first.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be read.
    pub fn mounts(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = mount_points()?;
        found.retain(|point| point.starts_with(&self.folder));
        found.reverse();
        Ok(found)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The sandbox's end removes whatever withstands this.
        self.kill_containers();
        for point in self.mounts().unwrap_or_default() {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.folder);
        for folder in self.cgroup_folders().iter().flat_map(|top| below(top)) {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Puts the folder of all labs onto a disk, as the state of a daemon is: `/run` is memory in the sandbox, where
/// writing a record costs nothing. Made before the lab and dropped after it.
#[derive(Debug)]
pub struct LabsOnDisk {
    // Removed with this value.
    _folder: tempfile::TempDir,
}

impl LabsOnDisk {
    /// Mounts a new folder of the sandbox's disk.
    ///
    /// # Errors
    ///
    /// This process is not in a sandbox, a lab is up, or it cannot be mounted.
    pub fn mount() -> anyhow::Result<Self> {
        sandbox_cgroup()?;
        let disk = env::var_os(DISK_VARIABLE).context(DISK_VARIABLE)?;
        let folder = tempfile::Builder::new()
            // As the folder of labs must be.
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(disk)?;
        fs::create_dir(LABS).context("a lab is up in this sandbox")?;
        mount_bind(folder.path(), LABS)?;
        Ok(Self { _folder: folder })
    }
}

impl Drop for LabsOnDisk {
    fn drop(&mut self) {
        let _ = unmount(LABS, UnmountFlags::DETACH);
        let _ = fs::remove_dir(LABS);
    }
}

/// The control group of the sandbox that this process is in.
///
/// # Errors
///
/// It is in none: then nothing of a container runtime may be started.
pub fn sandbox_cgroup() -> anyhow::Result<String> {
    let outside = env::var(OUTSIDE_VARIABLE).unwrap_or_default();
    let cgroup = env::var(CGROUP_VARIABLE).unwrap_or_default();
    let mut there = outside.split_whitespace();
    let is_apart = ["mnt", "pid"].iter().all(|kind| {
        let here = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
        there.next().is_some_and(|other| Path::new(other) != here)
    });
    ensure!(
        is_apart && cgroup.starts_with('/'),
        "container runtimes mount and leave processes behind, so tests with them run in a sandbox: `make \
         runtimes`, or as root `scripts/sandbox cargo test -p fabric-tests --test NAME`"
    );
    Ok(cgroup)
}

/// All mount points that this process sees, in the order in which they were made.
pub(super) fn mount_points() -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth word (proc(5)). None of ours has a blank, which would be written as a number.
    let point = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
    Ok(text.lines().filter_map(point).collect())
}

/// `top` and all folders below it, the innermost first.
pub(crate) fn below(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
    }
    found.push(top.to_owned());
    found
}

/// The folders of control group `name` that there are: one for each hierarchy of version 1, one of version 2.
fn cgroup_folders(name: &str) -> Vec<PathBuf> {
    let name = name.trim_start_matches('/');
    let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    hierarchies
        .map(|entry| entry.path())
        .chain([PathBuf::from(CGROUPS)])
        .map(|hierarchy| hierarchy.join(name))
        .filter(|folder| folder.is_dir())
        .collect()
}
