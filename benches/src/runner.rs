//! Measures every case in turns: one repetition is one pass over all of them.

use fabric_node::lab::{Interrupt, Progress};

use crate::{
    bed::Bed,
    iperf::{self, Load},
    ping,
    plan::{Case, System, order},
    report::{Sample, Samples},
    usage,
};

/// How to measure.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// What to measure.
    pub cases: Vec<Case>,
    /// Passes over all cases.
    pub repetitions: u32,
    /// Length of one TCP measurement (seconds).
    pub seconds: u32,
    /// TCP congestion control; the machine's default if `None`.
    pub congestion: Option<String>,
}

/// Measures, and adds the samples to `samples`. A case that fails is noted there and does not stop
/// the others.
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
    for repetition in 0..options.repetitions {
        for case in order(&options.cases, repetition) {
            interrupt.check()?;
            progress.step(&format!(
                "{}/{}: {}, {}",
                repetition + 1,
                options.repetitions,
                case.measure.title(),
                case.system.title()
            ));
            match measure(bed, case, options) {
                Ok(Some(sample)) => samples.add(case, sample),
                Ok(None) => {}
                Err(error) => {
                    interrupt.check()?;
                    progress.around(|| progress.step(&format!("failed: {error:#}")));
                    samples.fail(case, format!("{error:#}"));
                }
            }
        }
    }
    for system in [System::Fabric, System::WireguardGo] {
        let pids = bed.pids(system);
        if !pids.is_empty() {
            samples.set_rss(system, usage::rss_mib(&pids)?);
        }
    }
    Ok(())
}

fn measure(bed: &Bed, case: Case, options: &RunOptions) -> anyhow::Result<Option<Sample>> {
    let Some(ends) = bed.ends(case.system, case.measure) else {
        return Ok(None);
    };
    let Some((streams, reverse)) = case.measure.streams() else {
        return Ok(Some(Sample {
            value: ping::measure(ends.client, ends.address)?,
            cpu_seconds_per_gb: None,
            congestion: None,
        }));
    };
    let load = Load {
        streams,
        reverse,
        seconds: options.seconds,
        congestion: options.congestion.as_deref(),
    };
    let pids = bed.pids(case.system);
    let before = usage::cpu_seconds(&pids)?;
    let transfer = iperf::measure(ends, load)?;
    let used = usage::cpu_seconds(&pids)? - before;
    Ok(Some(Sample {
        value: transfer.gbit_per_second,
        cpu_seconds_per_gb: (!pids.is_empty()).then(|| used / (transfer.bytes as f64 / 1e9)),
        congestion: Some(transfer.congestion),
    }))
}
