//! Who goes first: ADDs before the removal of interfaces.
//!
//! To remove an interface the kernel holds its one lock on all network configuration (RTNL) for up to
//! tens of milliseconds, and an ADD needs that lock a dozen times. A pod that starts is waited for, one
//! that ends is not, so a DEL waits until no ADD is busy with the kernel; not for ever, though. What a sweep
//! removes waits for nobody: there may be many, one after the other.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Longest that a removal waits for ADDs.
const REMOVAL_WAIT: Duration = Duration::from_millis(100);

/// How many ADDs are under way.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    adds: Mutex<usize>,
    none_left: Condvar,
}

/// One ADD under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy<'a>(&'a Precedence);

impl Precedence {
    /// An ADD comes to the point where it needs the kernel.
    pub(super) fn begin_add(&self) -> Busy<'_> {
        let mut adds = self.adds.lock().unwrap_or_else(PoisonError::into_inner);
        *adds = adds.saturating_add(1);
        Busy(self)
    }

    /// Returns when no ADD is under way, or after [`REMOVAL_WAIT`]. Not to be called by an ADD that has
    /// begun: it would wait for itself.
    pub(super) fn let_adds_go_first(&self) {
        let adds = self.adds.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.none_left
                .wait_timeout_while(adds, REMOVAL_WAIT, |adds| *adds > 0),
        );
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut adds = self.0.adds.lock().unwrap_or_else(PoisonError::into_inner);
        *adds = adds.saturating_sub(1);
        if *adds == 0 {
            self.0.none_left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use super::*;

    /// A removal goes at once where no ADD is under way, waits for the last of those that are, and for
    /// one without end only so long.
    #[test]
    fn removals_wait_for_adds_and_not_for_ever() {
        let precedence = Precedence::default();
        let begun = Instant::now();
        precedence.let_adds_go_first();
        assert!(begun.elapsed() < REMOVAL_WAIT);

        let (first, second) = (precedence.begin_add(), precedence.begin_add());
        thread::scope(|scope| {
            let removal = scope.spawn(|| {
                precedence.let_adds_go_first();
                precedence
                    .adds
                    .lock()
                    .map(|adds| *adds)
                    .unwrap_or(usize::MAX)
            });
            drop(first);
            drop(second);
            assert_eq!(removal.join().ok(), Some(0));
        });

        let _endless = precedence.begin_add();
        let begun = Instant::now();
        precedence.let_adds_go_first();
        assert!(begun.elapsed() >= REMOVAL_WAIT);
    }
}
