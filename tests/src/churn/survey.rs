//! Looks at everything while nothing is under way: in between for addresses that two pods have, at the
//! end for anything that is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::{lab::Worker, sys::netns::Netns};

use super::{
    crew::{Shared, lock},
    remains,
};
use crate::{eventually::eventually, plugin::Container, traffic::ping};

/// How long the daemon may take until nothing is left of what went without a word.
pub const RECONCILE_MAX: Duration = Duration::from_secs(10);
/// How long a living pod may take to answer the host.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Checks, with no operation under way and a daemon that is ready, that each living pod has its
/// addresses, that no address is on two interfaces, and that deleted pods have no interface.
///
/// # Errors
///
/// One of these does not hold.
pub fn in_between(shared: &Shared<'_>) -> anyhow::Result<()> {
    check_addresses(shared)?;
    let emptied: Vec<Container> = std::mem::take(&mut *lock(&shared.emptied));
    eventually("deleted pods have no interface", RECONCILE_MAX, || {
        emptied.iter().try_for_each(|container| {
            let left = remains::devices(&container.netns)?;
            ensure!(left.is_empty(), "{} has {left:?}", container.id);
            Ok(())
        })
    })?;
    for container in emptied {
        lock(&shared.standing).retain(|(id, _)| *id != container.id);
        Netns::remove_named(&container.netns)?;
    }
    Ok(())
}

fn check_addresses(shared: &Shared<'_>) -> anyhow::Result<()> {
    let living = shared.model().living().clone();
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (id, netns) in lock(&shared.standing).iter() {
        let found = remains::pod_addresses(netns)?;
        if let Some(expected) = living.get(id) {
            let expected: BTreeSet<IpAddr> = expected.iter().copied().collect();
            ensure!(found == expected, "{id} has {found:?}, not {expected:?}");
        }
        for address in found {
            if let Some(other) = owners.insert(address, id.clone()) {
                anyhow::bail!("{address} is on the interfaces of {other} and of {id}");
            }
        }
    }
    Ok(())
}

/// Looks at a daemon with nothing to do: what is open each time is what it needs.
const BASE_LOOKS: usize = 5;
const BASE_INTERVAL: Duration = Duration::from_millis(50);

/// A daemon with nothing to do: what it has open, and how many pods it has then.
#[derive(Debug)]
pub struct Base {
    descriptors: BTreeMap<String, usize>,
    devices: BTreeSet<String>,
    pods: usize,
}

impl Base {
    /// Of the daemon of `worker`, which has `pods` pods.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn of(worker: &Worker, pid: u32, pods: usize) -> anyhow::Result<Self> {
        let mut descriptors = remains::descriptors(pid)?;
        // A connection of its admin socket may be about to be closed.
        for _ in 0..BASE_LOOKS {
            thread::sleep(BASE_INTERVAL);
            let now = remains::descriptors(pid)?;
            descriptors.retain(|kind, count| {
                *count = now.get(kind).map_or(0, |found| *found.min(count));
                *count > 0
            });
        }
        Ok(Self {
            descriptors,
            devices: remains::devices(&worker.netns)?.into_iter().collect(),
            pods,
        })
    }

    /// Checks that the daemon of `worker` has open what it had, but for the devices of its pods, and
    /// that its host has the same interfaces. It may be another process than then.
    ///
    /// # Errors
    ///
    /// It differs, or does not run.
    pub fn check(&self, worker: &Worker, pid: u32, pods: usize) -> anyhow::Result<()> {
        let devices = remains::devices(&worker.netns)?.into_iter().collect();
        check_same("interfaces of the host", &devices, &self.devices)?;
        remains::check_descriptors(pid, &self.descriptors, self.pods, pods)
    }
}

/// Waits until nothing is left but the living pods, and checks that these work; how long that took.
///
/// # Errors
///
/// After [`RECONCILE_MAX`] something is left: what.
pub fn at_the_end(shared: &Shared<'_>, pid: u32, base: &Base) -> anyhow::Result<Duration> {
    let worker = shared.runtime.worker();
    let living = shared.model().living().clone();
    let (_, took) = eventually("nothing is left", RECONCILE_MAX, || {
        let ids: BTreeSet<String> = living.keys().cloned().collect();
        let carried = remains::carried(worker)?;
        let found: BTreeSet<String> = carried.keys().cloned().collect();
        check_same("pods that the daemon carries", &found, &ids)?;
        check_same("records", &remains::records(worker)?, &ids)?;
        let kept = remains::pending_files(worker)?;
        ensure!(kept.is_empty(), "DELs are kept: {kept:?}");
        base.check(worker, pid, living.len())
    })?;
    in_between(shared)?;
    let standing = lock(&shared.standing);
    let expected: BTreeSet<String> = standing.iter().map(|(id, _)| id.clone()).collect();
    let ids: BTreeSet<String> = living.keys().cloned().collect();
    check_same("containers with a namespace", &expected, &ids)?;
    let names = shared.runtime.namespaces()?.into_iter().filter_map(|path| {
        let name = path.file_name()?;
        Some(name.to_string_lossy().into_owned())
    });
    check_same("namespaces", &names.collect(), &ids)?;
    for (id, addresses) in &living {
        for address in addresses {
            ping(&worker.netns, *address, ANSWER_MAX)
                .with_context(|| format!("the host does not reach {id}"))?;
        }
    }
    Ok(took)
}

fn check_same(
    what: &str,
    found: &BTreeSet<String>,
    expected: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let too_many: Vec<_> = found.difference(expected).collect();
    let missing: Vec<_> = expected.difference(found).collect();
    ensure!(
        too_many.is_empty() && missing.is_empty(),
        "{what}: {too_many:?} are left over, {missing:?} are missing"
    );
    Ok(())
}
