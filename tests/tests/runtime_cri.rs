//! Kubernetes' own calls against two real containerds, each on a worker of a lab: what a kubelet would see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{net::IpAddr, time::Duration};

use anyhow::ensure;
use fabric_node::lab::{Lab, plugin::network_list};
use fabric_tests::{
    eventually::eventually,
    operator::pods,
    runtime::{
        containerd::Containerd,
        cri::{ContainerId, Cri, SandboxId},
        image::{self, Image},
        leaks,
        place::Place,
    },
    stage::Stage,
};

/// How long a command in a container may take.
const EXEC_MAX: Duration = Duration::from_secs(20);
/// How long what a pod leaves may stay.
const GONE_MAX: Duration = Duration::from_secs(10);

/// Two nodes with a containerd each: a busybox pod on one pings a busybox pod on the other by its addresses, IPv4 and
/// IPv6; a pod's first address is IPv4; what is received comes from the sender's own addresses; and nothing is left
/// when both are stopped and removed.
#[test]
fn pods_of_two_containerds_ping_each_other() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("cri", 2, 0)?;
    let places = [Place::new(&lab, "worker-a")?, Place::new(&lab, "worker-b")?];
    let [a, b] = [started(&lab, &places[0])?, started(&lab, &places[1])?];
    let (a, b) = (Cri::connect(&a)?, Cri::connect(&b)?);
    let everything = [&places[0], &places[1]];
    let before = leaks::snapshot(&stage, &lab, &everything)?;

    let (here, there) = (Pod::run(&a, "here")?, Pod::run(&b, "there")?);
    for pod in [&here, &there] {
        let families: Vec<bool> = pod.ips.iter().map(IpAddr::is_ipv4).collect();
        assert_eq!(families, [true, false], "{:?}", pod.ips);
    }
    for ip in &there.ips {
        let ip = ip.to_string();
        let said = here.exec(&["ping", "-c", "3", "-W", "5", &ip])?;
        println!("{said}");
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    for (pod, cri) in [(&here, &a), (&there, &b)] {
        cri.stop(&pod.sandbox)?;
        cri.remove(&pod.sandbox)?;
    }
    let took = leaks::check(&before, &stage, &lab, &everything, GONE_MAX)?;
    println!("nothing is left after {} ms", took.as_millis());
    Ok(())
}

/// A containerd on the place's worker, with the network of the lab and the images.
fn started<'p>(lab: &Lab, place: &'p Place) -> anyhow::Result<Containerd<'p>> {
    let networks = network_list(lab.state().worker(place.worker())?);
    let containerd = Containerd::start(place, &networks)?;
    image::import(&containerd, Image::Pause)?;
    image::import(&containerd, Image::Busybox)?;
    Ok(containerd)
}

/// A sandbox with a busybox that waits for commands.
struct Pod<'c> {
    cri: &'c Cri<'c, 'c>,
    sandbox: SandboxId,
    container: ContainerId,
    ips: Vec<IpAddr>,
}

impl<'c> Pod<'c> {
    fn run(cri: &'c Cri<'c, 'c>, name: &str) -> anyhow::Result<Self> {
        let sandbox = cri.run_sandbox(name, &format!("uid-{name}"))?;
        let status = cri.status(&sandbox)?;
        ensure!(status.ready, "{name} is not ready");
        let container = cri.create(&sandbox, "main", Image::Busybox, &["sleep", "3600"])?;
        cri.start(&container)?;
        Ok(Self {
            cri,
            sandbox,
            container,
            ips: status.ips,
        })
    }

    fn exec(&self, command: &[&str]) -> anyhow::Result<String> {
        self.cri.exec(&self.container, command, EXEC_MAX)?.success()
    }
}
