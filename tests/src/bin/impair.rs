//! `impair`: takes the bridge's place between two workers of a lab, and loses, doubles and delays
//! single datagrams. Says `ready` when the cable lies; ends with its standard input, and then prints
//! exactly what it did, as JSON.

use std::{io::Write as _, net::IpAddr, path::PathBuf, process::ExitCode, str::FromStr};

use clap::Parser;
use fabric_tests::impair::{
    Impairment,
    cable::{Cable, Plug},
    process::READY,
    relay,
};

/// Be a bad cable between two workers of a lab, until standard input ends
#[derive(Debug, Parser)]
#[command(name = "impair", version)]
struct Args {
    /// Namespace with the workers' links
    #[arg(long, value_name = "FILE")]
    underlay: PathBuf,
    /// MTU of the cable
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// How bad it is, as JSON [default: one datagram of a thousand is lost, one doubled, one delayed]
    #[arg(long, value_name = "JSON", value_parser = parse_settings)]
    settings: Option<Impairment>,
    /// The first worker's link and address
    #[arg(value_name = "INTERFACE=ADDRESS")]
    one: PlugArg,
    /// The second worker's
    #[arg(value_name = "INTERFACE=ADDRESS")]
    other: PlugArg,
}

#[derive(Clone, Debug)]
struct PlugArg(Plug);

impl FromStr for PlugArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ifname, address) = text.split_once('=').ok_or("there is no '='")?;
        let address: IpAddr = address.parse().map_err(|error| format!("{error}"))?;
        Ok(Self(Plug {
            ifname: ifname.to_owned(),
            address,
        }))
    }
}

fn parse_settings(text: &str) -> Result<Impairment, serde_json::Error> {
    serde_json::from_str(text)
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "impair: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let impairment = args
        .settings
        .unwrap_or_else(|| Impairment::one_in_a_thousand(1));
    let cable = Cable::lay(&args.underlay, &[args.one.0, args.other.0], args.mtu)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    let report = relay::run(&cable, impairment, &std::io::stdin())?;
    writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}
