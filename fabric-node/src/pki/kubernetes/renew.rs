//! Asks in time for the next certificate, for as long as the daemon runs.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use tokio::time::Instant;

use super::{
    CA_CONFIG_MAP,
    folder::Folder,
    request::{Obtained, RequestError, Requester, certificates_of, load},
};
use crate::{
    node_id::NodeId,
    pki::{
        files::{PkiError, read_limited},
        identity::NodeIdentity,
        key::KeyHash,
        live::LiveIdentity,
        spiffe::TrustDomain,
        validity::{Rfc3339, Validity, unix_now},
    },
};

/// Of the life of a certificate this part has passed when the next one is asked for, in hundredths.
const RENEW_AT_HUNDREDTHS: i64 = 67;
/// So much later at most, so that nodes that began together do not ask together, in hundredths.
const JITTER_HUNDREDTHS: i64 = 10;
/// When this part of its life has passed, in hundredths, the next key is used even if nobody could publish
/// it: what expires is refused for certain.
const PATIENCE_HUNDREDTHS: i64 = 95;
/// The system's clock may be set: what is due is asked at least this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// After a key was published, the time that peers have to hear of it.
const SETTLE: Duration = Duration::from_secs(5);
/// After a change of keys the old one is named for this long: connections that began with it are replaced.
const RETIRE_AFTER: Duration = Duration::from_secs(60);
/// First wait after a failure; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Shortest wait after a denial: each new request is a new object.
const DENIED_RETRY_MIN: Duration = Duration::from_secs(30);

/// A node's way to its certificates.
#[derive(Clone)]
pub struct Enrollment {
    requester: Requester,
}

impl Enrollment {
    /// For `node` of the cluster `trust_domain`, whose signer publishes its CA in `namespace`; keeps all in
    /// `dir` (`state_dir/identity`) and asks for certificates of `lifetime`.
    ///
    /// # Errors
    ///
    /// The folder cannot be made.
    pub fn new(
        client: Client,
        node: NodeId,
        trust_domain: TrustDomain,
        namespace: &str,
        dir: &Path,
        lifetime: Duration,
    ) -> Result<Self, PkiError> {
        Ok(Self {
            requester: Requester {
                client,
                namespace: namespace.to_owned(),
                node,
                trust_domain,
                lifetime,
                folder: Folder::open(dir)?,
            },
        })
    }

    /// The identity on disk, if it is this node's and valid now. Asks nobody.
    #[must_use]
    pub fn stored(&self) -> Option<NodeIdentity> {
        let generation = self.requester.folder.current()?;
        let identity = match load(&generation) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "the identity on disk is not used; another one is asked for");
                return None;
            }
        };
        let id = self.requester.own_id();
        if *identity.node_id() != id.node || *identity.trust_domain() != id.trust_domain {
            tracing::warn!(
                found = %identity.node_id(), expected = %id,
                "the identity on disk is another node's; another one is asked for"
            );
            return None;
        }
        Some(identity)
    }

    /// The identity to start with: the one on disk, else a new one, asked for until it is there. Tells
    /// `on_error` each time that it is not.
    pub async fn first(&self, mut on_error: impl FnMut(&RequestError)) -> NodeIdentity {
        if let Some(identity) = self.stored() {
            let until = Rfc3339(identity.validity().not_after);
            tracing::info!(%until, "the identity on disk is used");
            return identity;
        }
        let mut backoff = Backoff::default();
        loop {
            let failed = match self.requester.obtain().await {
                Ok(obtained) => match self.requester.folder.commit(&obtained.generation) {
                    Ok(()) => {
                        let until = Rfc3339(obtained.identity.validity().not_after);
                        tracing::info!(%until, "the first certificate is there");
                        return obtained.identity;
                    }
                    Err(error) => error.into(),
                },
                Err(error) => error,
            };
            tracing::error!(error = %failed, "no certificate yet");
            on_error(&failed);
            tokio::time::sleep(backoff.next(&failed)).await;
        }
    }

    /// Keeps `live` valid and its CA as it is published, for ever: end it by dropping it.
    pub async fn keep(&self, live: Arc<LiveIdentity>) {
        let maps: Api<ConfigMap> =
            Api::namespaced(self.requester.client.clone(), &self.requester.namespace);
        let authorities = watch_object(maps, CA_CONFIG_MAP).default_backoff();
        pin_mut!(authorities);
        let mut keeper = Keeper::new(&self.requester, live);
        loop {
            let wait = keeper.wait();
            tokio::select! {
                () = tokio::time::sleep(wait) => keeper.act().await,
                event = authorities.next() => match event {
                    Some(Ok(Some(map))) => {
                        if let Some(ca) = certificates_of(&map) {
                            keeper.follow_authority(&ca);
                        }
                    }
                    // A CA that is away is no reason to trust nobody.
                    Some(Ok(None)) => tracing::warn!(
                        config_map = CA_CONFIG_MAP, namespace = self.requester.namespace,
                        "the CA is not published any more; the one on disk stays"
                    ),
                    Some(Err(error)) => tracing::debug!(%error, "watching the CA"),
                    None => return,
                },
            }
        }
    }
}

struct Keeper<'a> {
    requester: &'a Requester,
    live: Arc<LiveIdentity>,
    /// Between 0 and 1, chosen anew for each certificate.
    jitter: f64,
    not_before: Instant,
    backoff: Backoff,
    retire_at: Option<Instant>,
    /// The CA has changed such that another certificate is needed.
    at_once: bool,
    said: Option<String>,
}

impl<'a> Keeper<'a> {
    fn new(requester: &'a Requester, live: Arc<LiveIdentity>) -> Self {
        Self {
            requester,
            live,
            jitter: random_part(),
            not_before: Instant::now(),
            backoff: Backoff::default(),
            retire_at: None,
            at_once: false,
            said: None,
        }
    }

    /// Until something may be due.
    fn wait(&self) -> Duration {
        let now = Instant::now();
        let validity = self.live.current().validity();
        let left = renew_at(validity, self.jitter).saturating_sub(unix_now());
        let renewal = if self.at_once {
            Duration::ZERO
        } else {
            Duration::from_secs(u64::try_from(left).unwrap_or(0))
        };
        let renewal = renewal.max(self.not_before.saturating_duration_since(now));
        let retirement = self
            .retire_at
            .map_or(LOOK_INTERVAL, |at| at.saturating_duration_since(now));
        renewal.min(retirement).min(LOOK_INTERVAL)
    }

    /// Does what is due.
    async fn act(&mut self) {
        let now = Instant::now();
        if self.retire_at.is_some_and(|at| at <= now) {
            self.retire_at = None;
            self.live.retire();
        }
        let due = renew_at(self.live.current().validity(), self.jitter);
        if now < self.not_before || !(self.at_once || unix_now() >= due) {
            return;
        }
        match self.renew().await {
            Ok(()) => {
                self.jitter = random_part();
                self.backoff = Backoff::default();
                self.not_before = Instant::now();
                self.at_once = false;
                self.said = None;
            }
            Err(error) => {
                let until = Rfc3339(self.live.current().validity().not_after);
                let problem =
                    format!("no newer certificate, the one in use ends at {until}: {error}");
                if self.said.as_ref() != Some(&problem) {
                    tracing::error!("{problem}");
                    self.said = Some(problem.clone());
                }
                self.live.set_problem(Some(problem));
                self.not_before = Instant::now() + self.backoff.next(&error);
            }
        }
    }

    async fn renew(&mut self) -> Result<(), RequestError> {
        let Obtained {
            identity,
            generation,
        } = self.requester.obtain().await?;
        let (key, validity) = (identity.key(), identity.validity());
        // The name was checked: it is this node's, as that in use is.
        if let Err(error) = self.live.stage(identity) {
            tracing::error!(%error, "the new certificate is not used");
            self.requester.folder.discard(&generation);
            return Ok(());
        }
        self.await_publication(key).await;
        self.requester.folder.commit(&generation)?;
        self.live.promote();
        self.retire_at = Some(Instant::now() + RETIRE_AFTER);
        tracing::info!(until = %Rfc3339(validity.not_after), "certificate renewed, with a new key");
        Ok(())
    }

    /// Waits until peers can know the key, where somebody publishes keys.
    async fn await_publication(&self, key: KeyHash) {
        let mut changes = self.live.subscribe();
        let validity = self.live.current().validity();
        let latest = at_part(validity, PATIENCE_HUNDREDTHS);
        while !self.live.is_published(key) {
            if unix_now() >= latest {
                tracing::warn!(%key, "the new key could not be published and is used all the same: the old certificate is at its end");
                return;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_INTERVAL.min(Duration::from_secs(1))) => {}
            }
        }
        if self.live.awaits_publication() {
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Takes the CA's certificates into use, on disk and for new handshakes.
    fn follow_authority(&mut self, ca: &str) {
        let folder = &self.requester.folder;
        let Some(current) = folder.current() else {
            return;
        };
        let text = |path: &Path| {
            let bytes = read_limited(path).ok()?;
            String::from_utf8(bytes).ok()
        };
        if text(&current.files.ca).as_deref() == Some(ca) {
            return;
        }
        let (Some(key), Some(certificate)) =
            (text(&current.files.key), text(&current.files.certificate))
        else {
            return;
        };
        let staged = match folder.stage(&key, &certificate, ca) {
            Ok(staged) => staged,
            Err(error) => {
                self.live.set_problem(Some(format!(
                    "the CA has changed and cannot be stored: {error}; free space in the state folder"
                )));
                return;
            }
        };
        let used = load(&staged)
            .map_err(|error| error.to_string())
            .and_then(|identity| {
                folder.commit(&staged).map_err(|error| error.to_string())?;
                self.live
                    .replace(identity)
                    .map_err(|error| error.to_string())
            });
        match used {
            Ok(()) => tracing::info!("the CA's certificates have changed and are in use"),
            Err(error) => {
                folder.discard(&staged);
                tracing::warn!(
                    error,
                    "the CA has changed and does not accept this node's certificate: another one is asked for"
                );
                self.at_once = true;
            }
        }
    }
}

/// Waits that double.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self, error: &RequestError) -> Duration {
        let doubled = RETRY_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        let least = match error {
            RequestError::Refused { .. }
            | RequestError::OtherName { .. }
            | RequestError::Unusable { .. } => DENIED_RETRY_MIN,
            RequestError::Folder(_)
            | RequestError::Api { .. }
            | RequestError::Waiting { .. }
            | RequestError::NoAuthority { .. } => Duration::ZERO,
        };
        doubled.max(least).mul_f64(0.75 + random_part() / 2.0)
    }
}

/// The second in which so many hundredths of a life have passed (since 1970).
fn at_part(validity: Validity, hundredths: i64) -> i64 {
    let life = validity.not_after.saturating_sub(validity.not_before);
    let part = i128::from(life) * i128::from(hundredths) / 100;
    validity
        .not_before
        .saturating_add(i64::try_from(part).unwrap_or(life))
}

/// When the next certificate is to be asked for (seconds since 1970); `jitter` is between 0 and 1.
fn renew_at(validity: Validity, jitter: f64) -> i64 {
    let earliest = at_part(validity, RENEW_AT_HUNDREDTHS);
    let latest = at_part(validity, RENEW_AT_HUNDREDTHS + JITTER_HUNDREDTHS);
    let spread = latest.saturating_sub(earliest) as f64;
    earliest.saturating_add((spread * jitter) as i64)
}

/// A random number between 0 and 1.
fn random_part() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all nodes ask at the same part of their certificates' lives, which is not wrong.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next certificate is asked for between 67 and 77 % of the life of the one in use, and a key that
    /// nobody publishes is used when 5 % are left.
    #[test]
    fn in_time_and_not_together() {
        let day = Validity::DAY_SECONDS;
        let validity = Validity {
            not_before: 1000,
            not_after: 1000 + 100 * day,
        };
        assert_eq!(renew_at(validity, 0.0), 1000 + 67 * day);
        assert_eq!(renew_at(validity, 1.0), 1000 + 77 * day);
        assert_eq!(at_part(validity, PATIENCE_HUNDREDTHS), 1000 + 95 * day);
        for _ in 0..100 {
            assert!((0.0..=1.0).contains(&random_part()));
        }
    }

    /// Waits double up to their bound, less or more a quarter, and a denial is not answered by another
    /// request at once.
    #[test]
    fn waits_are_bounded() {
        let waiting = RequestError::NoAuthority {
            namespace: "n".to_owned(),
        };
        let denied = RequestError::Refused {
            name: "x".to_owned(),
            verdict: "denied",
            reason: String::new(),
            message: String::new(),
        };
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next(&waiting)).collect();
        assert!(waits[0] <= RETRY_FIRST.mul_f64(1.25));
        assert!(waits.iter().all(|wait| *wait <= RETRY_MAX.mul_f64(1.25)));
        assert!(waits[11] >= RETRY_MAX.mul_f64(0.75));
        assert!(Backoff::default().next(&denied) >= DENIED_RETRY_MIN.mul_f64(0.75));
    }
}
