//! Attachments that come and go while the daemon is killed every 50 operations and plugins at any
//! moment: the short form of `make churn`.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use anyhow::ensure;
use fabric_tests::{
    churn::{self, Options},
    stage::Stage,
};

/// Another one is worth a try where this one finds nothing: `churn --seed`.
const SEED: u64 = 5;

/// After 1,000 ADDs and DELs, in order, repeated, lost, late and cut short, nothing is left of the pods
/// that went, those that stayed work, and no address had two pods or came back before its rest.
#[test]
fn nothing_leaks_and_nothing_is_given_twice() -> anyhow::Result<()> {
    let report = run("churn", 1_000, "10.200.0.0/18")?;
    ensure!(report.crashes >= 15, "the daemon was hardly ever killed");
    let tally = &report.tally;
    let kinds = [
        ("killed ADDs", tally.adds_killed),
        ("killed DELs", tally.dels_killed),
        ("doubled DELs", tally.dels_doubled),
        ("lost DELs", tally.dels_lost),
        ("late DELs", tally.dels_late),
    ];
    for (kind, count) in kinds {
        ensure!(count >= 10, "only {count} {kind}");
    }
    ensure!(tally.exhausted == 0, "a large range had no address");
    Ok(())
}

/// In a range that is too small ADDs fail with code 11 when, and only when, all its addresses are taken
/// or rest; none is ever given to two pods.
#[test]
fn a_small_range_runs_out() -> anyhow::Result<()> {
    let report = run("churn-small", 400, "10.200.0.0/27")?;
    ensure!(report.tally.exhausted > 0, "it was not too small");
    Ok(())
}

fn run(purpose: &str, operations: usize, range: &str) -> anyhow::Result<churn::Report> {
    let stage = Stage::enter()?;
    let options = Options {
        operations,
        at_least: Duration::ZERO,
        seed: SEED,
        parallel: 6,
        pods_each: 4,
        range: range.parse()?,
    };
    let report = churn::run(&stage, purpose, &options, &mut |_| Ok(()))?;
    println!("{report}");
    Ok(report)
}
