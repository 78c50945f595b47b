//! Pods that no record knows: their addresses stay out of use for as long as they live.
//!
//! With the state directory wiped under running pods, their addresses look free, and the next ADD
//! would give them out a second time. Such a pod has no network any more (nothing says which container
//! it is, so it cannot be taken up), but its processes still hold on to the address, and so does
//! whoever was told of it. Once its namespace or its device has gone, the address rests like any other.
//!
//! A device of ours without any address cannot be a pod's. It is what a pod moved away before its DEL,
//! and is removed.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
};

use tracing::{info, warn};

use super::{Attacher, Links, Moment, lock};
use crate::{cni::survey::Stray, sys::netns::NetnsId};

/// How often namespaces are looked into that have come since (seconds).
const SURVEY_INTERVAL_S: u64 = 30;

/// What the looks have found so far.
#[derive(Debug, Default)]
pub(super) struct Strays {
    held: HashMap<NetnsId, Held>,
    /// Namespaces that were looked into and have nothing of ours.
    settled: HashSet<NetnsId>,
    /// Uptime at the last look (seconds).
    looked_at_s: Option<u64>,
}

/// A namespace with addresses that no record knows.
#[derive(Debug)]
struct Held {
    netns: PathBuf,
    addresses: Vec<IpAddr>,
    /// The last look did not find them.
    missed: bool,
}

impl<L: Links> Attacher<L> {
    /// Looks for pods without a record, unless it was done a moment ago. How many addresses were
    /// found that nobody may be given.
    pub(super) fn look_for_strays(&self, now: &Moment) -> usize {
        let mut strays = lock(&self.strays);
        let due = strays
            .looked_at_s
            .is_none_or(|last| now.uptime_s.saturating_sub(last) >= SURVEY_INTERVAL_S);
        if !due {
            return 0;
        }
        strays.looked_at_s = Some(now.uptime_s);
        let before = self.recorded(now);
        let in_order = before.union(&strays.settled).copied().collect();
        let survey = match self.links.survey(&in_order) {
            Ok(survey) => survey,
            Err(error) => {
                warn!(%error, "cannot look for pods without a record");
                return 0;
            }
        };
        // An ADD has its record before it has a device, so the device of one that began meanwhile is
        // told from a stray one.
        let recorded = self.recorded(now);
        let mut found: HashMap<NetnsId, Vec<IpAddr>> = HashMap::new();
        let mut withheld = 0;
        for stray in &survey.strays {
            if recorded.contains(&stray.netns_id) {
                continue;
            }
            if stray.addresses.is_empty() {
                self.remove_stray(stray);
            } else {
                withheld += strays.hold(self, stray);
                let addresses = found.entry(stray.netns_id).or_default();
                addresses.extend(&stray.addresses);
            }
        }
        strays.let_go(self, now, |id, address| {
            survey.failed.contains(&id)
                || recorded.contains(&id)
                || found.get(&id).is_some_and(|found| found.contains(&address))
        });
        strays.settled = survey.present;
        let busy = |id: &NetnsId| {
            survey.failed.contains(id) || recorded.contains(id) || before.contains(id)
        };
        let Strays { settled, held, .. } = &mut *strays;
        settled.retain(|id| !busy(id) && !held.contains_key(id) && !found.contains_key(id));
        withheld
    }

    /// Namespaces that a record of this boot names.
    fn recorded(&self, now: &Moment) -> HashSet<NetnsId> {
        lock(&self.entries)
            .values()
            .filter(|entry| entry.record.attached_at.boot == now.boot)
            .map(|entry| entry.record.netns_id.into())
            .collect()
    }

    fn remove_stray(&self, stray: &Stray) {
        let (interface, netns) = (&stray.ifname, stray.netns.display());
        match self.links.remove_stray(stray) {
            Ok(()) => {
                info!(interface, %netns, "removed a device of a pod that is no longer attached");
            }
            Err(error) => {
                warn!(interface, %netns, %error, "cannot remove a device of a pod that is no longer attached");
            }
        }
    }
}

impl Strays {
    /// How many of its addresses were not held before.
    fn hold<L: Links>(&mut self, attacher: &Attacher<L>, stray: &Stray) -> usize {
        let mut ipam = lock(&attacher.ipam);
        let addresses = stray.addresses.iter().copied();
        let new: Vec<IpAddr> = addresses.filter(|it| !ipam.is_held(*it)).collect();
        if new.is_empty() {
            return 0;
        }
        new.iter().for_each(|address| ipam.hold(*address));
        drop(ipam);
        warn!(
            interface = stray.ifname, netns = %stray.netns.display(), addresses = ?new,
            "a pod without a record: it has no network until it is started anew, and its addresses are not given out while it lives"
        );
        let held = self.held.entry(stray.netns_id).or_insert_with(|| Held {
            netns: stray.netns.clone(),
            addresses: Vec::new(),
            missed: false,
        });
        held.addresses.extend(&new);
        new.len()
    }

    /// Gives back the addresses that two looks in a row did not find; they rest like a pod's.
    fn let_go<L: Links>(
        &mut self,
        attacher: &Attacher<L>,
        now: &Moment,
        is_there: impl Fn(NetnsId, IpAddr) -> bool,
    ) {
        self.held.retain(|id, held| {
            if held.addresses.iter().any(|address| is_there(*id, *address)) {
                held.missed = false;
                return true;
            }
            if !held.missed {
                held.missed = true;
                return true;
            }
            let mut ipam = lock(&attacher.ipam);
            for address in &held.addresses {
                ipam.release(*address, now.uptime_s);
            }
            drop(ipam);
            info!(
                netns = %held.netns.display(), addresses = ?held.addresses,
                "a pod without a record has gone: its addresses rest"
            );
            false
        });
    }
}
