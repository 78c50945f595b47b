//! Attachments that come and go while daemon and plugin are killed.
//!
//! Comes in: how many operations, a seed. Goes out: a [`Report`], or what went wrong. A lab of one
//! worker, whose containers nobody but this makes: [`crew`] is the runtime that loses DELs and repeats
//! them, [`gate`] counts operations and knows when the daemon is dead, [`model`] knows who has which
//! address, [`survey`] looks at what is left. [`fill`] asks how many
//! addresses are in use. [`exec`], [`remains`] and [`fill`] are for other tests too.

pub mod crew;
pub mod draws;
pub mod exec;
pub mod fill;
pub mod gate;
pub mod model;
pub mod remains;
pub mod survey;
pub mod tally;

use std::{
    fmt,
    net::SocketAddr,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, plan::QUIC_PORT};
use ipnet::Ipv4Net;

use self::{
    crew::{Member, Shared},
    draws::Draws,
    exec::Runtime,
    gate::Gate,
    model::Model,
    survey::Base,
    tally::Tally,
};
use crate::{
    eventually::eventually,
    operator::{LogMark, has_route},
    sources,
    stage::Stage,
};

/// The daemon is killed after this many operations, again and again.
const OPERATIONS_PER_CRASH: usize = 50;
/// Operations at the end without a crash: the daemon that is looked at in the end has done these.
const CALM_OPERATIONS: usize = 100;
/// Operations that may begin while the daemon is dead.
const OPERATIONS_WITHOUT_DAEMON: usize = 8;
/// How long the daemon stays dead at most.
const DEAD_MAX: Duration = Duration::from_millis(300);
/// How long the daemon may live on after the operation that is its last.
const KILL_DELAY_MAX: Duration = Duration::from_millis(8);
/// How long a new range may take to be in force.
const RANGE_MAX: Duration = Duration::from_secs(5);
/// The one worker.
const WORKER: &str = "worker-a";
/// Addresses of a range that no pod gets: the network's, the gateway's, the last.
const RESERVED: usize = 3;

/// Largest range that is used up in the end, to be told how many addresses count as used.
const FILLED_MAX: usize = 254;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operations: execs of the plugin, and namespaces that vanish.
    pub operations: usize,
    /// Go on at least this long.
    pub at_least: Duration,
    /// What the operations are drawn from.
    pub seed: u64,
    /// Operations side by side.
    pub parallel: usize,
    /// Pods that each of those looks after.
    pub pods_each: usize,
    /// Where IPv4 addresses come from.
    pub range: Ipv4Net,
}

/// What happened; nothing that must not.
#[derive(Clone, Debug)]
pub struct Report {
    /// As asked for.
    pub options: Options,
    /// Operations that were begun.
    pub operations: usize,
    /// By kind.
    pub tally: Tally,
    /// How often the daemon was killed.
    pub crashes: usize,
    /// Addresses given; again after another pod; the shortest time between.
    pub given: (usize, usize, Option<Duration>),
    /// Pods that lived in the end.
    pub living: usize,
    /// DELs that killed plugins had begun to write, and that were still there in the end.
    pub unfinished: usize,
    /// How long all operations took.
    pub elapsed: Duration,
    /// From the last operation until nothing was left.
    pub reconcile: Duration,
    /// The longest time from a kill until the daemon was ready again.
    pub longest_absence: Duration,
}

/// Builds the lab and does it. `progress` is called after each crash.
///
/// # Errors
///
/// Something happened that must not, or the lab cannot be built. The message has the seed.
pub fn run(
    stage: &Stage,
    purpose: &str,
    options: &Options,
    progress: &mut dyn FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let mut lab = stage.lab(purpose, 1, 0)?;
    let log = LogMark::at_end(lab.state().worker(WORKER)?);
    let report = run_in(&mut lab, stage, options, progress)
        .with_context(|| format!("churn with seed {}", options.seed))?;
    let panics = log.count(lab.state().worker(WORKER)?, &["panicked"]);
    ensure!(panics == 0, "the daemon panicked {panics} times");
    Ok(report)
}

fn run_in(
    lab: &mut Lab,
    stage: &Stage,
    options: &Options,
    progress: &mut dyn FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    use_range(lab, stage, options.range)?;
    // A daemon that has only ever had this range.
    lab.kill_daemon(WORKER)?;
    lab.start_daemon(WORKER)?;
    let base = Base::of(lab.state().worker(WORKER)?, pid(lab)?, 0)?;
    let bits = 32 - u32::from(options.range.prefix_len());
    let shared = Shared {
        runtime: Runtime::new(stage, lab.state(), WORKER)?,
        gate: Gate::new(options.operations, options.at_least),
        model: Mutex::new(Model::default()),
        emptied: Mutex::default(),
        standing: Mutex::default(),
        totals: [2usize.pow(bits) - RESERVED, usize::MAX],
    };
    let begin = Instant::now();
    let member = |number| Member::new(&shared, options.seed, number, options.pods_each);
    let mut members: Vec<Member<'_>> = (0..options.parallel).map(member).collect();
    let (crashes, longest_absence) = thread::scope(|scope| {
        let working: Vec<_> = members
            .iter_mut()
            .map(|member| scope.spawn(|| member.work()))
            .collect();
        let crashed = crash_again_and_again(lab, &shared, options, progress);
        if crashed.is_err() {
            shared.gate.end();
        }
        for worker in working {
            worker.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        }
        crashed
    })?;
    let elapsed = begin.elapsed();
    let tally = members
        .iter()
        .fold(Tally::default(), |all, member| all.and(&member.tally));
    let unfinished = remains::age_unfinished(shared.runtime.worker())?;
    let reconcile = survey::at_the_end(&shared, pid(lab)?, &base)?;
    if shared.totals[0] <= FILLED_MAX {
        let living = shared.model().living().len();
        fill::check_used(&shared.runtime, living)?;
    }
    let model = shared.model();
    Ok(Report {
        options: options.clone(),
        operations: shared.gate.started(),
        tally,
        crashes,
        given: model.figures(),
        living: model.living().len(),
        unfinished,
        elapsed,
        reconcile,
        longest_absence,
    })
}

/// Kills the daemon after every [`OPERATIONS_PER_CRASH`] operations, and starts it again; how often, and
/// how long it was away at most.
fn crash_again_and_again(
    lab: &mut Lab,
    shared: &Shared<'_>,
    options: &Options,
    progress: &mut dyn FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<(usize, Duration)> {
    let mut draws = Draws::new(options.seed, 0);
    let (mut crashes, mut longest) = (0, Duration::ZERO);
    let last = options.operations.saturating_sub(CALM_OPERATIONS);
    let mut next = OPERATIONS_PER_CRASH;
    while next <= last && shared.gate.wait_started(next) {
        // Anywhere in the operations under way.
        thread::sleep(draws.time_below(KILL_DELAY_MAX));
        shared
            .gate
            .daemon_dies(draws.below(OPERATIONS_WITHOUT_DAEMON + 1));
        let killed = Instant::now();
        lab.kill_daemon(WORKER)?;
        shared.gate.wait_used(DEAD_MAX);
        lab.start_daemon(WORKER)?;
        longest = longest.max(killed.elapsed());
        shared.gate.daemon_is_back();
        crashes += 1;
        shared.gate.quiet(|| survey::in_between(shared))?;
        next += OPERATIONS_PER_CRASH;
        progress(shared.gate.started())?;
    }
    Ok((crashes, longest))
}

/// Gives the pods of `worker-a` IPv4 addresses from `range`, and waits until that is in force.
///
/// # Errors
///
/// It cannot be changed.
pub fn use_range(lab: &Lab, stage: &Stage, range: Ipv4Net) -> anyhow::Result<()> {
    let worker = lab.state().worker(WORKER)?;
    let endpoint = |address| SocketAddr::new(address, QUIC_PORT).to_string();
    let underlay = worker.underlay_addresses.iter().copied();
    let underlay: Vec<String> = underlay.map(endpoint).collect();
    let underlay: Vec<&str> = underlay.iter().map(String::as_str).collect();
    let range = range.to_string();
    let text = sources::node_text(WORKER, &underlay, &[&range, "fd44:0:0:1::/64"]);
    sources::replace(lab.state(), WORKER, &text)?;
    eventually("the range is in force", RANGE_MAX, || {
        ensure!(has_route(stage, worker, &range)?, "no route to {range}");
        Ok(())
    })?;
    Ok(())
}

fn pid(lab: &Lab) -> anyhow::Result<u32> {
    lab.state().worker(WORKER)?.pid.context("no daemon runs")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            seed,
            parallel,
            range,
            ..
        } = &self.options;
        let (given, again, rest) = self.given;
        writeln!(
            f,
            "{} operations in {:.1} s, {parallel} side by side, seed {seed}, range {range}",
            self.operations,
            self.elapsed.as_secs_f64()
        )?;
        writeln!(f, "{}", self.tally)?;
        writeln!(
            f,
            "daemon killed {} times, ready again after {} ms at most",
            self.crashes,
            self.longest_absence.as_millis()
        )?;
        write!(f, "{given} addresses given, none twice at a time; ")?;
        match rest {
            Some(rest) => writeln!(
                f,
                "{again} came back, after {:.1} s or more",
                rest.as_secs_f64()
            )?,
            None => writeln!(f, "none came back")?,
        }
        write!(
            f,
            "nothing left but {} living pods {:.1} s after the last operation ({} unfinished files \
             among what went)",
            self.living,
            self.reconcile.as_secs_f64(),
            self.unfinished
        )
    }
}
