//! How the kernel schedules a data-plane thread: in short slices, unless the operator has chosen.

use std::io;

/// Time on the processor that a data-plane thread asks for at a stretch (ns): the kernel's least
/// (sched(7), `sched_runtime` of SCHED_OTHER, Linux 6.12 and later; older kernels ignore it). A
/// thread that asks for little is let on sooner when it wakes up, and gets no more of the processor
/// for it.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` of `linux/sched/types.h`, its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// What became of the wish for short slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slices {
    /// The kernel has taken it.
    Asked,
    /// None was uttered: somebody has chosen a policy, a nice value or slices, and that stays.
    Chosen,
}

/// Asks for short slices for the calling thread, unless somebody has chosen how it is scheduled: with
/// `chrt`, `nice`, or systemd's `CPUSchedulingPolicy=` and `Nice=`. A thread has all of that from the
/// one that started it.
///
/// # Errors
///
/// What the kernel said.
pub fn ask_for_short_slices() -> io::Result<Slices> {
    let found = attributes()?;
    if found.policy != libc::SCHED_OTHER as u32 || found.nice != 0 || has_own_slices(found)? {
        return Ok(Slices::Chosen);
    }
    set_runtime(found, SLICE_NS)?;
    Ok(Slices::Asked)
}

/// Whether slices were chosen for the calling thread, which is as `found`.
///
/// The kernel tells their length, not who chose it. Asked for slices of 0 it gives those that a thread
/// has by itself: what differs from them was chosen, and is put back.
fn has_own_slices(found: Attributes) -> io::Result<bool> {
    set_runtime(found, 0)?;
    let is_own = attributes()?.runtime != found.runtime;
    if is_own {
        set_runtime(found, found.runtime)?;
    }
    Ok(is_own)
}

/// Those of the calling thread.
fn attributes() -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: thread 0 is the calling one; the pointer is to a `sched_attr` of the length that is told,
    // any bytes are one, and the kernel writes no more of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            &raw mut attributes,
            size_of::<Attributes>() as libc::c_uint,
            0,
        )
    };
    done(result)?;
    Ok(attributes)
}

/// Makes the calling thread as `found`, with slices of `runtime` (ns).
fn set_runtime(found: Attributes, runtime: u64) -> io::Result<()> {
    set(&Attributes { runtime, ..found })
}

fn set(attributes: &Attributes) -> io::Result<()> {
    // SAFETY: thread 0 is the calling one; the pointer is to a complete `sched_attr` whose size it
    // names, and the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// On a thread that is scheduled as `change` makes an ordinary one: what came of asking, and how it
    /// was scheduled before and after.
    fn ask(
        change: impl FnOnce(&mut Attributes) + Send + 'static,
    ) -> (Slices, Attributes, Attributes) {
        std::thread::spawn(|| {
            let mut wanted = Attributes {
                size: size_of::<Attributes>() as u32,
                ..Attributes::default()
            };
            change(&mut wanted);
            set(&wanted)
                .expect("the scheduling of a thread is not ours to choose: run this as root");
            let before = attributes().unwrap();
            let asked = ask_for_short_slices().unwrap();
            (asked, before, attributes().unwrap())
        })
        .join()
        .unwrap()
    }

    /// A thread that nobody cares about gets short slices, and nothing else about it changes.
    #[test]
    fn an_ordinary_thread_gets_short_slices() {
        let (asked, before, after) = ask(|_| ());
        // Kernels before 6.12 tell 0 and have none.
        let runtime = before.runtime.min(SLICE_NS);
        assert_ne!(
            before.runtime, SLICE_NS,
            "this kernel's own slices are short"
        );
        assert_eq!(asked, Slices::Asked);
        assert_eq!(after, Attributes { runtime, ..before });
    }

    /// A policy that the operator chose stays, with everything that belongs to it.
    #[test]
    fn a_chosen_policy_stays() {
        for (policy, priority) in [(libc::SCHED_BATCH, 0), (libc::SCHED_FIFO, 1)] {
            let (asked, before, after) = ask(move |wanted| {
                (wanted.policy, wanted.priority) = (policy as u32, priority);
            });
            assert_eq!((before.policy, before.priority), (policy as u32, priority));
            assert_eq!((asked, after), (Slices::Chosen, before));
        }
    }

    /// A nice value that the operator chose stays, in either direction.
    #[test]
    fn a_chosen_nice_value_stays() {
        for nice in [-3, 3] {
            let (asked, before, after) = ask(move |wanted| wanted.nice = nice);
            assert_eq!(before.nice, nice);
            assert_eq!((asked, after), (Slices::Chosen, before));
        }
    }

    /// Slices that the operator chose stay, where the kernel has such a thing.
    #[test]
    fn chosen_slices_stay() {
        let chosen = 7 * SLICE_NS;
        let (asked, before, after) = ask(move |wanted| wanted.runtime = chosen);
        if before.runtime == chosen {
            assert_eq!(asked, Slices::Chosen);
        } else {
            // Before Linux 6.12, which tells none.
            assert_eq!(before.runtime, 0);
        }
        assert_eq!(after, before);
    }
}
