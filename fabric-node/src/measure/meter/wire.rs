//! What the two ends of the built-in meter say to each other: one line of JSON at a time, bounded.
//!
//! The server greets. The client requests. Then, over TCP: zeroes from whoever sends, until it shuts
//! its half of the connection; the receiver's account as a line where the client sent, the sender's
//! account behind the zeroes where the server did. Over UDP: the server says its port where it
//! receives; the sender says when it is done and how much it was; the receiver accounts for it.

use std::{
    io::{ErrorKind, Read, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Patience;
use crate::measure::{
    BITRATE_MAX, DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, LOOK, SECONDS_MAX, rtt::is_timeout,
};

/// Version of what is said here; another one is refused.
const VERSION: u32 = 1;
/// Longest line (bytes).
pub(super) const LINE_BYTES_MAX: usize = 1024;

/// The server's first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Version of the meter.
    #[serde(rename = "fabricMeter")]
    version: u32,
    /// Whether a server of iperf3 listens on the port before this one.
    pub iperf3: bool,
}

impl Greeting {
    /// The greeting of this version.
    #[must_use]
    pub fn new(iperf3: bool) -> Self {
        Self {
            version: VERSION,
            iperf3,
        }
    }

    pub(super) fn check(self) -> anyhow::Result<Self> {
        ensure!(
            self.version == VERSION,
            "the other end measures in version {}, this program in {VERSION}: use the same version of \
             fabric on both",
            self.version
        );
        Ok(self)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(super) enum Request {
    /// Read zeroes from this connection.
    TcpSink {
        /// How long they come.
        seconds: u32,
    },
    /// Write zeroes to this connection.
    TcpSource {
        /// For so long.
        seconds: u32,
    },
    /// Receive datagrams.
    UdpSink {
        /// How long they come.
        seconds: u32,
    },
    /// Send datagrams to the client's address.
    UdpSource {
        /// To this port.
        port: u16,
        /// For so long.
        seconds: u32,
        /// Bytes of each.
        size: u32,
        /// Bits per second, 0 for as many as there can be.
        bitrate: u64,
    },
}

impl Request {
    /// Refuses what is out of range: it came from the network.
    pub(super) fn check(self) -> anyhow::Result<Self> {
        let seconds = self.seconds();
        ensure!(
            (1..=SECONDS_MAX).contains(&seconds),
            "{seconds} s are out of range"
        );
        if let Self::UdpSource { size, bitrate, .. } = self {
            ensure!(
                (DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(&size),
                "{size} bytes are out of range"
            );
            ensure!(bitrate <= BITRATE_MAX, "{bitrate} bit/s are out of range");
        }
        Ok(self)
    }

    /// How long the stream lasts.
    pub(super) fn seconds(self) -> u32 {
        match self {
            Self::TcpSink { seconds }
            | Self::TcpSource { seconds }
            | Self::UdpSink { seconds }
            | Self::UdpSource { seconds, .. } => seconds,
        }
    }
}

/// Where the server receives datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opened {
    /// The port.
    pub(super) port: u16,
}

/// What one end of a stream counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Account {
    /// Payload.
    pub(super) bytes: u64,
    /// Datagrams.
    pub(super) packets: u64,
    /// From its begin to its end.
    pub(super) seconds: f64,
    /// Segments sent again, from the sender over TCP.
    pub(super) retransmits: u64,
    /// Variation of the transit time, from the receiver over UDP.
    pub(super) jitter_ms: f64,
}

/// Writes a line.
pub(super) fn say<T: Serialize>(mut stream: &TcpStream, words: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    stream.write_all(&line).context("cannot answer")
}

/// Reads a line, not a byte more.
pub(super) fn hear<T: DeserializeOwned>(
    mut stream: &TcpStream,
    patience: &Patience<'_>,
) -> anyhow::Result<T> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut line = Vec::new();
    let mut byte = [0];
    // One byte at a time: what follows may be another's to read, and lines are few.
    while byte != *b"\n" {
        patience.check()?;
        match stream.read(&mut byte) {
            Ok(0) => bail!("the other end hung up"),
            Ok(_) => line.extend(byte),
            Err(error) if is_timeout(&error) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                bail!("the other end hung up")
            }
            Err(error) => return Err(error).context("cannot hear the other end"),
        }
        ensure!(line.len() <= LINE_BYTES_MAX, "the other end says too much");
    }
    parse(&line)
}

/// Understands a line.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(line).context("the other end is no meter of fabric")
}
