//! `ctr run --cni`, containerd's own tool, with the real plugin: it finds plugins and networks where they are
//! installed, and runs the plugin itself.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Worker, plugin::network_list};
use fabric_tests::{
    eventually::eventually,
    operator::pods,
    runtime::{
        containerd::Containerd,
        image::{self, Image},
        leaks,
        place::Place,
    },
    stage::Stage,
};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// How long a container may run, its start and end included.
const RUN_MAX: Duration = Duration::from_secs(60);
/// How long what nobody deletes may stay.
const RECONCILED_MAX: Duration = Duration::from_secs(10);
/// Where `ctr` looks, whatever containerd's configuration says (containerd, cmd/ctr/commands/run).
const PLUGINS: &str = "/opt/cni/bin";
const NETWORKS: &str = "/etc/cni/net.d";
/// containerd's namespace of whoever names none.
const DEFAULT: &str = "default";

/// A container of `ctr run --rm --cni` pings another one, by IPv4 and IPv6; when it ends its attachment has ended too.
#[test]
fn ctr_runs_containers_that_ping_each_other() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("ctr-ping", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let place = Place::new(&lab, "worker-a")?;
    let _installed = Installed::over(&place)?;
    let containerd = started(&lab, &place)?;
    run(&containerd, &["-d"], "target", &["sleep", "86400"])?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;

    let addresses = addresses_of(&stage, worker, "target")?;
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for (number, address) in addresses.iter().enumerate() {
        let ping = ["ping", "-c", "3", "-W", "5", address];
        let said = run(&containerd, &["--rm"], &format!("pinger-{number}"), &ping)?;
        println!("{said}");
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    leaks::check(&before, &stage, &lab, &[&place], RECONCILED_MAX)?;
    Ok(())
}

/// `ctr run -d --cni` attaches a container and never detaches it: when the container has ended, its addresses, device
/// and record are free again within ten seconds, although no DEL ever comes.
#[test]
fn a_del_that_never_comes_is_made_up_for() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("ctr-lost", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let place = Place::new(&lab, "worker-a")?;
    let _installed = Installed::over(&place)?;
    let containerd = started(&lab, &place)?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;

    run(&containerd, &["-d"], "lost", &["sleep", "86400"])?;
    assert_eq!(addresses_of(&stage, worker, "lost")?.len(), 2);
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "lost"], RUN_MAX)?;
    eventually("the task has ended", RECONCILED_MAX, || {
        containerd.ctr(&["tasks", "delete", "lost"], RUN_MAX)
    })?;
    containerd.ctr(&["containers", "delete", "lost"], RUN_MAX)?;
    let took = leaks::check(&before, &stage, &lab, &[&place], RECONCILED_MAX)?;
    println!("nothing is left after {} ms", took.as_millis());
    Ok(())
}

/// The plugins and the network configuration of a place, where `ctr` looks for them.
struct Installed {
    points: Vec<PathBuf>,
}

impl Installed {
    fn over(place: &Place) -> anyhow::Result<Self> {
        let mut installed = Self { points: Vec::new() };
        for (from, to) in [(place.plugins(), PLUGINS), (place.networks(), NETWORKS)] {
            let to = Path::new(to);
            fs::create_dir_all(to)?;
            mount_bind(&from, to).with_context(|| format!("cannot mount over {}", to.display()))?;
            installed.points.push(to.to_owned());
        }
        Ok(installed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        for point in &self.points {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

fn started<'p>(lab: &Lab, place: &'p Place) -> anyhow::Result<Containerd<'p>> {
    let networks = network_list(lab.state().worker(place.worker())?);
    let containerd = Containerd::start(place, &networks)?;
    image::import_into(&containerd, DEFAULT, Image::Busybox)?;
    Ok(containerd)
}

/// `ctr run --cni` of a busybox called `name`; what it said.
fn run(
    containerd: &Containerd<'_>,
    how: &[&str],
    name: &str,
    command: &[&str],
) -> anyhow::Result<String> {
    let cgroup = format!("{}/{name}", containerd.place().cgroup());
    let mut arguments = vec!["run", "--cni", "--cgroup", &cgroup];
    arguments.extend(how);
    arguments.extend([Image::Busybox.name(), name]);
    arguments.extend(command);
    containerd.ctr(&arguments, RUN_MAX)
}

/// Addresses of container `name`, as the daemon tells them; `ctr` makes the id of namespace and name.
fn addresses_of(stage: &Stage, worker: &Worker, name: &str) -> anyhow::Result<Vec<String>> {
    let pods = pods(stage, worker)?.items;
    let ids: Vec<String> = pods.iter().map(|pod| pod.container_id.clone()).collect();
    let found = pods
        .into_iter()
        .find(|pod| pod.container_id.ends_with(name));
    Ok(found
        .with_context(|| format!("no attachment of {name} among {ids:?}"))?
        .addresses)
}
