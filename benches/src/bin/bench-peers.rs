//! `bench-peers`: measures fabric beside its peers and plain veth, in turns, between the same two
//! workers. Tables on standard output, progress on standard error, all forms of the report in files.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use fabric_benches::{
    bed::{Bed, BedOptions},
    check::{Outcome, check},
    invocation::{Invocation, exit_code},
    machine::Machine,
    plan::{
        CHECKED, Case, JUMBO_MTU_BYTES, Measure, System, UNDERLAY_MTU_BYTES, cases,
        cases_with_another_mtu,
    },
    report::{Circumstances, Part, Report, charts, json, markdown},
    runner::{RunOptions, in_words, run},
};
use fabric_node::lab::{Interrupt, LabName, Progress};

/// Length of one measurement under load (seconds).
const SECONDS: u32 = 3;
/// The same where only the floors are checked, which few samples decide.
const CHECK_SECONDS: u32 = 5;
/// Folder of the charts, beneath the one of the reports.
const CHARTS_FOLDER: &str = "charts";

/// Measure fabric beside its peers and plain veth, in turns, between the same two workers
#[derive(Debug, Parser)]
#[command(name = "bench-peers", version, mut_arg("out", |out| out.help("Folder for the reports and for the peers' programs")))]
struct Args {
    /// Passes over everything that is measured
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Length of one measurement of throughput [default: 3, with --check 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Only these systems
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SYSTEM,...")]
    only: Vec<System>,
    /// Only these measures
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MEASURE,...")]
    measure: Vec<Measure>,
    /// Measure only what has a floor; exit 1 below a floor, after one more round to make sure
    #[arg(long)]
    check: bool,
    /// TCP congestion control of the streams [default: the machine's]
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// MTU of the network between the workers: everything over the first, a few measures over each
    /// other one; with --check only the first
    #[arg(long, value_delimiter = ',', value_name = "BYTES,...", default_values_t = [UNDERLAY_MTU_BYTES, JUMBO_MTU_BYTES])]
    underlay_mtu: Vec<u32>,
    /// Name of the lab that is built
    #[arg(long, default_value = "bench")]
    name: LabName,
    #[command(flatten)]
    invocation: Invocation,
}

/// What is measured over one underlay.
struct Plan {
    underlay_mtu: u32,
    run: RunOptions,
}

impl Args {
    fn plans(&self) -> Vec<Plan> {
        let seconds = if self.check { CHECK_SECONDS } else { SECONDS };
        let wanted = |case: &Case| {
            (self.only.is_empty() || self.only.contains(&case.system))
                && (self.measure.is_empty() || self.measure.contains(&case.measure))
        };
        let plan = |underlay_mtu: u32, mut cases: Vec<Case>| {
            cases.retain(wanted);
            let run = RunOptions {
                cases,
                repetitions: self.repetitions,
                seconds: self.seconds.unwrap_or(seconds),
                congestion: self.congestion.clone(),
            };
            Plan { underlay_mtu, run }
        };
        let mut mtus = self.underlay_mtu.iter().copied();
        let first = mtus.next().unwrap_or(UNDERLAY_MTU_BYTES);
        let mut plans = match self.check {
            true => vec![plan(first, CHECKED.to_vec())],
            false => vec![plan(first, cases())],
        };
        if !self.check {
            plans.extend(mtus.map(|mtu| plan(mtu, cases_with_another_mtu())));
        }
        plans.retain(|plan| !plan.run.cases.is_empty());
        plans
    }
}

fn main() -> ExitCode {
    exit_code(measure(&Args::parse()))
}

fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let plans = args.plans();
    ensure!(
        !plans.is_empty(),
        "nothing to measure: no system of --only is asked a measure of --measure"
    );
    // Programs of the peers are started from here, whatever folder they run in.
    let out = args.invocation.folder()?.canonicalize()?;
    announce(args, &plans);
    let progress = args.invocation.progress();
    let mut report = Report {
        circumstances: circumstances(&plans)?,
        parts: Vec::new(),
    };
    for plan in &plans {
        let part = match measure_part(args, &out, plan, &progress, &interrupt) {
            Err(error) if !report.parts.is_empty() => {
                interrupt.check()?;
                Part::unbuilt(plan.underlay_mtu, format!("{error:#}"))
            }
            result => result?,
        };
        report.parts.push(part);
        // After each part: what was measured stays when the next one is interrupted.
        write(&report, args, &out)?;
    }
    drop(progress);
    conclude(&report, args)
}

fn announce(args: &Args, plans: &[Plan]) {
    if args.invocation.quiet {
        return;
    }
    let estimate = plans.iter().map(|plan| plan.run.estimate()).sum();
    let cases: usize = plans.iter().map(|plan| plan.run.cases.len()).sum();
    // A reader that has gone must not end the work half-way.
    let _ = writeln!(
        io::stderr(),
        "{cases} cases, {} repetitions: about {}, and what it takes to build and start the systems",
        args.repetitions,
        in_words(estimate)
    );
}

fn measure_part(
    args: &Args,
    out: &Path,
    plan: &Plan,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Part> {
    let bed = Bed::up(&bed_options(args, out, plan)?, progress, interrupt)?;
    let mut part = Part {
        versions: System::ALL
            .into_iter()
            .filter_map(|system| Some((system, bed.version(system)?)))
            .collect(),
        missing: bed.missing().to_vec(),
        ..Part::new(plan.underlay_mtu)
    };
    run(&bed, &plan.run, &mut part.samples, progress, interrupt)?;
    let holds = || check(&part.samples).iter().all(Outcome::holds);
    if args.check && part.missing.is_empty() && !holds() {
        progress.step("below a floor: everything once more, then the medians of both rounds");
        run(&bed, &plan.run, &mut part.samples, progress, interrupt)?;
        part.rounds += 1;
    }
    Ok(part)
}

/// Writes all forms of the report.
fn write(report: &Report, args: &Args, out: &Path) -> anyhow::Result<()> {
    let document = serde_json::to_vec_pretty(&json::document(report))?;
    fs::write(out.join("peers.json"), document)?;
    let mut text = tables(report, args);
    if !args.check {
        let charts = charts::draw(report)?;
        let folder = out.join(CHARTS_FOLDER);
        // Charts of an earlier run with other measures would pass for ones of this run.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        for chart in &charts {
            fs::write(folder.join(&chart.file), &chart.svg)?;
        }
        text.push('\n');
        text.push_str(&markdown::pictures(&charts, CHARTS_FOLDER));
    }
    fs::write(out.join("peers.md"), text)?;
    Ok(())
}

fn tables(report: &Report, args: &Args) -> String {
    if args.check {
        markdown::details(report)
    } else {
        markdown::whole(report)
    }
}

/// Prints the tables and, where asked for, the floors, which decide how the program ends.
fn conclude(report: &Report, args: &Args) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout();
    stdout.write_all(tables(report, args).as_bytes())?;
    let mut good = report.parts.iter().all(|part| part.unbuilt.is_none());
    if args.check {
        let first = report.parts.first().context("nothing was measured")?;
        if first.rounds > 1 {
            writeln!(
                stdout,
                "The first round was below a floor; the medians are of both rounds together."
            )?;
        }
        for outcome in check(&first.samples) {
            writeln!(stdout, "{}", outcome.line())?;
            good &= outcome.holds();
        }
    }
    Ok(ExitCode::from(u8::from(!good)))
}

fn bed_options(args: &Args, out: &Path, plan: &Plan) -> anyhow::Result<BedOptions> {
    let cases = plan.run.cases.iter();
    Ok(BedOptions {
        name: args.name.clone(),
        bin_dir: args.invocation.programs()?,
        peers: peers_folder(),
        peers_bin_dir: out.join("bin"),
        underlay_mtu: plan.underlay_mtu,
        systems: cases.map(|case| case.system).collect(),
    })
}

/// The pins of the peers are part of the source tree that this program was built from.
fn peers_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

fn circumstances(plans: &[Plan]) -> anyhow::Result<Circumstances> {
    let first = plans.first().context("nothing is planned")?;
    Ok(Circumstances {
        repetitions: first.run.repetitions,
        seconds: first.run.seconds,
        machine: Machine::here()?,
    })
}
