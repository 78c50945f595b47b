//! Which of several signers acts: the one that holds a Lease of coordination.k8s.io.
//!
//! Comes in: the API server's answers, a monotonic clock. Goes out: times of being the leader. Never done
//! here: what the leader does.
//!
//! The holder renews the Lease every [`RETRY`]; who is not the holder takes it once it has not changed for
//! [`LEASE`] *by the follower's own clock*, so that no two clocks are compared. Every write names the
//! version that was read, so of two that take it at once one is refused. A holder that could not renew for
//! [`RENEW_MAX`] stops acting, well before another one may begin. One that ends in order gives the Lease
//! back, and the next one acts at once.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};

use crate::pki::kubernetes::{api_reason, is_code};

/// A Lease that has not changed for so long is anybody's.
const LEASE: Duration = Duration::from_secs(10);
/// A holder that has not renewed for so long does not count itself as one any more.
const RENEW_MAX: Duration = Duration::from_secs(6);
/// Between looks at the Lease, and between renewals.
const RETRY: Duration = Duration::from_secs(2);
/// An answer that takes longer is none: within [`RENEW_MAX`] there must be another attempt.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What an instance knows of the Lease.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    /// This instance's name, unlike any other's.
    identity: String,
    /// The version that was seen last, and since when.
    seen: Option<(String, Instant)>,
    /// When the Lease was last known to be ours.
    held: Option<Instant>,
    /// When the API server last answered.
    answered: watch::Sender<Instant>,
    leads: watch::Sender<bool>,
}

/// What to do about the Lease that was read.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// Write it, as the holder of before or as a new one.
    Renew,
    Take,
    Wait,
}

impl Election {
    /// Takes part in the election of the holder of `name` as `identity`. The first receiver tells whether
    /// this instance leads, the second when the API server last answered.
    #[must_use]
    pub fn new(
        leases: Api<Lease>,
        name: &str,
        identity: &str,
    ) -> (Self, watch::Receiver<bool>, watch::Receiver<Instant>) {
        let (leads, leading) = watch::channel(false);
        let (answered, answers) = watch::channel(Instant::now());
        let election = Self {
            leases,
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
            held: None,
            answered,
            leads,
        };
        (election, leading, answers)
    }

    /// Takes part until `stopped`, and then gives the Lease back.
    pub async fn run(mut self, stopped: impl Future<Output = ()>) {
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = self.turn() => {}
                () = &mut stopped => break,
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = self.lapse() => {}
                () = &mut stopped => break,
            }
        }
        self.give_back().await;
    }

    /// One look at the Lease, and what follows from it.
    async fn turn(&mut self) {
        let begun = Instant::now();
        let limit = self.limit();
        match tokio::time::timeout(limit, self.step(begun)).await {
            Ok(Ok(holds)) => {
                self.answered.send_replace(begun);
                self.held = holds.then_some(begun);
            }
            Ok(Err(error)) => {
                let reason = api_reason(&error);
                // Somebody else was faster, or the API server has nothing to say: look again.
                if !is_code(&error, 409) {
                    tracing::warn!(
                        lease = self.name,
                        reason,
                        "the Lease cannot be read or written"
                    );
                }
            }
            Err(_) => tracing::warn!(lease = self.name, "no answer about the Lease"),
        }
        self.tell();
    }

    /// How long an answer may take: not beyond the time until which this instance leads.
    fn limit(&self) -> Duration {
        match self.held {
            Some(held) => (held + RENEW_MAX)
                .saturating_duration_since(Instant::now())
                .min(ANSWER_MAX),
            None => ANSWER_MAX,
        }
    }

    /// Ends when the time is over until which this instance leads; never if it does not.
    async fn lapse(&self) {
        match self.held {
            Some(held) => tokio::time::sleep_until(held + RENEW_MAX).await,
            None => std::future::pending().await,
        }
    }

    /// Reads the Lease and writes it if that is due; true if it is ours then.
    async fn step(&mut self, now: Instant) -> kube::Result<bool> {
        let found = self.leases.get_opt(&self.name).await?;
        self.look(found.as_ref(), now);
        let written = match (self.next(found.as_ref(), now), found) {
            (Step::Wait, _) => return Ok(false),
            (Step::Create, _) | (_, None) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.spec(None, true)),
                };
                self.leases.create(&PostParams::default(), &lease).await?
            }
            (step, Some(mut lease)) => {
                // It carries the version that was read: a write of another in between refuses this one.
                lease.spec = Some(self.spec(lease.spec.as_ref(), step == Step::Take));
                self.leases
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?
            }
        };
        self.look(Some(&written), now);
        Ok(true)
    }

    /// Notes since when the Lease is as it is.
    fn look(&mut self, lease: Option<&Lease>, now: Instant) {
        let version = lease.and_then(|lease| lease.metadata.resource_version.clone());
        match (&self.seen, version) {
            (Some((seen, _)), Some(version)) if *seen == version => {}
            (_, version) => self.seen = version.map(|version| (version, now)),
        }
    }

    fn next(&self, lease: Option<&Lease>, now: Instant) -> Step {
        let Some(lease) = lease else {
            return Step::Create;
        };
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        if holder == Some(self.identity.as_str()) {
            return Step::Renew;
        }
        let is_stale = self
            .seen
            .as_ref()
            .is_some_and(|(_, since)| now.saturating_duration_since(*since) >= LEASE);
        if holder.is_none_or(str::is_empty) || is_stale {
            Step::Take
        } else {
            Step::Wait
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>, is_new: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let transitions = before.and_then(|spec| spec.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: before
                .filter(|_| !is_new)
                .and_then(|spec| spec.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(match transitions {
                Some(count) if is_new => count.saturating_add(1),
                Some(count) => count,
                None => 0,
            }),
            ..LeaseSpec::default()
        }
    }

    /// Tells whether this instance leads now.
    fn tell(&mut self) {
        let leads = self.held.is_some_and(|held| held.elapsed() < RENEW_MAX);
        if !leads {
            self.held = None;
        }
        if *self.leads.borrow() != leads {
            let (identity, lease) = (&self.identity, &self.name);
            if leads {
                tracing::info!(lease, identity, "this instance leads");
            } else {
                tracing::warn!(lease, identity, "this instance does not lead any more");
            }
            self.leads.send_replace(leads);
        }
    }

    async fn give_back(&mut self) {
        if self.held.take().is_none() {
            return;
        }
        self.tell();
        let give = async {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
                return Ok::<(), kube::Error>(());
            };
            let Some(spec) = lease.spec.as_mut() else {
                return Ok::<(), kube::Error>(());
            };
            if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
                spec.holder_identity = Some(String::new());
                self.leases
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok(())
        };
        if !matches!(tokio::time::timeout(ANSWER_MAX, give).await, Ok(Ok(()))) {
            tracing::debug!("the Lease is not given back: it lapses");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kube::Client;

    use super::*;

    /// A client that nobody answers.
    fn election(identity: &str) -> Election {
        let nowhere = "http://127.0.0.1:1".parse().unwrap();
        let client = Client::try_from(kube::Config::new(nowhere)).unwrap();
        let leases = Api::namespaced(client, "fabric-system");
        Election::new(leases, "fabric-signer", identity).0
    }

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                // Of a clock that is an hour ahead; nobody looks.
                renew_time: Some(MicroTime(Timestamp::now() + Duration::from_secs(3600))),
                ..LeaseSpec::default()
            }),
        }
    }

    /// A Lease is taken when nobody holds it or when it has not changed for its whole time by our own
    /// clock, whatever time is written in it; a renewal begins that time anew.
    #[tokio::test]
    async fn taken_only_when_it_has_lapsed() {
        let mut election = election("b");
        let now = Instant::now();
        assert_eq!(election.next(None, now), Step::Create);
        let look = |election: &mut Election, lease: &Lease, now| {
            election.look(Some(lease), now);
            election.next(Some(lease), now)
        };
        assert_eq!(look(&mut election, &lease("", "1"), now), Step::Take);
        assert_eq!(look(&mut election, &lease("b", "2"), now), Step::Renew);
        assert_eq!(look(&mut election, &lease("a", "3"), now), Step::Wait);
        let later = now + LEASE - Duration::from_millis(1);
        assert_eq!(look(&mut election, &lease("a", "3"), later), Step::Wait);
        assert_eq!(look(&mut election, &lease("a", "4"), later), Step::Wait);
        assert_eq!(
            look(&mut election, &lease("a", "4"), now + LEASE),
            Step::Wait
        );
        let lapsed = later + LEASE;
        assert_eq!(look(&mut election, &lease("a", "4"), lapsed), Step::Take);
    }

    /// A leader that nobody answers does not count itself as one any more, before another may begin.
    #[tokio::test]
    async fn a_leader_without_answers_stops() {
        let mut election = election("a");
        let mut leading = election.leads.subscribe();
        election.held = Some(Instant::now());
        election.tell();
        assert!(*leading.borrow_and_update());
        let begun = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(election.run(std::future::pending()));
        leading.changed().await.unwrap();
        assert!(!*leading.borrow());
        assert!(begun.elapsed() < LEASE);
        assert!(RENEW_MAX + ANSWER_MAX < LEASE);
    }

    /// Who takes over is counted, who renews is not, and the time of taking over stays.
    #[tokio::test]
    async fn transitions_are_counted() {
        let election = election("b");
        let taken = election.spec(lease("a", "1").spec.as_ref(), true);
        assert_eq!(taken.lease_transitions, Some(0));
        let again = election.spec(Some(&taken), true);
        assert_eq!(again.lease_transitions, Some(1));
        let renewed = election.spec(Some(&again), false);
        assert_eq!(renewed.lease_transitions, Some(1));
        assert_eq!(renewed.acquire_time, again.acquire_time);
        assert_eq!(renewed.holder_identity.as_deref(), Some("b"));
    }
}
