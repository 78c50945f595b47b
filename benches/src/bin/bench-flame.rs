//! `bench-flame`: where the data-plane threads of two workers spend their time while one TCP stream
//! runs between their pods. A flame graph of each end in files, the heaviest functions on standard
//! output.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use fabric_benches::{
    invocation::{Invocation, exit_code},
    two_pods,
};
use fabric_node::lab::{Interrupt, Lab, LabName, command};
use inferno::{
    collapse::{Collapse as _, perf::Folder},
    flamegraph::{self, Options},
};

/// Samples per second and thread; not a round number, so that nothing periodic is always hit or missed.
const FREQUENCY: &str = "997";
/// The stream runs this much longer than it is watched (seconds): it has to get going first.
const AROUND: u32 = 3;
/// Functions in the table.
const FUNCTIONS_MAX: usize = 15;

/// Draw where both daemons spend their time while one TCP stream runs between two pods
#[derive(Debug, Parser)]
#[command(name = "bench-flame", version, mut_arg("out", |out| out.help("Folder for the pictures")))]
struct Args {
    /// How long is watched
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Name of the lab that is built
    #[arg(long, default_value = "bench-flame")]
    name: LabName,
    #[command(flatten)]
    invocation: Invocation,
}

fn main() -> ExitCode {
    exit_code(draw(&Args::parse()))
}

fn draw(args: &Args) -> anyhow::Result<()> {
    let perf = command::find("perf").context("perf is not installed (Debian: linux-perf)")?;
    let interrupt = Interrupt::install()?;
    let progress = args.invocation.progress();
    let out = args.invocation.folder()?;
    let options = two_pods::options(&args.name, &args.invocation)?;
    let lab = Lab::up_with(&options, &progress, &interrupt)?;
    progress.step("watching both daemons while a stream runs");
    let [sender, receiver] = two_pods::daemons(&lab)?;
    let record = |pid, end: &str| record(&perf, pid, args.seconds, out, end);
    let recordings = thread::scope(|scope| -> anyhow::Result<_> {
        let load = scope.spawn(|| two_pods::stream(&lab, false, args.seconds + AROUND));
        thread::sleep(Duration::from_secs((AROUND / 2).into()));
        let ends = [(sender, "sender"), (receiver, "receiver")];
        let ends = ends.map(|(pid, end)| scope.spawn(move || record(pid, end)));
        let mut recordings = Vec::new();
        for end in ends {
            recordings.push(
                end.join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))??,
            );
        }
        let load = load
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok((recordings, load.gbit_per_second))
    });
    drop((lab, progress));
    let (recordings, rate) = recordings?;
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "One TCP stream between pods on two workers, {rate:.2} Gbit/s while watched."
    )?;
    for (recording, end) in recordings.iter().zip(["sender", "receiver"]) {
        let folded = fold(&perf, recording)?;
        let picture = out.join(format!("flame-{end}.svg"));
        picture_of(&folded, end, &picture)?;
        writeln!(stdout, "\n{}: {}\n", end, picture.display())?;
        stdout.write_all(heaviest(&folded).as_bytes())?;
    }
    Ok(())
}

/// Samples process `pid` into a file, with its stacks by the unwind tables: there are no frame pointers.
fn record(perf: &Path, pid: u32, seconds: u32, out: &Path, end: &str) -> anyhow::Result<PathBuf> {
    let file = out.join(format!("flame-{end}.data"));
    let output = Command::new(perf)
        .args(["record", "--quiet", "--freq", FREQUENCY])
        .args(["--call-graph", "dwarf,8192", "--pid", &pid.to_string()])
        .arg("--output")
        .arg(&file)
        .args(["--", "sleep", &seconds.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "perf record: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(file)
}

/// Stacks with their counts, one each line, only those of data-plane threads.
fn fold(perf: &Path, recording: &Path) -> anyhow::Result<Vec<String>> {
    let mut script = Command::new(perf)
        .args(["script", "--no-inline", "--input"])
        .arg(recording)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = script.stdout.take().context("perf script has no output")?;
    let mut folded = Vec::new();
    let result = Folder::default().collapse(BufReader::new(lines), &mut folded);
    let status = script.wait()?;
    result.context("cannot read what perf script printed")?;
    ensure!(status.success(), "perf script failed");
    let folded: Vec<String> = String::from_utf8_lossy(&folded)
        .lines()
        .filter(|line| line.starts_with("fabric-data"))
        .map(str::to_owned)
        .collect();
    ensure!(
        !folded.is_empty(),
        "no samples of a data-plane thread: may this user sample (kernel.perf_event_paranoid)?"
    );
    Ok(folded)
}

fn picture_of(folded: &[String], end: &str, to: &Path) -> anyhow::Result<()> {
    let mut options = Options::default();
    options.title = format!("fabric-node, {end} of one TCP stream");
    options.count_name = "samples".to_owned();
    let file = fs::File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    flamegraph::from_lines(&mut options, folded.iter().map(String::as_str), file)?;
    Ok(())
}

/// The functions at the top of most stacks, in parts of all samples.
fn heaviest(folded: &[String]) -> String {
    use std::fmt::Write as _;
    let mut functions: BTreeMap<&str, u64> = BTreeMap::new();
    for line in folded {
        if let Some((stack, count)) = line.rsplit_once(' ')
            && let (Some(top), Ok(count)) = (stack.rsplit(';').next(), count.parse::<u64>())
        {
            *functions.entry(top).or_default() += count;
        }
    }
    let all: u64 = functions.values().sum();
    let mut sorted: Vec<(&str, u64)> = functions.into_iter().collect();
    sorted.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let mut text = String::from("| function | part of the thread's time |\n|---|---|\n");
    for (name, count) in sorted.into_iter().take(FUNCTIONS_MAX) {
        let part = count as f64 * 100.0 / all.max(1) as f64;
        let _ = writeln!(text, "| `{name}` | {part:.1} % |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts are of all samples, the largest first, whatever stack a function was on top of.
    #[test]
    fn the_heaviest_functions_come_first() {
        let folded = [
            "fabric-data-0;a;b 2",
            "fabric-data-0;c;b 1",
            "fabric-data-0;a 1",
        ]
        .map(str::to_owned);
        let table = heaviest(&folded);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows, ["| `b` | 75.0 % |", "| `a` | 25.0 % |"]);
    }
}
