//! Which FabricNodes count: what the API server shows, and for a while what it showed before.
//!
//! Comes in: lists, changes and removals, each with its time. Goes out: the objects that count, and
//! when to ask again. Pure. Never done here: reading them.
//!
//! A node that is removed is cut off at once, but an API server can also lose everything: its CRD was
//! deleted, its store was emptied or restored from an old backup. Two signs tell this apart from nodes
//! that were removed, and then what was there stays for [`HOLD`]: this node's own object, which only
//! its own daemon should write, is missing too; or a large part of all objects vanishes at once. While
//! the own object is missing, what was there stays for as long as that takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long something must be gone until it is not counted: as long as an object takes that is deleted
/// and made anew, and longer than the removals of one `kubectl delete --all` take in a small cluster.
pub const SETTLE: Duration = Duration::from_secs(1);
/// How long what vanished with the own object, or with many others, counts.
pub const HOLD: Duration = Duration::from_secs(60);
/// This many removals at a time are never taken for a loss of the store.
pub const REMOVALS_USUAL_MAX: usize = 3;
/// Of this many objects, one that vanishes at the same time as others makes it a loss.
const LOSS_ONE_IN: usize = 4;

/// The objects by name.
#[derive(Debug)]
pub struct Roster<T> {
    local: String,
    entries: BTreeMap<String, Entry<T>>,
    hold: Hold,
    listed: bool,
}

#[derive(Debug)]
struct Entry<T> {
    object: T,
    gone: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    None,
    UntilOwnIsBack,
    Until(Instant),
}

impl<T> Roster<T> {
    /// Begins with what was known when the daemon last ran, which counts until a list is here.
    #[must_use]
    pub fn new(local: &str, known: BTreeMap<String, T>, now: Instant) -> Self {
        let entries = known.into_iter().map(|(name, object)| {
            let entry = Entry {
                object,
                gone: Some(now),
            };
            (name, entry)
        });
        Self {
            local: local.to_owned(),
            entries: entries.collect(),
            hold: Hold::None,
            listed: false,
        }
    }

    /// Takes a complete list.
    pub fn list(&mut self, now: Instant, objects: BTreeMap<String, T>) {
        for (name, entry) in &mut self.entries {
            if !objects.contains_key(name) {
                entry.gone.get_or_insert(now);
            }
        }
        self.listed = true;
        for (name, object) in objects {
            self.put(name, object);
        }
        self.judge_own(now);
    }

    /// Takes a new or changed object.
    pub fn apply(&mut self, now: Instant, name: String, object: T) {
        self.put(name, object);
        self.judge_own(now);
    }

    /// Takes the removal of an object.
    pub fn delete(&mut self, now: Instant, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.gone.get_or_insert(now);
        }
        self.judge_own(now);
    }

    /// Forgets what has been gone for long enough, and says when to ask again.
    pub fn settle(&mut self, now: Instant) -> Option<Instant> {
        if !self.listed {
            return None;
        }
        match self.hold {
            Hold::UntilOwnIsBack => return None,
            Hold::Until(end) if now < end => return Some(end),
            Hold::Until(_) => {
                self.hold = Hold::None;
                self.forget(now);
            }
            Hold::None => {
                let due = self.due(now);
                if due > REMOVALS_USUAL_MAX && due * LOSS_ONE_IN > self.entries.len() {
                    tracing::warn!(
                        removed = due,
                        hold = ?HOLD,
                        "many FabricNodes vanished at once: their nodes stay in force for a while; if they are gone for good there is nothing to do"
                    );
                    self.hold = Hold::Until(now + HOLD);
                    return Some(now + HOLD);
                }
                self.forget(now);
            }
        }
        let next = self.entries.values().filter_map(|entry| entry.gone).min();
        next.map(|gone| gone + SETTLE)
    }

    /// Whether there was a list.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// What counts, in order of the names; with it whether it is no longer there.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &T, bool)> {
        let entries = self.entries.iter();
        entries.map(|(name, entry)| (name.as_str(), &entry.object, entry.gone.is_some()))
    }

    /// This node's own object, as the API server shows it.
    #[must_use]
    pub fn own(&self) -> Option<&T> {
        let entry = self.entries.get(&self.local)?;
        entry.gone.is_none().then_some(&entry.object)
    }

    fn put(&mut self, name: String, object: T) {
        let entry = Entry { object, gone: None };
        self.entries.insert(name, entry);
    }

    fn judge_own(&mut self, now: Instant) {
        if !self.listed {
            return;
        }
        let is_there = self.own().is_some();
        match self.hold {
            Hold::None | Hold::Until(_) if !is_there => {
                // A node that joins has nothing to hold on to.
                if self.entries.values().any(|entry| entry.gone.is_some()) {
                    tracing::warn!(
                        "this node's own FabricNode is missing: what was in force stays until it is back"
                    );
                    self.hold = Hold::UntilOwnIsBack;
                }
            }
            Hold::UntilOwnIsBack if is_there => self.hold = Hold::Until(now + HOLD),
            Hold::None | Hold::UntilOwnIsBack | Hold::Until(_) => {}
        }
    }

    fn due(&self, now: Instant) -> usize {
        let gone = self.entries.values().filter_map(|entry| entry.gone);
        gone.filter(|gone| *gone + SETTLE <= now).count()
    }

    fn forget(&mut self, now: Instant) {
        self.entries
            .retain(|_, entry| entry.gone.is_none_or(|gone| gone + SETTLE > now));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const OWN: &str = "own";

    fn roster(known: &[&str], now: Instant) -> Roster<()> {
        Roster::new(OWN, objects(known), now)
    }

    fn objects(names: &[&str]) -> BTreeMap<String, ()> {
        names.iter().map(|name| ((*name).to_owned(), ())).collect()
    }

    fn names(roster: &mut Roster<()>, now: Instant) -> Vec<String> {
        roster.settle(now);
        roster.entries().map(|(name, ..)| name.to_owned()).collect()
    }

    /// A removed node counts for a second, no longer; one that comes back in time never went.
    #[test]
    fn a_removed_node_goes() {
        let start = Instant::now();
        let mut roster = roster(&[], start);
        roster.list(start, objects(&["a", "b", OWN]));
        roster.delete(start, "a");
        roster.delete(start, "b");
        assert_eq!(roster.settle(start), Some(start + SETTLE));
        roster.apply(start, "b".to_owned(), ());
        assert_eq!(names(&mut roster, start), ["a", "b", OWN]);
        assert_eq!(names(&mut roster, start + SETTLE), ["b", OWN]);
        assert_eq!(roster.settle(start + SETTLE), None);
    }

    /// What was known before a restart counts until there is a list, and then only if it is in it.
    #[test]
    fn what_was_known_counts_until_a_list_is_here() {
        let start = Instant::now();
        let mut roster = roster(&["a", "b", OWN], start);
        let later = start + 100 * HOLD;
        assert_eq!(names(&mut roster, later), ["a", "b", OWN]);
        assert!(roster.own().is_none(), "the API server has not shown it");
        roster.list(later, objects(&["b", OWN]));
        assert_eq!(names(&mut roster, later), ["b", OWN]);
    }

    /// An empty list, and one without this node's own object, takes nothing away until the object is
    /// back, and then only what does not come back within the hold.
    #[test]
    fn an_emptied_store_takes_nothing_away() {
        let start = Instant::now();
        for list in [&[][..], &["c"]] {
            let mut roster = roster(&[], start);
            roster.list(start, objects(&["a", "b", OWN]));
            roster.list(start, objects(list));
            let later = start + 100 * HOLD;
            assert!(names(&mut roster, later).len() >= 3, "{list:?}");
            assert!(roster.own().is_none());
            roster.apply(later, OWN.to_owned(), ());
            roster.apply(later, "a".to_owned(), ());
            roster.delete(later, "c");
            assert!(names(&mut roster, later + HOLD / 2).contains(&"b".to_owned()));
            assert_eq!(names(&mut roster, later + HOLD), ["a", OWN]);
            assert_eq!(roster.settle(later + HOLD), None);
        }
    }

    /// The same holds when the objects are deleted one by one, the own one last.
    #[test]
    fn deleting_all_takes_nothing_away() {
        let start = Instant::now();
        let mut roster = roster(&[], start);
        roster.list(start, objects(&["a", "b", OWN]));
        for name in ["a", "b", OWN] {
            roster.delete(start, name);
        }
        assert_eq!(names(&mut roster, start + 2 * SETTLE).len(), 3);
    }

    /// A large part that vanishes at once is held once, and then believed.
    #[test]
    fn a_great_loss_is_held_once() {
        let start = Instant::now();
        let many: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        let mut all: Vec<&str> = many.iter().map(String::as_str).collect();
        all.push(OWN);
        let mut roster = roster(&[], start);
        roster.list(start, objects(&all));
        roster.list(start, objects(&["n0", "n1", "n2", OWN]));
        let due = start + SETTLE;
        assert_eq!(roster.settle(due), Some(due + HOLD));
        assert_eq!(names(&mut roster, due).len(), 10);
        assert_eq!(names(&mut roster, due + HOLD), ["n0", "n1", "n2", OWN]);
    }

    /// A node that joins has no object of its own yet, and believes what it sees.
    #[test]
    fn a_new_node_believes_the_list() {
        let start = Instant::now();
        let mut roster = roster(&[], start);
        roster.list(start, objects(&["a", "b"]));
        assert_eq!(names(&mut roster, start), ["a", "b"]);
    }
}
