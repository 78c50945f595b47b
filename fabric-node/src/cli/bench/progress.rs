//! What a person sees while they wait: a bar on a terminal, a line for each pair without one, nothing
//! when asked for silence. And whether they still wait: Ctrl-C.

use std::{
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{lab::Interrupt, measure::Watch, terminal::output::Output};

/// Follows a run of known length.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    output: Output,
    interrupt: Interrupt,
    now: Mutex<Phase>,
}

#[derive(Debug)]
struct Phase {
    pair: String,
    /// Where the bar stands at the begin of this phase.
    base: Duration,
    begin: Instant,
    length: Duration,
}

impl Progress {
    /// A run that takes about `length`.
    pub(super) fn new(length: Duration, output: Output, interrupt: Interrupt) -> Self {
        let is_seen = !output.quiet && std::io::stderr().is_terminal();
        let target = if is_seen {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(milliseconds(length)), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:24.cyan} {percent:>3} % {wide_msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            output,
            interrupt,
            now: Mutex::new(Phase {
                pair: String::new(),
                base: Duration::ZERO,
                begin: Instant::now(),
                length: Duration::ZERO,
            }),
        }
    }

    /// A pair begins, the `number`th of `count`.
    pub(super) fn pair(&self, pair: &str, number: usize, count: usize) {
        pair.clone_into(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner).pair);
        if count > 1 && self.bar.is_hidden() {
            self.output.say(&format!("{number}/{count} {pair}"));
        }
    }

    /// What takes about `length` begins.
    pub(super) fn phase(&self, what: &str, length: Duration) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let base = now.base + now.length;
        now.base = base;
        now.begin = Instant::now();
        now.length = length;
        self.bar.set_position(milliseconds(base));
        self.bar.set_message(format!("{}: {what}", now.pair));
    }

    /// Says something beside the bar.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| self.output.say(text));
    }

    /// Whether Ctrl-C was pressed.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt.is_set()
    }
}

impl Watch for Progress {
    fn check(&self) -> anyhow::Result<()> {
        // Whoever holds it moves the bar already.
        if !self.bar.is_hidden()
            && let Ok(now) = self.now.try_lock()
        {
            let done = now.begin.elapsed().min(now.length);
            self.bar.set_position(milliseconds(now.base + done));
        }
        self.interrupt.check()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
