//! DEL, CHECK, GC and STATUS.

use std::{
    collections::HashSet,
    net::IpAddr,
    path::Path,
    sync::PoisonError,
    time::{Duration, Instant},
};

use fabric_proto::cni::AttachmentKey;
use tracing::info;

use super::{AttachError, Attacher, Entry, Turn, Where, lock};
use crate::cni::{
    links::{InterfaceState, Links},
    store::State,
};

/// How long CHECK waits for a pod that the start has not come to.
const TAKEN_UP_WAIT: Duration = Duration::from_secs(2);

impl<L: Links> Attacher<L> {
    /// Detaches a pod: with or without a record, a namespace, an interface, and any number of times.
    /// An ADD of the same key that is under way gives up.
    ///
    /// # Errors
    ///
    /// [`AttachError::Store`] when neither a new record can be written nor the old one removed.
    pub fn del(&self, key: &AttachmentKey) -> Result<(), AttachError> {
        let claim = self.keys.begin_delete(key.clone());
        let turn = claim.turn();
        self.drain_pending(&turn)?;
        let known = self.entry(key).is_some();
        if known {
            self.precedence.let_adds_go_first();
        }
        self.detach(&turn)?;
        if known {
            info!(
                container = key.container_id,
                interface = key.ifname,
                "detached"
            );
        }
        Ok(())
    }

    /// Compares an attachment with what it should be. `addresses` are those in the runtime's
    /// prevResult; what later plugins of the chain added is tolerated.
    ///
    /// # Errors
    ///
    /// [`AttachError::Differs`] names the first difference.
    pub fn check(
        &self,
        key: &AttachmentKey,
        netns: &Path,
        addresses: &[IpAddr],
    ) -> Result<(), AttachError> {
        // Without the turn, which taking up needs.
        self.wait_until_taken_up(key);
        let claim = self.keys.claim(key.clone());
        let _turn = claim.turn();
        let differs = |what: String| Err(AttachError::Differs(what));
        let Some(Entry {
            record,
            published,
            trouble,
            ..
        }) = self.entry(key)
        else {
            return differs("the daemon has no such attachment".into());
        };
        if !published {
            let reason = trouble.unwrap_or_else(|| "it has not been taken up yet".into());
            return differs(format!(
                "the data plane does not have the attachment: {reason}"
            ));
        }
        let opened = self
            .links
            .admit(netns)
            .and_then(|()| self.links.open(netns));
        let (namespace, id) = opened.map_err(|error| AttachError::Netns {
            path: netns.to_owned(),
            reason: error.to_string(),
        })?;
        if !record.is_in(id, &(self.clock)()?) {
            return differs(format!(
                "it was attached in another namespace, {}",
                record.netns.display()
            ));
        }
        if let Some(missing) = record.addresses.iter().find(|own| !addresses.contains(own)) {
            return differs(format!("prevResult lacks the address {missing}"));
        }
        match self.inspect(&namespace, &key.ifname, netns)? {
            None => differs(format!("interface {} is missing", key.ifname)),
            Some(found) => match difference(&found, &record.addresses) {
                Some(difference) => differs(format!("interface {} {difference}", key.ifname)),
                None => Ok(()),
            },
        }
    }

    /// After a start, pods are taken up one after the other: one whose turn has not come is no
    /// difference. One that cannot be taken up is not waited for.
    fn wait_until_taken_up(&self, key: &AttachmentKey) {
        let deadline = Instant::now() + TAKEN_UP_WAIT;
        let mut entries = lock(&self.entries);
        loop {
            let waits = entries.get(key).is_some_and(|entry| {
                let attached = matches!(entry.record.state, State::Attached { .. });
                attached && !entry.published && entry.trouble.is_none()
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if !waits || left.is_zero() {
                return;
            }
            entries = self
                .entries_changed
                .wait_timeout(entries, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Frees the attachments of `network` that are not in `valid` and whose namespace has gone.
    /// Namespaces that still exist keep their attachment whatever the list says: a runtime that
    /// shares the configuration with another knows only its own containers.
    ///
    /// # Errors
    ///
    /// [`AttachError::Gc`] after everything was tried.
    pub fn gc(&self, network: &str, valid: &[AttachmentKey]) -> Result<usize, AttachError> {
        let valid: HashSet<&AttachmentKey> = valid.iter().collect();
        let candidates: Vec<AttachmentKey> = lock(&self.entries)
            .keys()
            .filter(|key| key.network == network && !valid.contains(key))
            .cloned()
            .collect();
        let (mut freed, mut failures) = (0, Vec::new());
        for key in candidates {
            // An ADD that has sent its result may still be noting that.
            let claim = self.keys.claim(key.clone());
            match self.free_if_gone(&claim.turn()) {
                Ok(true) => freed += 1,
                Ok(false) => {}
                Err(error) => failures.push(format!("{}: {error}", key.container_id)),
            }
        }
        if failures.is_empty() {
            Ok(freed)
        } else {
            Err(AttachError::Gc { freed, failures })
        }
    }

    /// Whether an ADD could succeed: the node is in order, devices can be made, records written, and
    /// addresses are free. Waits for no other request.
    ///
    /// # Errors
    ///
    /// [`AttachError::NotReady`].
    pub fn status(&self) -> Result<(), AttachError> {
        if let Err(reason) = self.fabric.ready() {
            let pods_affected = lock(&self.entries)
                .values()
                .any(|entry| matches!(entry.record.state, State::Attached { .. }));
            return Err(AttachError::NotReady {
                reason,
                pods_affected,
            });
        }
        // What follows keeps new pods out and does those that are attached no harm.
        let not_ready = |reason: String| AttachError::NotReady {
            reason,
            pods_affected: false,
        };
        self.links
            .ready()
            .map_err(|error| not_ready(error.to_string()))?;
        self.store
            .probe()
            .map_err(|error| not_ready(error.to_string()))?;
        let now = (self.clock)()?;
        let (ranges, gateways) = (self.fabric.pod_cidrs(), self.fabric.gateways());
        let mut ipam = lock(&self.ipam);
        ipam.set_ranges(&ranges, &gateways);
        ipam.check_free(now.uptime_s)
            .map_err(|error| not_ready(error.to_string()))
    }

    pub(super) fn free_if_gone(&self, turn: &Turn<'_>) -> Result<bool, AttachError> {
        let key = turn.key();
        let Some(entry) = self.entry(key) else {
            return Ok(false);
        };
        let gone = matches!(
            self.namespace_of(&entry.record, &(self.clock)()?),
            Where::Gone
        );
        if gone {
            self.detach(turn)?;
            info!(
                container = key.container_id,
                netns = %entry.record.netns.display(),
                "detached: the namespace has gone and no DEL came"
            );
        }
        Ok(gone)
    }
}

fn difference(found: &InterfaceState, addresses: &[IpAddr]) -> Option<String> {
    if !found.up {
        return Some("is down".into());
    }
    for address in addresses {
        if !found.addresses.contains(address) {
            return Some(format!("lacks the address {address}"));
        }
        let (family, has_default) = match address {
            IpAddr::V4(_) => ("IPv4", found.default_v4),
            IpAddr::V6(_) => ("IPv6", found.default_v6),
        };
        if !has_default {
            return Some(format!("lacks the default route of {family}"));
        }
    }
    None
}
