//! Ctrl-C: signals in, a flag out. The work asks the flag between its steps, so that clean-up runs
//! on the thread that knows what there is to clean, never beside it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// One that is never set: for callers that handle signals themselves.
    #[must_use]
    pub fn never() -> Self {
        Self::default()
    }

    /// One that SIGINT, SIGTERM and SIGHUP set, for the rest of the process's life.
    ///
    /// # Errors
    ///
    /// The handlers cannot be installed.
    pub fn install() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let flag = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot handle signals")?;
        let mut signals = {
            let _context = runtime.enter();
            (
                signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
                signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
                signal(SignalKind::hangup()).context("cannot handle SIGHUP")?,
            )
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        tokio::select! {
                            _ = signals.0.recv() => {}
                            _ = signals.1.recv() => {}
                            _ = signals.2.recv() => {}
                        }
                        flag.0.store(true, Ordering::Relaxed);
                    }
                });
            })?;
        Ok(interrupt)
    }

    /// Whether it was set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on unless it was set.
    ///
    /// # Errors
    ///
    /// It was set.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }
}
