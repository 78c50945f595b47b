//! `fabric lab`: arguments in, exit status out.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use fabric_proto::admin::Document;

use super::{
    Families, Family, Interrupt, Lab, LabName, LabOptions, Progress, demo,
    next_steps::next_steps,
    place::Place,
    rootless,
    state::{LabState, Wrappers},
    status::LabStatus,
    teardown,
    underlay::inside,
};
use crate::{
    config::{
        offloads::{Offload, Offloads},
        outside::OutsideConfig,
    },
    terminal::{exit::Failure, output::Output},
};

/// Exit status of `exec` when the lab, not the command, failed; as of env(1) and container engines.
const EXEC_FAILED: u8 = 125;
/// Exit status when the command was found but cannot be run (POSIX shell, 2.8.2).
const NOT_EXECUTABLE: u8 = 126;
/// Exit status when there is no such command (POSIX shell, 2.8.2).
const NOT_FOUND: u8 = 127;

/// Workers and pods as network namespaces on this machine, with real daemons
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build a lab and leave it up
    Up(UpArgs),
    /// Take a lab down, whatever state it is in
    Down(NameArgs),
    /// Show the workers and pods of a lab
    Status(NameArgs),
    /// Run a command in the network namespace of a pod or worker; exit with its status
    Exec(ExecArgs),
    /// Build a lab, prove on it what the fabric promises, take it down
    Demo(DemoArgs),
    /// Keep the namespaces of this process alive
    #[command(name = rootless::HOLD_VERB, hide = true)]
    Hold {
        /// The lab it is for; read by others from the command line of this process
        #[arg(long)]
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
struct NameArgs {
    /// Name of the lab
    #[arg(long, default_value = "lab")]
    name: LabName,
}

#[derive(Debug, Args)]
struct BinArgs {
    /// Folder of the programs fabric-node and fabric-cni [default: where this program is]
    #[arg(long, env = "FABRIC_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct NetworkArgs {
    /// MTU of the network between the workers, in bytes
    #[arg(long, default_value_t = 1500, value_name = "BYTES")]
    underlay_mtu: u32,
    /// IPv4 only, inside and underneath
    #[arg(long, conflicts_with_all = ["ipv6", "dual"])]
    ipv4: bool,
    /// IPv6 only, inside and underneath
    #[arg(long, conflicts_with = "dual")]
    ipv6: bool,
    /// IPv4 and IPv6, inside and underneath; so it is without any of the three
    #[arg(long)]
    dual: bool,
    /// Family that carries the tunnels [default: IPv4, unless --ipv6]
    #[arg(long, value_enum, value_name = "FAMILY")]
    underlay: Option<Family>,
    /// Offloads that the daemons do without
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    offloads_off: Vec<Offload>,
}

impl NetworkArgs {
    fn offloads(&self) -> Offloads {
        let off = self.offloads_off.iter();
        off.fold(Offloads::ALL, |on, off| on.without(*off))
    }

    fn families(&self) -> Families {
        match (self.ipv4, self.ipv6) {
            (true, _) => Families::Ipv4,
            (_, true) => Families::Ipv6,
            _ => Families::Dual,
        }
    }
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Number of workers: worker-a, worker-b, ...
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    workers: usize,
    /// Number of pods on each worker: pod-a-1, pod-a-2, ...
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    pods: usize,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    bin: BinArgs,
}

#[derive(Debug, Args)]
struct ExecArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Pod or worker
    #[arg(value_name = "POD|WORKER")]
    member: String,
    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Name of the lab
    #[arg(long, default_value = "demo")]
    name: LabName,
    /// Leave the lab up afterwards
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    bin: BinArgs,
}

/// Runs `fabric lab`.
///
/// # Errors
///
/// What a person should read; for `exec`, failures of the lab are printed here and become status
/// 125.
pub fn run(args: LabArgs, output: Output) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Up(args) => up(args, output),
        Verb::Down(args) => down(&args.name, output),
        Verb::Status(args) => status(&args.name, output),
        Verb::Exec(args) => Ok(exec(&args, output).unwrap_or_else(|error| {
            output.error(&Failure::Other(error));
            ExitCode::from(EXEC_FAILED)
        })),
        Verb::Demo(args) => run_demo(args, output),
        Verb::Hold { .. } => rootless::hold(),
    }
}

fn up(args: UpArgs, output: Output) -> anyhow::Result<ExitCode> {
    let pods = vec![args.pods; args.workers];
    let options = options(args.name.name, pods, &args.network, args.bin)?;
    enter_new()?;
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(output.quiet);
    let mut lab = Lab::up_with(&options, &progress, &interrupt)?;
    lab.keep();
    drop(progress);
    show(&LabStatus::of(lab.state()), output)?;
    output.say(&format!("\n{}", next_steps(lab.state())));
    Ok(ExitCode::SUCCESS)
}

fn down(name: &LabName, output: Output) -> anyhow::Result<ExitCode> {
    let place = Place::here();
    if !place.can_build()
        && let Ok(Some(state)) = LabState::read(&place.folder(name))
        && state
            .holder
            .is_some_and(|pid| rootless::holder(pid, &state.folder).is_some())
    {
        return Err(rootless::run_again_in(&place, &state));
    }
    let was_up = teardown::take_down(name, &place)?;
    let state = if was_up { "down" } else { "not up" };
    output.say(&format!("lab {name} is {state}"));
    Ok(ExitCode::SUCCESS)
}

fn status(name: &LabName, output: Output) -> anyhow::Result<ExitCode> {
    show(&LabStatus::of(Lab::open(name)?.state()), output)?;
    Ok(ExitCode::SUCCESS)
}

fn show(document: &Document<LabStatus<'_>>, output: Output) -> anyhow::Result<()> {
    output
        .document(document)
        .map_err(|failure| anyhow::anyhow!("{failure}"))
}

fn exec(args: &ExecArgs, output: Output) -> anyhow::Result<ExitCode> {
    let lab = Lab::open(&args.name.name)?;
    let netns = lab.state().netns_of(&args.member)?;
    let place = Place::here();
    if !place.can_build() {
        return Err(rootless::run_again_in(&place, lab.state()));
    }
    rootless::restore_folder();
    let (program, arguments) = args.command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    // The thread inside the namespace becomes the program: terminal, signals and status are its own.
    let error = inside(netns, move || Ok(command.exec()))?;
    let code = if error.kind() == std::io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    };
    let told = format!("cannot run {}", program.to_string_lossy());
    output.error(&Failure::Other(anyhow::Error::new(error).context(told)));
    Ok(ExitCode::from(code))
}

fn run_demo(args: DemoArgs, output: Output) -> anyhow::Result<ExitCode> {
    let options = options(args.name, demo::PODS.to_vec(), &args.network, args.bin)?;
    let tools = demo::Tools::find()?;
    enter_new()?;
    demo::run(&options, &tools, args.keep, output, &Interrupt::install()?)
}

/// Goes on only where namespaces can be made; else runs this command again inside a new user
/// namespace.
fn enter_new() -> anyhow::Result<()> {
    let place = Place::here();
    rootless::check_tun()?;
    if place.can_build() {
        return Ok(());
    }
    Err(rootless::run_again_in_new(&place))
}

fn options(
    name: LabName,
    pods: Vec<usize>,
    network: &NetworkArgs,
    bin: BinArgs,
) -> anyhow::Result<LabOptions> {
    let bin_dir = match bin.bin_dir {
        Some(dir) => dir
            .canonicalize()
            .with_context(|| format!("no folder {}", dir.display()))?,
        None => std::env::current_exe()?
            .parent()
            .context("this program is in no folder")?
            .to_owned(),
    };
    Ok(LabOptions {
        name,
        pods,
        underlay_mtu: network.underlay_mtu,
        families: network.families(),
        underlay: network.underlay,
        offloads: network.offloads(),
        outside: OutsideConfig::default(),
        bin_dir,
        wrappers: Wrappers::default(),
    })
}
