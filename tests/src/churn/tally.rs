//! How often what was done.

use std::{fmt, time::Duration};

/// Share of a new time in the usual one.
const SMOOTHING: u32 = 8;
/// What an ADD is taken to need before the first.
const FIRST_GUESS: Duration = Duration::from_millis(20);

/// Counts of operations.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// ADDs with a result.
    pub adds: usize,
    /// ADDs whose plugin was killed.
    pub adds_killed: usize,
    /// ADDs that were faster than their killer.
    pub outran_kill: usize,
    /// ADDs of a container after one that was killed.
    pub adds_again: usize,
    /// ADDs that no daemon answered, or that a DEL overtook.
    pub unanswered: usize,
    /// ADDs for which there was no address.
    pub exhausted: usize,
    /// DELs that succeeded, but for late ones.
    pub dels: usize,
    /// Of these: those that came twice.
    pub dels_doubled: usize,
    /// Namespaces that went without a DEL.
    pub dels_lost: usize,
    /// DELs of an earlier container of a pod, after the ADD of a later one.
    pub dels_late: usize,
    /// DELs whose plugin was killed.
    pub dels_killed: usize,
    usual_add: Option<Duration>,
}

impl Tally {
    /// Notes how long an ADD took.
    pub fn add_took(&mut self, time: Duration) {
        let usual = self.usual_add.unwrap_or(time);
        self.usual_add = Some(usual - usual / SMOOTHING + time / SMOOTHING);
    }

    /// How long an ADD takes, about, with a little on top.
    #[must_use]
    pub fn usual_add(&self) -> Duration {
        let usual = self.usual_add.unwrap_or(FIRST_GUESS);
        usual + usual / 4
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.adds += other.adds;
        self.adds_killed += other.adds_killed;
        self.outran_kill += other.outran_kill;
        self.adds_again += other.adds_again;
        self.unanswered += other.unanswered;
        self.exhausted += other.exhausted;
        self.dels += other.dels;
        self.dels_doubled += other.dels_doubled;
        self.dels_lost += other.dels_lost;
        self.dels_late += other.dels_late;
        self.dels_killed += other.dels_killed;
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ADD: {} done, {} killed, {} again, {} unanswered, {} without an address; \
             DEL: {} done, {} of them twice, {} lost, {} late, {} killed",
            self.adds,
            self.adds_killed,
            self.adds_again,
            self.unanswered,
            self.exhausted,
            self.dels,
            self.dels_doubled,
            self.dels_lost,
            self.dels_late,
            self.dels_killed
        )
    }
}
