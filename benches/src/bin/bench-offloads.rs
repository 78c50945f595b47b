//! `bench-offloads`: what one TCP stream across two workers costs without each of the offloads.
//! Table on standard output, progress on standard error, both forms of the report in files.

use std::{fs, io::Write as _, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;
use fabric_benches::{
    iperf::{self, Direction, Ends, TcpLoad},
    programs::folder,
    usage::cpu_seconds,
};
use fabric_node::{
    config::offloads::{Offload, Offloads},
    lab::{Interrupt, Lab, LabName, LabOptions, Progress},
    sys::netns::Netns,
};
use serde::Serialize;

/// Measure one TCP stream across two workers without each of the offloads, in turns
#[derive(Debug, Parser)]
#[command(name = "bench-offloads", version)]
struct Args {
    /// Passes over everything that is measured
    #[arg(long, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Length of one measurement
    #[arg(long, default_value_t = 3, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Over IPv6 in the pods
    #[arg(long)]
    ipv6: bool,
    /// Folder for the reports
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the programs fabric-node and fabric-cni [default: where this program is]
    #[arg(long, env = "FABRIC_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Name of the lab that is built
    #[arg(long, default_value = "bench-offloads")]
    name: LabName,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

/// What is measured: both daemons with these offloads.
#[derive(Clone, Copy, Debug)]
struct Variant {
    name: &'static str,
    offloads: Offloads,
}

impl Variant {
    /// All, all but one, none; without what does not concern TCP over this family.
    fn all(ipv6: bool) -> Vec<Self> {
        let other_family = if ipv6 { Offload::Tso4 } else { Offload::Tso6 };
        let each = Offload::ALL.into_iter().filter(|off| *off != other_family);
        let each = each.map(|off| Self {
            name: off.key(),
            offloads: Offloads::ALL.without(off),
        });
        let ends = [("nothing", Offloads::ALL), ("everything", Offloads::NONE)];
        let [all, none] = ends.map(|(name, offloads)| Self { name, offloads });
        [all].into_iter().chain(each).chain([none]).collect()
    }
}

/// Measured values of one variant.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    off: &'static str,
    gbit_per_second: Vec<f64>,
    cpu_seconds_per_gb: Vec<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    kernel: String,
    processor: String,
    processors: usize,
    seconds: u32,
    ipv6: bool,
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(args.quiet);
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let options = LabOptions::new(args.name.clone(), 2, 1, folder(args.bin_dir.as_deref())?);
    let mut lab = Lab::up_with(&options, &progress, &interrupt)?;
    let variants = Variant::all(args.ipv6);
    let mut rows: Vec<Row> = variants
        .iter()
        .map(|variant| Row {
            off: variant.name,
            ..Row::default()
        })
        .collect();
    for pass in 1..=args.repetitions {
        for (variant, row) in variants.iter().zip(&mut rows) {
            interrupt.check()?;
            progress.step(&format!("pass {pass}: without {}", variant.name));
            lab.switch_offloads(&["worker-a", "worker-b"], variant.offloads)?;
            let (gbit_per_second, cpu) =
                once(&lab, args).with_context(|| format!("without {}", variant.name))?;
            row.gbit_per_second.push(gbit_per_second);
            row.cpu_seconds_per_gb.push(cpu);
        }
    }
    drop((lab, progress));
    let report = report(args, rows)?;
    let text = to_markdown(&report);
    let file = |extension: &str| {
        let family = if args.ipv6 { "-ipv6" } else { "" };
        args.out.join(format!("offloads{family}.{extension}"))
    };
    fs::write(file("json"), serde_json::to_vec_pretty(&report)?)?;
    fs::write(file("md"), &text)?;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Gbit/s, and CPU seconds of both daemons per 10^9 bytes.
fn once(lab: &Lab, args: &Args) -> anyhow::Result<(f64, f64)> {
    let [from, to] = lab.pods() else {
        anyhow::bail!("the lab has not two pods")
    };
    let mut addresses = to.addresses.iter().copied();
    let address = addresses.find(|it: &IpAddr| it.is_ipv6() == args.ipv6);
    let (client, server) = (Netns::open(&from.netns)?, Netns::open(&to.netns)?);
    let ends = Ends {
        client: &client,
        server: &server,
        address: address.context("the pod has no such address")?,
    };
    let load = TcpLoad {
        streams: 1,
        direction: Direction::Forth,
        seconds: args.seconds,
        congestion: None,
    };
    let daemons: Vec<u32> = lab.workers().iter().filter_map(|it| it.pid).collect();
    ensure!(daemons.len() == 2, "not both daemons run");
    let before = cpu_seconds(&daemons)?;
    let transfer = iperf::tcp(ends, load)?;
    let used = cpu_seconds(&daemons)? - before;
    Ok((
        transfer.gbit_per_second,
        used / (transfer.bytes as f64 / 1e9),
    ))
}

fn report(args: &Args, rows: Vec<Row>) -> anyhow::Result<Report> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    Ok(Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        processor: processor.to_owned(),
        processors: std::thread::available_parallelism()?.get(),
        seconds: args.seconds,
        ipv6: args.ipv6,
        rows,
    })
}

fn to_markdown(report: &Report) -> String {
    use std::fmt::Write as _;
    let family = if report.ipv6 { "IPv6" } else { "IPv4" };
    let passes = report
        .rows
        .first()
        .map_or(0, |row| row.gbit_per_second.len());
    let mut text = format!(
        "Linux {}, {} x {}; medians of {passes} x {} s, {family}\n\n\
         | off on both sides | Gbit/s | to all | cpu-s/GB |\n|---|---|---|---|\n",
        report.kernel, report.processors, report.processor, report.seconds,
    );
    let all = report.rows.first().map(|row| median(&row.gbit_per_second));
    for row in &report.rows {
        let rate = median(&row.gbit_per_second);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {rate:.2} | {:.2} | {:.2} |",
            row.off,
            rate / all.unwrap_or(rate),
            median(&row.cpu_seconds_per_gb),
        );
    }
    text
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(upper), 0) => {
            f64::midpoint(sorted.get(middle - 1).copied().unwrap_or(*upper), *upper)
        }
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "nothing is computed with them")]

    use super::*;

    /// The middle one of an odd number, the mean of the middle two of an even number.
    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    /// Each family has its own row for TCP super-packets, between all and none.
    #[test]
    fn variants_of_a_family() {
        let names = |ipv6| -> Vec<&str> { Variant::all(ipv6).iter().map(|it| it.name).collect() };
        let expected = |tso| {
            [
                "nothing",
                "checksum",
                tso,
                "uso",
                "udp_gso",
                "udp_gro",
                "everything",
            ]
        };
        assert_eq!(names(false), expected("tso4"));
        assert_eq!(names(true), expected("tso6"));
    }
}
