//! How long a connection may last, and the connection that takes its place before then.
//!
//! Comes in: this node's identity, the keys that peers may show, the system's clock. Goes out: attempts
//! at connections that take the place of others, and the end of those whose time is over. Never done
//! here: dialling itself ([`super::dialling`]).
//!
//! A handshake proves who the other side is at that moment, and a connection could last for ever. So each
//! one is looked at again: when this node's identity or a peer's keys change, when its time comes, and
//! once a minute, because the system's clock may be set. The side that dials makes another connection
//! before the old one must end; it takes over once both sides have said hello, and the old one then sends
//! what it had begun, for a second. Nobody but a peer that is late notices.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use fabric_core::ids::PeerId;
use quinn_proto::{ServerConfig, crypto::rustls::QuicServerConfig};
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{Endpoint, EndpointContext, Slot, Stage, lifecycle::payload_max_for};
use crate::{
    pki::{NodeIdentity, key::KeyHash, validity::Validity},
    tunnel::{
        quic::close,
        transport::{INCOMING_MAX, transport_config},
    },
};

/// How often connections are looked at without a reason: the system's clock may have been set.
const REVIEW_INTERVAL: Duration = Duration::from_secs(60);
/// A connection whose peer's key or CA is on its way out goes on for this long, so that the side that
/// dials can replace it.
const NOTICE: Duration = Duration::from_secs(5);
/// Between the replacements of connections that all have the same reason, such as a new identity: 50 in a
/// second are 5 % of a processor's handshakes.
const RENEWAL_SPACING: Duration = Duration::from_millis(20);
/// The replacement of a connection begins when this part of the life of the certificate that ends first
/// is left; a node has renewed its own by then. From then on half of what is left passes before each
/// attempt, so that a peer that is late is met as soon as it has renewed.
const RENEW_AT_PART_LEFT: i64 = 5;
/// Shortest wait for such an attempt (ms).
const RENEW_MS_MIN: i64 = 1_000;

/// What a connection was accepted on.
pub(super) struct Terms {
    /// What the peer showed.
    chain: Vec<CertificateDer<'static>>,
    validity: Validity,
    pub(super) key: KeyHash,
    /// The identity of ours by which that was verified last, and whether it was accepted.
    verified: Option<(Arc<NodeIdentity>, bool)>,
    /// When it ends because that is accepted no longer.
    ends: Option<Instant>,
}

impl Terms {
    /// Those of a chain; `None` if it is none.
    pub(super) fn of(chain: Vec<CertificateDer<'static>>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        Some(Self {
            validity: Validity::of(&certificate),
            key: KeyHash::of_spki(certificate.public_key().raw),
            verified: None,
            ends: None,
            chain,
        })
    }

    /// Whether `current` accepts what the peer showed, as `first` did in the handshake. Looks once for each
    /// identity: it costs as much as a part of a handshake.
    fn is_trusted(&mut self, first: &Arc<NodeIdentity>, current: &Arc<NodeIdentity>) -> bool {
        if Arc::ptr_eq(first, current) {
            return true;
        }
        if let Some((by, accepted)) = &self.verified
            && Arc::ptr_eq(by, current)
        {
            return *accepted;
        }
        let accepted = first.trusts_the_same(current) || current.verify_again(&self.chain).is_ok();
        self.verified = Some((current.clone(), accepted));
        accepted
    }

    /// Of the two certificates the validity that ends first.
    fn shorter(&self, own: Validity) -> Validity {
        if own.not_after < self.validity.not_after {
            own
        } else {
            self.validity
        }
    }
}

/// What a look at a connection found.
enum Finding {
    /// It ends now, and the peer is told why.
    Over(&'static str),
    /// It is to be replaced, at a time or with all others that have the same reason.
    Renew(Renew),
}

enum Renew {
    At(Instant),
    Soon,
}

impl Endpoint {
    /// Begins new connections with another identity, if it has been replaced.
    pub(super) fn follow_identity(&mut self, now: Instant) {
        let current = self.context.identity.current();
        if Arc::ptr_eq(&current, &self.identity) {
            return;
        }
        match server_configs(&self.context, &current) {
            Ok(configs) => {
                self.server_configs = configs;
                self.identity = current;
                self.review_due = now;
            }
            // As at the start; what was accepted there is accepted here.
            Err(error) => tracing::error!(%error, "a new identity cannot be used"),
        }
    }

    /// Whether `peer` may show this key.
    pub(super) fn accepts(&self, peer: PeerId, key: KeyHash) -> bool {
        let entry = self.peers.get(&peer);
        entry.is_some_and(|entry| entry.peer.target.accepts(key))
    }

    /// Looks at every connection: ends it, asks for another in its place, or lets it be. O(places of
    /// connections).
    pub(super) fn review(&mut self, now: Instant) {
        self.follow_identity(now);
        self.review_due = now + REVIEW_INTERVAL;
        let wall_ms = (self.wall_ms)(now);
        let mut spaced = now;
        for index in 0..self.links.len() {
            match self.look_at(index, wall_ms, now) {
                Some(Finding::Over(reason)) => {
                    if let Some(entry) = self
                        .slot(index)
                        .and_then(|slot| slot.peer)
                        .and_then(|peer| self.peers.get(&peer))
                    {
                        tracing::info!(peer = %entry.node(), reason, "connection ended");
                    }
                    self.end(index, close::NO_LONGER_VALID, reason, now);
                }
                Some(Finding::Renew(Renew::At(due))) => self.ask_for_another(index, due, now),
                Some(Finding::Renew(Renew::Soon)) => {
                    self.ask_for_another(index, spaced, now);
                    spaced += RENEWAL_SPACING;
                }
                None => {}
            }
        }
    }

    fn look_at(&mut self, index: usize, wall_ms: i64, now: Instant) -> Option<Finding> {
        let current = self.identity.clone();
        let slot = self.links.get_mut(index)?.as_deref_mut()?;
        if !matches!(slot.stage, Stage::Live | Stage::Draining) {
            return None;
        }
        let entry = self.peers.get(&slot.peer?)?;
        let terms = slot.terms.as_mut()?;
        let shorter = terms.shorter(slot.identity.validity());
        let end_ms = shorter.not_after.saturating_add(1).saturating_mul(1000);
        let left_ms = end_ms.saturating_sub(wall_ms);
        if left_ms <= 0 {
            return Some(Finding::Over("a certificate has expired"));
        }
        let is_stale = !Arc::ptr_eq(&slot.identity, &current);
        let is_named = entry.peer.target.accepts(terms.key);
        if !is_named && !entry.rotates {
            return Some(Finding::Over("its key is no longer this node's"));
        }
        let is_accepted = is_named && terms.is_trusted(&slot.identity, &current);
        if is_accepted {
            terms.ends = None;
        } else if *terms.ends.get_or_insert(now + NOTICE) <= now {
            return Some(Finding::Over("what it showed is no longer accepted"));
        }
        let end = now + Duration::from_millis(left_ms.unsigned_abs());
        let end = terms.ends.map_or(end, |ends| ends.min(end));
        self.review_due = self.review_due.min(end);
        if slot.stage != Stage::Live || !slot.dialled {
            return None;
        }
        if is_stale || !is_accepted {
            return Some(Finding::Renew(Renew::Soon));
        }
        let life_ms = end_ms.saturating_sub(shorter.not_before.saturating_mul(1000));
        let wait_ms = wait_for_renewal_ms(left_ms, life_ms);
        Some(Finding::Renew(Renew::At(
            now + Duration::from_millis(wait_ms.unsigned_abs()),
        )))
    }

    /// Has another connection dialled in the place of one.
    fn ask_for_another(&mut self, index: usize, due: Instant, now: Instant) {
        let Some(slot) = self.links.get(index).and_then(Option::as_deref) else {
            return;
        };
        let (Some(peer), Some(number)) = (slot.peer, slot.connection) else {
            return;
        };
        let dialled = self.peers.get_mut(&peer);
        let Some(dialled) = dialled.and_then(|entry| entry.dialled.get_mut(&number)) else {
            return;
        };
        if dialled.link != Some(index) || dialled.renewal.link.is_some() {
            return;
        }
        dialled.renewal.ask(due, now);
        self.dial_due = self.dial_due.into_iter().chain(dialled.due()).min();
    }

    /// Takes a connection out of use, but not yet away: the one at `newer` carries what follows.
    pub(super) fn drain(&mut self, index: usize, newer: usize, now: Instant) {
        let Some(slot) = self.slot(index) else { return };
        slot.stage = Stage::Draining;
        slot.since = now;
        if let Some(entry) = slot.peer.and_then(|peer| self.peers.get_mut(&peer)) {
            entry.live.retain(|live| *live != index);
        }
        // What waits goes the new way where it can, so that what follows does not overtake it.
        if let Some((newer, older)) = pair(&mut self.links, newer, index) {
            newer.link.take_queue(&mut older.link);
        }
        for index in [index, newer] {
            self.mark(index);
            self.take_stock(index, now);
        }
        self.changed = true;
    }
}

/// Two places at once.
fn pair(
    links: &mut [Option<Box<Slot>>],
    first: usize,
    second: usize,
) -> Option<(&mut Slot, &mut Slot)> {
    let [first, second] = links.get_disjoint_mut([first, second]).ok()?;
    Some((first.as_deref_mut()?, second.as_deref_mut()?))
}

/// How long to wait for the connection in the place of one whose certificates have `left_ms` of `life_ms`.
fn wait_for_renewal_ms(left_ms: i64, life_ms: i64) -> i64 {
    let margin = life_ms / RENEW_AT_PART_LEFT;
    if left_ms > margin {
        left_ms - margin
    } else {
        left_ms / 2
    }
    .max(RENEW_MS_MIN)
}

/// The settings of accepted connections over IPv4 and IPv6.
pub(super) fn server_configs(
    context: &EndpointContext,
    identity: &NodeIdentity,
) -> anyhow::Result<[Arc<ServerConfig>; 2]> {
    let crypto = Arc::new(QuicServerConfig::try_from(identity.server_config())?);
    Ok([false, true].map(|ipv6| {
        let mut config = ServerConfig::with_crypto(crypto.clone());
        config
            .transport_config(transport_config(
                &context.settings,
                payload_max_for(context, ipv6),
            ))
            .migration(false)
            .max_incoming(INCOMING_MAX);
        Arc::new(config)
    }))
}

/// The system's clock (ms since 1970).
pub(super) fn unix_millis(_now: Instant) -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3_600_000;

    /// The replacement begins when a fifth of the certificate's life is left; from then on the attempts
    /// halve what is left, and are never closer than a second.
    #[test]
    fn attempts_halve_what_is_left() {
        let life = 10 * DAY_MS;
        assert_eq!(wait_for_renewal_ms(life, life), 8 * DAY_MS);
        let (mut left, mut attempts) = (2 * DAY_MS, 0);
        while left > 0 {
            let wait = wait_for_renewal_ms(left, life);
            assert!(wait >= RENEW_MS_MIN);
            left -= wait;
            attempts += 1;
        }
        assert_eq!(attempts, 19);
    }
}
