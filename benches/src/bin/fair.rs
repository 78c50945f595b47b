//! `bench-fair`: four pods of one node send at once to four of another, and a fifth pings. Table on
//! standard output, progress on standard error, both forms of the report in files.

use std::{fs, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use fabric_benches::fair::{
    measure::Pairs,
    report::{Case, Report, Verdict},
};
use fabric_benches::programs::folder;
use fabric_node::lab::{Interrupt, LabName, Progress};

/// Measure who gets how much when four pods of one node send at once, and a ping beside them
#[derive(Debug, Parser)]
#[command(name = "bench-fair", version)]
struct Args {
    /// Passes over all cases
    #[arg(long, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Length of one run
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(2..))]
    seconds: u32,
    /// TCP congestion controls [default: the machine's, and cubic]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    congestion: Vec<String>,
    /// Exit 1 where a promise is missed
    #[arg(long)]
    check: bool,
    /// Folder for the reports
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the programs fabric-node and fabric-cni [default: where this program is]
    #[arg(long, env = "FABRIC_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Name of the lab that is built
    #[arg(long, default_value = "fair")]
    name: LabName,
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
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let report = measure(args, &progress, &interrupt)?;
    drop(progress);
    let (text, json) = (report.to_markdown()?, report.to_json()?);
    fs::write(args.out.join("fair.md"), &text)?;
    fs::write(
        args.out.join("fair.json"),
        serde_json::to_vec_pretty(&json)?,
    )?;
    std::io::stdout().write_all(text.as_bytes())?;
    let is_kept = report
        .verdicts()?
        .iter()
        .all(|Verdict { holds, .. }| *holds);
    Ok(ExitCode::from(u8::from(args.check && !is_kept)))
}

fn measure(args: &Args, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<Report> {
    let congestions = congestions(args)?;
    let pairs = Pairs::up(
        args.name.clone(),
        &folder(args.bin_dir.as_deref())?,
        progress,
        interrupt,
    )?;
    let mut report = Report {
        circumstances: circumstances(args)?,
        idle: Vec::new(),
        cases: cases(&congestions),
    };
    for repetition in 1..=args.repetitions {
        let say = |what: &str| progress.step(&format!("{repetition}/{}: {what}", args.repetitions));
        say("idle");
        report.idle.push(pairs.idle(2)?);
        for (index, case) in report.cases.iter_mut().enumerate() {
            interrupt.check()?;
            say(&case.title);
            // Two cases for each congestion control.
            let congestion = congestions.get(index / 2).map(String::as_str);
            case.runs.push(if case.is_flood {
                pairs.flood(args.seconds, congestion)?
            } else {
                pairs.tcp(args.seconds, congestion)?
            });
        }
    }
    Ok(report)
}

fn cases(congestions: &[String]) -> Vec<Case> {
    let case = |title: String, is_flood: bool| Case {
        title,
        is_flood,
        runs: Vec::new(),
    };
    congestions
        .iter()
        .flat_map(|congestion| {
            [
                case(format!("4 x TCP {congestion}"), false),
                case(format!("UDP flood + 3 x TCP {congestion}"), true),
            ]
        })
        .collect()
}

fn congestions(args: &Args) -> anyhow::Result<Vec<String>> {
    if !args.congestion.is_empty() {
        return Ok(args.congestion.clone());
    }
    let default = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
    let mut names = vec![default.trim().to_owned(), "cubic".to_owned()];
    names.dedup();
    Ok(names)
}

fn circumstances(args: &Args) -> anyhow::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    Ok(format!(
        "{} x {processor}, Linux {}, underlay MTU 1500; medians of {} repetitions of {} s, interleaved.",
        std::thread::available_parallelism()?,
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        args.repetitions,
        args.seconds,
    ))
}
