//! The operator's command line: `fabric`, also installed as `kubectl-fabric`.
//!
//! Comes in: arguments. Goes out: data on stdout, talk on stderr, an exit code of [`exit`]. Never done
//! here: anything the daemon does; this asks it ([`daemon`]), or works on files ([`pki`]) and on the
//! machine ([`doctor`], [`install`], the lab).

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use tracing_subscriber::filter::LevelFilter;

use crate::{
    lab::cli::LabArgs,
    terminal::{
        exit::{self, Failure},
        output::{Format, Output},
    },
};

pub mod bench;
pub mod clean;
pub mod cni_dir;
mod cni_version;
pub mod containerd;
pub mod daemon;
pub mod doctor;
pub mod install;
pub mod pki;
pub mod tables;

/// Where the daemon's admin socket is unless said otherwise.
pub const SOCKET: &str = "/run/fabric/admin.sock";

const AFTER_HELP: &str = "\
Examples:
  fabric status --wait            wait until the daemon is ready
  fabric peers -o wide            all peer nodes with their ranges and last error
  fabric drops                    which packets were dropped, and why
  fabric bench web db             how fast it is from one pod to another
  fabric doctor                   what this machine lacks, and how to mend it
  fabric install-cni              hand the node's pods to Fabric
  fabric lab demo                 two workers on this machine, proven on real traffic

Exit codes:
  0    done, and all is well
  1    failed, degraded, or something required is missing
  2    wrong usage
  3    install-cni: done, but another network's file is read first
  4    the daemon cannot be reached
  124  --wait-duration is over

Data goes to stdout, everything else to stderr. NO_COLOR is respected.";

/// Flat pod network: ask the daemon of this node, make certificates, examine this machine.
#[derive(Debug, Parser)]
#[command(name = "fabric", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub struct Cli {
    /// The daemon's admin socket.
    #[arg(long, global = true, env = "FABRIC_SOCKET", default_value = SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Say nothing but data and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more on stderr; twice for debugging.
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon as a whole; exit code 1 when it is degraded.
    Status(daemon::StatusArgs),
    /// Peer nodes and the connections to them.
    Peers,
    /// Attached pods.
    Pods,
    /// Which prefix leads where.
    Routes,
    /// Dropped packets by reason.
    Drops(daemon::DropsArgs),
    /// Throughput, packets per second and round-trip times between pods.
    Bench(bench::BenchArgs),
    /// What the kernel gives, what is used, what is missing and how to mend it.
    Doctor(doctor::DoctorArgs),
    /// Puts the CNI plugin and its network list in place; also upgrades them.
    InstallCni(install::InstallArgs),
    /// Takes the network list and the CNI plugin away.
    UninstallCni(install::UninstallArgs),
    /// Takes away what an uninstalled fabric has left on this node.
    CleanNode(clean::CleanArgs),
    /// The cluster's certificate authority.
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Workers and pods on this one machine, for trying out and for tests.
    Lab(LabArgs),
    /// Prints the completion script of a shell.
    #[command(after_help = "Example:\n  source <(fabric completion bash)")]
    Completion {
        /// Which shell.
        #[arg(value_enum)]
        shell: CompletionShell,
    },
}

/// Shells with completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CompletionShell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Runs `fabric` with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments
        .first()
        .map_or_else(|| OsStr::new("fabric"), OsString::as_os_str);
    let parsed = command(called)
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed to stdout with 0, wrong usage to stderr with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    start_log(&cli);
    let output = Output {
        format: cli.output,
        quiet: cli.quiet,
    };
    match run(cli, called) {
        Ok(code) => code,
        Err(failure) => {
            output.error(&failure);
            failure.code()
        }
    }
}

/// The command as it is called: `kubectl fabric` where kubectl runs it as its plugin.
#[must_use]
pub fn command(called: &OsStr) -> clap::Command {
    let command = Cli::command();
    if is_kubectl_plugin(called) {
        command
            .bin_name("kubectl fabric")
            .display_name("kubectl fabric")
    } else {
        command
    }
}

fn is_kubectl_plugin(called: &OsStr) -> bool {
    Path::new(called)
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"))
}

fn run(cli: Cli, called: &OsStr) -> Result<ExitCode, Failure> {
    let output = Output {
        format: cli.output,
        quiet: cli.quiet,
    };
    match cli.command {
        Command::Status(args) => daemon::status(&cli.socket, output, &args),
        Command::Peers => daemon::peers(&cli.socket, output),
        Command::Pods => daemon::pods(&cli.socket, output),
        Command::Routes => daemon::routes(&cli.socket, output),
        Command::Drops(args) => daemon::drops(&cli.socket, output, args),
        Command::Bench(args) => bench::run(&args, &cli.socket, output),
        Command::Doctor(args) => doctor::run(&cli.socket, output, &args),
        Command::InstallCni(args) => install::install(&args, output),
        Command::UninstallCni(args) => install::uninstall(&args, &cli.socket, output),
        Command::CleanNode(args) => clean::clean_node(&args, &cli.socket, output),
        Command::Pki(command) => pki::run(command, output),
        Command::Lab(args) => Ok(crate::lab::cli::run(args, output)?),
        Command::Completion { shell } => completion(shell, output, called),
    }
}

fn completion(shell: CompletionShell, output: Output, called: &OsStr) -> Result<ExitCode, Failure> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let name = if is_kubectl_plugin(called) {
        "kubectl-fabric"
    } else {
        "fabric"
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), name, &mut script);
    output.data(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

fn start_log(cli: &Cli) {
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    let started = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(level)
        .without_time()
        .with_target(false)
        .try_init();
    // A second subscriber can only come from a test in this process, which keeps its own.
    drop(started);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// No two arguments of any subcommand contradict each other.
    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    /// Usage shows the name by which kubectl calls its plugin.
    #[test]
    fn kubectl_name() {
        let help = |called| command(OsStr::new(called)).render_help().to_string();
        assert!(help("/usr/local/bin/kubectl-fabric").contains("Usage: kubectl fabric "));
        assert!(help("/usr/local/bin/fabric").contains("Usage: fabric "));
    }

    /// The help documents every exit code and gives examples.
    #[test]
    fn help_documents_exit_codes() {
        let help = command(OsStr::new("fabric")).render_help().to_string();
        for line in [
            "  0  ",
            "  1  ",
            "  2  ",
            "  3  ",
            "  4  ",
            "  124  ",
            "Examples:",
            "NO_COLOR",
        ] {
            assert!(help.contains(line), "{line:?} is missing in\n{help}");
        }
    }

    /// Flags that are global are understood after the subcommand.
    #[test]
    fn flags_after_the_subcommand() {
        let cli =
            Cli::try_parse_from(["fabric", "peers", "-o", "json", "-q", "--socket", "/x"]).unwrap();
        assert_eq!((cli.output, cli.quiet), (Format::Json, true));
        assert_eq!(cli.socket, Path::new("/x"));
    }
}
