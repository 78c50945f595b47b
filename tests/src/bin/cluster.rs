//! `cluster`: a real Kubernetes cluster on this machine that stays until it is taken down. Progress on standard error,
//! what to type next on standard output.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fabric_node::lab::Interrupt;
use fabric_tests::cluster::{Network, Options, programs, proxy::Mode, standing::Standing};

/// Bring a Kubernetes cluster up on this machine, and take it down
#[derive(Debug, Parser)]
#[command(name = "cluster", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring a cluster up, and leave it standing
    Up(Wanted),
    /// Take the standing cluster down
    Down,
    /// Build the programs of Kubernetes, where they are not there yet
    Build,
    /// Bring a cluster up in this sandbox, and hold it until interrupted
    #[command(hide = true)]
    Hold(Wanted),
}

#[derive(Clone, Debug, Args)]
struct Wanted {
    /// Number of nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// What connects the pods
    #[arg(long, default_value = "reference")]
    network: Kind,
    /// Manifest that installs the product
    #[arg(long, value_name = "FILE", required_if_eq("network", "fabric"))]
    manifest: Option<PathBuf>,
    /// Archive of the product's image
    #[arg(long, value_name = "FILE", required_if_eq("network", "fabric"))]
    image: Option<PathBuf>,
    /// How kube-proxy translates addresses
    #[arg(long, default_value = "iptables")]
    proxy: Mode,
    /// No CoreDNS
    #[arg(long)]
    no_dns: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Nothing: nodes are not Ready until you install a network
    None,
    /// The reference plugins ptp and host-local
    Reference,
    /// The product
    Fabric,
}

fn main() -> ExitCode {
    match run(Command::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    let standing = Standing::of_this_checkout();
    match verb {
        Verb::Up(wanted) => {
            // Wrong options are told before anything is started.
            wanted.options()?;
            let words: Vec<String> = std::env::args().skip(2).collect();
            let interrupt = Interrupt::install()?;
            standing.up(&std::env::current_exe()?, &words, &interrupt)?;
            let _ = writeln!(std::io::stdout(), "{}", standing.next_steps());
            Ok(())
        }
        Verb::Down => {
            let said = if standing.down()? {
                "the cluster is down"
            } else {
                "no cluster stands"
            };
            let _ = writeln!(std::io::stderr(), "{said}");
            Ok(())
        }
        Verb::Build => programs::build(),
        Verb::Hold(wanted) => standing.hold(&wanted.options()?, &Interrupt::install()?),
    }
}

impl Wanted {
    fn options(&self) -> anyhow::Result<Options> {
        let network = match self.network {
            Kind::None => Network::None,
            Kind::Reference => Network::Reference,
            Kind::Fabric => Network::Fabric {
                manifest: absolute(self.manifest.as_ref())?,
                image: absolute(self.image.as_ref())?,
            },
        };
        Ok(Options {
            nodes: self.nodes,
            network,
            proxy: self.proxy,
            dns: !self.no_dns,
        })
    }
}

/// kubectl and containerd have other working folders.
fn absolute(file: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    let file = file.context("the product needs --manifest and --image")?;
    file.canonicalize()
        .with_context(|| format!("there is no file {}", file.display()))
}
