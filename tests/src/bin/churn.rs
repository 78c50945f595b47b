//! `churn`: ten thousand ADDs and DELs while daemon and plugin are killed, then the same in a range that
//! is too small until an address has come back. Seed, counts and times on standard output, progress on
//! standard error. Exit 1 where something leaked, an address had two pods, or did not rest.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use fabric_node::lab::{Interrupt, Progress};
use fabric_tests::{
    churn::{self, Options, model::REST},
    stage::Stage,
};

/// How much longer than a rest the small range is used (seconds).
const SMALL_RANGE_EXTRA: Duration = Duration::from_secs(30);
/// Part of the operations for the small range.
const SMALL_RANGE_SHARE: usize = 10;

/// Attach and detach pods while daemon and plugin are killed, and look for what is left
#[derive(Debug, Parser)]
#[command(name = "churn", version)]
struct Args {
    /// Operations in the large range; a tenth of them in the small one, or more
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    ops: usize,
    /// What they are drawn from; default: the time
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Operations side by side
    #[arg(long, value_name = "NUMBER", default_value_t = 6)]
    parallel: usize,
    /// Leave the small range out
    #[arg(long)]
    large_only: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let large = Options {
        operations: args.ops,
        at_least: Duration::ZERO,
        seed,
        parallel: args.parallel,
        pods_each: 6,
        range: "10.200.0.0/16".parse()?,
    };
    let report = one(args, &large)?;
    ensure!(
        report.tally.exhausted == 0,
        "a range that is large enough had no address"
    );
    if args.large_only {
        return Ok(());
    }
    let small = Options {
        operations: args.ops / SMALL_RANGE_SHARE,
        at_least: REST + SMALL_RANGE_EXTRA,
        range: "10.200.0.0/26".parse()?,
        ..large
    };
    let report = one(args, &small)?;
    let (_, again, _) = report.given;
    ensure!(
        report.tally.exhausted > 0 && again > 0,
        "the small range was not too small, or nothing came back: this proves little"
    );
    Ok(())
}

fn one(args: &Args, options: &Options) -> anyhow::Result<churn::Report> {
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(args.quiet);
    progress.step(&format!("churn with seed {}", options.seed));
    let stage = Stage::enter()?;
    let report = churn::run(&stage, "churn", options, &mut |operations| {
        interrupt.check()?;
        progress.step(&format!(
            "{operations} of {} operations",
            options.operations
        ));
        Ok(())
    })
    .with_context(|| format!("--seed {}", options.seed))?;
    drop(progress);
    writeln!(std::io::stdout(), "{report}\n")?;
    Ok(report)
}
