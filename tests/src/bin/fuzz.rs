//! `fuzz`: millions of inputs through all parsers that face bytes of others, then thousands of calls
//! of the real plugin. Table on standard output. Exit 1 where an input was not borne, an outcome was
//! never reached or memory grew too large; such inputs are in files then.

use std::{fs, io::Write as _, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use fabric_tests::fuzz::{
    Target,
    campaign::{Campaign, Report, attempt},
    corpus,
    exec::{self, sandbox},
    targets,
};

/// Most memory that this process may ever have had (KiB), all inputs and findings included.
const RESIDENT_KIB_MAX: u64 = 1024 * 1024;

/// Look for inputs that a parser does not bear
#[derive(Debug, Parser)]
#[command(name = "fuzz", version)]
struct Args {
    /// Inputs for the plugin in this process; other parsers get fewer, the slower they are
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000_000)]
    inputs: u64,
    /// Calls of the real plugin
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    execs: u64,
    /// What inputs are drawn from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Number of the first input
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    first: u64,
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Run this one file through the target and say what becomes of it
    #[arg(long, value_name = "FILE", requires = "target")]
    replay: Option<PathBuf>,
    /// Write the input with the number of --first to this file, and run nothing
    #[arg(long, value_name = "FILE", requires = "target")]
    write: Option<PathBuf>,
    /// Folder for inputs that were not borne
    #[arg(long, value_name = "DIR", default_value = "target/fuzz-findings")]
    findings: PathBuf,
    /// The plugin [default: built with this program]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// This process is in the sandbox for calls of the real plugin
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was borne.
fn run(args: &Args) -> anyhow::Result<bool> {
    if args.inside {
        return run_inside(args);
    }
    let mut chosen = targets::all();
    if let Some(name) = &args.target {
        chosen.retain(|target| target.name() == name);
        let is_exec = name == exec::NAME && args.replay.is_none() && args.write.is_none();
        ensure!(!chosen.is_empty() || is_exec, "there is no target {name:?}");
    }
    let mut out = std::io::stdout();
    if let (Some(file), [target, ..]) = (&args.replay, chosen.as_slice()) {
        let outcome = attempt(target.as_ref(), &fs::read(file)?);
        writeln!(out, "{outcome:?}")?;
        return Ok(outcome.is_ok());
    }
    if let (Some(file), [target, ..]) = (&args.write, chosen.as_slice()) {
        let named = corpus::read(target.name())?;
        let corpus: Vec<_> = named.into_iter().map(|(_, input)| input).collect();
        let campaign = campaign(args, target.as_ref());
        fs::write(file, campaign.input(target.as_ref(), &corpus, args.first))?;
        return Ok(true);
    }
    let mut is_clean = true;
    for target in &chosen {
        let report = campaign(args, target.as_ref()).run(target.as_ref())?;
        is_clean &= report.is_clean();
        print(&mut out, &report, args.seed)?;
    }
    if args.execs > 0 && args.target.as_ref().is_none_or(|name| name == exec::NAME) {
        out.flush()?;
        let arguments = [
            "--inside".to_owned(),
            format!("--execs={}", args.execs),
            format!("--seed={}", args.seed),
        ];
        is_clean &= sandbox::enter(&plugin(args)?, &args.findings, &arguments)?.success();
    }
    let resident = resident_kib()?;
    writeln!(out, "largest resident set: {} MiB", resident / 1024)?;
    if resident > RESIDENT_KIB_MAX {
        bail!("that is more than {} MiB", RESIDENT_KIB_MAX / 1024);
    }
    Ok(is_clean)
}

/// Calls of the real plugin.
fn run_inside(args: &Args) -> anyhow::Result<bool> {
    let (plugin, findings) = sandbox::inside();
    let report = exec::Execs {
        seed: args.seed,
        calls: args.execs,
        threads: threads(),
        plugin,
        findings,
    }
    .run()?;
    print(&mut std::io::stdout(), &report, args.seed)?;
    Ok(report.is_clean())
}

fn campaign(args: &Args, target: &dyn Target) -> Campaign {
    Campaign {
        seed: args.seed,
        first: args.first,
        inputs: args.inputs.saturating_mul(target.per_mille()) / 1_000,
        threads: threads(),
        findings: args.findings.clone(),
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn plugin(args: &Args) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program is in no folder")?;
    let plugin = args.plugin.clone();
    let plugin = plugin.unwrap_or_else(|| folder.join("fabric-cni"));
    ensure!(
        plugin.exists(),
        "there is no plugin {plugin:?}: build fabric-cni"
    );
    Ok(plugin)
}

fn print(out: &mut impl std::io::Write, report: &Report, seed: u64) -> anyhow::Result<()> {
    let seconds = report.time.as_secs_f64();
    writeln!(
        out,
        "{}: {} inputs in {seconds:.1} s, {:.0} per second, seed {seed}",
        report.target,
        report.inputs,
        report.inputs as f64 / seconds
    )?;
    for (outcome, count) in &report.outcomes {
        writeln!(out, "  {count:>10}  {outcome}")?;
    }
    for missed in &report.missed {
        writeln!(out, "  NEVER REACHED: {missed}")?;
    }
    for finding in &report.findings {
        writeln!(
            out,
            "  FINDING: {}\n    {}\n    {}",
            finding.origin,
            finding.reason,
            finding.file.display()
        )?;
    }
    Ok(())
}

fn resident_kib() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("/proc/self/status has no VmHWM")?.parse()?)
}
