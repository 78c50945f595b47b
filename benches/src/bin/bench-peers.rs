//! `bench-peers`: measures fabric beside wireguard-go and plain veth, in turns, between the same two
//! workers. Table on standard output, progress on standard error, both forms of the report in files.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use fabric_benches::{
    bed::{Bed, BedOptions},
    check::{Outcome, check},
    plan::{CASES, CHECKED, Case, System},
    report::{Circumstances, Samples, to_json, to_markdown},
    runner::{RunOptions, run},
    wireguard::pinned,
};
use fabric_node::lab::{Interrupt, LabName, Progress};

/// Measure fabric beside wireguard-go and plain veth, in turns, between the same two workers
#[derive(Debug, Parser)]
#[command(name = "bench-peers", version)]
struct Args {
    /// Passes over everything that is measured
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Length of one TCP measurement
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only these systems
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SYSTEM,...")]
    only: Vec<System>,
    /// Measure only what has a floor; exit 1 below a floor, after one more round to make sure
    #[arg(long)]
    check: bool,
    /// Folder for the reports and for the peer's program
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// TCP congestion control of the streams [default: the machine's]
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// MTU of the network between the workers, in bytes
    #[arg(long, default_value_t = 1500, value_name = "BYTES")]
    underlay_mtu: u32,
    /// Folder of the programs fabric-node and fabric-cni [default: where this program is]
    #[arg(long, env = "FABRIC_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Name of the lab that is built
    #[arg(long, default_value = "bench")]
    name: LabName,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

impl Args {
    fn cases(&self) -> Vec<Case> {
        let all: &[Case] = if self.check { &CHECKED } else { &CASES };
        let wanted = |case: &&Case| self.only.is_empty() || self.only.contains(&case.system);
        all.iter().filter(wanted).copied().collect()
    }
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
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(args.quiet);
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let out = args.out.canonicalize()?;
    let options = RunOptions {
        cases: args.cases(),
        repetitions: args.repetitions,
        seconds: args.seconds,
        congestion: args.congestion.clone(),
    };
    let bed = Bed::up(&bed_options(args, &out, &options)?, &progress, &interrupt)?;
    let mut samples = Samples::default();
    run(&bed, &options, &mut samples, &progress, &interrupt)?;
    let mut outcomes = check(&samples);
    let mut rounds = 1;
    if args.check && bed.missing().is_empty() && !outcomes.iter().all(Outcome::holds) {
        progress.step("below a floor: everything once more, then the medians of both rounds");
        run(&bed, &options, &mut samples, &progress, &interrupt)?;
        outcomes = check(&samples);
        rounds = 2;
    }
    let circumstances = circumstances(args, rounds)?;
    let text = to_markdown(&samples, bed.missing(), &circumstances);
    let json = to_json(&samples, bed.missing(), &circumstances);
    drop((bed, progress));
    fs::write(out.join("peers.json"), serde_json::to_vec_pretty(&json)?)?;
    fs::write(out.join("peers.md"), &text)?;
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
    if !args.check {
        return Ok(ExitCode::SUCCESS);
    }
    if rounds > 1 {
        writeln!(
            stdout,
            "The first round was below a floor; the medians are of both rounds together."
        )?;
    }
    for outcome in &outcomes {
        writeln!(stdout, "{}", outcome.line())?;
    }
    Ok(ExitCode::from(u8::from(
        !outcomes.iter().all(Outcome::holds),
    )))
}

fn bed_options(args: &Args, out: &Path, options: &RunOptions) -> anyhow::Result<BedOptions> {
    let bin_dir = match &args.bin_dir {
        Some(dir) => dir
            .canonicalize()
            .with_context(|| format!("no folder {}", dir.display()))?,
        None => std::env::current_exe()?
            .parent()
            .context("this program is in no folder")?
            .to_owned(),
    };
    Ok(BedOptions {
        name: args.name.clone(),
        bin_dir,
        peers: peers_folder(),
        peers_bin_dir: out.join("bin"),
        underlay_mtu: args.underlay_mtu,
        systems: options.cases.iter().map(|case| case.system).collect(),
    })
}

/// The pins of the peers are part of the source tree that this program was built from.
fn peers_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

fn circumstances(args: &Args, rounds: u32) -> anyhow::Result<Circumstances> {
    let go_mod = fs::read_to_string(peers_folder().join("go.mod")).unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    Ok(Circumstances {
        repetitions: args.repetitions * rounds,
        seconds: args.seconds,
        underlay_mtu: args.underlay_mtu,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        processor: processor.to_owned(),
        processors: std::thread::available_parallelism()?.get(),
        wireguard_go: pinned(&go_mod).unwrap_or("not pinned").to_owned(),
    })
}
