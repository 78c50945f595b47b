//! Route lookups, timed in groups that are long beside the clock and short beside a turn.

use std::{hint::black_box, net::IpAddr, time::Instant};

use anyhow::Context as _;
use fabric_core::route::RouteTable;

use super::figures::{Figure, Limit};
use crate::{
    fabric::{Fabric, SIZES, Size},
    statistics::percentile,
};

/// Lookups between two looks at the clock: reading it is then less than a hundredth of the time.
const GROUP: usize = 1024;
/// Passes over all addresses.
const PASSES: usize = 200;
/// Most at the median (ns), by the name of the size.
const NS_MAX: [(&str, f64); 2] = [("5k-peers", 20.0), ("150k-addresses", 60.0)];

/// Times lookups; `allocations` runs what it is given and counts.
///
/// # Errors
///
/// A size has no addresses, which none lacks.
pub fn measure(allocations: impl Fn(&mut dyn FnMut()) -> u64) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, most) in NS_MAX {
        let size = SIZES.into_iter().find(|size| size.name == name);
        let size = size.with_context(|| format!("there is no size {name}"))?;
        let fabric = Fabric::new(size);
        let table: RouteTable = fabric.routes().into_iter().collect();
        for (family, targets) in [("IPv4", fabric.targets_v4()), ("IPv6", fabric.targets_v6())] {
            if targets.is_empty() {
                continue;
            }
            let mut times = Vec::with_capacity(PASSES * targets.len() / GROUP);
            let counted = allocations(&mut || time(&table, &targets, &mut times));
            let figure = |what: &str, value, unit, most| Figure {
                limit: Limit::Lookup,
                what: format!("{}, {family}, {what}", describe(size)),
                value,
                unit,
                most,
            };
            let at = |percent| percentile(&times, percent).context("no times");
            figures.push(figure("p50", at(50)?, "ns", Some(most)));
            figures.push(figure("p99 of groups of 1024", at(99)?, "ns", None));
            figures.push(figure("allocations", counted as f64, "", Some(0.0)));
        }
    }
    Ok(figures)
}

/// Appends the mean time of each group (ns); `times` has room for all.
fn time(table: &RouteTable, targets: &[IpAddr], times: &mut Vec<f64>) {
    for _ in 0..PASSES {
        for group in targets.chunks_exact(GROUP) {
            let begin = Instant::now();
            for addr in group {
                black_box(table.lookup(black_box(*addr)));
            }
            times.push(begin.elapsed().as_nanos() as f64 / GROUP as f64);
        }
    }
}

fn describe(size: Size) -> String {
    match size.singles {
        0 => format!("{} peers and 110 pods", size.peers),
        singles => format!("{singles} single addresses of {} peers", size.peers),
    }
}
