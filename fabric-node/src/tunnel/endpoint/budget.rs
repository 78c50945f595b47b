//! The memory of all queues of a worker, shared out.
//!
//! Comes in: what each queue keeps in use. Goes out: how much a queue may have. Never done here: losing
//! anything.
//!
//! A queue may have half of what the others leave. So one that is alone has all it wants, `n` full ones
//! come to have an equal share of `1 / (n + 1)` each, the one that begins always finds some room, and
//! all together can never have more than there is: what the others have, and half of the rest. This is
//! the threshold of switches with a shared memory (Choudhury and Hahne, "Dynamic queue length thresholds
//! for shared-memory packet switches", 1998).

use super::Endpoint;
use crate::tunnel::queue::QUEUE_BYTES_MAX;

/// Memory that records in front of all connections of a worker may keep in use (bytes).
///
/// A single full connection has all that the bounds of its queue allow; ten have 2.9 MiB each. Beyond
/// it a packet is `PEER_QUEUE_FULL` although the queue of its own connection has room.
pub(super) const WORKER_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
const _: () = assert!(QUEUE_BYTES_MAX <= WORKER_QUEUE_BYTES_MAX / 2);

/// What all queues together keep in use.
#[derive(Debug, Default)]
pub(super) struct Budget {
    total: usize,
    /// The connection that may have got more since it was looked at.
    pub(super) handed_out: Option<usize>,
}

impl Budget {
    /// Most that a queue may have which has `own` bytes at present.
    pub(super) fn room(&self, own: usize) -> usize {
        let others = self.total.saturating_sub(own);
        WORKER_QUEUE_BYTES_MAX.saturating_sub(others) / 2
    }

    /// A queue that had `known` bytes when it was looked at last has `bytes`.
    pub(super) fn note(&mut self, known: &mut usize, bytes: usize) {
        self.total = self.total + bytes - std::mem::replace(known, bytes);
    }

    /// Of all queues (bytes).
    #[cfg(test)]
    pub(super) fn total(&self) -> usize {
        self.total
    }
}

impl Endpoint {
    /// Tells a connection that is about to get packets how much memory the others leave to its queue.
    pub(super) fn share_memory(&mut self, index: usize) {
        let before = self.budget.handed_out.replace(index);
        if let Some(slot) = before.and_then(|before| self.links.get_mut(before)?.as_deref_mut()) {
            let bytes = slot.link.queue_bytes();
            self.budget.note(&mut slot.queue_bytes, bytes);
        }
        if let Some(slot) = self.links.get_mut(index).and_then(Option::as_deref_mut) {
            let room = self.budget.room(slot.queue_bytes);
            slot.link.set_queue_room(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many queues take all they may, each as often as it likes, they come to equal shares, and
    /// never have more than there is.
    #[test]
    fn shares_become_equal() {
        for count in [1, 2, 5, 50] {
            let mut budget = Budget::default();
            let mut queues = vec![0; count];
            for round in 0..2000 {
                for queue in &mut queues {
                    let (own, room) = (*queue, budget.room(*queue));
                    // What is above its share is sent, a little at a time.
                    let next = if own > room { own - own / 100 } else { room };
                    budget.note(queue, next);
                    assert!(budget.total() <= WORKER_QUEUE_BYTES_MAX, "round {round}");
                }
            }
            assert_eq!(budget.total(), queues.iter().sum::<usize>());
            let share = WORKER_QUEUE_BYTES_MAX / (count + 1);
            for queue in queues {
                assert!(queue.abs_diff(share) <= share / 4, "{queue} of {share}");
            }
        }
    }
}
