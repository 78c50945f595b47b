//! `fabric-node`, the daemon of a worker.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};
use fabric_node::{app, causes::with_causes, config};
use tracing_subscriber::EnvFilter;

/// The daemon of one worker of the fabric.
#[derive(Parser)]
#[command(
    name = "fabric-node",
    version,
    about = "The daemon of one worker of the fabric"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node until SIGTERM or SIGINT.
    Run {
        /// Configuration file.
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/fabric/node.toml",
            env = "FABRIC_CONFIG"
        )]
        config: PathBuf,
        /// Log lines as text or as JSON, one object a line.
        #[arg(long, default_value = "text", env = "FABRIC_LOG_FORMAT")]
        log_format: LogFormat,
    },
    /// Read the configuration, the identity and the state source, say what is wrong, change nothing.
    CheckConfig {
        /// Configuration file.
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/fabric/node.toml",
            env = "FABRIC_CONFIG"
        )]
        config: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config, log_format } => {
            start_log(log_format);
            config::load(&config).map_err(Into::into).and_then(app::run)
        }
        Command::CheckConfig { config } => check(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("fabric-node: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let config = config::load(path)?;
    app::check(&config)?;
    anstream::println!(
        "{}: node {} is configured; its identity and its state source can be used",
        path.display(),
        config.node
    );
    Ok(())
}

/// Logs go to stderr, in colour only on a terminal; `FABRIC_LOG` takes the usual filter syntax,
/// `info` by default.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("FABRIC_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(in_colour())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// A terminal, unless the user asks otherwise (<https://no-color.org>).
fn in_colour() -> bool {
    std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
