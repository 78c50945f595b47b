//! Measures every case in turns: one repetition is one pass over all of them.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use fabric_node::lab::{Interrupt, Progress};

use crate::{
    bed::Bed,
    iperf::{self, Direction, Ends, TcpLoad, UdpLoad},
    ping::{self, Pings, RoundTrip},
    plan::{Case, Figure, Probe, RAMP, duration, load_seconds, order},
    report::{Sample, Samples},
    usage,
};

/// A case without a sample is given up after so many failures: each may have to be waited for.
const FAILURES_MAX: u32 = 2;

/// How to measure.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// What to measure.
    pub cases: Vec<Case>,
    /// Passes over all cases.
    pub repetitions: u32,
    /// Length of one measurement under load (seconds).
    pub seconds: u32,
    /// TCP congestion control; the machine's default if `None`.
    pub congestion: Option<String>,
}

impl RunOptions {
    /// About how long it takes; starting the systems is not in it.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let each = self.cases.iter();
        let pass: Duration = each.map(|case| duration(case.measure, self.seconds)).sum();
        pass * self.repetitions
    }
}

/// Measures, and adds the samples to `samples`. A case that fails is noted there and does not stop
/// the others; one that does not run on this bed is left out.
///
/// # Errors
///
/// The user interrupted.
pub fn run(
    bed: &Bed,
    options: &RunOptions,
    samples: &mut Samples,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let mut options = options.clone();
    let possible = |case: &Case| bed.ends(case.system, case.measure).is_some();
    options.cases.retain(possible);
    let all = options.estimate();
    let mut left = all;
    for repetition in 0..options.repetitions {
        for case in order(&options.cases, repetition) {
            interrupt.check()?;
            let turn = format!("{}/{}", repetition + 1, options.repetitions);
            progress.step(&format!(
                "{turn}, {}: {}, {}",
                remaining(all, left),
                case.measure.title(),
                case.system.title()
            ));
            left = left.saturating_sub(duration(case.measure, options.seconds));
            if given_up(samples, case) {
                continue;
            }
            match measure(bed, case, &options) {
                Ok(sample) => samples.add(case, sample),
                Err(error) => {
                    interrupt.check()?;
                    progress.around(|| progress.step(&format!("failed: {error:#}")));
                    samples.fail(case, format!("{error:#}"));
                }
            }
        }
    }
    Ok(())
}

/// A length of time as a person says it, never shorter than it is.
#[must_use]
pub fn in_words(duration: Duration) -> String {
    match duration.as_secs_f64().ceil() as u64 {
        seconds @ ..=90 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

fn remaining(all: Duration, left: Duration) -> String {
    let done = 100.0 * (1.0 - left.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE));
    format!("{done:.0} %, {} left", in_words(left))
}

fn given_up(samples: &Samples, case: Case) -> bool {
    samples.failures(case) >= FAILURES_MAX
        && samples.values(case, case.measure.main_figure()).is_empty()
}

fn measure(bed: &Bed, case: Case, options: &RunOptions) -> anyhow::Result<Sample> {
    let Some(ends) = bed.ends(case.system, case.measure) else {
        anyhow::bail!("it is not on this bed");
    };
    let use_of = Use::start(bed.pids(case.system))?;
    match case.measure.probe() {
        Probe::Tcp { streams, direction } => {
            let load = tcp_load(streams, direction, options.seconds, options);
            let transfer = iperf::tcp(ends, load)?;
            let sample = Sample::default()
                .with(Figure::GbitPerSecond, transfer.gbit_per_second)
                .with_congestion(transfer.congestion);
            let sample = use_of.cpu_per_gb(sample, transfer.bytes)?;
            use_of.peak(sample)
        }
        Probe::Udp { payload_bytes } => {
            let seconds = options.seconds;
            let packets = iperf::udp(
                ends,
                UdpLoad {
                    payload_bytes,
                    seconds,
                },
            )?;
            let sample = Sample::default()
                .with(Figure::DeliveredKpps, packets.delivered_kpps)
                .with(Figure::OfferedKpps, packets.offered_kpps)
                .with(Figure::LostPercent, packets.lost_percent);
            use_of.peak(sample)
        }
        Probe::Rtt {
            pings,
            beside_streams: 0,
        } => Ok(sample_of(ping::measure(ends.client, ends.address, pings)?)),
        Probe::Rtt {
            pings,
            beside_streams,
        } => {
            let seconds = load_seconds(pings);
            let load = tcp_load(beside_streams, Direction::Forth, seconds, options);
            use_of.peak(pings_beside(ends, pings, load)?)
        }
    }
}

fn tcp_load(streams: u32, direction: Direction, seconds: u32, options: &RunOptions) -> TcpLoad<'_> {
    TcpLoad {
        streams,
        direction,
        seconds,
        congestion: options.congestion.as_deref(),
    }
}

fn sample_of(trip: RoundTrip) -> Sample {
    Sample::default()
        .with(Figure::RttP50Ms, trip.p50_ms)
        .with(Figure::RttP99Ms, trip.p99_ms)
}

/// Pings while TCP streams run between the same ends.
fn pings_beside(ends: Ends<'_>, pings: Pings, load: TcpLoad<'_>) -> anyhow::Result<Sample> {
    thread::scope(|scope| {
        let started = Instant::now();
        let streams = scope.spawn(move || iperf::tcp(ends, load));
        thread::sleep(RAMP);
        let trip = ping::measure(ends.client, ends.address, pings);
        // The streams begin some time after the thread, so they end later than this.
        let in_time = started.elapsed() <= Duration::from_secs(load.seconds.into());
        let Ok(transfer) = streams.join() else {
            anyhow::bail!("the thread of the streams panicked");
        };
        let (transfer, trip) = (transfer?, trip?);
        ensure!(in_time, "the streams ended before the pings beside them");
        Ok(sample_of(trip)
            .with(Figure::BesideGbitPerSecond, transfer.gbit_per_second)
            .with_congestion(transfer.congestion))
    })
}

/// What the processes of a system use from here on; a system without processes uses nothing that
/// could be told from the rest of the machine's work.
struct Use {
    pids: Vec<u32>,
    cpu_seconds_before: f64,
}

impl Use {
    fn start(pids: Vec<u32>) -> anyhow::Result<Self> {
        // A kernel that does not offer it leaves the peak since the start, which is no smaller.
        let _ = usage::reset_peak_rss(&pids);
        Ok(Self {
            cpu_seconds_before: usage::cpu_seconds(&pids)?,
            pids,
        })
    }

    fn cpu_per_gb(&self, sample: Sample, bytes: u64) -> anyhow::Result<Sample> {
        if self.pids.is_empty() {
            return Ok(sample);
        }
        let used = usage::cpu_seconds(&self.pids)? - self.cpu_seconds_before;
        Ok(sample.with(Figure::CpuSecondsPerGb, used / (bytes as f64 / 1e9)))
    }

    fn peak(&self, sample: Sample) -> anyhow::Result<Sample> {
        if self.pids.is_empty() {
            return Ok(sample);
        }
        let peak = usage::peak_rss_mib(&self.pids)?;
        Ok(sample.with(Figure::PeakRssMib, peak))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Measure, System};

    const CASE: Case = Case {
        measure: Measure::TcpAcross,
        system: System::WireguardGo,
    };

    /// Minutes are rounded up, short times are told in seconds.
    #[test]
    fn times_are_told_in_words() {
        assert_eq!(in_words(Duration::from_millis(1500)), "2 s");
        assert_eq!(in_words(Duration::from_secs(91)), "2 min");
        assert_eq!(in_words(Duration::from_secs(26 * 60)), "26 min");
        let (all, left) = (Duration::from_secs(400), Duration::from_secs(300));
        assert_eq!(remaining(all, left), "25 %, 5 min left");
        assert_eq!(remaining(Duration::ZERO, Duration::ZERO), "100 %, 0 s left");
    }

    /// The estimate counts every case once per repetition.
    #[test]
    fn the_estimate_counts_repetitions() {
        let options = |repetitions| RunOptions {
            cases: vec![CASE; 2],
            repetitions,
            seconds: 3,
            congestion: None,
        };
        assert_eq!(options(10).estimate(), options(1).estimate() * 10);
        assert!(options(1).estimate() > Duration::from_secs(6));
    }

    /// A case is given up when it only fails; one sample keeps it in.
    #[test]
    fn only_hopeless_cases_are_given_up() {
        let mut samples = Samples::default();
        samples.fail(CASE, "refused".to_owned());
        assert!(!given_up(&samples, CASE));
        samples.fail(CASE, "refused".to_owned());
        assert!(given_up(&samples, CASE));
        samples.add(CASE, Sample::default().with(Figure::GbitPerSecond, 1.0));
        assert!(!given_up(&samples, CASE));
    }
}
