//! The plugin killed at each of its system calls in turn, and the daemon at those of an ADD, by strace:
//! whatever the moment, nothing is left of an ADD, a DEL can be repeated, and a kept DEL is on disk whole
//! or not at all.
#![allow(clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, command, process::Process},
    sys::netns::Netns,
};
use fabric_tests::{
    churn::{
        self,
        exec::{self, Ended, Runtime},
        fill,
        remains::{self, carried, devices, kept_deletes, pending_files, records},
        survey::{Base, RECONCILE_MAX},
    },
    eventually::eventually,
    plugin::{Answer, Container},
    stage::Stage,
    trace,
};

const WORKER: &str = "worker-a";
/// Calls of the daemon by which an ADD leaves something behind: records, devices, addresses and routes,
/// threads in the pod's namespace, the answer. An ADD that succeeds removes no file.
const CALLS_OF_ADD: [&str; 6] = ["fsync", "rename", "ioctl", "setns", "sendto", "write"];
/// More calls of one kind than a thread of the daemon makes for an ADD.
const DEATHS_PER_CALL_MAX: usize = 40;
/// Fewer deaths than there are steps on disk and in the kernel, of all kinds together.
const DEATHS_MIN: usize = 10;
/// How long after an answer the daemon may still be busy with it.
const AFTER_ANSWER: Duration = Duration::from_millis(100);
/// How long a tracer may take to get hold of all threads.
const ATTACHED_MAX: Duration = Duration::from_secs(5);
/// The code of the specification for "try again later".
const TRY_AGAIN: u64 = 11;
/// Enough for one pod at each system call, and few enough to be used up in the end.
const RANGE: &str = "10.200.0.0/25";
/// How long the daemon may take to be done with a container that was deleted.
const DELETED_MAX: Duration = Duration::from_secs(3);
/// Fewer system calls than any exec of the plugin has.
const POINTS_MIN: usize = 40;
/// How many may not be reached, as the number of calls that a program needs for memory differs a little.
const MISSED_MAX: usize = 3;

/// A moment in a plugin's life: the n-th time that it makes a certain system call.
#[derive(Clone, Debug)]
struct Point {
    call: String,
    number: usize,
}

impl Point {
    /// The command that kills what follows it at this point, before the call is carried out.
    fn killer(&self) -> Vec<String> {
        let Self { call, number } = self;
        let words = ["strace", "-f", "-o", "/dev/null", "-e"].map(str::to_owned);
        let trace = format!("trace={call}");
        let inject = format!("inject={call}:signal=KILL:when={number}");
        words
            .into_iter()
            .chain([trace, "-e".into(), inject])
            .collect()
    }
}

/// A plugin killed at any system call of an ADD leaves no address, interface or record, whether the
/// runtime sends a DEL or the namespace goes without one.
#[test]
fn add_can_be_killed_anywhere() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = lab(&stage, "kill-add")?;
    let (runtime, base) = runtime(&stage, &lab)?;
    let container = runtime.container()?;
    let points = points(&runtime, "ADD", &container)?;
    runtime.del("pod", &container)?;
    Netns::remove_named(&container.netns)?;
    let mut walk = Walk::default();
    for (index, point) in points.iter().enumerate() {
        let container = runtime.container()?;
        walk.call(&runtime, "ADD", point, &container)?;
        if index % 2 == 0 {
            delete(&runtime, &container)
                .with_context(|| format!("after ADD was killed at {point:?}"))?;
        }
        Netns::remove_named(&container.netns)?;
    }
    walk.check("ADD", &points)?;
    nothing_left(&lab, &runtime, &base, 0)
}

/// A plugin killed at any system call of a DEL leaves nothing, whether the DEL is repeated or the
/// namespace goes.
#[test]
fn del_can_be_killed_anywhere() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = lab(&stage, "kill-del")?;
    let (runtime, base) = runtime(&stage, &lab)?;
    let container = attached(&runtime)?;
    let points = points(&runtime, "DEL", &container)?;
    Netns::remove_named(&container.netns)?;
    let mut walk = Walk::default();
    for (index, point) in points.iter().enumerate() {
        let container = attached(&runtime)?;
        walk.call(&runtime, "DEL", point, &container)?;
        if index % 2 == 0 {
            delete(&runtime, &container)
                .with_context(|| format!("after DEL was killed at {point:?}"))?;
        }
        Netns::remove_named(&container.netns)?;
    }
    walk.check("DEL", &points)?;
    nothing_left(&lab, &runtime, &base, 0)
}

/// A plugin killed at any system call of a DEL that no daemon takes has kept the DEL whole or not at
/// all. The daemon's next start carries out those that were kept, leaves the other pods alone, and a
/// DEL deletes these.
#[test]
fn a_kept_del_is_whole_or_absent() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = lab(&stage, "kill-kept")?;
    let (runtime, base) = runtime(&stage, &lab)?;
    let worker = runtime.worker();
    let first = attached(&runtime)?;
    lab.kill_daemon(WORKER)?;
    let points = points(&runtime, "DEL", &first)?;
    lab.start_daemon(WORKER)?;
    let mut containers = vec![first];
    for _ in &points {
        containers.push(attached(&runtime)?);
    }
    lab.kill_daemon(WORKER)?;
    let mut walk = Walk::default();
    let (mut kept, mut not_kept) = (BTreeMap::new(), BTreeMap::new());
    for (index, (point, container)) in points.iter().zip(&containers[1..]).enumerate() {
        walk.call(&runtime, "DEL", point, container)?;
        let is_kept = || anyhow::Ok(kept_deletes(worker)?.contains(&container.id));
        let mut is_there = is_kept().with_context(|| format!("killed at {point:?}"))?;
        if !is_there && index % 2 == 0 {
            runtime.del("pod", container)?;
            is_there = is_kept()?;
            ensure!(is_there, "a DEL that succeeded was not kept");
        }
        let group = if is_there { &mut kept } else { &mut not_kept };
        group.insert(container.id.clone(), container);
    }
    walk.check("DEL without a daemon", &points)?;
    println!("{} DELs kept, {} not", kept.len(), not_kept.len());
    ensure!(
        !kept.is_empty() && !not_kept.is_empty(),
        "a walk of one kind"
    );

    lab.start_daemon(WORKER)?;
    let alive = carried(worker)?;
    for (id, container) in &kept {
        ensure!(!alive.contains_key(id), "{id} is carried after its DEL");
        let left = devices(&container.netns)?;
        ensure!(left.is_empty(), "{id} has {left:?} after its DEL");
    }
    for (id, container) in &not_kept {
        let addresses = alive
            .get(id)
            .with_context(|| format!("{id} is not carried"))?;
        let found = remains::pod_addresses(&container.netns)?;
        ensure!(
            found == addresses.iter().copied().collect(),
            "{id}: {found:?}, {addresses:?}"
        );
        delete(&runtime, container)?;
    }
    for container in &containers {
        Netns::remove_named(&container.netns)?;
    }
    nothing_left(&lab, &runtime, &base, 0)
}

/// A daemon killed at any of the system calls by which an ADD writes, makes the interface or answers has,
/// after its next start, the whole pod if the ADD had succeeded, and nothing of it if not; a DEL, or the
/// end of the namespace, leaves nothing of either.
#[test]
fn the_daemon_can_be_killed_anywhere_in_an_add() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = lab(&stage, "kill-daemon")?;
    let (runtime, base) = runtime(&stage, &lab)?;
    let (mut deaths, mut answered) = (0, 0);
    for call in CALLS_OF_ADD {
        let mut number = 1;
        loop {
            let point = Point {
                call: call.to_owned(),
                number,
            };
            let container = runtime.container()?;
            let died = add_to_dying_daemon(&mut lab, &runtime, &point, &container)
                .with_context(|| format!("the daemon was to be killed at {point:?}"))?;
            answered += usize::from(died == Some(true));
            if died.is_none() || number % 2 == 0 {
                delete(&runtime, &container)?;
            }
            Netns::remove_named(&container.netns)?;
            if died.is_none() {
                break;
            }
            deaths += 1;
            number += 1;
            ensure!(number <= DEATHS_PER_CALL_MAX, "it dies of every {call}");
        }
        ensure!(number > 1, "it never died of {call}: an ADD has none");
    }
    println!(
        "the daemon was killed {deaths} times during an ADD, {answered} times after its answer"
    );
    ensure!(deaths >= DEATHS_MIN, "it was hardly ever killed");
    nothing_left(&lab, &runtime, &base, 0)
}

/// ADD, with a daemon that is killed at `point`. `None` if it lives on; else whether the ADD succeeded,
/// and the next daemon is running.
fn add_to_dying_daemon(
    lab: &mut Lab,
    runtime: &Runtime<'_>,
    point: &Point,
    container: &Container,
) -> anyhow::Result<Option<bool>> {
    let daemon = pid(lab)?;
    let mut killer = attach(daemon, point)?;
    let answer = runtime.call("ADD", "pod", container);
    // The last calls come after the answer. A daemon whose tracer goes at this very moment dies at once
    // or not at all; the tracer itself, asked to end then, might wait for it for ever.
    let process = Process::open(daemon);
    let has_died = || {
        process
            .as_ref()
            .is_none_or(|process| process.wait(AFTER_ANSWER))
    };
    let _ = has_died();
    command::end(&mut killer);
    let died = has_died();
    let succeeded = match answer? {
        Answer::Done(result) => Some(exec::given(&result)?),
        Answer::Failed {
            code: TRY_AGAIN, ..
        } => None,
        Answer::Failed { code, text } => anyhow::bail!("code {code}: {text}"),
    };
    if !died {
        ensure!(succeeded.is_some(), "ADD failed, but the daemon lives");
        return Ok(None);
    }
    lab.start_daemon(WORKER)?;
    let carried = carried(runtime.worker())?.remove(&container.id);
    ensure!(
        carried.is_some() || succeeded.is_none(),
        "a pod is lost: ADD answered {succeeded:?}"
    );
    if let (Some(carried), Some(given)) = (&carried, &succeeded) {
        ensure!(
            carried == given,
            "it has {carried:?}, ADD answered {given:?}"
        );
    }
    let found = remains::pod_addresses(&container.netns)?;
    let expected = carried.unwrap_or_default().into_iter().collect();
    ensure!(
        found == expected,
        "eth0 has {found:?}, the daemon {expected:?}"
    );
    Ok(Some(succeeded.is_some()))
}

/// A tracer of all threads of the daemon that kills it at `point`.
fn attach(daemon: u32, point: &Point) -> anyhow::Result<Child> {
    let words = point.killer();
    let (strace, options) = words.split_first().context("no tracer")?;
    let mut program = Command::new(strace);
    program.args(options).args(["-p", &daemon.to_string()]);
    let mut tracer = program
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let traced = eventually("all threads are traced", ATTACHED_MAX, || {
        // A daemon or a thread that has ended meanwhile is not waited for.
        for task in fs::read_dir(format!("/proc/{daemon}/task"))
            .into_iter()
            .flatten()
        {
            let status = fs::read_to_string(task?.path().join("status"));
            let status = status.unwrap_or_default();
            ensure!(!status.contains("TracerPid:\t0\n"), "not yet");
        }
        Ok(())
    });
    if let Err(error) = traced {
        command::end(&mut tracer);
        return Err(error);
    }
    Ok(tracer)
}

/// A lab of one worker with the range.
fn lab(stage: &Stage, purpose: &str) -> anyhow::Result<Lab> {
    command::find("strace").context("there is no program strace: install strace")?;
    let lab = stage.lab(purpose, 1, 0)?;
    churn::use_range(&lab, stage, RANGE.parse()?)?;
    Ok(lab)
}

/// Its runtime, and its daemon at rest.
fn runtime<'a>(stage: &'a Stage, lab: &Lab) -> anyhow::Result<(Runtime<'a>, Base)> {
    let runtime = Runtime::new(stage, lab.state(), WORKER)?;
    let base = Base::of(runtime.worker(), pid(lab)?, 0)?;
    Ok((runtime, base))
}

/// What the walks count.
#[derive(Default)]
struct Walk {
    killed: usize,
    missed: Vec<Point>,
}

impl Walk {
    fn call(
        &mut self,
        runtime: &Runtime<'_>,
        verb: &str,
        point: &Point,
        container: &Container,
    ) -> anyhow::Result<()> {
        match runtime.call_under(&point.killer(), verb, "pod", container)? {
            Ended::Killed => self.killed += 1,
            Ended::Answered(answer) => {
                answer
                    .done()
                    .with_context(|| format!("{verb} at {point:?}"))?;
                self.missed.push(point.clone());
            }
        }
        Ok(())
    }

    /// All points but a few were reached.
    fn check(&self, what: &str, points: &[Point]) -> anyhow::Result<()> {
        println!(
            "{what}: killed at {} of {} system calls (missed {:?}), {} of them after connect",
            self.killed,
            points.len(),
            self.missed,
            points
                .iter()
                .rev()
                .take_while(|point| point.call != "connect")
                .count()
        );
        ensure!(
            points.len() >= POINTS_MIN && self.missed.len() <= MISSED_MAX,
            "of {} calls {:?} were not reached",
            points.len(),
            self.missed
        );
        Ok(())
    }
}

/// All system calls of one call of the plugin, which succeeds.
fn points(runtime: &Runtime<'_>, verb: &str, container: &Container) -> anyhow::Result<Vec<Point>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("trace");
    let wrapper = ["strace", "-o", path(&file)?].map(str::to_owned);
    let Ended::Answered(answer) = runtime.call_under(&wrapper, verb, "pod", container)? else {
        anyhow::bail!("{verb} was killed");
    };
    answer.done()?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let calls = trace::parse(&fs::read_to_string(&file)?);
    // The first is how the tracer starts it.
    let points = calls.into_iter().skip(1).map(|call| {
        let number = seen.entry(call.name.clone()).or_default();
        *number += 1;
        Point {
            number: *number,
            call: call.name,
        }
    });
    Ok(points.collect())
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A container whose ADD has succeeded.
fn attached(runtime: &Runtime<'_>) -> anyhow::Result<Container> {
    let container = runtime.container()?;
    runtime.call("ADD", "pod", &container)?.done()?;
    Ok(container)
}

/// DEL, after which nothing of the container is left but its empty namespace.
fn delete(runtime: &Runtime<'_>, container: &Container) -> anyhow::Result<()> {
    runtime.del("pod", container)?;
    let worker = runtime.worker();
    eventually("it is gone", DELETED_MAX, || {
        let left = devices(&container.netns)?;
        ensure!(left.is_empty(), "{left:?} are left");
        ensure!(
            !carried(worker)?.contains_key(&container.id),
            "it is carried"
        );
        ensure!(!records(worker)?.contains(&container.id), "it is on record");
        Ok(())
    })?;
    Ok(())
}

/// Soon nothing of any container is left, in files, in the kernel, and in the daemon's memory.
fn nothing_left(
    lab: &Lab,
    runtime: &Runtime<'_>,
    base: &Base,
    living: usize,
) -> anyhow::Result<()> {
    let worker = runtime.worker();
    let unfinished = remains::age_unfinished(worker)?;
    let (_, took) = eventually("nothing is left", RECONCILE_MAX, || {
        let (carried, records) = (carried(worker)?, records(worker)?);
        ensure!(carried.len() == living, "{carried:?} are carried");
        ensure!(records.len() == living, "{records:?} are on record");
        let kept = pending_files(worker)?;
        ensure!(kept.is_empty(), "{kept:?} are kept");
        base.check(worker, pid(lab)?, living)
    })?;
    println!("nothing left after {took:?}, {unfinished} unfinished files among what went");
    fill::check_used(runtime, living)
}

fn pid(lab: &Lab) -> anyhow::Result<u32> {
    lab.state().worker(WORKER)?.pid.context("no daemon runs")
}
