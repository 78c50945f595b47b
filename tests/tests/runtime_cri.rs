//! Kubernetes' own calls against real containerds on workers of a lab: what a kubelet would see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{fs, net::IpAddr, sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Worker, plugin::network_list};
use fabric_tests::{
    eventually::eventually,
    operator::pods,
    runtime::{
        containerd::Containerd,
        cri::Cri,
        image::{self, Image},
        leaks,
        place::Place,
        pod::Pod,
    },
    stage::Stage,
};

/// How long what a pod leaves may stay.
const GONE_MAX: Duration = Duration::from_secs(10);
/// How long a web server may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// Two nodes with a containerd each: a busybox pod on one pings a busybox pod on the other by its addresses, IPv4 and
/// IPv6, and the other way round; a pod's first address is its IPv4 address; and nothing is left when both are stopped
/// and removed.
#[test]
fn pods_of_two_containerds_ping_each_other() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("cri-ping", 2, 0)?;
    let places = [Place::new(&lab, "worker-a")?, Place::new(&lab, "worker-b")?];
    let [a, b] = [started(&lab, &places[0])?, started(&lab, &places[1])?];
    let (a, b) = (Cri::connect(&a)?, Cri::connect(&b)?);
    let everything = [&places[0], &places[1]];
    let before = leaks::snapshot(&stage, &lab, &everything)?;

    let (here, there) = (Pod::waiting(&a, "here")?, Pod::waiting(&b, "there")?);
    for (pod, other) in [(&here, &there), (&there, &here)] {
        let families: Vec<bool> = pod.ips().iter().map(IpAddr::is_ipv4).collect();
        assert_eq!(families, [true, false], "{:?}", pod.ips());
        for ip in other.ips() {
            println!("{}", pod.ping(*ip, 3)?);
        }
    }
    here.end()?;
    there.end()?;
    let took = leaks::check(&before, &stage, &lab, &everything, GONE_MAX)?;
    println!("nothing is left after {} ms", took.as_millis());
    Ok(())
}

/// A web server in a pod sees a client in a pod of another node under that pod's own address, IPv4 and IPv6, as the
/// runtime tells it: nothing between them translates addresses.
#[test]
fn the_receiver_sees_the_senders_own_address() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("cri-nat", 2, 0)?;
    let places = [Place::new(&lab, "worker-a")?, Place::new(&lab, "worker-b")?];
    let [a, b] = [started(&lab, &places[0])?, started(&lab, &places[1])?];
    let (a, b) = (Cri::connect(&a)?, Cri::connect(&b)?);
    let (client, server) = (
        Pod::waiting(&a, "client")?,
        Pod::run(&b, "server", Image::Web, &[])?,
    );
    for (own, target) in client.ips().iter().zip(server.ips()) {
        let ask = format!("printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc {target} 80");
        let (seen, _) = eventually("the server answers", LISTEN_MAX, || {
            let answer = client.exec(&["sh", "-c", &ask])?;
            let seen = answer.lines().find_map(|line| line.strip_prefix("client="));
            seen.map(str::to_owned)
                .with_context(|| format!("{answer:?}"))
        })?;
        println!("{target} was asked by {seen}");
        // Busybox shows an IPv4 client of its IPv6 socket in the mapped form.
        let seen = seen.trim().trim_matches(['[', ']']);
        let seen: IpAddr = seen.parse().with_context(|| format!("{seen:?}"))?;
        assert_eq!(seen.to_canonical(), *own);
    }
    Ok(())
}

/// A containerd that was killed while sandboxes ran knows them after its start: their network goes on without an
/// interruption by it, they are stopped and removed, and nothing is left.
#[test]
fn a_killed_containerd_removes_its_sandboxes_later() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("cri-crash", 2, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    let mut containerd = started(&lab, &place)?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;
    let worker = lab.state().worker("worker-a")?;

    let sandbox = Cri::connect(&containerd)?.run_sandbox("survivor", "uid-1")?;
    let ips = Cri::connect(&containerd)?.status(&sandbox)?.ips;
    containerd.kill()?;
    assert_eq!(attached(&stage, worker)?, std::slice::from_ref(&sandbox.id));
    containerd.restart()?;
    let cri = Cri::connect(&containerd)?;
    let status = cri.status(&sandbox)?;
    assert!(status.ready && status.ips == ips, "{status:?}, not {ips:?}");
    cri.stop(&sandbox)?;
    // The kubelet stops again whatever it is not sure of.
    cri.stop(&sandbox)?;
    cri.remove(&sandbox)?;
    leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    Ok(())
}

/// Sandboxes are stopped and removed while the node's daemon does not run: each DEL is kept on disk and the runtime is
/// not held up; the daemon's next start carries them out, and nothing is left.
#[test]
fn sandboxes_are_removed_while_the_daemon_is_down() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("cri-down", 1, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    let containerd = started(&lab, &place)?;
    let cri = Cri::connect(&containerd)?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;

    let sandboxes = ["one", "two", "three"].map(|name| cri.run_sandbox(name, name));
    lab.kill_daemon("worker-a")?;
    for sandbox in &sandboxes {
        let sandbox = sandbox.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
        cri.stop(sandbox)?;
        cri.remove(sandbox)?;
    }
    assert_eq!(kept(lab.state().worker("worker-a")?)?, sandboxes.len());
    let refused = cri.run_sandbox("too-early", "too-early");
    let told = format!("{:#}", refused.unwrap_err());
    ensure!(told.contains("daemon"), "{told}");

    lab.start_daemon("worker-a")?;
    leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    assert_eq!(kept(lab.state().worker("worker-a")?)?, 0);
    let late = cri.run_sandbox("in-time", "in-time")?;
    cri.stop(&late)?;
    cri.remove(&late)
}

/// The node's daemon is killed in the midst of sandboxes being stopped and removed, whatever it was doing: no call of the
/// runtime fails, and after the daemon's next start nothing is left.
#[test]
fn the_daemon_is_killed_while_sandboxes_are_removed() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("cri-killed", 1, 0)?;
    let place = Place::new(&lab, "worker-a")?;
    let containerd = started(&lab, &place)?;
    let cri = Cri::connect(&containerd)?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;

    let names = ["one", "two", "three", "four", "five", "six"];
    let sandboxes = names
        .iter()
        .map(|name| cri.run_sandbox(name, name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (removed, first) = mpsc::channel();
    thread::scope(|scope| {
        let removal = scope.spawn(|| -> anyhow::Result<()> {
            sandboxes.iter().try_for_each(|sandbox| {
                cri.stop(sandbox)?;
                cri.remove(sandbox)?;
                // Nobody listens but for the first one.
                let _ = removed.send(());
                Ok(())
            })
        });
        first.recv_timeout(GONE_MAX)?;
        lab.kill_daemon("worker-a")?;
        removal.join().unwrap()
    })?;
    println!("{} DELs are kept", kept(lab.state().worker("worker-a")?)?);
    lab.start_daemon("worker-a")?;
    leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    assert_eq!(kept(lab.state().worker("worker-a")?)?, 0);
    Ok(())
}

/// A containerd on the place's worker, with the network of the lab and the images.
fn started<'p>(lab: &Lab, place: &'p Place) -> anyhow::Result<Containerd<'p>> {
    let networks = network_list(lab.state().worker(place.worker())?);
    let containerd = Containerd::start(place, &networks)?;
    for image in [Image::Pause, Image::Busybox, Image::Web] {
        image::import(&containerd, image)?;
    }
    Ok(containerd)
}

/// Container ids of the attachments that the daemon of `worker` tells.
fn attached(stage: &Stage, worker: &Worker) -> anyhow::Result<Vec<String>> {
    let pods = pods(stage, worker)?.items.into_iter();
    Ok(pods.map(|pod| pod.container_id).collect())
}

/// How many DELs are kept on disk.
fn kept(worker: &Worker) -> anyhow::Result<usize> {
    let folder = worker.state_dir().join("pending-deletes");
    let files = fs::read_dir(folder)?.flatten();
    Ok(files
        .filter(|file| file.path().extension().is_some_and(|kind| kind == "delete"))
        .count())
}
