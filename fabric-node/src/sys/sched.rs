//! How the kernel schedules a data-plane thread.

use std::io;

/// Time on the processor that a data-plane thread asks for at a stretch (ns): the kernel's least
/// (sched(7), `sched_runtime` of SCHED_OTHER, Linux 6.12 and later; older kernels ignore it). A
/// thread that asks for little is let on sooner when it wakes up, and gets no more of the processor
/// for it.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` of `linux/sched/types.h`, its first version.
#[repr(C)]
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

/// Asks for a short slice for the calling thread; it keeps its nice value.
///
/// # Errors
///
/// What the kernel said.
pub fn ask_for_short_slices() -> io::Result<()> {
    let nice = rustix::process::getpriority_process(None)?;
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: SLICE_NS,
        deadline: 0,
        period: 0,
    };
    // SAFETY: thread 0 is the calling one; the pointer is to a complete `sched_attr` whose size it
    // names, and the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Any thread may ask for it, and keeps its nice value.
    #[test]
    fn a_thread_keeps_its_nice_value() {
        std::thread::spawn(|| {
            let nice = rustix::process::nice(3).unwrap();
            ask_for_short_slices().unwrap();
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), nice);
        })
        .join()
        .unwrap();
    }
}
