//! A container runtime as bad as they come: pods in, ADDs and DELs out that are in order, repeated,
//! lost, late, or cut short by SIGKILL. What it was told goes to the model; what it must not be told is
//! an error.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fabric_node::sys::netns::Netns;

use super::{
    draws::Draws,
    exec::{Ended, Runtime, given},
    gate::Gate,
    model::Model,
    remains,
    tally::Tally,
};
use crate::plugin::{Answer, Container};

/// Codes of the specification: an error of the daemon that may pass, and an interface that exists.
const TRY_AGAIN: u64 = 11;
const EXISTS: u64 = 100;
/// What an ADD may take before one of those to be killed is certainly too late.
const KILL_MAX: Duration = Duration::from_millis(40);
/// How long a runtime waits before it tries for an address again.
const BACK_OFF: Duration = Duration::from_millis(50);

/// What the members of the crew share.
#[derive(Debug)]
pub struct Shared<'a> {
    /// Their containers and the plugin.
    pub runtime: Runtime<'a>,
    /// Where operations begin.
    pub gate: Gate,
    /// Who has which address.
    pub model: Mutex<Model>,
    /// Namespaces whose containers were deleted: nothing may be left in them.
    pub emptied: Mutex<Vec<Container>>,
    /// Namespaces of living containers, and of those that are between.
    pub standing: Mutex<Vec<(String, std::path::PathBuf)>>,
    /// Addresses that pods can have, IPv4 and IPv6.
    pub totals: [usize; 2],
}

/// A member: its pods are nobody else's.
#[derive(Debug)]
pub struct Member<'a> {
    shared: &'a Shared<'a>,
    draws: Draws,
    pods: Vec<Pod>,
    /// What it did.
    pub tally: Tally,
}

#[derive(Debug)]
struct Pod {
    name: String,
    container: Option<Container>,
    /// Containers of the same pod that are gone and whose DEL has yet to come.
    late: Vec<Container>,
}

impl Shared<'_> {
    /// The model.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }
}

/// What was noted stays true when a member has failed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Member<'a> {
    /// Member number `number`, with `pods` pods.
    #[must_use]
    pub fn new(shared: &'a Shared<'a>, seed: u64, number: usize, pods: usize) -> Self {
        let pod = |index| Pod {
            name: format!("pod-{number}-{index}"),
            container: None,
            late: Vec::new(),
        };
        Self {
            shared,
            draws: Draws::new(seed, number as u64 + 1),
            pods: (0..pods).map(pod).collect(),
            tally: Tally::default(),
        }
    }

    /// Works until the gate lets nothing more begin.
    ///
    /// # Errors
    ///
    /// Something happened that must not; the others are told to stop.
    pub fn work(&mut self) -> anyhow::Result<()> {
        while self.turn().inspect_err(|_| self.shared.gate.end())? {}
        Ok(())
    }

    /// One decision about one pod; false when it is over.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let index = self.draws.below(self.pods.len());
        let Some(mut pod) = self.pods.get_mut(index).map(Pod::take) else {
            return Ok(false);
        };
        let goes_on = self.decide(&mut pod);
        if let Some(place) = self.pods.get_mut(index) {
            *place = pod;
        }
        goes_on
    }

    fn decide(&mut self, pod: &mut Pod) -> anyhow::Result<bool> {
        if !pod.late.is_empty() && self.draws.chance(50) {
            return self.late_delete(pod);
        }
        match pod.container.take() {
            Some(container) => match self.draws.below(100) {
                0..45 => self.delete(pod, container),
                45..60 => self.delete_twice(pod, container),
                60..72 => self.vanish(container),
                72..86 => self.replace(pod, container),
                _ => self.delete_killed(pod, container),
            },
            None if self.draws.chance(25) => self.add_killed(pod),
            None => self.add(pod),
        }
    }

    /// ADD of a new container; after a failure the runtime calls DEL once.
    fn add(&mut self, pod: &mut Pod) -> anyhow::Result<bool> {
        let container = self.shared.runtime.container()?;
        self.stands(&container);
        let Some(operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        let begin = Instant::now();
        let answer = self.shared.runtime.call("ADD", &pod.name, &container)?;
        self.tally.add_took(begin.elapsed());
        let is_there = self.answered(&container, answer)?;
        drop(operation);
        if is_there {
            pod.container = Some(container);
            return Ok(true);
        }
        self.delete(pod, container)
    }

    /// Takes down what ADD answered; whether the pod has its addresses.
    fn answered(&mut self, container: &Container, answer: Answer) -> anyhow::Result<bool> {
        let now = Instant::now();
        match answer {
            Answer::Done(result) => {
                let addresses = given(&result)?;
                self.shared.model().given(&container.id, &addresses, now)?;
                check_interface(container, &addresses)?;
                self.tally.adds += 1;
                Ok(true)
            }
            Answer::Failed {
                code: TRY_AGAIN,
                text,
            } => {
                if let Some((_, rest)) = text.split_once("no free IPv") {
                    let ipv6 = rest.starts_with('6');
                    let total = self.shared.totals[usize::from(ipv6)];
                    let found = self.shared.model().exhausted(ipv6, total, now);
                    found.with_context(|| text.clone())?;
                    self.tally.exhausted += 1;
                    thread::sleep(BACK_OFF);
                } else {
                    self.tally.unanswered += 1;
                    self.shared.model().without_result(now);
                }
                Ok(false)
            }
            Answer::Failed { code, text } => {
                bail!("ADD of {} failed with code {code}: {text}", container.id)
            }
        }
    }

    /// An ADD whose plugin is killed, or just makes it; then a DEL, an ADD again, or nothing ever.
    fn add_killed(&mut self, pod: &mut Pod) -> anyhow::Result<bool> {
        let container = self.shared.runtime.container()?;
        self.stands(&container);
        let Some(operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        let patience = self.draws.time_below(self.tally.usual_add().min(KILL_MAX));
        let runtime = &self.shared.runtime;
        let ended = runtime.call_impatiently("ADD", &pod.name, &container, patience)?;
        let Ended::Killed = ended else {
            let Ended::Answered(answer) = ended else {
                return Ok(true);
            };
            self.tally.outran_kill += 1;
            let is_there = self.answered(&container, answer)?;
            drop(operation);
            if is_there {
                pod.container = Some(container);
                return Ok(true);
            }
            return self.delete(pod, container);
        };
        self.tally.adds_killed += 1;
        self.note_seen(&container)?;
        drop(operation);
        match self.draws.below(100) {
            0..50 => self.delete(pod, container),
            50..70 => self.add_again(pod, container),
            _ => self.vanish(container),
        }
    }

    /// What an ADD without a result has left visible goes to the model.
    fn note_seen(&self, container: &Container) -> anyhow::Result<()> {
        let at = Instant::now();
        self.shared.model().without_result(at);
        // A dead daemon carries nobody.
        if let Ok(carried) = remains::carried(self.shared.runtime.worker())
            && let Some(addresses) = carried.get(&container.id)
        {
            self.shared.model().seen(&container.id, addresses, at)?;
        }
        Ok(())
    }

    /// The runtime tries the same container again after an ADD that it heard nothing of.
    fn add_again(&mut self, pod: &mut Pod, container: Container) -> anyhow::Result<bool> {
        let Some(operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        let answer = self.shared.runtime.call("ADD", &pod.name, &container)?;
        self.tally.adds_again += 1;
        // The plugin was killed with the result in its hands: as far as the daemon knows it was heard.
        let was_answered = matches!(answer, Answer::Failed { code: EXISTS, .. });
        let is_there = !was_answered && self.answered(&container, answer)?;
        drop(operation);
        if is_there {
            pod.container = Some(container);
            return Ok(true);
        }
        self.delete(pod, container)
    }

    /// DEL, and the namespace goes afterwards; some namespaces are kept to be looked into.
    fn delete(&mut self, pod: &Pod, container: Container) -> anyhow::Result<bool> {
        let Some(_operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        self.leaves(&container);
        self.shared.runtime.del(&pod.name, &container)?;
        self.tally.dels += 1;
        self.put_away(container)?;
        Ok(true)
    }

    /// The same DEL twice, one after the other or both at once.
    fn delete_twice(&mut self, pod: &Pod, container: Container) -> anyhow::Result<bool> {
        let Some(_operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        self.leaves(&container);
        let del = || self.shared.runtime.del(&pod.name, &container);
        if self.draws.chance(50) {
            thread::scope(|scope| {
                let other = scope.spawn(del);
                let this = del();
                let other = other.join().unwrap_or_else(|_| bail!("a DEL panicked"));
                this.and(other)
            })?;
        } else {
            del()?;
            del()?;
        }
        self.tally.dels += 1;
        self.tally.dels_doubled += 1;
        self.put_away(container)?;
        Ok(true)
    }

    /// The namespace goes and nobody ever says so.
    fn vanish(&mut self, container: Container) -> anyhow::Result<bool> {
        let Some(_operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        self.leaves(&container);
        self.remove(&container)?;
        self.tally.dels_lost += 1;
        Ok(true)
    }

    /// The pod gets a new container while the DEL of the old one is yet to come.
    fn replace(&mut self, pod: &mut Pod, container: Container) -> anyhow::Result<bool> {
        let Some(operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        self.leaves(&container);
        self.remove(&container)?;
        drop(operation);
        pod.late.push(container);
        self.add(pod)
    }

    fn late_delete(&mut self, pod: &mut Pod) -> anyhow::Result<bool> {
        let Some(_operation) = self.shared.gate.begin() else {
            return Ok(false);
        };
        if let Some(container) = pod.late.pop() {
            self.shared.runtime.del(&pod.name, &container)?;
            self.tally.dels_late += 1;
        }
        Ok(true)
    }

    /// A DEL whose plugin is killed; then it comes again, or never.
    fn delete_killed(&mut self, pod: &Pod, container: Container) -> anyhow::Result<bool> {
        let Some(operation) = self.shared.gate.begin() else {
            return self.stop(container);
        };
        self.leaves(&container);
        let patience = self.draws.time_below(self.tally.usual_add().min(KILL_MAX));
        let runtime = &self.shared.runtime;
        match runtime.call_impatiently("DEL", &pod.name, &container, patience)? {
            Ended::Killed => self.tally.dels_killed += 1,
            Ended::Answered(answer) => drop(answer.done().context("DEL")?),
        }
        drop(operation);
        if self.draws.chance(50) {
            self.delete(pod, container)
        } else {
            self.vanish(container)
        }
    }

    /// Nothing may begin any more: the container stays as it is.
    fn stop(&self, container: Container) -> anyhow::Result<bool> {
        let is_alive = self.shared.model().living().contains_key(&container.id);
        if !is_alive {
            self.remove(&container)?;
        }
        Ok(false)
    }

    fn stands(&self, container: &Container) {
        lock(&self.shared.standing).push((container.id.clone(), container.netns.clone()));
    }

    fn leaves(&self, container: &Container) {
        self.shared.model().leaving(&container.id, Instant::now());
    }

    fn put_away(&mut self, container: Container) -> anyhow::Result<()> {
        if self.draws.chance(25) {
            lock(&self.shared.emptied).push(container);
            return Ok(());
        }
        self.remove(&container)
    }

    fn remove(&self, container: &Container) -> anyhow::Result<()> {
        lock(&self.shared.standing).retain(|(id, _)| *id != container.id);
        Ok(Netns::remove_named(&container.netns)?)
    }
}

impl Pod {
    fn take(&mut self) -> Self {
        Self {
            name: self.name.clone(),
            container: self.container.take(),
            late: std::mem::take(&mut self.late),
        }
    }
}

/// The pod's interface has exactly the addresses that ADD answered with.
fn check_interface(container: &Container, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let found = remains::pod_addresses(&container.netns)?;
    let expected = addresses.iter().copied().collect();
    if found != expected {
        bail!(
            "{} has {found:?}, but ADD answered {addresses:?}",
            container.id
        );
    }
    Ok(())
}
