//! `bench-fair`: four pods of one node send at once to four of another, and a fifth pings. Table on
//! standard output, progress on standard error, both forms of the report in files.

use std::{fs, process::ExitCode};

use clap::Parser;
use fabric_benches::{
    fair::{
        measure::Pairs,
        report::{Case, Report, Verdict},
    },
    invocation::{Invocation, exit_code},
    machine::Machine,
};
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
    /// Name of the lab that is built
    #[arg(long, default_value = "fair")]
    name: LabName,
    #[command(flatten)]
    invocation: Invocation,
}

fn main() -> ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let progress = args.invocation.progress();
    args.invocation.folder()?;
    let report = measure(args, &progress, &interrupt)?;
    drop(progress);
    args.invocation
        .deliver("fair", &report.to_json()?, &report.to_markdown()?)?;
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
        &args.invocation.programs()?,
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
    let Machine {
        kernel,
        processor,
        processors,
    } = Machine::here()?;
    let (repetitions, seconds) = (args.repetitions, args.seconds);
    Ok(format!(
        "{processors} x {processor}, Linux {kernel}, underlay MTU 1500; medians of {repetitions} \
         repetitions of {seconds} s, interleaved."
    ))
}
