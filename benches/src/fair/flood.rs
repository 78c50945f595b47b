//! UDP as fast as one thread can send it.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fabric_node::sys::netns::Netns;

use crate::iperf::Ends;

/// Payload of each datagram (bytes): it fits one packet on any underlay.
pub const DATAGRAM_BYTES: usize = 1_200;
/// How often a receiver without news looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause of a sender whose packets are not taken.
const FULL_PAUSE: Duration = Duration::from_micros(50);

/// Floods from client to server while `load` runs; its answer, and what arrived (Gbit/s).
///
/// # Errors
///
/// A socket cannot be made or fails, or that of `load`.
pub fn beside<T>(
    ends: Ends<'_>,
    load: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, f64)> {
    let server = bound(ends.server, ends.address)?;
    let client = bound(ends.client, unspecified(ends.address))?;
    client.connect(server.local_addr()?)?;
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&client, &end));
        let receiver = scope.spawn(|| receive(&server, &end));
        let answer = load();
        end.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        sender.join().map_err(panicked)??;
        let rate = receiver.join().map_err(panicked)??;
        Ok((answer?, rate))
    })
}

fn send(client: &UdpSocket, end: &AtomicBool) -> anyhow::Result<()> {
    let datagram = [0x5a; DATAGRAM_BYTES];
    while !end.load(Ordering::Relaxed) {
        match client.send(&datagram) {
            Ok(_) => {}
            // The kernel's queue is full: as the pod's would be.
            Err(error) if is_full(&error) => thread::sleep(FULL_PAUSE),
            Err(error) => return Err(error).context("the flood stopped"),
        }
    }
    Ok(())
}

fn receive(server: &UdpSocket, end: &AtomicBool) -> anyhow::Result<f64> {
    server.set_read_timeout(Some(LOOK_INTERVAL))?;
    let mut datagram = [0; DATAGRAM_BYTES];
    let mut bytes = 0_u64;
    let begin = Instant::now();
    while !end.load(Ordering::Relaxed) {
        match server.recv(&mut datagram) {
            Ok(len) => bytes += len as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the flood cannot be received"),
        }
    }
    Ok(bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
}

fn bound(netns: &Netns, address: IpAddr) -> anyhow::Result<UdpSocket> {
    let place = SocketAddr::new(address, 0);
    netns
        .run(|| UdpSocket::bind(place))?
        .with_context(|| format!("no socket on {place}"))
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// ENOBUFS (errno 105 of Linux) has no kind of its own.
fn is_full(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(105)
}
