//! iperf3, client and server: a [`Load`] in, a [`Measurement`] out. Reads JSON only, and the one line
//! by which a server says that it listens.

use std::{
    io::{BufRead as _, BufReader, Read},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    Direction, LOOK, Load, Measurement, Protocol, Watch,
    child::{Running, collect},
};
use crate::{lab::command, sys::netns::Netns};

/// Name of the program.
pub const PROGRAM: &str = "iperf3";
/// Port of a server unless asked otherwise (services of iperf3).
pub const PORT: u16 = 5201;

/// How long a measurement may take beyond the time it sends: connections, results, queues that drain.
pub const EXTRA_MAX: Duration = Duration::from_secs(15);
/// How long the server may take until it listens.
pub const LISTEN_MAX: Duration = Duration::from_secs(10);
/// How long one may wait for a server that is busy with the measurement of somebody else.
pub const BUSY_MAX: Duration = Duration::from_secs(10);
/// Largest answer read (bytes): 128 streams in 100 intervals are 5 MB.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long the control connection may take (ms).
const CONNECT_MS: u32 = 5000;
/// Pause before a busy server is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Most that is kept of what a server says when it does not listen (bytes).
const WORDS_BYTES_MAX: u64 = 4096;

/// Where iperf3 is on this machine, if it is.
#[must_use]
pub fn find() -> Option<PathBuf> {
    command::find(PROGRAM)
}

/// How long a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// One measurement.
    Once,
    /// Until its value ends.
    On,
}

/// A server; ends with this value.
#[derive(Debug)]
pub struct Server(Running);

impl Server {
    /// Starts a server in `netns` and waits until it listens on `port`, of `address` or of all.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not listen, such as on a port that is taken.
    pub fn start(
        program: &Path,
        netns: &Netns,
        address: Option<IpAddr>,
        port: u16,
        serve: Serve,
    ) -> anyhow::Result<Self> {
        let mut server = Command::new(program);
        server.args(["--server", "--forceflush", "--port", &port.to_string()]);
        if serve == Serve::Once {
            server.arg("--one-off");
        }
        if let Some(address) = address {
            server.args(["--bind", &address.to_string()]);
        }
        let (running, pipes) = Running::start(netns, server)?;
        let words = collect(pipes.stderr, WORDS_BYTES_MAX);
        match listening(pipes.stdout).recv_timeout(LISTEN_MAX) {
            Ok(()) => Ok(Self(running)),
            Err(error) => {
                let why = match error {
                    RecvTimeoutError::Timeout => String::new(),
                    RecvTimeoutError::Disconnected => words.recv_timeout(LOOK).unwrap_or_default(),
                };
                bail!(
                    "the iperf3 server does not listen on port {port}: {}",
                    one_line(&why)
                )
            }
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }
}

/// iperf3's words on one line.
fn one_line(words: &str) -> String {
    words.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Tells once the server listens; disconnects where it ends before.
fn listening(output: impl Read + Send + 'static) -> mpsc::Receiver<()> {
    let (listening, heard) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut listening = Some(listening);
        // Read to its end: a full pipe would stop the server.
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            if String::from_utf8_lossy(&line).contains("Server listening")
                && let Some(listening) = listening.take()
            {
                let _ = listening.send(());
            }
        }
    });
    heard
}

/// Measures from `netns` to the server at `target`; one that is busy is asked again for a while.
///
/// # Errors
///
/// iperf3's own words; it does not end in time; `watch` stopped it.
pub fn measure(
    program: &Path,
    netns: &Netns,
    target: SocketAddr,
    load: &Load,
    watch: &dyn Watch,
) -> anyhow::Result<Measurement> {
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        let mut client = Command::new(program);
        client.args(arguments(target, load));
        let limit = Duration::from_secs(load.seconds.into()) + EXTRA_MAX;
        let answer = run(netns, client, limit, watch)?;
        match Measurement::from_iperf3(&answer) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                watch.check()?;
                thread::sleep(BUSY_PAUSE);
            }
            other => return other.with_context(|| format!("iperf3 to {target}")),
        }
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    error.to_string().contains("server is busy")
}

/// Runs the client; its standard output.
fn run(
    netns: &Netns,
    client: Command,
    limit: Duration,
    watch: &dyn Watch,
) -> anyhow::Result<String> {
    let (running, pipes) = Running::start(netns, client)?;
    let answer = collect(pipes.stdout, ANSWER_BYTES_MAX);
    let words = collect(pipes.stderr, WORDS_BYTES_MAX);
    let deadline = Instant::now() + limit;
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(text) if text.trim().is_empty() => {
                bail!(
                    "iperf3 answered nothing: {}",
                    one_line(&words.recv_timeout(LOOK).unwrap_or_default())
                )
            }
            Ok(text) => return Ok(text),
            Err(RecvTimeoutError::Disconnected) => bail!("iperf3 cannot be heard"),
            Err(RecvTimeoutError::Timeout) => {
                watch.check()?;
                if Instant::now() >= deadline {
                    drop(running);
                    bail!("iperf3 did not end within {} s", limit.as_secs());
                }
            }
        }
    }
}

fn arguments(target: SocketAddr, load: &Load) -> Vec<String> {
    let mut arguments: Vec<String> = vec!["--json".to_owned()];
    let mut pair = |name: &str, value: &dyn ToString| {
        arguments.extend([name.to_owned(), value.to_string()]);
    };
    pair("--client", &target.ip());
    pair("--port", &target.port());
    pair("--time", &load.seconds);
    pair("--parallel", &load.streams);
    pair("--interval", &load.interval().as_secs_f64());
    pair("--connect-timeout", &CONNECT_MS);
    if let Protocol::Udp { size, bitrate } = load.protocol {
        pair("--length", &size);
        pair("--bitrate", &bitrate);
        arguments.push("--udp".to_owned());
    }
    match load.direction {
        Direction::Forward => {}
        Direction::Reverse => arguments.push("--reverse".to_owned()),
        Direction::Both => arguments.push("--bidir".to_owned()),
    }
    arguments
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Every part of a load has its argument, and what is not asked for has none.
    #[test]
    fn loads_become_arguments() {
        let line = |load: &Load| arguments("[fd00::1]:5301".parse().unwrap(), load).join(" ");
        let tcp = Load {
            protocol: Protocol::Tcp,
            direction: Direction::Forward,
            streams: 1,
            seconds: 5,
        };
        assert_eq!(
            line(&tcp),
            "--json --client fd00::1 --port 5301 --time 5 --parallel 1 --interval 0.5 \
             --connect-timeout 5000"
        );
        let udp = Load {
            protocol: Protocol::Udp {
                size: 64,
                bitrate: 0,
            },
            direction: Direction::Both,
            streams: 4,
            seconds: 60,
        };
        let line = line(&udp);
        assert!(
            line.ends_with("--length 64 --bitrate 0 --udp --bidir"),
            "{line}"
        );
        assert!(
            line.contains("--interval 1 ") && line.contains("--parallel 4 "),
            "{line}"
        );
    }
}
