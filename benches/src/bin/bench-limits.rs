//! `bench-limits`: figures that may not exceed a limit. Table on standard output, progress on standard
//! error, both forms of the report in files; exit 1 if a limit is broken or could not be measured.

use std::{io::Write as _, process::ExitCode};

use clap::Parser;
use fabric_benches::{
    invocation::{Invocation, exit_code},
    limits::{
        Stage, attach,
        figures::{Figure, Limit, Missing, Report},
        idle, lookup, restart,
    },
    machine::Machine,
};
use fabric_node::lab::{Interrupt, LabName};

/// Measure what has a limit of its own: route lookup, ADD of a pod, idling, restart
#[derive(Debug, Parser)]
#[command(name = "bench-limits", version)]
struct Args {
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIMIT,...")]
    only: Vec<Limit>,
    /// Name of the labs that are built
    #[arg(long, default_value = "limits")]
    name: LabName,
    #[command(flatten)]
    invocation: Invocation,
}

fn main() -> ExitCode {
    exit_code(measure(&Args::parse()))
}

fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    args.invocation.folder()?;
    let stage = Stage {
        name: args.name.clone(),
        bin_dir: args.invocation.programs()?,
        progress: args.invocation.progress(),
        interrupt: Interrupt::install()?,
    };
    let mut report = Report {
        machine: machine()?,
        ..Report::default()
    };
    for limit in Limit::ALL {
        if !args.only.is_empty() && !args.only.contains(&limit) {
            continue;
        }
        stage
            .progress
            .step(&format!("measuring: {}", limit.title()));
        match figures(limit, &stage) {
            Ok(figures) => report.figures.extend(figures),
            Err(error) => {
                stage.interrupt.check()?;
                report.missing.push(Missing {
                    limit,
                    reason: format!("{error:#}").replace('\n', " "),
                });
            }
        }
    }
    drop(stage);
    let text = report.to_markdown();
    args.invocation
        .deliver("limits", &report.to_json(), &text)?;
    let mut stdout = std::io::stdout();
    let failures = report.failures();
    for line in &failures {
        writeln!(stdout, "{line}")?;
    }
    Ok(ExitCode::from(u8::from(!failures.is_empty())))
}

fn figures(limit: Limit, stage: &Stage) -> anyhow::Result<Vec<Figure>> {
    match limit {
        Limit::Lookup => lookup::measure(|run| allocation_counter::measure(run).count_total),
        Limit::Attach => attach::measure(stage),
        Limit::Idle => idle::measure(stage),
        Limit::Restart => restart::measure(stage),
    }
}

fn machine() -> anyhow::Result<String> {
    let Machine {
        kernel,
        processor,
        processors,
    } = Machine::here()?;
    Ok(format!(
        "{processor}, {processors} processors, Linux {kernel}"
    ))
}
