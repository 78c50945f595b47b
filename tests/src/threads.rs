//! Labs whose daemons have several data-plane threads, whatever the machine has, and whether each thread
//! has worked.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Lab, Worker, ready};
use fabric_proto::admin::PeerList;

use crate::eventually::eventually;

/// How long the daemons may take to connect anew.
const CONNECTED_MAX: Duration = Duration::from_secs(20);
/// Processor time of a thread that has carried something of a load; an idle one uses some ms a second.
const BUSY_MIN: Duration = Duration::from_millis(200);
/// Begin of the names of data-plane threads.
const NAME: &str = "fabric-data-";

/// Starts both daemons of `lab` anew with `threads` data-plane threads each, and waits until they have
/// as many connections.
///
/// # Errors
///
/// The lab has not two workers, its configuration has a part `dataplane` already, or a daemon does not
/// end, start or connect.
pub fn start_with(lab: &mut Lab, threads: u32) -> anyhow::Result<()> {
    let workers = lab.workers().iter();
    let names: Vec<String> = workers.map(|worker| worker.name.clone()).collect();
    for name in &names {
        lab.stop_daemon(name)?;
        configure(lab.state().worker(name)?, threads)?;
    }
    for name in &names {
        lab.start_daemon(name)?;
    }
    let [a, b] = &names[..] else {
        anyhow::bail!("there are two workers in this, not {names:?}");
    };
    for (here, there) in [(a, b), (b, a)] {
        eventually("a connection for each thread", CONNECTED_MAX, || {
            let socket = lab.state().worker(here)?.admin_socket();
            let peers: PeerList = ready::document(&socket, "/v1/peers")?;
            let peer = peers.items.iter().find(|peer| &peer.name == there);
            let found = peer.map_or(0, |peer| peer.connections);
            ensure!(found == threads, "{here} has {found} to {there}");
            Ok(())
        })?;
    }
    Ok(())
}

fn configure(worker: &Worker, threads: u32) -> anyhow::Result<()> {
    let file = worker.config_file();
    let mut config = OpenOptions::new()
        .append(true)
        .open(&file)
        .with_context(|| format!("cannot open {}", file.display()))?;
    Ok(writeln!(config, "\n[dataplane]\nworkers = {threads}")?)
}

/// Checks that the daemon of `worker` has `threads` data-plane threads, and that each has worked since
/// it was started; how long each did.
///
/// # Errors
///
/// There are more or fewer, or one has done next to nothing.
pub fn check_all_worked(worker: &Worker, threads: usize) -> anyhow::Result<Vec<Duration>> {
    let pid = worker.pid.context("the daemon has no process")?;
    let mut worked = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let folder = task?.path();
        if fs::read_to_string(folder.join("comm"))?.starts_with(NAME) {
            // Its first number: time on a processor (ns), Documentation/scheduler/sched-stats.rst.
            let times = fs::read_to_string(folder.join("schedstat"))?;
            let time = times.split_whitespace().next().context("no schedstat")?;
            worked.push(Duration::from_nanos(time.parse()?));
        }
    }
    ensure!(
        worked.len() == threads && worked.iter().all(|time| *time >= BUSY_MIN),
        "{} has threads that worked {worked:?}, not {threads} that all did",
        worker.name
    );
    Ok(worked)
}
