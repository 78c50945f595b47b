//! `soak`: what takes too long for every change. Twenty gigabytes over a bad cable, of which no byte may
//! be wrong; then full load both ways for ten minutes, while the daemons' memory is watched. Table on
//! standard output, progress on standard error, both forms of the report in files. Exit 1 where
//! something is wrong or too much.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use fabric_node::lab::{Interrupt, Progress};
use fabric_tests::{
    impair::Impairment,
    load::{
        corruption, endurance,
        report::{Circumstances, Soak},
    },
    stage::Stage,
};

/// Look for wrong bytes behind a bad cable, then for memory that grows under full load
#[derive(Debug, Parser)]
#[command(name = "soak", version)]
struct Args {
    /// Bytes over the bad cable, a multiple of 16; 0 leaves this part out
    #[arg(long, value_name = "BYTES", default_value_t = 20_000_000_000)]
    bytes: u64,
    /// Seconds of full load; 0 leaves this part out, less than 300 say nothing about growth
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    seconds: u64,
    /// What the cable's doings are drawn from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Folder for the reports
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(args.quiet);
    let stage = Stage::enter()?;
    let mut soak = Soak::new(Circumstances::here()?);
    if args.bytes > 0 {
        progress.step("building a lab for the bad cable");
        let lab = stage.lab("soak", 2, 2)?;
        let options = corruption::Options {
            bytes: args.bytes,
            impairment: Impairment::one_in_a_thousand(args.seed),
        };
        let mut watch = watch(&progress, &interrupt, "over a bad cable");
        let outcome = corruption::run(&lab, &impair()?, options, &mut watch);
        soak.corruption = Some(outcome.map_err(|error| format!("{error:#}")));
        lab.down()?;
    }
    interrupt.check()?;
    if args.seconds > 0 {
        progress.step("building a lab for the long load");
        let lab = stage.lab("soak", 2, 2)?;
        let time = Duration::from_secs(args.seconds);
        let mut watch = watch(&progress, &interrupt, "under full load");
        let outcome = endurance::run(&lab, time, &mut watch);
        soak.endurance = Some(outcome.map_err(|error| format!("{error:#}")));
        lab.down()?;
    }
    interrupt.check()?;
    drop(progress);
    let text = soak.to_markdown();
    write(&args.out, &soak, &text)?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!soak.failures().is_empty())))
}

fn watch<'a>(
    progress: &'a Progress,
    interrupt: &'a Interrupt,
    what: &'a str,
) -> impl FnMut(u64) -> anyhow::Result<()> + 'a {
    let begin = Instant::now();
    move |bytes| {
        interrupt.check()?;
        let gigabytes = bytes as f64 / 1e9;
        let seconds = begin.elapsed().as_secs_f64();
        progress.step(&format!("{gigabytes:.1} GB {what} in {seconds:.0} s"));
        Ok(())
    }
}

/// Built with this program, into the same folder.
fn impair() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program is in no folder")?;
    Ok(folder.join("impair"))
}

fn write(folder: &Path, soak: &Soak, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(folder.join("soak.md"), text)?;
    fs::write(
        folder.join("soak.json"),
        serde_json::to_vec_pretty(&soak.to_json())?,
    )?;
    Ok(())
}
