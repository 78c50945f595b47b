//! docs/runtimes.md is run as it is written: every command, every file, in its order, on a worker of a lab where
//! daemon, containerd and podman have their usual paths.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{
    Lab, command,
    plugin::{self, network_list},
};
use fabric_tests::{
    eventually::eventually,
    gotools::Tool,
    operator::pods,
    page::{Section, Step, sections},
    runtime::{
        containerd::Containerd,
        image::{self, CRI_NAMESPACE, Image},
        place::Place,
    },
    stage::{Stage, workspace},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const PAGE: &str = "docs/runtimes.md";
/// How long one question to a runtime may take.
const ASK_MAX: Duration = Duration::from_secs(60);
/// Printed before each command.
const MARK: &str = "-------- next --------";
/// How long the commands of one section may take.
const SECTION_MAX: Duration = Duration::from_secs(120);
/// How long what a section leaves to the daemon may stay.
const GONE_MAX: Duration = Duration::from_secs(10);
/// How the examples call the images, which a reader pulls.
const IMAGES: [(Image, &str); 2] = [
    (Image::Busybox, "docker.io/library/busybox:latest"),
    (Image::Web, "docker.io/library/nginx:latest"),
];
/// Where runtimes look for plugins and lists, and podman keeps images.
const FOLDERS: [&str; 3] = ["/opt/cni/bin", "/etc/cni/net.d", "/var/lib/containers"];
/// What podman needs on machines whose root may not raise limits, and that have control groups of both versions.
const PODMAN_HERE: &str = r#"[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"#;
/// Control groups that ctr, containerd and podman make at the top for those who name none, and leave.
const GROUPS: [&str; 3] = ["default", "k8s.io", "libpod_parent"];

/// All commands of docs/runtimes.md succeed and print what is printed beneath them, and at the end no pod is
/// attached and no list is left.
#[test]
fn the_page_runs_as_written() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("docs", 2, 1)?;
    let place = Place::new(&lab, "worker-a")?;
    let worker = lab.state().worker("worker-a")?;
    // The other worker's pod is the one that the page pings; this worker's would keep its uninstallation waiting.
    plugin::delete(lab.state(), worker, lab.state().pod("pod-a-1")?)?;
    let mut machine = Machine::set_up(&lab, &place)?;
    let containerd = Containerd::start(&place, &network_list(worker))?;
    provide_images(&containerd)?;
    // Until `install-cni` writes it there is none.
    fs::remove_file("/etc/cni/net.d/10-fabric.conflist")?;

    let text = fs::read_to_string(workspace().join(PAGE))?;
    let sections = sections(&text)?;
    let commands = sections.iter().flat_map(|section| &section.steps);
    let commands = commands
        .filter(|step| matches!(step, Step::Run { .. }))
        .count();
    ensure!(commands > 30, "only {commands} commands are found");
    for section in &sections {
        run(section, &place, &mut machine)
            .with_context(|| format!("{PAGE}, section {:?}", section.title))?;
        eventually("the section leaves no pod", GONE_MAX, || {
            let left = pods(&stage, worker)?.items;
            ensure!(left.is_empty(), "{}: {left:?}", section.title);
            Ok(())
        })?;
    }
    assert!(!Path::new("/etc/cni/net.d/10-fabric.conflist").exists());
    println!("{commands} commands ran");
    Ok(())
}

/// The page names the versions of the tools that are built. Those of the distribution's programs are the ones of
/// Debian 12 in the page, whatever this machine has.
#[test]
fn the_page_names_the_versions() -> anyhow::Result<()> {
    let page = fs::read_to_string(workspace().join(PAGE))?;
    for tool in [Tool::Cnitool, Tool::Crictl, Tool::Critest] {
        let version = tool.version()?;
        let row = page
            .lines()
            .find(|line| line.starts_with('|') && line.contains(tool.name()));
        let row = row.with_context(|| format!("{PAGE} has no row for {}", tool.name()))?;
        ensure!(
            row.contains(version.trim_start_matches('v')),
            "{row} is not {version}"
        );
    }
    Ok(())
}

/// A worker where everything has the paths that it has on a real machine. Dropping it takes them away.
struct Machine {
    folder: tempfile::TempDir,
    programs: Vec<PathBuf>,
    made: Vec<PathBuf>,
}

impl Machine {
    fn set_up(lab: &Lab, place: &Place) -> anyhow::Result<Self> {
        let crictl = Tool::Crictl.program()?;
        let crictl = crictl.parent().context("crictl is in no folder")?;
        let mut machine = Self {
            folder: tempfile::tempdir()?,
            programs: vec![lab.state().bin_dir.clone(), crictl.into()],
            made: Vec::new(),
        };
        let worker = lab.state().worker(place.worker())?;
        for folder in FOLDERS {
            fs::create_dir_all(folder)?;
            mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"mode=0755")
                .with_context(|| format!("cannot cover {folder}"))?;
        }
        machine.link(&worker.run_dir(), "/run/fabric")?;
        machine.link(&worker.state_dir(), "/var/lib/fabric")?;
        for (usual, own) in [
            (FOLDERS[0], place.plugins()),
            (FOLDERS[1], place.networks()),
        ] {
            fs::remove_dir_all(&own)?;
            symlink(usual, own)?;
        }
        fs::create_dir_all("/run/containerd")?;
        machine.link(
            &place.folder().join("c.sock"),
            "/run/containerd/containerd.sock",
        )?;
        fs::create_dir_all("/etc/containers/containers.conf.d")?;
        machine.write(
            "/etc/containers/containers.conf.d/50-here.conf",
            PODMAN_HERE,
        )?;
        Ok(machine)
    }

    fn link(&mut self, to: &Path, from: &str) -> anyhow::Result<()> {
        symlink(to, from).with_context(|| format!("cannot make {from}"))?;
        self.made.push(from.into());
        Ok(())
    }

    fn write(&mut self, file: &str, content: &str) -> anyhow::Result<()> {
        fs::write(file, content).with_context(|| format!("cannot write {file}"))?;
        self.made.push(file.into());
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What withstands this ends with the sandbox, but for the groups.
        for file in &self.made {
            let _ = fs::remove_file(file);
        }
        for folder in FOLDERS {
            let _ = unmount(folder, UnmountFlags::DETACH);
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            for group in GROUPS {
                remove_empty(&hierarchy.path().join(group));
            }
        }
    }
}

/// Removes a control group and those below it; the kernel keeps those with processes.
fn remove_empty(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Puts what a reader pulls into the stores of containerd, for ctr and for CRI, and of podman.
fn provide_images(containerd: &Containerd<'_>) -> anyhow::Result<()> {
    image::import(containerd, Image::Pause)?;
    for (image, pulled) in IMAGES {
        for namespace in ["default", CRI_NAMESPACE] {
            image::import_into(containerd, namespace, image)?;
            containerd.ctr(
                &["-n", namespace, "images", "tag", image.name(), pulled],
                ASK_MAX,
            )?;
        }
        let folder = tempfile::tempdir_in(containerd.place().folder())?;
        let archive = image::archive(image, folder.path())?;
        let archive = archive.to_str().context("the archive's path is no text")?;
        for words in [
            &["load", "--quiet", "--input", archive][..],
            &["tag", image.name(), pulled],
        ] {
            let mut podman = Command::new(command::find("podman").context("there is no podman")?);
            podman.args(words);
            let answer = containerd.place().run(podman, ASK_MAX)?;
            ensure!(
                answer.status.success(),
                "podman {words:?}: {}",
                answer.last_line()
            );
        }
    }
    Ok(())
}

/// Does what a section says, all commands in one shell.
fn run(section: &Section, place: &Place, machine: &mut Machine) -> anyhow::Result<()> {
    let mut script = String::from("set -euo pipefail\n");
    let mut expected = Vec::new();
    for step in &section.steps {
        match step {
            Step::Write { file, content } if file.starts_with('/') => {
                machine.write(file, content)?
            }
            Step::Write { file, content } => fs::write(machine.folder.path().join(file), content)?,
            Step::Run { command, prints } => {
                script += &format!("echo {MARK}\n{command}\n");
                expected.push((command, prints));
            }
        }
    }
    let mut path = machine.programs.clone();
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut shell = Command::new("/bin/bash");
    shell
        .args(["-c", &script])
        .env("PATH", env::join_paths(path)?)
        .current_dir(machine.folder.path());
    let answer = place.run(shell, SECTION_MAX)?;
    let printed: Vec<&str> = answer.stdout.split(MARK).skip(1).collect();
    ensure!(
        answer.status.success(),
        "{:?} failed: {}{}",
        printed
            .len()
            .checked_sub(1)
            .and_then(|last| expected.get(last))
            .map(|(command, _)| command),
        printed.last().unwrap_or(&""),
        answer.stderr
    );
    for ((command, prints), printed) in expected.iter().zip(printed) {
        println!("# {command}\n{}", printed.trim());
        for line in *prints {
            ensure!(
                printed
                    .lines()
                    .any(|found| found.trim_end() == line.trim_end()),
                "{command:?} does not print {line:?} but {printed}"
            );
        }
    }
    Ok(())
}
