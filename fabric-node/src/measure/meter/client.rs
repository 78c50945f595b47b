//! The meter's client: takes a load apart into streams, runs them side by side, and sums up what they
//! counted. Called on a thread inside the client's network namespace.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow};

use super::{
    BLOCK_BYTES, Curve, EXTRA_MAX, Patience, tcp, udp,
    wire::{Account, Greeting, Opened, Request, hear, say},
};
use crate::measure::{
    Direction, Load, Measurement, Protocol, Watch,
    result::{End, Interval, Server, Start, Sum, TestStart, Timestamp},
    rtt::any,
};

/// How long a connection may take.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Asks who is there.
///
/// # Errors
///
/// Nobody listens at `target`, or something else does; `watch` stopped it.
pub fn greet(target: SocketAddr, watch: &dyn Watch) -> anyhow::Result<Greeting> {
    let stream = connect(target)?;
    listen_to_greeting(&stream, watch)
}

/// Measures to the server at `target`.
///
/// # Errors
///
/// A stream broke; the server is none, or of another version; `watch` stopped it.
pub fn measure(target: SocketAddr, load: &Load, watch: &dyn Watch) -> anyhow::Result<Measurement> {
    let timesecs = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let ways = [
        load.direction.forward().then_some(Way::Forward),
        load.direction.reverse().then_some(Way::Reverse),
    ];
    // All connections first: then all streams begin together.
    let mut streams = Vec::new();
    for way in ways.into_iter().flatten() {
        for _ in 0..load.streams {
            let stream = connect(target)?;
            listen_to_greeting(&stream, watch)?;
            streams.push((way, stream));
        }
    }
    let outcomes = thread::scope(|scope| {
        let spawn = |(way, stream): &(Way, TcpStream)| {
            let (way, stream) = (*way, stream.try_clone());
            let run = move || Ok((way, run(way, &stream?, target, load, watch)?));
            thread::Builder::new().spawn_scoped(scope, run)
        };
        let running: Vec<_> = streams.iter().map(spawn).collect();
        let finished = running.into_iter().map(|thread| {
            let joined = thread?.join();
            joined.unwrap_or_else(|_| Err(anyhow!("a stream's thread panicked")))
        });
        // All are waited for, whichever fails first.
        finished.collect::<Vec<anyhow::Result<(Way, Outcome)>>>()
    });
    let outcomes: Vec<_> = outcomes.into_iter().collect::<anyhow::Result<_>>()?;
    let of = |way| -> Vec<&Outcome> {
        let found = outcomes.iter().filter(|(found, _)| *found == way);
        found.map(|(_, outcome)| outcome).collect()
    };
    Ok(Measurement {
        start: start(target, load, timesecs),
        ..sum_up(load, &of(Way::Forward), &of(Way::Reverse))
    })
}

fn connect(target: SocketAddr) -> anyhow::Result<TcpStream> {
    TcpStream::connect_timeout(&target, CONNECT_MAX)
        .with_context(|| format!("no meter of fabric answers at {target}"))
}

fn listen_to_greeting(stream: &TcpStream, watch: &dyn Watch) -> anyhow::Result<Greeting> {
    let deadline = Instant::now() + CONNECT_MAX;
    let greeting: Greeting = hear(stream, &Patience { watch, deadline })?;
    greeting.check()
}

/// Which way one stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Forward,
    Reverse,
}

/// What one stream came to.
struct Outcome {
    sent: Account,
    received: Account,
    /// The client's side.
    curve: Curve,
}

/// One stream.
fn run(
    way: Way,
    stream: &TcpStream,
    target: SocketAddr,
    load: &Load,
    watch: &dyn Watch,
) -> anyhow::Result<Outcome> {
    let seconds = load.seconds;
    let duration = Duration::from_secs(seconds.into());
    let interval = load.interval();
    let patience = Patience {
        watch,
        deadline: Instant::now() + duration + EXTRA_MAX,
    };
    match (load.protocol, way) {
        (Protocol::Tcp, Way::Forward) => {
            say(stream, &Request::TcpSink { seconds })?;
            let (sent, curve) = tcp::pump(stream, duration, interval, &patience)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let received = hear(stream, &patience)?;
            Ok(Outcome {
                sent,
                received,
                curve,
            })
        }
        (Protocol::Tcp, Way::Reverse) => {
            say(stream, &Request::TcpSource { seconds })?;
            let (received, curve, sent) = tcp::drain_with_account(stream, interval, &patience)?;
            Ok(Outcome {
                sent,
                received,
                curve,
            })
        }
        (Protocol::Udp { size, bitrate }, Way::Forward) => {
            say(stream, &Request::UdpSink { seconds })?;
            let Opened { port } = hear(stream, &patience)?;
            let socket = udp::socket_to(SocketAddr::new(target.ip(), port))?;
            let (sent, curve) = udp::send(&socket, size, bitrate, duration, interval, &patience)?;
            say(stream, &sent)?;
            let received = hear(stream, &patience)?;
            Ok(Outcome {
                sent,
                received,
                curve,
            })
        }
        (Protocol::Udp { size, bitrate }, Way::Reverse) => {
            let socket = udp::socket(SocketAddr::new(any(target.ip()), 0))?;
            let port = socket.local_addr()?.port();
            say(
                stream,
                &Request::UdpSource {
                    port,
                    seconds,
                    size,
                    bitrate,
                },
            )?;
            let (received, curve, sent) = udp::receive(&socket, stream, interval, &patience)?;
            Ok(Outcome {
                sent,
                received,
                curve,
            })
        }
    }
}

fn start(target: SocketAddr, load: &Load, timesecs: u64) -> Start {
    let (protocol, blksize, target_bitrate) = match load.protocol {
        Protocol::Tcp => ("TCP", u32::try_from(BLOCK_BYTES).unwrap_or(u32::MAX), 0),
        Protocol::Udp { size, bitrate } => ("UDP", size, bitrate),
    };
    Start {
        version: format!("fabric {}", env!("CARGO_PKG_VERSION")),
        timestamp: Timestamp { timesecs },
        connecting_to: Some(Server {
            host: target.ip().to_string(),
            port: target.port(),
        }),
        test_start: TestStart {
            protocol: protocol.to_owned(),
            num_streams: load.streams,
            blksize,
            duration: load.seconds,
            reverse: u8::from(load.direction == Direction::Reverse),
            target_bitrate,
        },
    }
}

/// Sums as iperf3 has them: those of the way back have other names only where there are both.
fn sum_up(load: &Load, forward: &[&Outcome], reverse: &[&Outcome]) -> Measurement {
    let is_udp = load.protocol != Protocol::Tcp;
    let mut end = End::default();
    let (first, second) = match load.direction {
        Direction::Reverse => (reverse, None),
        Direction::Forward => (forward, None),
        Direction::Both => (forward, Some(reverse)),
    };
    let client_sends = load.direction.forward();
    end.sum_sent = Some(sent(first, is_udp, client_sends));
    end.sum_received = Some(received(first, is_udp, client_sends));
    end.sum = is_udp.then(|| Sum {
        jitter_ms: end.sum_received.as_ref().and_then(|sum| sum.jitter_ms),
        lost_packets: end.sum_received.as_ref().and_then(|sum| sum.lost_packets),
        lost_percent: end.sum_received.as_ref().and_then(|sum| sum.lost_percent),
        ..end.sum_sent.clone().unwrap_or_default()
    });
    end.sum_sent_bidir_reverse = second.map(|streams| sent(streams, is_udp, false));
    end.sum_received_bidir_reverse = second.map(|streams| received(streams, is_udp, false));
    let of = |streams: &[&Outcome]| curve(streams, load.interval(), is_udp);
    let mut back = second.map(of).unwrap_or_default().into_iter();
    let intervals = of(first).into_iter().map(|sum| Interval {
        sum,
        sum_bidir_reverse: back.next(),
    });
    Measurement {
        intervals: intervals.collect(),
        end,
        ..Measurement::default()
    }
}

fn sent(streams: &[&Outcome], is_udp: bool, client_sends: bool) -> Sum {
    let accounts = streams.iter().map(|outcome| &outcome.sent);
    let total = total(accounts);
    Sum {
        packets: is_udp.then_some(total.packets),
        retransmits: (!is_udp).then_some(total.retransmits),
        sender: Some(client_sends),
        ..sum(0.0, total.seconds, total.bytes)
    }
}

fn received(streams: &[&Outcome], is_udp: bool, client_sends: bool) -> Sum {
    let arrived = total(streams.iter().map(|outcome| &outcome.received));
    let sum = Sum {
        sender: Some(client_sends),
        ..sum(0.0, arrived.seconds, arrived.bytes)
    };
    if !is_udp {
        return sum;
    }
    let sent = total(streams.iter().map(|outcome| &outcome.sent)).packets;
    let lost = sent.saturating_sub(arrived.packets);
    Sum {
        packets: Some(sent),
        lost_packets: i64::try_from(lost).ok(),
        lost_percent: (sent > 0).then(|| 100.0 * lost as f64 / sent as f64),
        jitter_ms: Some(arrived.jitter_ms / streams.len().max(1) as f64),
        sender: Some(false),
        ..sum
    }
}

fn total<'a>(accounts: impl Iterator<Item = &'a Account>) -> Account {
    accounts.fold(Account::default(), |sum, one| Account {
        bytes: sum.bytes + one.bytes,
        packets: sum.packets + one.packets,
        seconds: sum.seconds.max(one.seconds),
        retransmits: sum.retransmits + one.retransmits,
        jitter_ms: sum.jitter_ms + one.jitter_ms,
    })
}

fn sum(start: f64, end: f64, bytes: u64) -> Sum {
    let seconds = end - start;
    Sum {
        start,
        end,
        seconds,
        bytes,
        bits_per_second: if seconds > 0.0 {
            bytes as f64 * 8.0 / seconds
        } else {
            0.0
        },
        ..Sum::default()
    }
}

/// The intervals of all streams together; the last one may be shorter.
fn curve(streams: &[&Outcome], interval: Duration, is_udp: bool) -> Vec<Sum> {
    let parts = streams
        .iter()
        .map(|outcome| outcome.curve.parts.len())
        .max();
    let seconds = streams
        .iter()
        .map(|outcome| outcome.sent.seconds.max(outcome.received.seconds))
        .fold(0.0, f64::max);
    let part = |number: usize| {
        let (mut bytes, mut packets) = (0, 0);
        for outcome in streams {
            let (b, p) = outcome.curve.parts.get(number).copied().unwrap_or_default();
            bytes += b;
            packets += p;
        }
        let begin = interval.as_secs_f64() * number as f64;
        let end = (begin + interval.as_secs_f64()).min(seconds.max(begin));
        Sum {
            packets: is_udp.then_some(packets),
            ..sum(begin, end, bytes)
        }
    };
    (0..parts.unwrap_or_default())
        .map(part)
        // What came in the last moments is in the sums; a rate over them says nothing.
        .filter(|sum| sum.seconds > interval.as_secs_f64() / 10.0)
        .collect()
}
