//! One request at a time per attachment, and DELs that are noticed by ADDs under way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use fabric_proto::cni::AttachmentKey;

use super::{AttachError, lock};

/// The attachments that somebody is busy with.
#[derive(Debug, Default)]
pub(super) struct KeyTable {
    states: Mutex<HashMap<AttachmentKey, Arc<KeyState>>>,
}

#[derive(Debug, Default)]
struct KeyState {
    turn: Mutex<()>,
    /// DELs that have arrived since the key came into the table.
    deletes: AtomicU64,
}

impl KeyTable {
    pub(super) fn begin_add(self: &Arc<Self>, key: AttachmentKey) -> AddTicket {
        let claim = self.claim(key);
        let deletes = claim.state.deletes.load(Ordering::SeqCst);
        AddTicket {
            claim,
            deletes,
            hung_up: AtomicBool::new(false),
        }
    }

    /// Registers a DEL: ADDs registered before are cancelled from here on.
    pub(super) fn begin_delete(self: &Arc<Self>, key: AttachmentKey) -> Claim {
        let claim = self.claim(key);
        claim.state.deletes.fetch_add(1, Ordering::SeqCst);
        claim
    }

    /// Registers anything else.
    pub(super) fn claim(self: &Arc<Self>, key: AttachmentKey) -> Claim {
        let state = Arc::clone(lock(&self.states).entry(key.clone()).or_default());
        Claim {
            table: Arc::clone(self),
            key,
            state,
        }
    }
}

/// Interest in a key: keeps its state in the table.
#[derive(Debug)]
pub(super) struct Claim {
    table: Arc<KeyTable>,
    key: AttachmentKey,
    state: Arc<KeyState>,
}

impl Claim {
    /// Waits until nobody else is busy with the key.
    pub(super) fn turn(&self) -> Turn<'_> {
        let guard = self
            .state
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Turn {
            key: &self.key,
            _guard: guard,
        }
    }

    /// The turn, unless somebody has it.
    pub(super) fn try_turn(&self) -> Option<Turn<'_>> {
        let guard = match self.state.turn.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Turn {
            key: &self.key,
            _guard: guard,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut states = lock(&self.table.states);
        // The table's own and this one: nobody else can come by while the table is locked.
        if Arc::strong_count(&self.state) == 2 {
            states.remove(&self.key);
        }
    }
}

/// The right to change an attachment.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    key: &'a AttachmentKey,
    _guard: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    pub(super) fn key(&self) -> &AttachmentKey {
        self.key
    }
}

/// An ADD from its arrival to its answer.
#[derive(Debug)]
pub struct AddTicket {
    claim: Claim,
    /// DELs that had arrived before.
    deletes: u64,
    hung_up: AtomicBool,
}

impl AddTicket {
    /// Which attachment.
    #[must_use]
    pub fn key(&self) -> &AttachmentKey {
        &self.claim.key
    }

    /// Says that nobody waits for the answer any more.
    pub fn hang_up(&self) {
        self.hung_up.store(true, Ordering::SeqCst);
    }

    /// Whether to go on.
    ///
    /// # Errors
    ///
    /// [`AttachError::Cancelled`].
    pub fn check(&self) -> Result<(), AttachError> {
        let deleted = self.claim.state.deletes.load(Ordering::SeqCst) != self.deletes;
        if deleted || self.hung_up.load(Ordering::SeqCst) {
            Err(AttachError::Cancelled)
        } else {
            Ok(())
        }
    }

    pub(super) fn turn(&self) -> Turn<'_> {
        self.claim.turn()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AttachmentKey {
        AttachmentKey {
            network: "n".into(),
            container_id: "c".into(),
            ifname: "e".into(),
        }
    }

    /// A DEL cancels the ADDs that began before it and none that begin after it, and nothing stays
    /// in the table when all have gone.
    #[test]
    fn deletes_cancel_earlier_adds() {
        let table = Arc::<KeyTable>::default();
        let before = table.begin_add(key());
        assert!(before.check().is_ok());
        let delete = table.begin_delete(key());
        assert!(before.check().is_err());
        let after = table.begin_add(key());
        assert!(after.check().is_ok());
        drop(delete);
        assert!(after.check().is_ok() && before.check().is_err());
        drop((before, after));
        assert!(lock(&table.states).is_empty());
    }
}
