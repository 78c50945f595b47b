//! Sandboxes that come and go, several at once: what a busy node sees in a day.
//!
//! `FABRIC_CHURN_SANDBOXES` says how many. From [`LONG`] on the time of an ADD is judged too, over the first ones, which
//! follow each other closely, and the others, which live longer; and it is waited for until released addresses have
//! rested:
//!
//! ```console
//! # FABRIC_CHURN_SANDBOXES=1000 scripts/sandbox cargo test -p fabric-tests --test runtime_cri_churn -- --nocapture
//! ```
#![allow(clippy::unwrap_used)]

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, plugin::network_list};
use fabric_tests::{
    eventually::eventually,
    operator::{has_route, status},
    plugin::{Container, addresses},
    runtime::{
        containerd::Containerd,
        cri::Cri,
        image::{self, Image},
        leaks,
        place::{LabsOnDisk, Place},
        pod::Pod,
    },
    sources,
    stage::Stage,
};

/// Sandboxes, unless [`COUNT_VARIABLE`] says otherwise.
const SHORT: usize = 40;
/// Sandboxes of a run whose times mean something.
const LONG: usize = 1000;
/// How many there are to be.
const COUNT_VARIABLE: &str = "FABRIC_CHURN_SANDBOXES";
/// The first ones of a long run, which end after one echo request, so that ADDs are as dense as the runtime makes them.
const DENSE: usize = 250;
/// Echo requests of the others, one a second to each address: so pods live for some seconds, and the machine does more
/// than start them.
const ECHOES_LONG: u32 = 3;
/// Sandboxes at the same time.
const PARALLEL: usize = 8;
/// Time between two files that measure the disk.
const PUT_INTERVAL: Duration = Duration::from_millis(200);
/// What 99 of 100 ADDs may take in the daemon (ms).
const P99_MS_MAX: f64 = 20.0;
/// How long what the sandboxes leave may stay.
const GONE_MAX: Duration = Duration::from_secs(10);
/// How long addresses rest, and the daemon's next look at them.
const REST_MAX: Duration = Duration::from_secs(120 + 30);
/// How long a change of the nodes may take to be in force.
const IN_FORCE_MAX: Duration = Duration::from_secs(5);
/// Range of the worker, large enough for addresses that rest.
const RANGE: &str = "10.200.0.0/20";

/// Sandboxes are started, ping a pod of another node by IPv4 and IPv6, and are removed, eight at a time, without one
/// failure; afterwards no address, namespace, device, descriptor of the daemon, record, kept DEL, control group, mount
/// or process is left. Of a long run, 99 of 100 ADDs take at most 20 ms in the daemon, whose records are on a disk.
#[test]
fn sandboxes_come_and_go() -> anyhow::Result<()> {
    let count = match env::var(COUNT_VARIABLE) {
        Ok(text) => text.parse().context(COUNT_VARIABLE)?,
        Err(_) => SHORT,
    };
    let stage = Stage::enter()?;
    let _on_disk = LabsOnDisk::mount()?;
    let lab = stage.lab("cri-churn", 2, 0)?;
    widen(&stage, &lab)?;
    let targets = target(&stage, &lab)?;
    let place = Place::new(&lab, "worker-a")?;
    let worker = lab.state().worker("worker-a")?;
    let containerd = Containerd::start(&place, &network_list(worker))?;
    for image in [Image::Pause, Image::Busybox] {
        image::import(&containerd, image)?;
    }
    let cri = Cri::connect(&containerd)?;
    let before = leaks::snapshot(&stage, &lab, &[&place])?;

    let dense = if count >= LONG { DENSE } else { count };
    let puts = timed_puts(&worker.state_dir(), || {
        churn(&cri, &targets, 0..dense, 1)?;
        churn(&cri, &targets, dense..count, ECHOES_LONG)
    })?;
    say(&format!(
        "meanwhile a new file in a synced folder of the same disk took {puts}; an ADD waits for one such sync"
    ));
    let gone = leaks::check(&before, &stage, &lab, &[&place], GONE_MAX)?;
    say(&format!("nothing is left after {} ms", gone.as_millis()));
    let attach = status(&stage, worker)?.attach;
    say(&format!(
        "ADD in the daemon, {} of them: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        attach.adds, attach.p50_ms, attach.p99_ms, attach.max_ms
    ));
    assert_eq!(attach.adds, u64::try_from(count)?);
    if count >= LONG {
        eventually("all addresses have rested", REST_MAX, || {
            let resting = leaks::resting(worker)?;
            ensure!(resting == 0, "{resting} attachments are still on record");
            Ok(())
        })?;
        assert!(attach.p99_ms <= P99_MS_MAX, "p99 is {} ms", attach.p99_ms);
    }
    Ok(())
}

/// Runs the pods with these numbers, [`PARALLEL`] at a time, each of which pings all of `targets`; tells how fast they
/// came.
fn churn(
    cri: &Cri<'_, '_>,
    targets: &[IpAddr],
    numbers: Range<usize>,
    echoes: u32,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let next = AtomicUsize::new(numbers.start);
    let work = || -> anyhow::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(());
            }
            one(cri, targets, number, echoes).with_context(|| format!("sandbox {number}"))?;
            if number % 100 == 99 {
                say(&format!("{} sandboxes", number + 1));
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(work)).collect();
        let ends = threads.into_iter().map(|thread| thread.join());
        let ends: Vec<_> = ends.collect();
        ends.into_iter().try_for_each(|end| end.unwrap())
    })?;
    if !numbers.is_empty() {
        let (count, seconds) = (numbers.len(), began.elapsed().as_secs_f64());
        say(&format!(
            "{count} sandboxes, {PARALLEL} at a time, {echoes} echoes to each of {targets:?}: {seconds:.0} s, {:.2} a \
             second",
            f64::from(u32::try_from(count)?) / seconds
        ));
    }
    Ok(())
}

fn one(cri: &Cri<'_, '_>, targets: &[IpAddr], number: usize, echoes: u32) -> anyhow::Result<()> {
    let pod = Pod::waiting(cri, &format!("pod-{number}"))?;
    for target in targets {
        pod.ping(*target, echoes)?;
    }
    pod.end()
}

/// Runs `work`, and meanwhile writes files in `folder` as the daemon writes a new record: renamed, then the folder synced.
/// How long that took is told in words: what an ADD takes is judged beside it.
fn timed_puts(folder: &Path, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<String> {
    let done = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        let puts = scope.spawn(|| -> anyhow::Result<Vec<Duration>> {
            let (unfinished, file) = (folder.join("yardstick.tmp"), folder.join("yardstick"));
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                fs::write(&unfinished, [b'x'; 512])?;
                fs::rename(&unfinished, &file)?;
                File::open(folder)?.sync_all()?;
                times.push(began.elapsed());
                // A sample of the disk, not a load of it.
                thread::sleep(PUT_INTERVAL);
            }
            fs::remove_file(&file)?;
            Ok(times)
        });
        let end = work();
        done.store(true, Ordering::Relaxed);
        let times = puts.join().unwrap();
        end.and(times)
    })?;
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        ms(at(50)),
        ms(at(99)),
        ms(at(100))
    ))
}

/// Tells a figure also where the test passes: what is printed is shown of failures only.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Gives worker-a a range in which addresses can rest for as long as they must.
fn widen(stage: &Stage, lab: &Lab) -> anyhow::Result<()> {
    let worker = lab.state().worker("worker-a")?;
    let underlay: Vec<String> = worker
        .underlay_addresses
        .iter()
        .map(|address| std::net::SocketAddr::new(*address, 7946).to_string())
        .collect();
    let underlay: Vec<&str> = underlay.iter().map(String::as_str).collect();
    let text = sources::node_text("worker-a", &underlay, &[RANGE, "fd44:0:0:1::/64"]);
    sources::replace(lab.state(), "worker-a", &text)?;
    for worker in lab.workers() {
        eventually("the range is in force", IN_FORCE_MAX, || {
            ensure!(has_route(stage, worker, RANGE)?, "no route to it");
            Ok(())
        })?;
    }
    Ok(())
}

/// A pod on worker-b that stays; its addresses.
fn target(stage: &Stage, lab: &Lab) -> anyhow::Result<Vec<IpAddr>> {
    let worker = lab.state().worker("worker-b")?;
    let pod = Container::make(lab, worker, 1)?;
    let result = pod.call(stage, worker, "ADD")?.done()?;
    addresses(&result)
        .iter()
        .map(|address| address.parse().context("that is no address"))
        .collect()
}
