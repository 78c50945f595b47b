//! The identity in use, which may be replaced while connections run.
//!
//! Comes in: identities, from files or from the cluster. Goes out: the one for new handshakes, the keys
//! that peers may see from this node, and what is wrong with it. Never done here: reading files, asking
//! anybody, closing connections (`tunnel::endpoint` follows [`LiveIdentity::current`]).
//!
//! A new key goes into use in three steps, so that no peer meets a key that it has not heard of:
//! [`LiveIdentity::stage`] names it beside the old one, [`LiveIdentity::promote`] uses it once the names
//! are published, and [`LiveIdentity::retire`] takes the old name away. Where nobody publishes keys,
//! [`LiveIdentity::replace`] is all three at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::watch;

use super::{
    identity::NodeIdentity,
    key::KeyHash,
    validity::{Rfc3339, unix_now},
};

/// Why an identity cannot take the place of the one in use.
#[derive(Debug, Error)]
pub enum ReplaceError {
    /// A node does not become another one while it runs.
    #[error(
        "the new certificate is for spiffe://{found}, but this daemon runs as spiffe://{running}: put the right files in place, or restart fabric-node to become another node"
    )]
    OtherNode {
        /// Trust domain and node in use.
        running: String,
        /// Trust domain and node of the new certificate.
        found: String,
    },
}

/// A node's identity, replaceable. Shared by the control plane, which replaces, and the data plane,
/// which reads without a lock.
#[derive(Debug)]
pub struct LiveIdentity {
    current: ArcSwap<NodeIdentity>,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Will be used once its key is known to peers.
    staged: Option<Arc<NodeIdentity>>,
    /// Its connections may still be there.
    retiring: Option<KeyHash>,
    /// Keys that peers can know of by now; `None` if nobody publishes any.
    published: Option<Vec<KeyHash>>,
    problem: Option<String>,
}

impl LiveIdentity {
    /// Begins with `identity`.
    #[must_use]
    pub fn of(identity: NodeIdentity) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(identity),
            state: Mutex::default(),
            changes: watch::Sender::new(()),
        })
    }

    /// The identity for new handshakes.
    #[must_use]
    pub fn current(&self) -> Arc<NodeIdentity> {
        self.current.load_full()
    }

    /// Tells of every change: of the identity, of the keys, of the problem.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The keys that peers may see from this node: the one in use, and before or after a change the other
    /// one. To be published where peers look for them, the one in use first.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyHash> {
        let state = self.lock();
        let mut keys = vec![self.current.load().key()];
        let other = state.staged.as_ref().map(|staged| staged.key());
        keys.extend(other.or(state.retiring).filter(|key| !keys.contains(key)));
        keys
    }

    /// Notes the keys that whoever publishes [`Self::keys`] has published.
    pub fn note_published(&self, keys: &[KeyHash]) {
        let mut state = self.lock();
        if state.published.as_deref() != Some(keys) {
            state.published = Some(keys.to_vec());
            drop(state);
            self.tell();
        }
    }

    /// Whether peers can know of a key by now: it has been published, or nobody publishes any and peers
    /// accept every key.
    #[must_use]
    pub fn is_published(&self, key: KeyHash) -> bool {
        let state = self.lock();
        state
            .published
            .as_ref()
            .is_none_or(|published| published.contains(&key))
    }

    /// Whether somebody publishes keys.
    #[must_use]
    pub fn awaits_publication(&self) -> bool {
        self.lock().published.is_some()
    }

    /// Uses `next` from now on.
    ///
    /// # Errors
    ///
    /// It is another node's; nothing changes then.
    pub fn replace(&self, next: NodeIdentity) -> Result<(), ReplaceError> {
        self.stage(next)?;
        self.promote();
        self.retire();
        Ok(())
    }

    /// Keeps `next` ready and names its key in [`Self::keys`].
    ///
    /// # Errors
    ///
    /// It is another node's; nothing changes then.
    pub fn stage(&self, next: NodeIdentity) -> Result<(), ReplaceError> {
        let running = self.current.load();
        let name = |identity: &NodeIdentity| {
            format!("{}/node/{}", identity.trust_domain(), identity.node_id())
        };
        if name(&next) != name(&running) {
            return Err(ReplaceError::OtherNode {
                running: name(&running),
                found: name(&next),
            });
        }
        self.lock().staged = Some(Arc::new(next));
        self.tell();
        Ok(())
    }

    /// Uses what was staged, if anything was, and forgets what was wrong.
    pub fn promote(&self) {
        let mut state = self.lock();
        if let Some(staged) = state.staged.take() {
            let before = self.current.swap(staged);
            let is_new = before.key() != self.current.load().key();
            state.retiring = is_new.then(|| before.key());
        }
        state.problem = None;
        drop(state);
        self.tell();
    }

    /// No longer names the key that was in use before the last change.
    pub fn retire(&self) {
        self.lock().retiring = None;
        self.tell();
    }

    /// Notes why there is no newer identity, or that nothing is wrong.
    pub fn set_problem(&self, problem: Option<String>) {
        let mut state = self.lock();
        if state.problem != problem {
            state.problem = problem;
            drop(state);
            self.tell();
        }
    }

    /// What was noted with [`Self::set_problem`].
    #[must_use]
    pub fn noted(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// That the certificate in use has expired, if it has: no peer accepts it.
    #[must_use]
    pub fn expiry(&self) -> Option<String> {
        let end = self.current.load().validity().not_after;
        (unix_now() > end).then(|| {
            format!(
                "this node's certificate expired at {}: peers accept no connection; put a new one in place",
                Rfc3339(end)
            )
        })
    }

    fn tell(&self) {
        self.changes.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        node_id::NodeId,
        pki::{authority, files, files::Overwrite},
    };

    fn identity(authority: &authority::Authority, name: &str) -> NodeIdentity {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId::new(name).unwrap();
        let credentials = authority::issue(authority, &node, 1).unwrap();
        let files = files::save_node(&credentials, dir.path(), Overwrite::No).unwrap();
        NodeIdentity::load(&files.ca, &files.certificate, &files.key).unwrap()
    }

    /// While a key changes both are named, the one in use first, and otherwise only that one.
    #[test]
    fn keys_side_by_side() {
        let authority = authority::init("fabric", 1).unwrap();
        let (first, second) = (identity(&authority, "a"), identity(&authority, "a"));
        let (old, new) = (first.key(), second.key());
        let live = LiveIdentity::of(first);
        let mut changes = live.subscribe();
        assert_eq!(live.keys(), [old]);
        assert!(live.is_published(new), "nobody publishes keys");
        live.note_published(&[old]);
        live.stage(second).unwrap();
        assert_eq!(live.keys(), [old, new]);
        assert_eq!(live.current().key(), old);
        assert!(!live.is_published(new));
        live.note_published(&[old, new]);
        assert!(live.is_published(new));
        live.promote();
        assert_eq!(live.current().key(), new);
        assert_eq!(live.keys(), [new, old]);
        live.retire();
        assert_eq!(live.keys(), [new]);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        live.note_published(&[old, new]);
        assert!(!changes.has_changed().unwrap());
    }

    /// Another node's certificate, or another cluster's, changes nothing.
    #[test]
    fn nobody_becomes_somebody_else() {
        let authority = authority::init("fabric", 1).unwrap();
        let elsewhere = authority::init("other", 1).unwrap();
        let live = LiveIdentity::of(identity(&authority, "a"));
        let key = live.current().key();
        for other in [identity(&authority, "b"), identity(&elsewhere, "a")] {
            let error = live.replace(other).unwrap_err().to_string();
            assert!(error.contains("spiffe://fabric/node/a"), "{error}");
        }
        assert_eq!(live.current().key(), key);
        assert_eq!(live.keys(), [key]);
    }

    /// A problem is shown until an identity takes effect.
    #[test]
    fn a_problem_goes_with_its_cause() {
        let authority = authority::init("fabric", 1).unwrap();
        let live = LiveIdentity::of(identity(&authority, "a"));
        assert_eq!(live.noted(), None);
        live.set_problem(Some("no new certificate".to_owned()));
        assert_eq!(live.noted().unwrap(), "no new certificate");
        live.replace(identity(&authority, "a")).unwrap();
        assert_eq!(live.noted(), None);
    }
}
