//! After a restart, and from time to time: bring record, kernel and fabric together again.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use fabric_proto::cni::AttachmentKey;
use tracing::{info, warn};

use super::{
    ADDRESS_COOLDOWN_S, Attacher, Entry, Ipam, Links, Moment, Record, State, Where, attachment,
    lock, plan_of,
};
use crate::cni::store::Loaded;

/// Pods taken up side by side at the start (threads).
const RESTORE_THREADS_MAX: usize = 8;
/// How long the start waits for pods; the rest is taken up behind it.
const RESTORE_WAIT: Duration = Duration::from_secs(10);

/// What became of the attachments on record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// DELs on disk that were carried out first.
    pub deleted: usize,
    /// Pods whose device the fabric has again.
    pub restored: usize,
    /// Attachments released, because their namespace has gone or their ADD was cut short.
    pub released: usize,
    /// Pods that could not be taken up; each is in the log, and every sweep tries again.
    pub failed: usize,
    /// Pods still being taken up when the wait was over.
    pub unfinished: usize,
    /// Addresses of pods that no record knows; nobody is given them.
    pub withheld: usize,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// DELs on disk that were carried out.
    pub deleted: usize,
    /// Pods that an earlier attempt could not take up.
    pub restored: usize,
    /// Attachments whose namespace has gone.
    pub released: usize,
    /// Records removed because their addresses have rested.
    pub rested: usize,
    /// Addresses found at pods that no record knows.
    pub withheld: usize,
}

enum Outcome {
    Restored,
    Released,
    Nothing,
    Failed,
}

/// Tells the allocator what the record holds; the attachments, and the records that rest.
pub(super) fn take_up(
    ipam: &mut Ipam,
    loaded: Loaded,
    now: &Moment,
) -> (HashMap<AttachmentKey, Entry>, Vec<Record>) {
    let mut entries = HashMap::new();
    let mut released: Vec<(u64, Record)> = Vec::new();
    let mut earlier: Vec<Record> = Vec::new();
    for record in loaded.records {
        if let State::Released { at } = &record.state {
            let left = ADDRESS_COOLDOWN_S.saturating_sub(now.seconds_since(at));
            released.push((left, record));
            continue;
        }
        record
            .addresses
            .iter()
            .for_each(|address| ipam.hold(*address));
        let entry = Entry {
            record,
            published: false,
            seen_gone: false,
            trouble: None,
        };
        // Of two records of one attachment the older one is of an earlier ADD, whose release the disk lost.
        if let Some(Entry { mut record, .. }) = entries.insert(entry.record.key.clone(), entry) {
            record.state = State::Released { at: now.clone() };
            earlier.push(record);
        }
    }
    for record in earlier {
        for address in &record.addresses {
            let is_used = |entry: &Entry| entry.record.addresses.contains(address);
            if !entries.values().any(is_used) {
                ipam.give_back(*address);
            }
        }
        released.push((ADDRESS_COOLDOWN_S, record));
    }
    loaded
        .withheld
        .iter()
        .for_each(|address| ipam.hold(*address));
    // Order of release: whoever has least left was released first.
    released.sort_by_key(|(left, _)| *left);
    let rest = |ipam: &mut Ipam, address: IpAddr, left: u64| {
        ipam.rest(address, now.uptime_s.saturating_add(left));
    };
    for (left, record) in &released {
        record
            .addresses
            .iter()
            .for_each(|address| rest(ipam, *address, *left));
    }
    for address in loaded.recovered {
        rest(ipam, address, ADDRESS_COOLDOWN_S);
    }
    let resting = released.into_iter().map(|(_, record)| record).collect();
    (entries, resting)
}

impl<L: Links> Attacher<L> {
    /// Takes up the pods on record: DELs left on disk first, then a look for pods that no record knows,
    /// then every attachment with a bounded number of threads. One bad pod holds up neither the others
    /// nor, beyond a few seconds, the start.
    pub fn restore(self: &Arc<Self>) -> RestoreReport {
        let mut report = RestoreReport {
            deleted: self.drain_all_pending(),
            ..RestoreReport::default()
        };
        match (self.clock)() {
            Ok(now) => report.withheld = self.look_for_strays(&now),
            Err(error) => warn!(%error, "cannot read the clocks"),
        }
        let keys: Vec<_> = lock(&self.entries).keys().cloned().collect();
        report.unfinished = keys.len();
        let outcomes = self.restore_all(keys);
        let deadline = Instant::now() + RESTORE_WAIT;
        while report.unfinished > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match outcomes.recv_timeout(left) {
                Ok(Outcome::Restored) => report.restored += 1,
                Ok(Outcome::Released) => report.released += 1,
                Ok(Outcome::Failed) => report.failed += 1,
                Ok(Outcome::Nothing) => {}
                Err(_) => break,
            }
            report.unfinished -= 1;
        }
        info!(?report, "pods taken up");
        report
    }

    fn restore_all(self: &Arc<Self>, keys: Vec<AttachmentKey>) -> mpsc::Receiver<Outcome> {
        let (sender, receiver) = mpsc::channel();
        let threads = keys.len().min(RESTORE_THREADS_MAX);
        let queue = Arc::new(Mutex::new(keys));
        for _ in 0..threads {
            let (attacher, queue, sender) = (Arc::clone(self), Arc::clone(&queue), sender.clone());
            let work = move || {
                loop {
                    let Some(key) = lock(&queue).pop() else {
                        break;
                    };
                    // The receiver may have stopped waiting.
                    let _ = sender.send(attacher.restore_one(&key));
                }
            };
            let spawned = thread::Builder::new().name("restore".into()).spawn(work);
            if let Err(error) = spawned {
                warn!(%error, "cannot start a thread to take up pods");
            }
        }
        receiver
    }

    fn restore_one(&self, key: &AttachmentKey) -> Outcome {
        let claim = self.keys.claim(key.clone());
        // An ADD or DEL under way deals with what it finds.
        let Some(turn) = claim.try_turn() else {
            return Outcome::Nothing;
        };
        let Some(Entry {
            record, published, ..
        }) = self.entry(key)
        else {
            return Outcome::Nothing;
        };
        if published {
            return Outcome::Nothing;
        }
        let container = &key.container_id;
        let netns = record.netns.display();
        let now = match (self.clock)() {
            Ok(now) => now,
            Err(error) => {
                warn!(%error, "cannot read the clocks");
                return Outcome::Failed;
            }
        };
        let namespace = match (self.namespace_of(&record, &now), &record.state) {
            (Where::There(namespace), State::Attached { .. }) => namespace,
            (Where::Unknown(reason), _) => return self.not_taken_up(&record, reason),
            (Where::There(_) | Where::Gone, _) => {
                info!(container, %netns, "released: its namespace has gone or its ADD was cut short");
                return match self.detach(&turn) {
                    Ok(()) => Outcome::Released,
                    Err(error) => {
                        warn!(container, %error, "cannot release an attachment");
                        Outcome::Failed
                    }
                };
            }
        };
        let published = self
            .links
            .reopen(&namespace, &plan_of(&record))
            .map_err(|error| error.to_string())
            .and_then(|device| self.fabric.attach(attachment(&record), device));
        match published {
            Ok(_) => {
                self.change(key, |entry| {
                    entry.published = true;
                    entry.trouble = None;
                });
                Outcome::Restored
            }
            Err(reason) => self.not_taken_up(&record, reason),
        }
    }

    /// Every sweep tries again; the log has a reason once, until another takes its place.
    fn not_taken_up(&self, record: &Record, reason: String) -> Outcome {
        let key = &record.key;
        let known = self.entry(key).and_then(|entry| entry.trouble);
        if known.as_ref() != Some(&reason) {
            let (container, netns) = (&key.container_id, record.netns.display());
            warn!(container, %netns, reason, "cannot take up a pod; every sweep tries again");
            self.change(key, |entry| entry.trouble = Some(reason));
        }
        Outcome::Failed
    }

    /// Carries out DELs left on disk, retries pods that could not be taken up, frees attachments
    /// whose namespace two sweeps in a row found gone, and removes records that have rested. To be
    /// called every few seconds: for a pod that is in order it costs one look at a path.
    pub fn sweep(&self) -> SweepReport {
        let mut report = SweepReport {
            deleted: self.drain_all_pending(),
            ..SweepReport::default()
        };
        let now = match (self.clock)() {
            Ok(now) => now,
            Err(error) => {
                warn!(%error, "cannot read the clocks");
                return report;
            }
        };
        let suspects: Vec<_> = lock(&self.entries)
            .values()
            .map(|entry| entry.record.key.clone())
            .collect();
        for key in suspects {
            self.sweep_one(&key, &now, &mut report);
        }
        report.rested = self.forget_rested(&now);
        report.withheld = self.look_for_strays(&now);
        report
    }

    fn sweep_one(&self, key: &AttachmentKey, now: &Moment, report: &mut SweepReport) {
        let Some(entry) = self.entry(key) else {
            return;
        };
        if !entry.published {
            match self.restore_one(key) {
                Outcome::Restored => report.restored += 1,
                Outcome::Released => report.released += 1,
                Outcome::Nothing | Outcome::Failed => {}
            }
            return;
        }
        let Record {
            netns, netns_id, ..
        } = &entry.record;
        let gone = !self.links.is_at(netns, (*netns_id).into())
            && matches!(self.namespace_of(&entry.record, now), Where::Gone);
        if gone && entry.seen_gone {
            let claim = self.keys.claim(key.clone());
            // Whoever is busy with the attachment knows better what becomes of it.
            let Some(turn) = claim.try_turn() else {
                return;
            };
            match self.free_if_gone(&turn) {
                Ok(freed) => report.released += usize::from(freed),
                Err(error) => {
                    warn!(container = key.container_id, %error, "cannot free an attachment");
                }
            }
        } else if gone != entry.seen_gone {
            self.change(key, |entry| entry.seen_gone = gone);
        }
    }

    /// A record that cannot be removed is tried again by the next sweep.
    fn forget_rested(&self, now: &Moment) -> usize {
        let candidates = std::mem::take(&mut *lock(&self.resting));
        let before = candidates.len();
        let kept: Vec<Record> = candidates
            .into_iter()
            .filter(|record| match &record.state {
                State::Released { at } if now.seconds_since(at) >= ADDRESS_COOLDOWN_S => {
                    self.store.remove(record).is_err()
                }
                State::Released { .. } | State::Planned | State::Attached { .. } => true,
            })
            .collect();
        let forgotten = before.saturating_sub(kept.len());
        lock(&self.resting).extend(kept);
        forgotten
    }
}
