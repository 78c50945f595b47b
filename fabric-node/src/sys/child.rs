//! Programs that cannot outlive who started them.

use std::{os::unix::process::CommandExt as _, process::Command};

use rustix::process::{Signal, set_parent_process_death_signal};

/// Lets the kernel kill the program that `command` starts as soon as the *thread* that starts it has
/// ended (`PR_SET_PDEATHSIG`, prctl(2)), however that came: the thread has to stay for as long as
/// the program shall run.
pub fn end_with_thread(command: &mut Command) {
    // SAFETY: between fork and exec, the closure makes one system call and touches no memory of the
    // parent: it neither allocates nor locks.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{os::unix::process::ExitStatusExt as _, process::Stdio, thread};

    use super::*;

    /// A program that would read for ever is killed when the thread that started it ends.
    #[test]
    fn a_program_ends_with_its_thread() {
        let (mut child, _open) = thread::spawn(|| {
            let mut command = Command::new("cat");
            end_with_thread(command.stdin(Stdio::piped()));
            let mut child = command.spawn().unwrap();
            let open = child.stdin.take();
            (child, open)
        })
        .join()
        .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
