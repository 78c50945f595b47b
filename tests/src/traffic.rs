//! Echoes and pings between pods. A socket belongs to the namespace it was made in, whoever uses it
//! afterwards, so only the making happens on a thread inside.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Pod, command, plugin::POD_IFNAME, underlay::inside},
    sys::capture::Capture,
};

/// How long one TCP answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long one datagram may take. None is sent again: on a way that is up and not overloaded, one
/// that does not arrive was lost by us.
const DATAGRAM_MAX: Duration = Duration::from_secs(3);
/// Room for one packet with segmentation offload (bytes).
const PACKET_BYTES_MAX: usize = 68 * 1024;

/// Bytes of which each depends on its place, so that a piece in the wrong place is noticed.
#[must_use]
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|place| {
            let mixed = (place ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 56) as u8
        })
        .collect()
}

/// A pod's address of the family of which `ipv6` speaks.
///
/// # Errors
///
/// It has none.
pub fn address(pod: &Pod, ipv6: bool) -> anyhow::Result<IpAddr> {
    pod.addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv6() == ipv6)
        .with_context(|| format!("{} has no such address: {:?}", pod.name, pod.addresses))
}

/// The address of all interfaces, of the family of `address`.
#[must_use]
pub fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A UDP socket in the namespace at `netns`.
///
/// # Errors
///
/// It cannot be bound.
pub fn udp(netns: &Path, address: IpAddr) -> anyhow::Result<UdpSocket> {
    inside(netns, || Ok(UdpSocket::bind(SocketAddr::new(address, 0))?))
}

/// A TCP connection between two namespaces: both ends, the client's first.
///
/// # Errors
///
/// It cannot be made.
pub fn tcp(from: &Path, to: &Path, target: IpAddr) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = inside(to, || Ok(TcpListener::bind(SocketAddr::new(target, 0))?))?;
    let place = listener.local_addr()?;
    let client = inside(from, || {
        TcpStream::connect_timeout(&place, ANSWER_MAX)
            .with_context(|| format!("no TCP connection to {place}"))
    })?;
    // The connection is complete, so this does not wait.
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        stream.set_nodelay(true)?;
    }
    Ok((client, server))
}

/// Sends `payload` through a connection and back.
///
/// # Errors
///
/// It does not arrive, or other bytes do.
pub fn echo_through(
    client: &mut TcpStream,
    server: &mut TcpStream,
    payload: &[u8],
) -> anyhow::Result<()> {
    let mut received = vec![0; payload.len()];
    client.write_all(payload)?;
    server
        .read_exact(&mut received)
        .context("nothing arrived over TCP")?;
    ensure!(received == payload, "other bytes arrived over TCP");
    server.write_all(&received)?;
    client
        .read_exact(&mut received)
        .context("nothing came back over TCP")?;
    ensure!(received == payload, "other bytes came back over TCP");
    Ok(())
}

/// Echoes each of `sizes` over one TCP connection, and checks that the receiver sees the sender's
/// own address.
///
/// # Errors
///
/// A size does not arrive unchanged, or the address is another.
pub fn tcp_echo(from: &Pod, to: &Pod, ipv6: bool, sizes: &[usize]) -> anyhow::Result<()> {
    let (mut client, mut server) = tcp(&from.netns, &to.netns, address(to, ipv6)?)?;
    ensure!(
        server.peer_addr()?.ip() == address(from, ipv6)?,
        "over TCP the sender was seen as {}",
        server.peer_addr()?
    );
    for &size in sizes {
        echo_through(&mut client, &mut server, &pattern(size, size as u64))
            .with_context(|| format!("{size} bytes over TCP"))?;
    }
    Ok(())
}

/// As [`tcp_echo`], each size in one UDP datagram, which is sent once.
///
/// # Errors
///
/// As [`tcp_echo`]; a datagram that is lost is one that does not arrive.
pub fn udp_echo(from: &Pod, to: &Pod, ipv6: bool, sizes: &[usize]) -> anyhow::Result<()> {
    let server = udp(&to.netns, address(to, ipv6)?)?;
    // The kernel chooses the source address, as for any program in a pod.
    let client = udp(&from.netns, any(address(to, ipv6)?))?;
    client.connect(server.local_addr()?)?;
    server.set_read_timeout(Some(DATAGRAM_MAX))?;
    client.set_read_timeout(Some(DATAGRAM_MAX))?;
    for &size in sizes {
        udp_echo_one(&client, &server, address(from, ipv6)?, size)
            .with_context(|| format!("{size} bytes over UDP"))?;
    }
    Ok(())
}

/// One datagram there and back.
fn udp_echo_one(
    client: &UdpSocket,
    server: &UdpSocket,
    sender: IpAddr,
    size: usize,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; size + 1];
    let payload = pattern(size, size as u64);
    client.send(&payload)?;
    let (len, peer) = server.recv_from(&mut buffer).context("nothing arrived")?;
    ensure!(
        buffer.get(..len) == Some(&payload[..]),
        "other bytes arrived"
    );
    ensure!(peer.ip() == sender, "the sender was seen as {peer}");
    server.send_to(&payload, peer)?;
    let len = client.recv(&mut buffer).context("nothing came back")?;
    ensure!(
        buffer.get(..len) == Some(&payload[..]),
        "other bytes came back"
    );
    Ok(())
}

/// `ping` from a namespace: one request, answered within `limit`.
///
/// # Errors
///
/// No answer, or there is no program `ping`.
pub fn ping(netns: &Path, target: IpAddr, limit: Duration) -> anyhow::Result<()> {
    let ping = command::find("ping").context("there is no program ping: install iputils-ping")?;
    let mut program = Command::new(ping);
    program.args([
        "-n",
        "-c",
        "1",
        "-W",
        &format!("{:.3}", limit.as_secs_f64()),
    ]);
    program.arg(target.to_string());
    let answer = inside(netns, move || {
        command::run(program, b"", limit + Duration::from_secs(5))
    })?;
    ensure!(
        answer.status.success(),
        "ping {target} ended with {}: {}",
        answer.status,
        answer.stdout
    );
    Ok(())
}

/// Pings a pod and checks that it sees the sender's own address on the request.
///
/// # Errors
///
/// No answer, or the address is another.
pub fn ping_seen(from: &Pod, to: &Pod, ipv6: bool) -> anyhow::Result<()> {
    let (source, target) = (address(from, ipv6)?, address(to, ipv6)?);
    let capture = inside(&to.netns, || Ok(Capture::open(POD_IFNAME)?))?;
    ping(&from.netns, target, ANSWER_MAX)?;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        while let Some(len) = capture.next(&mut buffer)? {
            let packet = buffer.get(..len).unwrap_or_default();
            if echo_request(packet) == Some((source, target)) {
                return Ok(());
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(
            !left.is_zero() && capture.wait(left)?,
            "{} was answered, but never saw a request from {source}",
            from.name
        );
    }
}

/// Source and destination of an echo request. A TUN device has no link header.
fn echo_request(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            (*packet.get(9)? == 1 && *packet.get(header)? == 8).then_some(())?;
            let at = |place: usize| packet.get(place..)?.first_chunk::<4>().copied();
            Some((
                Ipv4Addr::from(at(12)?).into(),
                Ipv4Addr::from(at(16)?).into(),
            ))
        }
        6 => {
            (*packet.get(6)? == 58 && *packet.get(40)? == 128).then_some(())?;
            let at = |place: usize| packet.get(place..)?.first_chunk::<16>().copied();
            Some((
                Ipv6Addr::from(at(8)?).into(),
                Ipv6Addr::from(at(24)?).into(),
            ))
        }
        _ => None,
    }
}
