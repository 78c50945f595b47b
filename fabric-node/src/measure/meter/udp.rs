//! One stream of datagrams, either end. Each carries its sender's time; one connection over TCP
//! beside it says when the sender is done.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::set_socket_recv_buffer_size,
};

use super::{
    Curve, Patience,
    wire::{Account, hear},
};
use crate::measure::{DATAGRAM_BYTES_MAX, LOOK, rtt::any};

/// Room for datagrams that the receiver has not come to read (bytes): what a scheduler's tick can
/// bring. The kernel gives at most `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How long the way may be silent before what is missing is lost.
const SILENCE_MAX: Duration = Duration::from_millis(300);
/// Datagrams between two looks at the clock's limits and at who asks to stop.
const BATCH: u64 = 64;
/// Pause of a sender that is ahead of its rate.
const AHEAD_PAUSE: Duration = Duration::from_micros(500);

/// A socket on `address`, or on any of its family, with room for many datagrams.
pub(super) fn socket(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("no UDP port on {address}"))?;
    // Less room than asked for is room, too.
    let _ = set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
    Ok(socket)
}

/// A socket that sends to `target`.
pub(super) fn socket_to(target: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = socket(SocketAddr::new(any(target.ip()), 0))?;
    socket.connect(target)?;
    Ok(socket)
}

/// Sends for as long as asked.
pub(super) fn send(
    socket: &UdpSocket,
    size: u32,
    bitrate: u64,
    duration: Duration,
    interval: Duration,
    patience: &Patience<'_>,
) -> anyhow::Result<(Account, Curve)> {
    socket.set_write_timeout(Some(LOOK))?;
    let mut datagram = vec![0; size as usize];
    let mut curve = Curve::new(Instant::now(), interval);
    let mut account = Account::default();
    let packets_per_second = bitrate as f64 / (f64::from(size) * 8.0);
    loop {
        let now = Instant::now();
        let elapsed = now - curve.begin;
        if elapsed >= duration {
            break;
        }
        if bitrate > 0 && account.packets as f64 > elapsed.as_secs_f64() * packets_per_second {
            thread::sleep(AHEAD_PAUSE.min(duration - elapsed));
            patience.check()?;
            continue;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        if let Some((time, _)) = datagram.split_first_chunk_mut() {
            *time = micros.to_be_bytes();
        }
        match socket.send(&datagram) {
            Ok(len) => {
                account.packets += 1;
                account.bytes += len as u64;
                curve.add(now, len, 1);
            }
            // No room in the device's queue, or nobody listens yet: nothing was sent.
            Err(error) if is_passing(&error) => thread::yield_now(),
            Err(error) => return Err(error).context("cannot send datagrams"),
        }
        if account.packets.is_multiple_of(BATCH) {
            patience.check()?;
        }
    }
    account.seconds = curve.seconds();
    Ok((account, curve))
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED)
    )
}

/// Receives until the sender has said on `control` how much it sent and that much is here, or the way
/// is silent. The receiver's account, its curve and the sender's account.
pub(super) fn receive(
    socket: &UdpSocket,
    control: &TcpStream,
    interval: Duration,
    patience: &Patience<'_>,
) -> anyhow::Result<(Account, Curve, Account)> {
    socket.set_nonblocking(true)?;
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX as usize];
    let mut curve = Curve::new(Instant::now(), interval);
    let mut account = Account::default();
    let mut jitter = Jitter::default();
    let mut sent: Option<Account> = None;
    loop {
        match socket.recv(&mut datagram) {
            Ok(len) => {
                let now = Instant::now();
                if account.packets == 0 {
                    curve.begin = now;
                }
                account.packets += 1;
                account.bytes += len as u64;
                account.seconds = (now - curve.begin).as_secs_f64();
                curve.add(now, len, 1);
                jitter.add(now - curve.begin, datagram.first_chunk().copied());
                if !account.packets.is_multiple_of(BATCH) {
                    continue;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                match (wait(socket, control, sent.is_some())?, sent) {
                    (Ready::Control, None) => sent = Some(hear(control, patience)?),
                    (Ready::Nothing, Some(_)) => break,
                    _ => {}
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error).context("cannot receive datagrams"),
        }
        if sent.is_some_and(|sent| account.packets >= sent.packets) {
            break;
        }
        patience.check()?;
    }
    account.jitter_ms = jitter.milliseconds;
    Ok((account, curve, sent.unwrap_or_default()))
}

/// What can be read.
enum Ready {
    Socket,
    Control,
    Nothing,
}

fn wait(socket: &UdpSocket, control: &TcpStream, is_done: bool) -> anyhow::Result<Ready> {
    let limit = if is_done { SILENCE_MAX } else { LOOK };
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut fds = [
        PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN),
    ];
    // The sender has said its last word: its connection tells nothing any more.
    let watched = if is_done { 1 } else { 2 };
    let watched = fds.get_mut(..watched).unwrap_or_default();
    match poll(watched, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("cannot wait for datagrams"),
    }
    let [of_socket, of_control] = fds.map(|fd| !fd.revents().is_empty());
    Ok(if of_socket {
        Ready::Socket
    } else if of_control {
        Ready::Control
    } else {
        Ready::Nothing
    })
}

/// Variation of the transit time (RFC 3550 section 6.4.1): the clocks of the two ends need not agree.
#[derive(Debug, Default)]
struct Jitter {
    last_transit_ms: Option<f64>,
    milliseconds: f64,
}

impl Jitter {
    fn add(&mut self, arrived: Duration, sent_micros: Option<[u8; 8]>) {
        let Some(sent) = sent_micros.map(u64::from_be_bytes) else {
            return;
        };
        let transit_ms = arrived.as_secs_f64() * 1e3 - sent as f64 / 1e3;
        if let Some(last) = self.last_transit_ms {
            self.milliseconds += ((transit_ms - last).abs() - self.milliseconds) / 16.0;
        }
        self.last_transit_ms = Some(transit_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A steady transit has no jitter, whatever the clocks say; a transit that alternates by 1 ms comes
    /// to a jitter of 1 ms.
    #[test]
    fn jitter_is_the_variation_of_the_transit() {
        let after = |count: u64, late_ms: u64| {
            let mut jitter = Jitter::default();
            for number in 0..count {
                let arrived = Duration::from_millis(10 * number + number % 2 * late_ms);
                let sent: u64 = 5_000_000 + 10_000 * number;
                jitter.add(arrived, Some(sent.to_be_bytes()));
            }
            jitter.milliseconds
        };
        assert!(after(1000, 0).abs() < 1e-6);
        assert!((after(1000, 1) - 1.0).abs() < 1e-6);
        assert!(after(2, 1) < 0.1);
    }
}
