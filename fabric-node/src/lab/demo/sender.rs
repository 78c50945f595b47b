//! No address translation: the receiver sees the sender's own address over TCP, UDP and ICMP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::ensure;

use super::{Plan, Scene, address, reach, report::Finding, sockets};
use crate::lab::{Family, plugin::POD_IFNAME};

/// What the echo carries over TCP and UDP.
const PAYLOAD: &[u8] = b"whose address is on this?";

/// IANA protocol number of ICMP (RFC 792).
const ICMP: u8 = 1;
/// IANA next-header number of ICMPv6 (RFC 4443).
const ICMPV6: u8 = 58;
/// Echo request of ICMP (RFC 792) and of ICMPv6 (RFC 4443 section 4.1).
const ECHO_REQUESTS: (u8, u8) = (8, 128);

pub(super) fn plans<'a>(scene: &'a Scene<'a>) -> Vec<Plan<'a>> {
    type Look = fn(&Scene<'_>, IpAddr) -> anyhow::Result<IpAddr>;
    let ways: [(&str, &str, Look); 3] = [
        ("no-nat-tcp", "TCP", over_tcp),
        ("no-nat-udp", "UDP", over_udp),
        ("no-nat-icmp", "ICMP", over_icmp),
    ];
    let plan = |(id, way, look): (&'static str, &str, Look)| {
        let title = format!(
            "{} sees the address of {} over {way}",
            scene.remote.name, scene.pod.name
        );
        Plan::new(id, title, move || check(scene, look))
    };
    ways.into_iter().map(plan).collect()
}

fn check(
    scene: &Scene<'_>,
    look: fn(&Scene<'_>, IpAddr) -> anyhow::Result<IpAddr>,
) -> anyhow::Result<Finding> {
    let mut seen = Vec::new();
    for &family in scene.families {
        let own = address(scene.pod, family)?;
        let sender = look(scene, address(scene.remote, family)?)?;
        ensure!(
            sender == own,
            "{} saw {sender}, but {} has {own}",
            scene.remote.name,
            scene.pod.name
        );
        seen.push(sender.to_string());
    }
    Ok(Finding::new(seen.join(", ")))
}

fn over_tcp(scene: &Scene<'_>, target: IpAddr) -> anyhow::Result<IpAddr> {
    sockets::tcp_echo(&scene.pod.netns, &scene.remote.netns, target, PAYLOAD)
}

fn over_udp(scene: &Scene<'_>, target: IpAddr) -> anyhow::Result<IpAddr> {
    sockets::udp_echo(&scene.pod.netns, &scene.remote.netns, target, PAYLOAD)
}

fn over_icmp(scene: &Scene<'_>, target: IpAddr) -> anyhow::Result<IpAddr> {
    let capture = sockets::capture(&scene.remote.netns, POD_IFNAME)?;
    reach::round_trip(scene, &scene.pod.netns, target)?;
    sockets::wait_for(&capture, |frame| echo_request_source(frame, target))
}

/// Source of an echo request to `target`, if the packet is one. A TUN device has no link header.
fn echo_request_source(packet: &[u8], target: IpAddr) -> Option<IpAddr> {
    let family = if target.is_ipv4() {
        Family::Ipv4
    } else {
        Family::Ipv6
    };
    let version = packet.first()? >> 4;
    let (source, destination, protocol, kind): (IpAddr, IpAddr, u8, u8) = match (version, family) {
        (4, Family::Ipv4) => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            (
                Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?).into(),
                Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into(),
                *packet.get(9)?,
                *packet.get(header)?,
            )
        }
        (6, Family::Ipv6) => (
            Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?).into(),
            Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into(),
            *packet.get(6)?,
            *packet.get(40)?,
        ),
        _ => return None,
    };
    let expected = match family {
        Family::Ipv4 => (ICMP, ECHO_REQUESTS.0),
        Family::Ipv6 => (ICMPV6, ECHO_REQUESTS.1),
    };
    (destination == target && (protocol, kind) == expected).then_some(source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etherparse::PacketBuilder;

    use super::*;

    /// Echo requests, and only they, give their source; compared with packets of an independent
    /// maker.
    #[test]
    fn only_echo_requests_have_a_sender() {
        let build = |builder: etherparse::PacketBuilderStep<etherparse::Icmpv4Header>| {
            let mut packet = Vec::new();
            builder.write(&mut packet, b"payload").unwrap();
            packet
        };
        let ip = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let request = build(ip().icmpv4_echo_request(1, 2));
        let reply = build(ip().icmpv4_echo_reply(1, 2));
        let target: IpAddr = "10.0.0.2".parse().unwrap();
        assert_eq!(
            echo_request_source(&request, target),
            Some("10.0.0.1".parse().unwrap())
        );
        assert_eq!(echo_request_source(&reply, target), None);
        assert_eq!(
            echo_request_source(&request, "10.0.0.3".parse().unwrap()),
            None
        );

        let (from, to) = (
            Ipv6Addr::new(0xfd44, 0, 0, 1, 0, 0, 0, 2),
            Ipv6Addr::new(0xfd44, 0, 0, 2, 0, 0, 0, 2),
        );
        let mut request = Vec::new();
        PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_echo_request(1, 2)
            .write(&mut request, b"payload")
            .unwrap();
        assert_eq!(echo_request_source(&request, to.into()), Some(from.into()));
        for len in 0..request.len().min(41) {
            assert_eq!(echo_request_source(&request[..len], to.into()), None);
        }
    }
}
