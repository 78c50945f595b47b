//! `yardstick`: two relays to hold the fabric against, for the side-by-side runner. Neither is meant
//! to carry anybody's traffic.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use fabric_benches::{
    invocation::exit_code,
    yardstick::{
        relay::{self, DEFAULT_KEY, RelayOptions},
        wrapped::{self, Role, WrappedOptions},
    },
};
use ipnet::IpNet;

/// Relays to hold the fabric against: how fast it could be, and how fast the ready-made way is.
/// For measurements only: neither protects what it carries
#[derive(Debug, Parser)]
#[command(name = "yardstick", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The ceiling: AES-128-GCM over UDP with segmentation offload, nothing acknowledged or sent twice
    Relay {
        #[command(flatten)]
        ends: Ends,
        /// Key of both ends in hexadecimal [default: one that is no secret]
        #[arg(long, value_name = "HEX32", value_parser = key)]
        key: Option<[u8; 16]>,
    },
    /// The ready-made way: the async QUIC crate, super-packets on one stream, certificates not verified
    Quinn {
        #[command(flatten)]
        ends: Ends,
        /// Who connects
        #[arg(long, value_enum)]
        role: Role,
    },
}

#[derive(Debug, Args)]
struct Ends {
    /// TUN device to make
    #[arg(long, value_name = "NAME")]
    tun: String,
    /// Its address and network
    #[arg(long, value_name = "CIDR")]
    address: IpNet,
    /// Own address on the underlay
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Address of the other end
    #[arg(long, value_name = "ADDR:PORT")]
    peer: SocketAddr,
    /// Largest IP packet of the underlay, in bytes
    #[arg(long, default_value_t = 1500, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: u16,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Relay { ends, key } => relay::run(&RelayOptions {
            tun: ends.tun,
            address: ends.address,
            listen: ends.listen,
            peer: ends.peer,
            mtu: ends.mtu,
            key: key.unwrap_or(DEFAULT_KEY),
        }),
        Command::Quinn { ends, role } => wrapped::run(&WrappedOptions {
            tun: ends.tun,
            address: ends.address,
            listen: ends.listen,
            peer: ends.peer,
            mtu: ends.mtu,
            role,
        }),
    };
    exit_code(result)
}

fn key(text: &str) -> Result<[u8; 16], String> {
    let number = (text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten();
    number
        .map(u128::to_be_bytes)
        .ok_or_else(|| "a key is 32 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key is 16 bytes in hexadecimal, in the order they are written, and nothing else.
    #[test]
    fn keys_are_read() {
        let expected = *b"0123456789abcdef";
        assert_eq!(key("30313233343536373839616263646566"), Ok(expected));
        for bad in [
            "",
            "30",
            "+0313233343536373839616263646566",
            "3031323334353637383961626364656g",
        ] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }
}
