//! `fabric bench`: how much and how fast between pods. Arguments in, a report out.
//!
//! [`args`] are checked, [`nodes`] are asked, [`pods`] are found; `pair` measures one pair with what
//! [`crate::measure`] has, `kernel` reads what was
//! lost inside of the pods, `report`, `show` and `plot` tell it. `serve` is the other end for a client on
//! another machine. Never done here: anything to the daemon but questions.

pub mod args;
mod kernel;
mod nodes;
mod pair;
mod plot;
mod pods;
mod progress;
mod report;
mod serve;
mod show;

use std::{path::Path, process::ExitCode};

use anyhow::ensure;
use fabric_proto::admin::{API_VERSION, Document};

pub use self::args::BenchArgs;
use self::{
    args::{SECONDS, SECONDS_OF_ALL},
    nodes::Nodes,
    pair::{Pair, Target},
    plot::Picture,
    pods::PodAt,
    progress::Progress,
    report::{Report, ReportList},
};
use crate::{
    lab::Interrupt,
    terminal::{
        exit::{FAILED, Failure, USAGE},
        output::{Format, Output, age},
    },
};

/// Most pairs that one run measures: all ordered ones of 20 pods, which take almost an hour.
pub const PAIRS_MAX: usize = 380;

/// `fabric bench`.
///
/// # Errors
///
/// No daemon answers, a pod is not found, the user interrupted. What failed in the measurements is in
/// the report, and makes the exit code 1.
pub fn run(args: &BenchArgs, socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    if let Err(error) = args.check() {
        output.error(&Failure::Other(error));
        return Ok(ExitCode::from(USAGE));
    }
    let nodes = Nodes::find(args, socket, output)?;
    let pods = nodes.pods()?;
    if let Some(wanted) = &args.serve {
        return Ok(serve::run(pods::find(&pods, wanted)?, args, output)?);
    }
    let pairs = if args.all {
        all_pairs(args, &pods, output)?
    } else {
        vec![one_pair(args, &pods)?]
    };
    let picture = args.svg.as_deref().map(Picture::at).transpose()?;
    let reports = measure(args, &pairs, &nodes, output)?;
    show(args, reports, pairs.len(), picture, output)
}

/// The two pods that are named.
fn one_pair(args: &BenchArgs, pods: &[PodAt]) -> anyhow::Result<Pair> {
    let [from, to] = &args.pods[..] else {
        anyhow::bail!("two pods are needed");
    };
    let from = pods::find(pods, from)?;
    let to = match pods::server(pods, to, args.port) {
        Some(server) => Target::Server(server),
        None => Target::Pod(Box::new(pods::find(pods, to)?.clone())),
    };
    Pair::new(from, to, args)
}

/// All ordered pairs, of all pods or of those that are named.
fn all_pairs(args: &BenchArgs, pods: &[PodAt], output: Output) -> anyhow::Result<Vec<Pair>> {
    let chosen: Vec<&PodAt> = if args.pods.is_empty() {
        let is_there = |pod: &&PodAt| pod.pod.state == "Ready";
        for pod in pods.iter().filter(|pod| !is_there(pod)) {
            output.say(&format!("without {}: it is {}", pod.label(), pod.pod.state));
        }
        pods.iter().filter(is_there).collect()
    } else {
        let found = args.pods.iter().map(|wanted| pods::find(pods, wanted));
        found.collect::<anyhow::Result<_>>()?
    };
    ensure!(
        chosen.len() > 1,
        "there are {} pods: a pair needs two",
        chosen.len()
    );
    let count = chosen.len() * (chosen.len() - 1);
    ensure!(
        count <= PAIRS_MAX,
        "{} pods are {count} ordered pairs, more than {PAIRS_MAX}: name the pods to take, as in `fabric \
         bench --all web db`",
        chosen.len()
    );
    let mut pairs = Vec::new();
    for (number, from) in chosen.iter().enumerate() {
        for (other, to) in chosen.iter().enumerate() {
            if number == other {
                continue;
            }
            match Pair::new(from, Target::Pod(Box::new((*to).clone())), args) {
                Ok(pair) => pairs.push(pair),
                Err(error) => output.say(&format!("{error:#}")),
            }
        }
    }
    ensure!(
        !pairs.is_empty(),
        "no two pods have an address of one family"
    );
    Ok(pairs)
}

/// Measures one pair after the other; after an interruption, what there is until then.
fn measure(
    args: &BenchArgs,
    pairs: &[Pair],
    nodes: &Nodes,
    output: Output,
) -> anyhow::Result<Vec<Report>> {
    let default = if args.all { SECONDS_OF_ALL } else { SECONDS };
    let seconds = args.seconds.unwrap_or(default);
    let length = Pair::length(args, seconds) * u32::try_from(pairs.len()).unwrap_or(u32::MAX);
    if args.all {
        let (count, length) = (pairs.len(), age(length.as_secs()));
        output.say(&format!("{count} pairs, about {length}"));
    }
    let progress = Progress::new(length, output, Interrupt::install()?);
    let mut reports = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        progress.pair(&pair.label(), number + 1, pairs.len());
        let report = match pair.measure(args, seconds, nodes, &progress) {
            Ok(report) => report,
            Err(_) if progress.is_interrupted() && !reports.is_empty() => break,
            // One pair that cannot be measured does not end the run of all.
            Err(error) if args.all && !progress.is_interrupted() => pair.failed(&error),
            Err(error) => return Err(error),
        };
        // The lines of one pair have the reasons in them; tables and programs' documents are not read
        // so closely.
        if args.all || !matches!(output.format, Format::Table | Format::Wide) {
            for failure in report.failures() {
                progress.say(&format!("{}: {failure}", pair.label()));
            }
        }
        reports.push(report);
    }
    Ok(reports)
}

fn show(
    args: &BenchArgs,
    mut reports: Vec<Report>,
    count: usize,
    picture: Option<Picture>,
    output: Output,
) -> Result<ExitCode, Failure> {
    let is_whole = reports.len() == count;
    let is_well = is_whole && reports.iter().all(|report| report.failures().is_empty());
    let svg = if args.all {
        let list = document("BenchList", ReportList { items: reports });
        output.document(&list)?;
        picture.as_ref().map(|_| plot::all(&list.content))
    } else {
        let report = reports.pop().unwrap_or_default();
        let report = document("Bench", report);
        output.document(&report)?;
        picture.as_ref().map(|_| plot::pair(&report.content))
    };
    if let (Some(picture), Some(svg)) = (picture, svg) {
        picture.write(&svg?)?;
    }
    if !is_whole {
        return Err(anyhow::anyhow!("interrupted").into());
    }
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

fn document<T>(kind: &str, content: T) -> Document<T> {
    Document {
        api_version: API_VERSION.to_owned(),
        kind: kind.to_owned(),
        content,
    }
}
