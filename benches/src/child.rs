//! Programs that must not outlive the measurement.

use std::{
    process::{Child, Command},
    time::Duration,
};

use anyhow::Context as _;
use fabric_node::{
    lab::process::{Process, stop_all},
    sys::netns::Netns,
};

/// How long a program may take to end after it was asked to.
const STOP_MAX: Duration = Duration::from_secs(3);

/// A started program; asked to end, then killed, when this value is dropped.
#[derive(Debug)]
pub struct Guard(Child);

impl Guard {
    /// Starts `command` inside `netns`.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(netns: &Netns, mut command: Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        netns
            .run(move || command.spawn())?
            .map(Self)
            .with_context(|| format!("cannot start {program}"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The child, to take its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Not collected yet means that its pid is still its own.
        if !self.has_ended() {
            stop_all(
                &Process::open(self.pid()).into_iter().collect::<Vec<_>>(),
                STOP_MAX,
            );
        }
    }
}
