//! Where operations begin and end: counts them, lets only a few begin while the daemon is dead, and holds
//! all up while something is looked at. Knows nothing of what they do.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The gate.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    operations_max: usize,
    not_over_before: Instant,
}

#[derive(Debug, Default)]
struct State {
    started: usize,
    running: usize,
    closed: bool,
    /// While the daemon is dead: how many more may begin.
    allowance: Option<usize>,
    over: bool,
}

/// An operation under way.
#[derive(Debug)]
pub struct Operation<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// A gate that `operations_max` operations go through, or more where these take less than `at_least`.
    #[must_use]
    pub fn new(operations_max: usize, at_least: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            operations_max,
            not_over_before: Instant::now() + at_least,
        }
    }

    /// Begins an operation, as soon as one may begin; `None` when there have been enough.
    pub fn begin(&self) -> Option<Operation<'_>> {
        let mut state = self.wait(|state| {
            state.over || (!state.closed && state.allowance.is_none_or(|left| left > 0))
        });
        if state.started >= self.operations_max && Instant::now() >= self.not_over_before {
            state.over = true;
        }
        if state.over {
            drop(state);
            self.changed.notify_all();
            return None;
        }
        state.started += 1;
        state.running += 1;
        if let Some(left) = &mut state.allowance {
            *left -= 1;
        }
        drop(state);
        self.changed.notify_all();
        Some(Operation { gate: self })
    }

    /// Lets no more operations begin, ever.
    pub fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits until `number` operations have begun; false if there will not be that many.
    pub fn wait_started(&self, number: usize) -> bool {
        let state = self.wait(|state| state.over || state.started >= number);
        !state.over && state.started >= number
    }

    /// Says that the daemon is about to die: `allowance` operations may begin until it is back.
    pub fn daemon_dies(&self, allowance: usize) {
        self.lock().allowance = Some(allowance);
        self.changed.notify_all();
    }

    /// Waits until all operations that may have begun, at most `limit`.
    pub fn wait_used(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.over && state.allowance.is_some_and(|left| left > 0) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Says that the daemon is back.
    pub fn daemon_is_back(&self) {
        self.lock().allowance = None;
        self.changed.notify_all();
    }

    /// Runs `f` while no operation is under way.
    pub fn quiet<T>(&self, f: impl FnOnce() -> T) -> T {
        self.lock().closed = true;
        drop(self.wait(|state| state.running == 0));
        let result = f();
        self.lock().closed = false;
        self.changed.notify_all();
        result
    }

    /// Operations that have begun.
    #[must_use]
    pub fn started(&self) -> usize {
        self.lock().started
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !until(&state) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.gate.lock().running -= 1;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::mpsc, thread};

    use super::*;

    /// As many operations begin as were asked for, few of them while the daemon is dead, and none while
    /// the gate is closed.
    #[test]
    fn operations_are_held_up_and_counted() {
        let gate = Gate::new(5, Duration::ZERO);
        let first = gate.begin().unwrap();
        gate.daemon_dies(1);
        let second = gate.begin().unwrap();
        gate.wait_used(Duration::from_secs(60));
        let (begun, begins) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Some(operation) = gate.begin() {
                    begun.send(gate.started()).unwrap();
                    drop(operation);
                }
                drop(begun);
            });
            assert!(begins.recv_timeout(Duration::from_millis(20)).is_err());
            drop((first, second));
            gate.quiet(|| {
                gate.daemon_is_back();
                assert!(begins.recv_timeout(Duration::from_millis(20)).is_err());
            });
            assert_eq!(begins.iter().collect::<Vec<_>>(), [3, 4, 5]);
        });
        assert!(gate.begin().is_none() && !gate.wait_started(6));
        assert_eq!(gate.started(), 5);
    }
}
