//! The promises. Each holds for the default configuration, encryption and counters included, within
//! one run; what must be kept decides whether a version is good enough, the aim is where it is headed.

use super::{Bound, Claim, Quantity, Target, Than};
use crate::plan::{Figure, JUMBO_MTU_BYTES, Measure, System, UNDERLAY_MTU_BYTES};

/// The peer that most promises are about: the fastest encrypted userspace network.
const WIREGUARD_GO: Than = Than::TimesOf(System::WireguardGo);
/// The peer with the lowest idle round-trip time.
const BORINGTUN: Than = Than::TimesOf(System::BoringtunCli);
/// The yardstick that only encrypts: packets of a TUN, sealed, over UDP, to a TUN.
const RELAY: Than = Than::TimesOf(System::Relay);
/// No tunnel at all.
const VETH: Than = Than::TimesOf(System::Veth);
/// The same, as a difference.
const ABOVE_VETH: Than = Than::Above(System::Veth);

pub(super) fn targets() -> Vec<Target> {
    [throughput(), packets(), latency(), cost()]
        .into_iter()
        .flatten()
        .collect()
}

fn throughput() -> Vec<Target> {
    let rate = |id, mtu, measure, must, aim| Target {
        id,
        quantity: Quantity::Median(mtu, measure, Figure::GbitPerSecond),
        must: vec![at_least(must, WIREGUARD_GO)],
        aim: vec![at_least(aim, WIREGUARD_GO)],
    };
    let mut one_stream = rate("P1", UNDERLAY_MTU_BYTES, Measure::TcpAcross, 1.7, 2.5);
    one_stream.aim.push(at_least(0.85, RELAY));
    let more = [
        Measure::TcpAcross4,
        Measure::TcpAcross16,
        Measure::TcpAcrossReverse,
        Measure::TcpAcrossBothWays,
    ]
    .map(|measure| rate("P2", UNDERLAY_MTU_BYTES, measure, 1.7, 2.5));
    let jumbo = [Measure::TcpAcross, Measure::TcpAcross4]
        .map(|measure| rate("P2b", JUMBO_MTU_BYTES, measure, 2.2, 3.0));
    [one_stream].into_iter().chain(more).chain(jumbo).collect()
}

fn packets() -> Vec<Target> {
    let delivered = |id, measure, of_veth| Target {
        id,
        quantity: here(measure, Figure::DeliveredKpps),
        must: vec![at_least(2.0, Than::TimesOfBest)],
        aim: vec![at_least(of_veth, VETH)],
    };
    vec![
        delivered("P3", Measure::Udp64, 0.6),
        delivered("P4", Measure::Udp1200, 0.5),
    ]
}

fn latency() -> Vec<Target> {
    vec![
        Target {
            id: "P5",
            quantity: here(Measure::RttIdle, Figure::RttP50Ms),
            must: vec![at_most(1.0, BORINGTUN)],
            aim: vec![at_most(0.5, WIREGUARD_GO), at_most(0.15, ABOVE_VETH)],
        },
        Target {
            id: "P6",
            quantity: here(Measure::RttBesideTcp, Figure::RttP99Ms),
            must: vec![at_most(2.0, Than::Nothing)],
            aim: vec![at_most(1.0, Than::Nothing)],
        },
        Target {
            id: "P6",
            quantity: here(Measure::RttBesideTcp4, Figure::RttP99Ms),
            must: vec![at_most(2.0, Than::Nothing)],
            aim: Vec::new(),
        },
    ]
}

fn cost() -> Vec<Target> {
    vec![
        Target {
            id: "P7",
            quantity: here(Measure::TcpAcross, Figure::CpuSecondsPerGb),
            must: vec![at_most(0.55, WIREGUARD_GO)],
            aim: vec![at_most(0.4, WIREGUARD_GO)],
        },
        Target {
            id: "P8",
            quantity: Quantity::Memory(UNDERLAY_MTU_BYTES),
            must: vec![at_most(64.0, Than::Nothing)],
            aim: vec![at_most(32.0, Than::Nothing)],
        },
        Target {
            id: "P9",
            quantity: here(Measure::TcpSameNode, Figure::GbitPerSecond),
            must: vec![at_least(0.5, VETH)],
            aim: vec![at_least(0.8, VETH)],
        },
    ]
}

fn here(measure: Measure, figure: Figure) -> Quantity {
    Quantity::Median(UNDERLAY_MTU_BYTES, measure, figure)
}

fn at_least(bound: f64, than: Than) -> Claim {
    Claim {
        than,
        bound: Bound::AtLeast(bound),
    }
}

fn at_most(bound: f64, than: Than) -> Claim {
    Claim {
        than,
        bound: Bound::AtMost(bound),
    }
}
