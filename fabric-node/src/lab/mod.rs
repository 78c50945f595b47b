//! A lab: workers and pods as network namespaces on one machine, with real daemons, real
//! certificates and real execs of the CNI plugin. For the demo, for tests and for benchmarks.
//!
//! [`plan`] says what there will be, [`state`] records it before it is made; then [`underlay`] makes
//! namespaces and cables, [`daemon`] configures and starts the workers' daemons, [`plugin`] attaches
//! the pods. [`teardown`] undoes all of it, from any state. [`rootless`] runs the same inside a user
//! namespace. [`faults`] lets the kernel say no. [`demo`] proves on such a lab what the fabric promises; [`cli`] is `fabric lab`.
//!
//! The lab needs veth, a bridge and named namespaces for its scenery; the fabric itself uses none.

pub mod cli;
pub mod command;
pub mod daemon;
pub mod demo;
pub mod faults;
pub mod interrupt;
pub mod name;
pub mod next_steps;
pub mod place;
pub mod plan;
pub mod plugin;
pub mod process;
pub mod progress;
pub mod ready;
pub mod rootless;
pub mod state;
pub mod status;
pub mod teardown;
pub mod underlay;

use std::{fs, io, path::Path};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use self::{daemon::STOP_MAX, place::Place};
pub use self::{
    interrupt::Interrupt,
    name::LabName,
    plan::{Families, Family, LabOptions},
    progress::Progress,
    state::{LabState, Pod, Worker, Wrappers},
};
use crate::config::offloads::Offloads;

/// A lab that is up. Dropping it takes it down, unless [`Lab::keep`] was called or it was found by
/// [`Lab::open`].
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    place: Place,
    state: LabState,
    take_down_on_drop: bool,
}

impl Lab {
    /// Builds a lab, and waits until all daemons are ready and connected to each other.
    ///
    /// # Errors
    ///
    /// Any step failed; then nothing is left of it.
    pub fn up(options: &LabOptions) -> anyhow::Result<Self> {
        Self::up_with(options, &Progress::silent(), &Interrupt::never())
    }

    /// As [`Lab::up`], with a report of each step and a way to stop in between.
    ///
    /// # Errors
    ///
    /// Any step failed or the user interrupted; then nothing is left of it.
    pub fn up_with(
        options: &LabOptions,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let place = Place::here();
        ensure!(
            place.can_build(),
            "a lab is built by root, or inside a user namespace as `fabric lab up` makes one"
        );
        daemon::check_programs(&options.bin_dir)?;
        rootless::check_tun()?;
        let state = plan::lay_out(options, &place)?;
        claim(&state, &options.name, &place)?;
        let name = options.name.clone();
        // From here on the value's end takes down whatever there is.
        let mut lab = Self {
            name,
            place,
            state,
            take_down_on_drop: true,
        };
        lab.build(progress, interrupt)?;
        Ok(lab)
    }

    /// The lab called `name`, where it is up.
    ///
    /// # Errors
    ///
    /// There is none, or its state cannot be read.
    pub fn open(name: &LabName) -> anyhow::Result<Self> {
        let place = Place::here();
        match LabState::read(&place.folder(name))? {
            Some(state) => Ok(Self {
                name: name.clone(),
                place,
                state,
                take_down_on_drop: false,
            }),
            None => bail!("no lab \"{name}\" is up: `fabric lab up --name {name}` builds one"),
        }
    }

    /// Leaves the lab up when this value is dropped.
    pub fn keep(&mut self) {
        self.take_down_on_drop = false;
    }

    /// Name, workers, pods and paths.
    #[must_use]
    pub fn state(&self) -> &LabState {
        &self.state
    }

    /// The workers, in order.
    #[must_use]
    pub fn workers(&self) -> &[Worker] {
        &self.state.workers
    }

    /// The pods, in order of their workers.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.state.pods
    }

    /// Ends a worker's daemon at once, as a crash does, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// There is no such worker, or its daemon does not run or does not end.
    pub fn kill_daemon(&mut self, worker: &str) -> anyhow::Result<()> {
        self.end_daemon(worker, Signal::KILL)
    }

    /// Asks a worker's daemon to end and waits until it has.
    ///
    /// # Errors
    ///
    /// As [`Lab::kill_daemon`].
    pub fn stop_daemon(&mut self, worker: &str) -> anyhow::Result<()> {
        self.end_daemon(worker, Signal::TERM)
    }

    /// Starts a worker's daemon again and waits until it is ready.
    ///
    /// # Errors
    ///
    /// There is no such worker, its daemon runs already, or it does not become ready.
    pub fn start_daemon(&mut self, worker: &str) -> anyhow::Result<()> {
        let found = self.state.worker(worker)?;
        ensure!(
            daemon::running(&self.state, found).is_none(),
            "the daemon of {worker} runs already"
        );
        let pid = daemon::start(&self.state, found)?;
        self.record_daemon(worker, Some(pid))?;
        ready::wait_ready(self.state.worker(worker)?, &Interrupt::never())
    }

    /// Starts the daemons of `workers` anew with these offloads, and waits until all are connected to
    /// all others again.
    ///
    /// # Errors
    ///
    /// There is no such worker, or a daemon does not end, start or connect.
    pub fn switch_offloads(&mut self, workers: &[&str], offloads: Offloads) -> anyhow::Result<()> {
        for name in workers {
            self.stop_daemon(name)?;
            daemon::configure_offloads(self.state.worker(name)?, offloads)?;
        }
        for name in workers {
            self.start_daemon(name)?;
        }
        let peers = self.state.workers.len() - 1;
        let mut workers = self.state.workers.iter();
        workers.try_for_each(|worker| ready::wait_peers(worker, peers, &Interrupt::never()))
    }

    /// Makes the kernel refuse the batches that a worker's daemon sends, or take them again.
    ///
    /// # Errors
    ///
    /// There is no such worker, its daemon does not run, or its sockets cannot be reached.
    pub fn refuse_batches(&self, worker: &str, refuse: bool) -> anyhow::Result<()> {
        let found = self.state.worker(worker)?;
        // Looked at first: the number of a daemon that has ended may be another's.
        let pid = daemon::running(&self.state, found).and(found.pid);
        let pid = pid.with_context(|| format!("the daemon of {worker} does not run"))?;
        faults::refuse_batches(pid, refuse)
    }

    /// Takes a worker's link to the underlay down or up.
    ///
    /// # Errors
    ///
    /// There is no such worker, or the link cannot be changed.
    pub fn set_underlay_link(&self, worker: &str, up: bool) -> anyhow::Result<()> {
        underlay::set_link(&self.state, self.state.worker(worker)?, up)
    }

    /// Takes the lab down.
    ///
    /// # Errors
    ///
    /// All steps that failed; the others were done nevertheless.
    pub fn down(mut self) -> anyhow::Result<()> {
        self.take_down_on_drop = false;
        teardown::take_down(&self.name, &self.place).map(drop)
    }

    fn build(&mut self, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<()> {
        if self.place.is_rootless() {
            self.state.holder = Some(rootless::start_holder(&self.state.folder)?);
            self.state.write()?;
        }
        progress.step("making namespaces and the underlay");
        self.state.netns_dir_made = self.place.prepare_netns_dir(&self.name)?;
        self.state.write()?;
        underlay::make(&self.state)?;
        interrupt.check()?;
        progress.step("issuing certificates");
        daemon::prepare(&self.state)?;
        let names: Vec<String> = self.state.workers.iter().map(|w| w.name.clone()).collect();
        for name in &names {
            interrupt.check()?;
            progress.step(&format!("starting the daemon of {name}"));
            let pid = daemon::start(&self.state, self.state.worker(name)?)?;
            self.record_daemon(name, Some(pid))?;
        }
        for worker in &self.state.workers {
            progress.step(&format!("waiting for {}", worker.name));
            ready::wait_ready(worker, interrupt)?;
        }
        self.attach_pods(progress, interrupt)?;
        for worker in &self.state.workers {
            progress.step(&format!("waiting for the peers of {}", worker.name));
            ready::wait_peers(worker, names.len() - 1, interrupt)?;
        }
        Ok(())
    }

    fn attach_pods(&mut self, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<()> {
        for index in 0..self.state.pods.len() {
            interrupt.check()?;
            let Some(pod) = self.state.pods.get(index) else {
                break;
            };
            progress.step(&format!("attaching {} to {}", pod.name, pod.worker));
            let worker = self.state.worker(&pod.worker)?;
            let addresses = plugin::add(&self.state, worker, pod)
                .map_err(|e| anyhow::anyhow!("{e:#}; {}", ready::log_tail(&worker.log_file())))?;
            if let Some(pod) = self.state.pods.get_mut(index) {
                pod.addresses = addresses;
            }
            self.state.write()?;
        }
        Ok(())
    }

    fn end_daemon(&mut self, worker: &str, signal: Signal) -> anyhow::Result<()> {
        let process = daemon::running(&self.state, self.state.worker(worker)?)
            .with_context(|| format!("the daemon of {worker} does not run"))?;
        process.signal(signal);
        ensure!(process.wait(STOP_MAX), "the daemon of {worker} did not end");
        self.record_daemon(worker, None)
    }

    fn record_daemon(&mut self, worker: &str, pid: Option<u32>) -> anyhow::Result<()> {
        if let Some(found) = self.state.workers.iter_mut().find(|w| w.name == worker) {
            found.pid = pid;
        }
        self.state.write()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.take_down_on_drop {
            // There is no caller to tell; `fabric lab down` can be tried again.
            if let Err(error) = teardown::take_down(&self.name, &self.place) {
                tracing::warn!("{error:#}");
            }
        }
    }
}

/// Makes the lab's folder, which at most one command can do, and records what is to be made.
fn claim(state: &LabState, name: &LabName, place: &Place) -> anyhow::Result<()> {
    place.prepare()?;
    match fs::create_dir(&state.folder) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => bail!(
            "there is a lab {name} already: `fabric lab down --name {name}` takes it down, or \
             choose another --name"
        ),
        Err(e) => return Err(e).with_context(|| format!("cannot make {}", state.folder.display())),
    }
    let left = teardown::Remains::of(name, place);
    if !left.namespaces.is_empty() {
        remove_claim(&state.folder, place);
        bail!(
            "namespaces of an earlier lab {name} are left: `fabric lab down --name {name}` removes \
             them"
        );
    }
    state
        .write()
        .inspect_err(|_| remove_claim(&state.folder, place))
}

fn remove_claim(folder: &Path, place: &Place) {
    // The error that led here is the one to tell.
    let _ = fs::remove_dir_all(folder);
    place.tidy();
}
