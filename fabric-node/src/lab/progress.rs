//! What a person sees while they wait, on standard error: a spinner on a terminal, plain lines
//! without one, nothing when asked for silence.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Reports steps.
#[derive(Debug)]
pub struct Progress(Kind);

#[derive(Debug)]
enum Kind {
    Silent,
    Lines,
    Spinner(ProgressBar),
}

impl Progress {
    /// Says nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self(Kind::Silent)
    }

    /// Spinner or lines, as standard error allows; nothing when `quiet`.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        if quiet {
            return Self::silent();
        }
        if !std::io::stderr().is_terminal() {
            return Self(Kind::Lines);
        }
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self(Kind::Spinner(spinner))
    }

    /// The next step has begun.
    pub fn step(&self, what: &str) {
        match &self.0 {
            Kind::Silent => {}
            Kind::Lines => {
                // A reader that has gone must not end the work half-way.
                let _ = writeln!(anstream::stderr(), "{what}");
            }
            Kind::Spinner(spinner) => {
                spinner.reset_elapsed();
                spinner.set_message(what.to_owned());
            }
        }
    }

    /// The next step has begun, and a line of its own will say how it ended.
    pub fn hint(&self, what: &str) {
        if let Kind::Spinner(_) = &self.0 {
            self.step(what);
        }
    }

    /// Runs `print`, which writes to the terminal, without the spinner in its way.
    pub fn around<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Kind::Silent | Kind::Lines => print(),
            Kind::Spinner(spinner) => spinner.suspend(print),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Kind::Spinner(spinner) = &self.0 {
            spinner.finish_and_clear();
        }
    }
}
