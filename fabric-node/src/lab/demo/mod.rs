//! `fabric lab demo`: a lab in, proofs out. Two workers; `pod-a-1` and its neighbour `pod-a-2` on
//! the first, `pod-b-1` on the second. Each proof measures real traffic and can fail; the demo
//! succeeds only if all hold.
//!
//! `reach` pings, `sender` looks for address translation, `throughput` runs iperf3,
//! `encryption` reads the underlay, `conservation` counts packets; `report` prints.

mod conservation;
mod encryption;
mod reach;
mod report;
mod sender;
mod sockets;
mod throughput;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use self::report::{Finding, Report};
use super::{
    Family, Interrupt, Lab, LabOptions, Pod, Progress, Worker, command, next_steps::next_steps,
    place::Place, teardown::Remains,
};
use crate::terminal::output::Output;

/// Pods on each worker of the demo.
pub const PODS: [usize; 2] = [2, 1];

/// How long a program may take to say its version.
const VERSION_MAX: Duration = Duration::from_secs(5);

/// Programs of others that the demo measures with.
#[derive(Debug)]
pub struct Tools {
    ping: Vec<String>,
    iperf3: String,
}

impl Tools {
    /// Finds them.
    ///
    /// # Errors
    ///
    /// One is missing; the message says what to install.
    pub fn find() -> anyhow::Result<Self> {
        let find = |program| command::find(program).map(|path| path.to_string_lossy().into_owned());
        let ping = find("ping")
            .map(ping_arguments)
            .or_else(|| find("busybox").map(|busybox| vec![busybox, "ping".to_owned()]));
        let (Some(ping), Some(iperf3)) = (ping, find("iperf3")) else {
            bail!(
                "the demo measures with ping and iperf3, and not both are here; install them: \
                 `apt-get install iputils-ping iperf3` (Debian, Ubuntu), `dnf install iputils \
                 iperf3` (Fedora), `apk add iputils iperf3` (Alpine)"
            );
        };
        Ok(Self { ping, iperf3 })
    }
}

/// Asks for short intervals where they are understood: BusyBox knows only whole seconds.
fn ping_arguments(ping: String) -> Vec<String> {
    let mut version = Command::new(&ping);
    version.arg("-V");
    let is_iputils = command::run(version, b"", VERSION_MAX)
        .is_ok_and(|answer| answer.stdout.contains("iputils"));
    let short = is_iputils.then(|| ["-i", "0.2"].map(str::to_owned));
    std::iter::once(ping)
        .chain(short.into_iter().flatten())
        .collect()
}

/// What the proofs work with.
struct Scene<'a> {
    lab: &'a Lab,
    tools: &'a Tools,
    families: &'a [Family],
    workers: [&'a Worker; 2],
    /// On the first worker.
    pod: &'a Pod,
    /// Beside it.
    neighbour: &'a Pod,
    /// On the second worker.
    remote: &'a Pod,
}

/// A proof that has not been made.
struct Plan<'a> {
    id: String,
    title: String,
    prove: Box<dyn FnOnce() -> anyhow::Result<Finding> + 'a>,
}

impl<'a> Plan<'a> {
    fn new(
        id: impl Into<String>,
        title: impl Into<String>,
        prove: impl FnOnce() -> anyhow::Result<Finding> + 'a,
    ) -> Self {
        Self {
            id: id.into(),
            title: title.into(),
            prove: Box::new(prove),
        }
    }
}

/// Builds the lab, makes all proofs, takes it down. Success only if every proof holds.
///
/// # Errors
///
/// The lab cannot be built or the user interrupted; then nothing is left of it.
pub fn run(
    options: &LabOptions,
    tools: &Tools,
    keep: bool,
    output: Output,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let links = links();
    let progress = Progress::new(output.quiet);
    let mut report = Report::new(output);
    let mut lab = Lab::up_with(options, &progress, interrupt)?;
    let scene = Scene::of(&lab, options, tools)?;
    report.introduce(&scene.introduction(), &progress);
    for plan in plans(&scene) {
        interrupt.check()?;
        progress.hint(&plan.title);
        let finding = (plan.prove)();
        // A proof that was interrupted has failed for no reason of its own.
        interrupt.check()?;
        report.add(plan.id, plan.title, finding, &progress);
    }
    interrupt.check()?;
    let next = next_steps(lab.state());
    if keep {
        lab.keep();
    } else {
        progress.hint("taking the lab down");
        let clean = lab.down().and_then(|()| nothing_remains(options, &links));
        report.add(
            "clean-up".into(),
            "nothing is left behind".into(),
            clean,
            &progress,
        );
    }
    let all_hold = report.finish(started.elapsed(), &progress)?;
    if keep {
        progress.around(|| output.say(&format!("\n{next}")));
    }
    Ok(if all_hold {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// All proofs but the last, in order.
fn plans<'a>(scene: &'a Scene<'a>) -> Vec<Plan<'a>> {
    let mut plans = vec![Plan::new(
        "addresses",
        "every pod has addresses of its own",
        || reach::addresses(scene),
    )];
    plans.extend(reach::plans(scene));
    plans.extend(sender::plans(scene));
    plans.extend(throughput::plans(scene));
    plans.push(Plan::new(
        "encryption",
        "what pods say is not readable on the underlay",
        || encryption::prove(scene),
    ));
    plans.extend(conservation::plans(scene));
    plans
}

impl<'a> Scene<'a> {
    fn of(lab: &'a Lab, options: &LabOptions, tools: &'a Tools) -> anyhow::Result<Self> {
        let [a, b] = lab.workers() else {
            bail!("the demo needs two workers")
        };
        let [pod, neighbour, remote] = lab.pods() else {
            bail!("the demo needs three pods")
        };
        Ok(Self {
            lab,
            tools,
            families: options.families.list(),
            workers: [a, b],
            pod,
            neighbour,
            remote,
        })
    }

    fn introduction(&self) -> String {
        let list = |pods: &[&Pod]| {
            let with_addresses = pods.iter().map(|pod| {
                let addresses: Vec<String> =
                    pod.addresses.iter().map(ToString::to_string).collect();
                format!("{} ({})", pod.name, addresses.join(", "))
            });
            with_addresses.collect::<Vec<_>>().join(", ")
        };
        let [a, b] = self.workers;
        format!(
            "{} with {}\n{} with {}",
            a.name,
            list(&[self.pod, self.neighbour]),
            b.name,
            list(&[self.remote])
        )
    }
}

/// The pod's address of a family.
fn address(pod: &Pod, family: Family) -> anyhow::Result<std::net::IpAddr> {
    let found = pod
        .addresses
        .iter()
        .copied()
        .find(|address| family.has(*address));
    found.with_context(|| format!("{} has no {} address", pod.name, family.title()))
}

/// Names of the interfaces in this process's network namespace.
fn links() -> Vec<String> {
    let netlink = crate::sys::netlink::Netlink::connect().and_then(|netlink| netlink.links());
    netlink
        .unwrap_or_default()
        .into_iter()
        .map(|link| link.name)
        .collect()
}

fn nothing_remains(options: &LabOptions, links_before: &[String]) -> anyhow::Result<Finding> {
    let remains = Remains::of(&options.name, &Place::here());
    if !remains.is_empty() {
        bail!("there still is {}", remains.describe());
    }
    // Others may add interfaces meanwhile; only names the lab makes would be its own.
    let ours = ["fabric", "worker-", super::underlay::BRIDGE];
    let left: Vec<String> = links()
        .into_iter()
        .filter(|link| !links_before.contains(link) && ours.iter().any(|our| link.starts_with(our)))
        .collect();
    if !left.is_empty() {
        bail!("there still are the interfaces {}", left.join(", "));
    }
    Ok(Finding::new(
        "0 namespaces, 0 processes, 0 files, 0 interfaces",
    ))
}
