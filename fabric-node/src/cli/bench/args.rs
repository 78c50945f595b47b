//! Arguments of `fabric bench`, checked.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use anyhow::ensure;

use crate::{
    lab::LabName,
    measure::{
        BITRATE_MAX, DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, Direction, SECONDS_MAX, STREAMS_MAX,
        iperf, meter::PORT_OFFSET,
    },
};

/// Seconds of each load between two pods, unless asked otherwise.
pub const SECONDS: u32 = 5;
/// Seconds of each load with `--all`, unless asked otherwise.
pub const SECONDS_OF_ALL: u32 = 2;
/// Most sizes of datagrams in one run.
pub const SIZES_MAX: usize = 16;

pub(super) const AFTER_HELP: &str = "\
Examples:
  fabric bench web db                     two pods that this node's daemon knows
  fabric bench default/web 10.244.2.7     by namespace and name, and by address
  fabric bench --all --svg all.svg        all ordered pairs of pods, and a picture
  fabric bench --lab lab pod-a-1 pod-b-1  pods of a lab
Between two machines:
  fabric bench --serve db                 there, until Ctrl-C
  fabric bench web 10.244.2.7             here, with the address of db

A port of iperf3 (5201 unless --port says otherwise) and the next one are used on the second pod. JSON
has the field names of iperf3: end.sum_received.bits_per_second is what arrived over TCP.";

/// Arguments of `fabric bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct BenchArgs {
    /// Two pods: NAME, NAMESPACE/NAME, container id or address; with --all the pods to take. The second
    /// may be ADDRESS or ADDRESS:PORT of `fabric bench --serve` or `iperf3 -s` on another machine
    #[arg(value_name = "POD")]
    pub pods: Vec<String>,
    /// Measure all ordered pairs, of all pods or of those named
    #[arg(long)]
    pub all: bool,
    /// Serve in this pod until interrupted, for `fabric bench` on another machine
    #[arg(long, value_name = "POD", conflicts_with_all = ["all", "pods", "svg"])]
    pub serve: Option<String>,
    /// Seconds of each load [default: 5, with --all 2]
    #[arg(short = 't', long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=i64::from(SECONDS_MAX)))]
    pub seconds: Option<u32>,
    /// Parallel streams
    #[arg(short = 'P', long, default_value_t = 1, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=i64::from(STREAMS_MAX)))]
    pub streams: u32,
    /// The second pod sends, the first receives
    #[arg(short = 'R', long, conflicts_with = "bidir")]
    pub reverse: bool,
    /// Both send at once
    #[arg(long)]
    pub bidir: bool,
    /// Payloads of the datagrams to send, in bytes, one load for each; `none` for no UDP
    #[arg(long, default_value = "64,1200", value_name = "BYTES,...")]
    pub udp: Sizes,
    /// Rate of each UDP stream in bit/s, with K, M or G; 0 for as fast as it goes
    #[arg(short, long, default_value = "0", value_name = "RATE", value_parser = bitrate)]
    pub bitrate: u64,
    /// Port of iperf3 on the second pod; the built-in meter takes the next one
    #[arg(short, long, default_value_t = iperf::PORT, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=i64::from(u16::MAX - PORT_OFFSET)))]
    pub port: u16,
    /// What measures
    #[arg(long, value_enum, default_value_t = Meter::Auto)]
    pub meter: Meter,
    /// Use IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Use IPv6 [default: IPv4 where both pods have it]
    #[arg(short = '6', long)]
    pub ipv6: bool,
    /// Draw the result into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// A lab on this machine: pods of all its workers are found
    #[arg(long, value_name = "NAME")]
    pub lab: Option<LabName>,
    /// Admin socket of another daemon on this machine, whose pods are found, too; may be repeated
    #[arg(long, value_name = "PATH", conflicts_with = "lab")]
    pub also_socket: Vec<PathBuf>,
}

/// What measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Meter {
    /// iperf3 where it is, else the built-in meter
    Auto,
    /// iperf3
    Iperf3,
    /// the built-in meter
    Builtin,
}

impl BenchArgs {
    /// Which way TCP and UDP go.
    pub(super) fn direction(&self) -> Direction {
        match (self.reverse, self.bidir) {
            (true, _) => Direction::Reverse,
            (_, true) => Direction::Both,
            _ => Direction::Forward,
        }
    }

    /// Whether an address is of a family that may be used.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        !(self.ipv4 && address.is_ipv6() || self.ipv6 && address.is_ipv4())
    }

    /// Refuses what the parser cannot see.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.serve.is_some() {
            return Ok(());
        }
        if self.all {
            ensure!(
                self.pods.len() != 1,
                "--all measures between pods: name at least two, or none for all of them"
            );
            return Ok(());
        }
        ensure!(
            self.pods.len() == 2,
            "name two pods, as in `fabric bench web db` (`fabric pods` lists them), or give --all or \
             --serve POD"
        );
        Ok(())
    }
}

/// Sizes of datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(pub Vec<u32>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let size = |word: &str| {
            word.trim()
                .parse()
                .ok()
                .filter(|size| (DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(size))
                .ok_or_else(|| {
                    format!(
                        "{word:?} is no payload of a datagram: write {DATAGRAM_BYTES_MIN} to \
                         {DATAGRAM_BYTES_MAX}, several with commas between them, or none"
                    )
                })
        };
        let sizes: Vec<u32> = text.split(',').map(size).collect::<Result<_, _>>()?;
        if sizes.len() > SIZES_MAX {
            return Err(format!("at most {SIZES_MAX} sizes are measured in one run"));
        }
        Ok(Self(sizes))
    }
}

/// `800K`, `100M`, `2.5G`: powers of 1000, as iperf3 has them for rates.
fn bitrate(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("{text:?} is no rate: write bits per second, with K, M or G at the end, as in 100M")
    };
    let (number, factor) = match text.char_indices().next_back().ok_or_else(wrong)? {
        (at, 'k' | 'K') => (text.get(..at), 1e3),
        (at, 'm' | 'M') => (text.get(..at), 1e6),
        (at, 'g' | 'G') => (text.get(..at), 1e9),
        _ => (Some(text), 1.0),
    };
    let number: f64 = number
        .and_then(|number| number.parse().ok())
        .ok_or_else(wrong)?;
    let rate = number * factor;
    if !(0.0..=BITRATE_MAX as f64).contains(&rate) {
        return Err(wrong());
    }
    Ok(rate.round() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let args = Line::try_parse_from(words).map_err(|e| e.to_string())?.args;
        args.check().map_err(|e| e.to_string())?;
        Ok(args)
    }

    /// Sizes are numbers within what UDP carries, or none at all.
    #[test]
    fn sizes() {
        assert_eq!("64,1200".parse(), Ok(Sizes(vec![64, 1200])));
        assert_eq!("none".parse(), Ok(Sizes(vec![])));
        for text in [
            "",
            "15",
            "65508",
            "64,",
            "big",
            "64;1200",
            &"64,".repeat(40),
        ] {
            assert!(text.parse::<Sizes>().is_err(), "{text:?} was accepted");
        }
    }

    /// Rates are bits per second in powers of 1000.
    #[test]
    fn bitrates() {
        for (text, rate) in [
            ("0", 0),
            ("800", 800),
            ("800K", 800_000),
            ("100m", 100_000_000),
            ("2.5G", 2_500_000_000),
        ] {
            assert_eq!(bitrate(text), Ok(rate), "{text}");
        }
        for text in ["", "M", "-1", "1T", "1e20", "NaN", "inf", "ü"] {
            assert!(bitrate(text).is_err(), "{text:?} was accepted");
        }
    }

    /// A run has two pods, or all, or serves one; what contradicts itself is refused.
    #[test]
    fn one_way_to_run() {
        for line in [
            "web db",
            "web 10.0.0.1:5301 -P 4 -R -t 10",
            "--all",
            "--all a b c --svg x.svg",
            "--serve db -p 5301",
            "web db --bidir --udp none -6",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
        for line in [
            "",
            "web",
            "a b c",
            "--all a",
            "--serve db web",
            "--serve db --all",
            "a b -R --bidir",
            "a b -4 -6",
            "a b -t 0",
            "a b -P 129",
            "a b -p 65535",
        ] {
            assert!(parse(line).is_err(), "{line:?} was accepted");
        }
    }
}
