//! `bench-limits`: figures that may not exceed a limit. Table on standard output, progress on standard
//! error, both forms of the report in files; exit 1 if a limit is broken or could not be measured.

use std::{fs, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use fabric_benches::limits::{
    Stage, attach,
    figures::{Figure, Limit, Missing, Report},
    idle, lookup, restart,
};
use fabric_benches::programs::folder;
use fabric_node::lab::{Interrupt, LabName, Progress};

/// Measure what has a limit of its own: route lookup, ADD of a pod, idling, restart
#[derive(Debug, Parser)]
#[command(name = "bench-limits", version)]
struct Args {
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIMIT,...")]
    only: Vec<Limit>,
    /// Folder for the reports
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the programs fabric-node and fabric-cni [default: where this program is]
    #[arg(long, env = "FABRIC_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Name of the labs that are built
    #[arg(long, default_value = "limits")]
    name: LabName,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let out = args.out.canonicalize()?;
    let stage = Stage {
        name: args.name.clone(),
        bin_dir: folder(args.bin_dir.as_deref())?,
        progress: Progress::new(args.quiet),
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
    fs::write(
        out.join("limits.json"),
        serde_json::to_vec_pretty(&report.to_json())?,
    )?;
    fs::write(out.join("limits.md"), &text)?;
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
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
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    Ok(format!(
        "{processor}, {} processors, Linux {}",
        std::thread::available_parallelism()?,
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    ))
}
