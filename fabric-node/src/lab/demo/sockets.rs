//! Sockets and captures inside pods. A socket belongs to the namespace it was made in, whoever uses
//! it afterwards, so only the making happens on a thread inside.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use crate::{lab::underlay::inside, sys::capture::Capture};

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long one datagram may take before it is sent again.
const DATAGRAM_MAX: Duration = Duration::from_secs(1);
/// How often a datagram is sent: UDP promises nothing.
const DATAGRAM_TRIES: usize = 5;
/// Room for one frame with segmentation offload (bytes): 64 KiB and its headers.
const FRAME_BYTES_MAX: usize = 68 * 1024;

/// Sends `payload` over TCP from one namespace to an address in another and back; the sender's
/// address as the receiver saw it.
pub(super) fn tcp_echo(
    from: &Path,
    to: &Path,
    address: IpAddr,
    payload: &[u8],
) -> anyhow::Result<IpAddr> {
    let listener = inside(to, || Ok(TcpListener::bind(SocketAddr::new(address, 0))?))?;
    let target = listener.local_addr()?;
    let mut client = inside(from, || {
        TcpStream::connect_timeout(&target, ANSWER_MAX)
            .with_context(|| format!("no TCP connection to {target}"))
    })?;
    // The connection is complete, so this does not wait.
    let (mut server, peer) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
    }
    let mut received = vec![0; payload.len()];
    client.write_all(payload)?;
    server
        .read_exact(&mut received)
        .context("the receiver got nothing over TCP")?;
    ensure!(received == payload, "other bytes arrived over TCP");
    server.write_all(&received)?;
    client
        .read_exact(&mut received)
        .context("nothing came back over TCP")?;
    ensure!(received == payload, "other bytes came back over TCP");
    Ok(peer.ip())
}

/// As [`tcp_echo`], in one UDP datagram.
pub(super) fn udp_echo(
    from: &Path,
    to: &Path,
    address: IpAddr,
    payload: &[u8],
) -> anyhow::Result<IpAddr> {
    let server = inside(to, || Ok(UdpSocket::bind(SocketAddr::new(address, 0))?))?;
    let target = server.local_addr()?;
    let client = inside(from, || {
        // The kernel chooses the source address, as for any program in a pod.
        let any: IpAddr = if address.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(target)?;
        Ok(socket)
    })?;
    server.set_read_timeout(Some(DATAGRAM_MAX))?;
    client.set_read_timeout(Some(DATAGRAM_MAX))?;
    let mut buffer = vec![0; payload.len() + 1];
    for _ in 0..DATAGRAM_TRIES {
        client.send(payload)?;
        let Ok((len, peer)) = server.recv_from(&mut buffer) else {
            continue;
        };
        ensure!(
            buffer.get(..len) == Some(payload),
            "other bytes arrived over UDP"
        );
        server.send_to(payload, peer)?;
        let Ok(len) = client.recv(&mut buffer) else {
            continue;
        };
        ensure!(
            buffer.get(..len) == Some(payload),
            "other bytes came back over UDP"
        );
        return Ok(peer.ip());
    }
    bail!("no answer from {target} over UDP in {DATAGRAM_TRIES} attempts")
}

/// Begins to capture on an interface of a namespace.
pub(super) fn capture(netns: &Path, ifname: &str) -> anyhow::Result<Capture> {
    inside(netns, || Ok(Capture::open(ifname)?))
}

/// The frames captured until now.
pub(super) fn captured(capture: &Capture) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut frames = Vec::new();
    while let Some(len) = capture.next(&mut buffer)? {
        frames.push(buffer.get(..len).unwrap_or(&buffer).to_vec());
    }
    Ok(frames)
}

/// Waits until a frame is captured for which `find` has an answer.
pub(super) fn wait_for<T>(
    capture: &Capture,
    find: impl Fn(&[u8]) -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        for frame in captured(capture)? {
            if let Some(found) = find(&frame) {
                return Ok(found);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !capture.wait(left)? {
            bail!(
                "no such packet was captured within {} s",
                ANSWER_MAX.as_secs()
            );
        }
    }
}
