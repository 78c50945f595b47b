//! A pod with CAP_NET_ADMIN that does to its network what it can: it disturbs nobody else, takes
//! nobody's address, and its DEL leaves nothing.
#![allow(clippy::print_stdout)]

use std::{
    net::{IpAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, command, plugin::POD_IFNAME, process::Process, underlay::inside},
    sys::{
        netns::Netns,
        tun::{Tun, TunError, TunOffloads},
    },
};
use fabric_tests::{
    account::check_conserved,
    churn::{
        exec::{Runtime, given},
        remains::{carried, devices, records},
        survey::{Base, RECONCILE_MAX},
    },
    eventually::eventually,
    operator::dropped,
    pings::Pings,
    plugin::Container,
    probe::Probe,
    stage::Stage,
    traffic::{address, any, ping, udp},
};

/// Longest time that two others may hear nothing of each other.
const GAP_MAX: Duration = Duration::from_millis(500);
/// How soon things that were asked for must be so.
const SOON: Duration = Duration::from_secs(3);
/// How long one command of the vandal may take.
const COMMAND_MAX: Duration = Duration::from_secs(10);
/// How long one echo may take.
const PING_MAX: Duration = Duration::from_millis(300);
/// Packets that the vandal sends in another's name.
const FORGED: u64 = 50;
/// Answers that two seconds of pinging bring.
const ANSWERS_MIN: usize = 40;

/// What a pod does to its own interface while the daemon runs, from deleting it to moving it to another
/// namespace, neither the daemon nor the pings of others notice; nobody's address can be taken, and
/// after the vandal's DEL nothing of it is left.
#[test]
fn a_vandal_disturbs_nobody() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("vandal", 2, 1)?;
    let scene = Scene::new(&stage, &lab)?;
    let others = Others::start(&lab, "pod-a-1", "pod-b-1")?;
    let base = Base::of(scene.runtime.worker(), pid(&lab)?, 1)?;

    let deleted = Vandal::attach(&scene)?;
    deleted.does("ip link delete eth0")?;
    deleted.delete("eth0 deleted", &[])?;

    steals_addresses(&scene, &lab)?;
    changes_mtu(&scene, &lab)?;
    opens_queues(&scene)?;

    let renamed = Vandal::attach(&scene)?;
    renamed.does("ip link set eth0 down && ip link set eth0 name lost0")?;
    renamed.does("ip tuntap add dev eth0 mode tun && ip link set lost0 up")?;
    renamed.delete("eth0 renamed", &["eth0"])?;

    moves_its_interface(&scene)?;

    let down = Vandal::attach(&scene)?;
    down.does("ip link set eth0 down")?;
    ping(&lab.state().pod("pod-b-1")?.netns, down.address, PING_MAX)
        .err()
        .context("a pod that is down answers")?;
    down.does("ip link set eth0 up && ip addr flush dev eth0 && ip route flush table all")?;
    down.delete("eth0 down, addresses and routes flushed", &[])?;

    others.undisturbed()?;
    eventually("what is open is as before", RECONCILE_MAX, || {
        base.check(scene.runtime.worker(), pid(&lab)?, 1)
    })?;
    ensure!(scene.is_same_daemon(&lab)?, "the daemon has died");
    lab.workers().iter().try_for_each(check_conserved)
}

/// Pods that take hold of their interface, delete it, or put another in its place while their daemon is
/// dead keep it neither from starting nor from serving others, nor hold on to what they took; their DEL
/// leaves nothing, and the pods of other nodes notice nothing.
#[test]
fn vandals_while_the_daemon_is_dead() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("vandal-dead", 3, 1)?;
    let scene = Scene::new(&stage, &lab)?;
    let others = Others::start(&lab, "pod-b-1", "pod-c-1")?;
    let (a, b) = (lab.state().pod("pod-a-1")?, lab.state().pod("pod-b-1")?);
    let neighbour = Probe::start(a, b, false)?;
    neighbour.answered_after(Instant::now(), SOON)?;
    let base = Base::of(scene.runtime.worker(), pid(&lab)?, 1)?;
    let [holder, deleter, replacer, flusher] = [(); 4].map(|()| Vandal::attach(&scene));
    let (holder, deleter, replacer, flusher) = (holder?, deleter?, replacer?, flusher?);

    lab.kill_daemon("worker-a")?;
    let held = holder.opens_eth0()?.context("the device cannot be held")?;
    deleter.does("ip tuntap del dev eth0 mode tun")?;
    replacer.does("ip link delete eth0 && ip tuntap add dev eth0 mode tun multi_queue")?;
    flusher.does("ip tuntap del dev eth0 mode tun && ip tuntap add dev eth0 mode tun")?;
    flusher.does("ip link set eth0 mtu 68 up")?;
    lab.start_daemon("worker-a")?;
    let back = neighbour.answered_after(Instant::now(), SOON)?;
    println!("the vandals' neighbour is served {back:?} after the daemon was ready");
    // The interface of the fourth is its own, and not one that the daemon could use.
    for vandal in [&holder, &deleter, &flusher] {
        let worker = scene.runtime.worker();
        eventually("a vandal is served again", RECONCILE_MAX, || {
            ping(&worker.netns, vandal.address, PING_MAX)
        })?;
    }
    for vandal in [&holder, &deleter, &flusher] {
        vandal.delete("after a start of the daemon", &[])?;
    }
    replacer.delete("with an interface of its own", &[POD_IFNAME])?;
    drop(held);
    others.undisturbed()?;
    eventually("what is open is as before", RECONCILE_MAX, || {
        base.check(scene.runtime.worker(), pid(&lab)?, 1)
    })?;
    lab.workers().iter().try_for_each(check_conserved)
}

/// The vandal has the addresses of a neighbour and of a pod of the other node on its interface, sends
/// from them and listens on them.
fn steals_addresses(scene: &Scene<'_>, lab: &Lab) -> anyhow::Result<()> {
    let vandal = Vandal::attach(scene)?;
    let worker = scene.runtime.worker();
    let (near, far) = (lab.state().pod("pod-a-1")?, lab.state().pod("pod-b-1")?);
    for (victim, other) in [(near, far), (far, near)] {
        for ipv6 in [false, true] {
            let (stolen, target) = (address(victim, ipv6)?, address(other, ipv6)?);
            // Without the check whether somebody else has it, which would be an honest question.
            vandal.does(&format!(
                "ip addr add {stolen} dev eth0 nodad 2>/dev/null || ip addr add {stolen} dev eth0"
            ))?;
            let before = dropped(scene.stage, worker, &["SOURCE_NOT_ALLOWED"])?;
            let forger = udp(&vandal.container.netns, stolen)?;
            let victims = udp(&other.netns, target)?;
            victims.set_nonblocking(true)?;
            for _ in 0..FORGED {
                forger.send_to(b"forged", victims.local_addr()?)?;
            }
            eventually("forged packets are counted", SOON, || {
                let count = dropped(scene.stage, worker, &["SOURCE_NOT_ALLOWED"])? - before;
                ensure!(count >= FORGED, "{count} of {FORGED} from {stolen}");
                Ok(())
            })?;
            ensure!(
                victims.recv(&mut [0; 16]).is_err(),
                "a forged packet arrived"
            );
            // What is meant for the victim goes to the victim.
            let receiver = udp(&victim.netns, stolen)?;
            receiver.set_read_timeout(Some(SOON))?;
            let place = receiver.local_addr()?;
            let thief = inside(&vandal.container.netns, || Ok(UdpSocket::bind(place)?))?;
            thief.set_nonblocking(true)?;
            let sender = udp(&other.netns, any(target))?;
            sender.send_to(b"for the victim", place)?;
            let mut buffer = [0; 16];
            let len = receiver
                .recv(&mut buffer)
                .context("the victim got nothing")?;
            ensure!(
                buffer.get(..len) == Some(&b"for the victim"[..]),
                "something else arrived"
            );
            ensure!(thief.recv(&mut buffer).is_err(), "the thief got a packet");
            vandal.does(&format!("ip addr del {stolen} dev eth0"))?;
        }
    }
    vandal.delete("addresses of others added", &[])
}

/// The vandal's interface takes next to nothing, or far more than any other's.
fn changes_mtu(scene: &Scene<'_>, lab: &Lab) -> anyhow::Result<()> {
    let vandal = Vandal::attach(scene)?;
    let far = lab.state().pod("pod-b-1")?;
    let target = address(far, false)?;
    for (mtu, bytes) in [(68, 1_400), (65_000, 60_000)] {
        vandal.does(&format!("ip link set eth0 mtu {mtu}"))?;
        let sender = udp(&vandal.container.netns, vandal.address)?;
        let receiver = udp(&far.netns, target)?;
        for _ in 0..FORGED {
            // The kernel may refuse what it has learned to be too large.
            let _ = sender.send_to(&vec![7; bytes], receiver.local_addr()?);
            let _ = receiver.send_to(&vec![7; 1_400], sender.local_addr()?);
        }
        ping(&far.netns, vandal.address, SOON).context("a vandal with another MTU")?;
    }
    vandal.delete("MTU 68 and 65000", &[])
}

/// Nobody but the daemon gets a queue of the device.
fn opens_queues(scene: &Scene<'_>) -> anyhow::Result<()> {
    let vandal = Vandal::attach(scene)?;
    for attempt in [
        "ip tuntap add dev eth0 mode tun",
        "ip tuntap add dev eth0 mode tun multi_queue",
        "ip tuntap add dev eth0 mode tap",
        "ip tuntap del dev eth0 mode tun",
        "ip tuntap del dev eth0 mode tun multi_queue",
    ] {
        let answer = vandal.tries(attempt)?;
        ensure!(!answer.status.success(), "{attempt:?} succeeded");
    }
    ensure!(
        vandal.opens_eth0()?.is_none(),
        "the device can be attached to"
    );
    vandal.does("ip tuntap add dev tun9 mode tun multi_queue")?;
    ping(&scene.runtime.worker().netns, vandal.address, SOON).context("after all attempts")?;
    vandal.delete("more queues", &["tun9"])
}

/// The vandal's interface goes to the namespace of another container, which is not attached.
fn moves_its_interface(scene: &Scene<'_>) -> anyhow::Result<()> {
    let vandal = Vandal::attach(scene)?;
    let accomplice = scene.runtime.container()?;
    vandal.does(&format!("ip link set eth0 netns {}", accomplice.id))?;
    let found = devices(&accomplice.netns)?;
    ensure!(
        found == [POD_IFNAME],
        "the interface was not moved: {found:?}"
    );
    vandal.delete("eth0 moved", &[])?;
    eventually("the moved interface is gone", SOON, || {
        let left = devices(&accomplice.netns)?;
        ensure!(left.is_empty(), "{left:?} are left in the other namespace");
        Ok(())
    })?;
    Ok(Netns::remove_named(&accomplice.netns)?)
}

/// What vandals are made of.
struct Scene<'a> {
    stage: &'a Stage,
    runtime: Runtime<'a>,
    daemon: u32,
}

impl<'a> Scene<'a> {
    fn new(stage: &'a Stage, lab: &Lab) -> anyhow::Result<Self> {
        Ok(Self {
            stage,
            runtime: Runtime::new(stage, lab.state(), "worker-a")?,
            daemon: pid(lab)?,
        })
    }

    fn is_same_daemon(&self, lab: &Lab) -> anyhow::Result<bool> {
        let runs = Process::open(self.daemon).is_some();
        Ok(runs && self.daemon == pid(lab)?)
    }
}

/// A pod of worker-a whose processes have CAP_NET_ADMIN and no other capability.
struct Vandal<'a> {
    scene: &'a Scene<'a>,
    container: Container,
    address: IpAddr,
}

impl<'a> Vandal<'a> {
    fn attach(scene: &'a Scene<'_>) -> anyhow::Result<Self> {
        let container = scene.runtime.container()?;
        let result = scene.runtime.call("ADD", "vandal", &container)?.done()?;
        let addresses = given(&result)?;
        let address = *addresses.first().context("no address")?;
        Ok(Self {
            scene,
            container,
            address,
        })
    }

    /// Runs a command of the shell in the pod.
    fn tries(&self, script: &str) -> anyhow::Result<command::Answer> {
        let netns = format!("--net={}", self.container.netns.display());
        let mut program = Command::new("nsenter");
        program.args([&netns, "setpriv", "--bounding-set", "-all,+net_admin"]);
        program.args(["--inh-caps", "-all", "sh", "-c", script]);
        command::run(program, b"", COMMAND_MAX)
    }

    fn does(&self, script: &str) -> anyhow::Result<()> {
        let answer = self.tries(script)?;
        ensure!(
            answer.status.success(),
            "{script}: {}: {}",
            answer.status,
            answer.stderr
        );
        Ok(())
    }

    /// The device, if the kernel lets anybody but the daemon have it.
    fn opens_eth0(&self) -> anyhow::Result<Option<Tun>> {
        inside(&self.container.netns, || {
            match Tun::open(POD_IFNAME, TunOffloads::NONE) {
                Ok(tun) => Ok(Some(tun)),
                Err(TunError::Busy { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// DEL; then nothing is left of it but interfaces that may be its `own`.
    fn delete(&self, what: &str, own: &[&str]) -> anyhow::Result<()> {
        let runtime = &self.scene.runtime;
        runtime
            .del("vandal", &self.container)
            .context(what.to_owned())?;
        eventually(what, SOON, || {
            let mut left = devices(&self.container.netns)?;
            left.retain(|name| !own.contains(&name.as_str()));
            ensure!(left.is_empty(), "{left:?} are left");
            let (id, worker) = (&self.container.id, runtime.worker());
            ensure!(!carried(worker)?.contains_key(id), "it is carried");
            ensure!(!records(worker)?.contains(id), "it is on record");
            Ok(())
        })?;
        Ok(Netns::remove_named(&self.container.netns)?)
    }
}

/// Two pods that ping each other all the time, and exchange datagrams.
struct Others {
    pings: Vec<Pings>,
    probe: Probe,
    since: Instant,
}

impl Others {
    fn start(lab: &Lab, one: &str, other: &str) -> anyhow::Result<Self> {
        let (one, other) = (lab.state().pod(one)?, lab.state().pod(other)?);
        let probe = Probe::start(one, other, false)?;
        probe.answered_after(Instant::now(), SOON)?;
        let pings = vec![
            Pings::start(one, other, false)?,
            Pings::start(other, one, true)?,
        ];
        Ok(Self {
            pings,
            probe,
            since: Instant::now(),
        })
    }

    /// Nothing was missing for longer than [`GAP_MAX`], in a time that is long enough to tell.
    fn undisturbed(self) -> anyhow::Result<()> {
        eventually("enough pings are answered", SOON, || {
            for pings in &self.pings {
                let answers = pings.answers()?.len();
                ensure!(answers >= ANSWERS_MIN, "{}: {answers}", pings.name);
            }
            Ok(())
        })?;
        let mut longest = self.probe.longest_gap(self.since);
        for pings in self.pings {
            longest = longest.max(pings.longest_gap()?);
        }
        println!(
            "longest gap of the others in {:?}: {longest:?}",
            self.since.elapsed()
        );
        ensure!(longest <= GAP_MAX, "others heard nothing for {longest:?}");
        Ok(())
    }
}

fn pid(lab: &Lab) -> anyhow::Result<u32> {
    lab.state()
        .worker("worker-a")?
        .pid
        .context("no daemon runs")
}
