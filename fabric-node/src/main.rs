//! `fabric-node`, the daemon of a worker; called `fabric` or `kubectl-fabric`, the operator's command line,
//! so that a container image needs one program for both.

use std::{
    ffi::OsStr,
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use fabric_node::{app, causes::with_causes, cli, config, pki::spiffe::TrustDomain, signer};
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
        /// This node's name, in place of the configuration's.
        #[arg(long, value_name = "NAME", env = "FABRIC_NODE_NAME")]
        node: Option<String>,
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
        /// This node's name, in place of the configuration's.
        #[arg(long, value_name = "NAME", env = "FABRIC_NODE_NAME")]
        node: Option<String>,
    },
    /// Give the cluster's nodes their certificates until SIGTERM or SIGINT (in Kubernetes).
    Signer(SignerArguments),
}

#[derive(Args)]
struct SignerArguments {
    /// Namespace of the signer's Secret, ConfigMap and Lease, and of the daemons' ServiceAccount.
    #[arg(long, default_value = config::NAMESPACE, env = "FABRIC_NAMESPACE")]
    namespace: String,
    /// Name of the cluster in certificates, as `identity.trust_domain` of the nodes.
    #[arg(long, default_value = config::TRUST_DOMAIN, env = "FABRIC_TRUST_DOMAIN")]
    trust_domain: String,
    /// Longest certificate that is given (seconds), whatever a node asks for.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = LIFETIME_SECONDS_MAX,
        value_parser = value_parser!(u32).range(1..),
        env = "FABRIC_LIFETIME_MAX"
    )]
    lifetime_max: u32,
    /// Where /healthz and /readyz are answered.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "[::]:9947",
        env = "FABRIC_HEALTH_ADDRESS"
    )]
    health_address: SocketAddr,
    /// Name of this instance in the Lease; something random is added.
    #[arg(long, value_name = "NAME", default_value = "signer", env = "POD_NAME")]
    name: String,
    /// Log lines as text or as JSON, one object a line.
    #[arg(long, default_value = "text", env = "FABRIC_LOG_FORMAT")]
    log_format: LogFormat,
}

/// Default of `signer --lifetime-max`: 30 days.
const LIFETIME_SECONDS_MAX: u32 = 30 * 24 * 3600;

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    if is_command_line(std::env::args_os().next().as_deref()) {
        return cli::main();
    }
    let result = match Arguments::parse().command {
        Command::Run {
            config,
            node,
            log_format,
        } => {
            start_log(log_format);
            config::load_as(&config, node.as_deref())
                .map_err(Into::into)
                .and_then(app::run)
        }
        Command::CheckConfig { config, node } => check(&config, node.as_deref()),
        Command::Signer(arguments) => sign(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("fabric-node: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether the program was called by one of the names of the operator's command line.
fn is_command_line(called: Option<&OsStr>) -> bool {
    let name = called.and_then(|called| Path::new(called).file_name());
    name.is_some_and(|name| name == "fabric" || name == "kubectl-fabric")
}

fn sign(arguments: SignerArguments) -> anyhow::Result<()> {
    start_log(arguments.log_format);
    signer::run(signer::Options {
        namespace: arguments.namespace,
        trust_domain: TrustDomain::new(&arguments.trust_domain)?,
        lifetime_seconds_max: arguments.lifetime_max.into(),
        health: arguments.health_address,
        identity: signer::instance_name(&arguments.name)?,
    })
}

fn check(path: &Path, node: Option<&str>) -> anyhow::Result<()> {
    let config = config::load_as(path, node)?;
    app::check(&config)?;
    anstream::println!(
        "{}: node {} is configured; its identity and its state source can be used",
        path.display(),
        config.node
    );
    Ok(())
}

/// Logs go to stderr, in colour only on a terminal; `FABRIC_LOG` takes the usual filter syntax,
/// `info` by default. The client of the API server says every failure anew, with the whole answer: what
/// matters of it is said by us, once.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("FABRIC_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=off"));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The command line answers to its own names, wherever they are, and to no other.
    #[test]
    fn by_name() {
        for called in ["fabric", "/bin/fabric", "./kubectl-fabric"] {
            assert!(is_command_line(Some(OsStr::new(called))), "{called}");
        }
        for called in ["fabric-node", "/bin/fabric-node", "/fabric/fabric-node", ""] {
            assert!(!is_command_line(Some(OsStr::new(called))), "{called}");
        }
        assert!(!is_command_line(None));
    }
}
