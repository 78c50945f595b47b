//! Nobody on the underlay can read what pods say: a random marker goes between pods over TCP and
//! UDP. It must be absent from every frame on the underlay, and present in the pods, so that the
//! search is known to find it.

use std::{fs::File, io::Read as _};

use anyhow::{Context as _, ensure};

use super::{Scene, address, report::Finding, sockets};
use crate::lab::{plan::QUIC_PORT, plugin::POD_IFNAME, underlay::WORKER_IFNAME};

/// Length of the marker (bytes): none of its length appears by chance.
const MARKER_BYTES: usize = 32;
/// How often the marker is repeated in each payload.
const REPEATED: usize = 20;
/// Ports of one node's worker threads that count as the tunnel's.
const TUNNEL_PORTS: std::ops::Range<u16> = QUIC_PORT..QUIC_PORT + 256;

pub(super) fn prove(scene: &Scene<'_>) -> anyhow::Result<Finding> {
    let [a, b] = scene.workers;
    let underlay = [
        (
            format!("{WORKER_IFNAME} of {}", a.name),
            sockets::capture(&a.netns, WORKER_IFNAME)?,
        ),
        (
            format!("the bridge's port to {}", b.name),
            sockets::capture(&scene.lab.state().underlay_netns, &b.name)?,
        ),
    ];
    let inside_pod = sockets::capture(&scene.remote.netns, POD_IFNAME)?;
    let marker = marker()?;
    let payload = marker.repeat(REPEATED);
    for &family in scene.families {
        let target = address(scene.remote, family)?;
        sockets::udp_echo(&scene.pod.netns, &scene.remote.netns, target, &payload)?;
        sockets::tcp_echo(&scene.pod.netns, &scene.remote.netns, target, &payload)?;
    }
    // The echoes are back: whatever carried them has been captured.
    let in_pod = count(&sockets::captured(&inside_pod)?, &marker);
    let expected = 2 * 2 * scene.families.len();
    ensure!(
        in_pod >= expected,
        "the marker was found in only {in_pod} packets inside {}, so its absence elsewhere would \
         prove nothing",
        scene.remote.name
    );
    let mut frames_total = 0;
    for (name, capture) in &underlay {
        let frames = sockets::captured(capture)?;
        let readable = count(&frames, &marker);
        ensure!(
            readable == 0,
            "the marker is readable in {readable} frames on {name}"
        );
        let tunnel = frames.iter().filter(|frame| is_tunnel(frame)).count();
        ensure!(
            tunnel >= 2,
            "only {tunnel} frames of the tunnel were captured on {name}, so the marker's absence \
             would prove nothing"
        );
        frames_total += frames.len();
    }
    Ok(Finding::new(format!(
        "a marker of {MARKER_BYTES} bytes is in {in_pod} packets inside {}, and in 0 of \
         {frames_total} frames underneath",
        scene.remote.name
    )))
}

fn marker() -> anyhow::Result<Vec<u8>> {
    let mut marker = vec![0; MARKER_BYTES];
    let mut random = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    random
        .read_exact(&mut marker)
        .context("cannot read /dev/urandom")?;
    Ok(marker)
}

fn count(frames: &[Vec<u8>], marker: &[u8]) -> usize {
    let has = |frame: &&Vec<u8>| frame.windows(marker.len()).any(|window| window == marker);
    frames.iter().filter(has).count()
}

/// Whether an Ethernet frame carries UDP from or to a port of the tunnel.
fn is_tunnel(frame: &[u8]) -> bool {
    ports(frame).is_some_and(|ports| ports.iter().any(|port| TUNNEL_PORTS.contains(port)))
}

/// Ports of an Ethernet frame with UDP in IPv4, or in IPv6 without extension headers.
fn ports(frame: &[u8]) -> Option<[u16; 2]> {
    /// Destination, source, type (IEEE 802.3).
    const ETHERNET_BYTES: usize = 14;
    /// IANA protocol number of UDP.
    const UDP: u8 = 17;
    let packet = frame.get(ETHERNET_BYTES..)?;
    let (protocol, header) = match frame.get(12..ETHERNET_BYTES)? {
        [0x08, 0x00] => (*packet.get(9)?, usize::from(packet.first()? & 0xf) * 4),
        [0x86, 0xdd] => (*packet.get(6)?, 40),
        _ => return None,
    };
    let [a, b, c, d] = *packet.get(header..)?.first_chunk()?;
    (protocol == UDP).then_some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etherparse::PacketBuilder;

    use super::*;

    /// Frames of the tunnel are told from others, over both families; compared with frames of an
    /// independent maker.
    #[test]
    fn frames_of_the_tunnel_are_recognised() {
        let ethernet = || PacketBuilder::ethernet2([1; 6], [2; 6]);
        for (source, destination, expected) in [
            (QUIC_PORT, 9, true),
            (9, QUIC_PORT + 3, true),
            (9, QUIC_PORT - 1, false),
        ] {
            let (mut v4, mut v6, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
            let udp4 = ethernet()
                .ipv4([10, 90, 0, 1], [10, 90, 0, 2], 64)
                .udp(source, destination);
            udp4.write(&mut v4, b"x").unwrap();
            let udp6 = ethernet()
                .ipv6([1; 16], [2; 16], 64)
                .udp(source, destination);
            udp6.write(&mut v6, b"x").unwrap();
            let other = ethernet()
                .ipv4([1; 4], [2; 4], 64)
                .tcp(source, destination, 1, 1);
            other.write(&mut tcp, b"x").unwrap();
            assert_eq!(
                (is_tunnel(&v4), is_tunnel(&v6), is_tunnel(&tcp)),
                (expected, expected, false)
            );
            assert!((0..v4.len().min(38)).all(|len| !is_tunnel(&v4[..len])));
        }
    }

    /// The search finds a marker anywhere in a frame, and does not find another one.
    #[test]
    fn the_search_can_fail() {
        let marker = marker().unwrap();
        let with = [b"head".as_slice(), &marker, b"tail"].concat();
        let frames = vec![
            with,
            marker.clone(),
            marker.iter().rev().copied().collect(),
            Vec::new(),
        ];
        assert_eq!(count(&frames, &marker), 2);
    }
}
