//! ADD of a pod, from the exec of the plugin to its end, on a worker that has other pods.

use std::time::Instant;

use anyhow::Context as _;
use fabric_node::lab::{Lab, plugin};

use super::{
    Stage,
    figures::{Figure, Limit},
};
use crate::statistics::percentile;

/// Pairs of ADD and DEL.
const PAIRS: usize = 200;
/// Pairs before them, which warm what can be warmed.
const WARM_UP_PAIRS: usize = 5;
/// Pods on the worker and on its neighbour, the one that comes and goes included.
const PODS: [usize; 2] = [10, 1];
/// Most at the median and at the 99th percentile (ms).
const ADD_MS_MAX: [(&str, usize, f64); 2] = [("p50", 50, 15.0), ("p99", 99, 50.0)];

/// Attaches and detaches one pod again and again.
///
/// # Errors
///
/// The lab cannot be built, or a call of the plugin fails.
pub fn measure(stage: &Stage) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::up_with(&stage.lab(&PODS), &stage.progress, &stage.interrupt)?;
    stage.progress.step("attaching and detaching a pod");
    let (state, mut pod) = (lab.state(), lab.pods().first().context("no pod")?.clone());
    let worker = state.worker(&pod.worker)?;
    let (mut adds, mut deletes) = (Vec::new(), Vec::new());
    for pair in 0..WARM_UP_PAIRS + PAIRS {
        stage.interrupt.check()?;
        let begin = Instant::now();
        plugin::delete(state, worker, &pod)?;
        let deleted = begin.elapsed();
        let begin = Instant::now();
        pod.addresses = plugin::add(state, worker, &pod)?;
        let added = begin.elapsed();
        if pair >= WARM_UP_PAIRS {
            adds.push(added.as_secs_f64() * 1e3);
            deletes.push(deleted.as_secs_f64() * 1e3);
        }
    }
    lab.down()?;
    let mut figures = Vec::new();
    for (what, times, is_limited) in [("ADD", &adds, true), ("DEL", &deletes, false)] {
        let figure = |name: &str, percent, most| {
            Ok(Figure {
                limit: Limit::Attach,
                what: format!("{what}, {name} of {PAIRS}"),
                value: percentile(times, percent).context("no times")?,
                unit: "ms",
                most,
            })
        };
        // What it costs while nothing else runs, as far as that ever was so.
        figures.push(figure("fastest", 0, None));
        figures.extend(
            ADD_MS_MAX
                .map(|(name, percent, most)| figure(name, percent, is_limited.then_some(most))),
        );
    }
    figures.into_iter().collect()
}
