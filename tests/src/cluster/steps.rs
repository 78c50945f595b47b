//! What a person sees while a cluster is made: a line for each step, with the seconds since the begin.

use std::time::{Duration, Instant};

/// Prints steps. May be used by several threads at once.
#[derive(Debug)]
pub struct Steps {
    begin: Instant,
    quiet: bool,
}

impl Steps {
    /// Begins to count.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self {
            begin: Instant::now(),
            quiet,
        }
    }

    /// Does `work` and tells that it is done, how long it took, and when; what it answers.
    ///
    /// # Errors
    ///
    /// Those of `work`, with what it was.
    pub fn step<T>(
        &self,
        what: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let begin = Instant::now();
        let done = work().map_err(|error| error.context(format!("not done: {what}")))?;
        self.tell(what, begin.elapsed());
        Ok(done)
    }

    /// Time since the begin.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    #[allow(
        clippy::print_stderr,
        reason = "bringing a cluster up takes seconds in which a person wants to see something"
    )]
    fn tell(&self, what: &str, took: Duration) {
        if !self.quiet {
            eprintln!(
                "[{:5.1} s] {what} ({:.1} s)",
                self.begin.elapsed().as_secs_f64(),
                took.as_secs_f64()
            );
        }
    }
}
