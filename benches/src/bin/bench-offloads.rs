//! `bench-offloads`: what one TCP stream across two workers costs without each of the offloads.
//! Table on standard output, progress on standard error, both forms of the report in files.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use fabric_benches::{
    invocation::{Invocation, exit_code},
    machine::Machine,
    statistics::median,
    two_pods,
    usage::cpu_seconds,
};
use fabric_node::{
    config::offloads::{Offload, Offloads},
    lab::{Interrupt, Lab, LabName},
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
    /// Name of the lab that is built
    #[arg(long, default_value = "bench-offloads")]
    name: LabName,
    #[command(flatten)]
    invocation: Invocation,
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
    #[serde(flatten)]
    machine: Machine,
    seconds: u32,
    ipv6: bool,
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    exit_code(measure(&Args::parse()))
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let progress = args.invocation.progress();
    args.invocation.folder()?;
    let options = two_pods::options(&args.name, &args.invocation)?;
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
    let report = Report {
        machine: Machine::here()?,
        seconds: args.seconds,
        ipv6: args.ipv6,
        rows,
    };
    let family = if args.ipv6 { "-ipv6" } else { "" };
    let text = to_markdown(&report).context("nothing was measured")?;
    args.invocation
        .deliver(&format!("offloads{family}"), &report, &text)
}

/// Gbit/s, and CPU seconds of both daemons per 10^9 bytes.
fn once(lab: &Lab, args: &Args) -> anyhow::Result<(f64, f64)> {
    let daemons = two_pods::daemons(lab)?;
    let before = cpu_seconds(&daemons)?;
    let transfer = two_pods::stream(lab, args.ipv6, args.seconds)?;
    let used = cpu_seconds(&daemons)? - before;
    Ok((
        transfer.gbit_per_second,
        used / (transfer.bytes as f64 / 1e9),
    ))
}

/// `None` if a row has no values.
fn to_markdown(report: &Report) -> Option<String> {
    use std::fmt::Write as _;
    let machine = &report.machine;
    let family = if report.ipv6 { "IPv6" } else { "IPv4" };
    let first = report.rows.first()?;
    let (passes, all) = (first.gbit_per_second.len(), median(&first.gbit_per_second)?);
    let mut text = format!(
        "Linux {}, {} x {}; medians of {passes} x {} s, {family}\n\n\
         | off on both sides | Gbit/s | to all | cpu-s/GB |\n|---|---|---|---|\n",
        machine.kernel, machine.processors, machine.processor, report.seconds,
    );
    for row in &report.rows {
        let rate = median(&row.gbit_per_second)?;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {rate:.2} | {:.2} | {:.2} |",
            row.off,
            rate / all,
            median(&row.cpu_seconds_per_gb)?,
        );
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row is compared with the first; without values there is no table.
    #[test]
    fn rows_are_compared_with_the_first() {
        let row = |off, rates: &[f64]| Row {
            off,
            gbit_per_second: rates.to_vec(),
            cpu_seconds_per_gb: vec![1.5],
        };
        let report = |rows| Report {
            machine: Machine {
                kernel: "6".to_owned(),
                processor: "cpu".to_owned(),
                processors: 2,
            },
            seconds: 3,
            ipv6: false,
            rows,
        };
        let whole = report(vec![row("nothing", &[5.0, 3.0]), row("uso", &[1.0])]);
        let text = to_markdown(&whole).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Linux 6, 2 x cpu; medians of 2 x 3 s, IPv4");
        assert_eq!(
            lines[4..],
            [
                "| nothing | 4.00 | 1.00 | 1.50 |",
                "| uso | 1.00 | 0.25 | 1.50 |"
            ]
        );
        assert_eq!(to_markdown(&report(vec![row("nothing", &[])])), None);
        let document = serde_json::json!(whole);
        assert_eq!(document["processors"], 2);
        assert_eq!(document["rows"][1]["gbitPerSecond"][0], 1.0);
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
