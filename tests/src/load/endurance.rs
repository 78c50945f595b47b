//! Full load both ways for a long time, while the memory of both daemons is sampled every second.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::Lab;
use serde::Serialize;

use super::{
    memory::{Course, rss_kib},
    streams::{Streams, Watch, criss_cross},
};
use crate::account::check_conserved;

/// Streams side by side, half of them in each direction.
pub const STREAMS: u64 = 64;
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most that a daemon may hold (MiB).
pub const RSS_MIB_MAX: f64 = 64.0;
/// Most that it may grow by in 5 minutes, in the second half of the time (MiB).
pub const GROWTH_MIB_MAX: f64 = 1.0;
/// The shortest time whose second half says anything about growth: less is all warming up.
pub const GROWTH_SECONDS_MIN: u64 = 300;

/// What was seen.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How long it took (s).
    pub seconds: f64,
    /// Streams side by side.
    pub streams: u64,
    /// Bytes that arrived, each compared with what belongs there.
    pub bytes: u64,
    /// Of both directions together.
    pub gbit_per_second: f64,
    /// The daemons.
    pub daemons: Vec<Daemon>,
}

/// What one daemon held.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Daemon {
    /// Its node.
    pub worker: String,
    /// Before the load (MiB).
    pub rss_mib_idle: f64,
    /// The most under load.
    pub rss_mib_max: f64,
    /// The last under load.
    pub rss_mib_last: f64,
    /// Growth in the second half (MiB in 5 minutes).
    pub growth_mib: Option<f64>,
}

impl Outcome {
    /// What is too much, if anything is.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for daemon in &self.daemons {
            let Daemon {
                worker,
                rss_mib_max,
                growth_mib,
                ..
            } = daemon;
            if *rss_mib_max > RSS_MIB_MAX {
                failures.push(format!(
                    "{worker} held {rss_mib_max:.1} MiB, more than {RSS_MIB_MAX}"
                ));
            }
            let is_long_enough = self.seconds >= GROWTH_SECONDS_MIN as f64;
            if let Some(growth) = growth_mib.filter(|it| is_long_enough && *it > GROWTH_MIB_MAX) {
                failures.push(format!(
                    "{worker} grew by {growth:.2} MiB in 5 minutes, more than {GROWTH_MIB_MAX}"
                ));
            }
        }
        failures
    }
}

/// Runs it in a lab of two workers with two pods each.
///
/// # Errors
///
/// A stream stops or carries a wrong byte, a daemon ends, an account does not add up, or `watch`
/// says so. Too much memory is no error: [`Outcome::failures`].
pub fn run(lab: &Lab, time: Duration, watch: &mut Watch<'_>) -> anyhow::Result<Outcome> {
    let pids = lab.workers().iter().map(|worker| worker.pid);
    let pids: Vec<u32> = pids.collect::<Option<_>>().context("a daemon is not up")?;
    let idle = pids
        .iter()
        .map(|&pid| rss_kib(pid))
        .collect::<Result<Vec<_>, _>>()?;
    let mut courses = vec![Course::default(); pids.len()];
    let streams = Streams::start(&criss_cross(lab.pods(), STREAMS, None)?)?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        thread::sleep(INTERVAL.min(time.saturating_sub(begin.elapsed())));
        watch(streams.received().iter().sum())?;
        ensure!(!streams.is_finished(), "all streams have ended too early");
        for (course, &pid) in courses.iter_mut().zip(&pids) {
            course.add(begin.elapsed().as_secs_f64(), rss_kib(pid)?);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let bytes: u64 = streams.stop()?.iter().map(|stream| stream.bytes).sum();
    for worker in lab.workers() {
        check_conserved(worker)?;
    }
    let daemons = lab.workers().iter().zip(&courses).zip(&idle);
    Ok(Outcome {
        seconds,
        streams: STREAMS,
        bytes,
        gbit_per_second: bytes as f64 * 8.0 / seconds / 1e9,
        daemons: daemons
            .map(|((worker, course), &idle)| Daemon {
                worker: worker.name.clone(),
                rss_mib_idle: idle as f64 / 1024.0,
                rss_mib_max: course.max_mib(),
                rss_mib_last: course.last_mib(),
                growth_mib: course.growth(),
            })
            .collect(),
    })
}
