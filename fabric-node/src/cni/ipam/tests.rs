#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

fn nets(ranges: &[&str]) -> Vec<IpNet> {
    ranges.iter().map(|range| range.parse().unwrap()).collect()
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn ipam(ranges: &[&str]) -> Ipam {
    Ipam::new(&nets(ranges), &[])
}

/// Network, gateway and broadcast address are never handed out, everything else exactly once.
#[test]
fn a_range_is_handed_out_whole() {
    let mut ipam = ipam(&["10.0.0.0/28"]);
    let got: Vec<_> = (0..13).map(|_| ipam.allocate(&[], 0).unwrap()[0]).collect();
    let expected: Vec<_> = (2..15).map(|last| ip(&format!("10.0.0.{last}"))).collect();
    assert_eq!(got, expected);
    let error = ipam.allocate(&[], 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "no free IPv4 address: 10.0.0.0/28 has 13 used and 0 cooling down of 13"
    );
}

/// Ranges without room for a pod are exhausted from the start.
#[test]
fn tiny_ranges() {
    for range in [
        "10.0.0.4/32",
        "10.0.0.4/31",
        "10.0.0.4/30",
        "fd00::/128",
        "fd00::/127",
    ] {
        let usable = ipam(&[range]).usage(0)[0].total;
        assert_eq!(usable, u64::from(range.ends_with("/30")), "{range}");
    }
    assert_eq!(ipam(&["255.255.255.254/31"]).usage(0)[0].total, 0);
    assert!(matches!(
        ipam(&[]).allocate(&[], 0),
        Err(IpamError::NoRange)
    ));
}

/// Both families or none: when one is exhausted the other loses nothing.
#[test]
fn all_or_nothing() {
    let mut ipam = ipam(&["10.0.0.0/29", "fd00::/126"]);
    for last in [2, 3] {
        let got = ipam.allocate(&[], 0).unwrap();
        assert_eq!(
            got,
            [ip(&format!("10.0.0.{last}")), ip(&format!("fd00::{last}"))]
        );
    }
    for _ in 0..20 {
        assert!(matches!(
            ipam.allocate(&[], 0),
            Err(IpamError::Exhausted { family: "IPv6", .. })
        ));
    }
    assert_eq!(ipam.usage(0)[0].used, 2);
}

/// Released addresses come back in the order of release, none before its rest is over.
#[test]
fn first_released_first_reused() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    for _ in 0..5 {
        ipam.allocate(&[], 0).unwrap();
    }
    ipam.release(ip("10.0.0.5"), 10);
    ipam.release(ip("10.0.0.2"), 20);
    assert!(ipam.allocate(&[], 10 + ADDRESS_COOLDOWN_S - 1).is_err());
    assert_eq!(
        ipam.allocate(&[], 10 + ADDRESS_COOLDOWN_S).unwrap(),
        [ip("10.0.0.5")]
    );
    assert!(ipam.allocate(&[], 19 + ADDRESS_COOLDOWN_S).is_err());
    assert_eq!(
        ipam.allocate(&[], 20 + ADDRESS_COOLDOWN_S).unwrap(),
        [ip("10.0.0.2")]
    );
}

/// A /64 costs no memory per address and is walked in order.
#[test]
fn large_ranges() {
    let mut ipam = ipam(&["fd00:1::/64", "10.0.0.0/8"]);
    for step in 0..1000_u32 {
        let got = ipam.allocate(&[], 0).unwrap();
        assert_eq!(number(got[0]), number(ip("10.0.0.2")) + u128::from(step));
        assert_eq!(number(got[1]), number(ip("fd00:1::2")) + u128::from(step));
    }
    assert_eq!(ipam.usage(0)[0].total, u64::MAX - 1);
}

/// A requested address is honoured, or refused with its reason.
#[test]
fn requested_addresses() {
    let mut ipam = Ipam::new(&nets(&["10.0.0.0/24", "fd00::/64"]), &[ip("10.0.0.77")]);
    let got = ipam.allocate(&[ip("10.0.0.9")], 0).unwrap();
    assert_eq!(got, [ip("10.0.0.9"), ip("fd00::2")]);
    let got = ipam
        .allocate(&[ip("fd00::abcd"), ip("10.0.0.10")], 0)
        .unwrap();
    assert_eq!(got, [ip("10.0.0.10"), ip("fd00::abcd")]);
    ipam.release(ip("10.0.0.10"), 50);
    let mut refuse = |requested: &[&str]| {
        let requested: Vec<_> = requested.iter().map(|address| ip(address)).collect();
        ipam.allocate(&requested, 60).unwrap_err()
    };
    assert_eq!(refuse(&["10.0.0.9"]), IpamError::InUse(ip("10.0.0.9")));
    assert_eq!(
        refuse(&["10.0.0.10"]),
        IpamError::Resting {
            address: ip("10.0.0.10"),
            seconds: 50 + ADDRESS_COOLDOWN_S - 60
        }
    );
    for reserved in [
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.255",
        "10.0.0.77",
        "fd00::",
        "fd00::1",
    ] {
        assert_eq!(refuse(&[reserved]), IpamError::Reserved(ip(reserved)));
    }
    assert!(matches!(
        refuse(&["10.0.1.1"]),
        IpamError::OutOfRange { .. }
    ));
    assert_eq!(
        refuse(&["10.0.0.20", "10.0.0.21"]),
        IpamError::TwoOfAFamily("IPv4")
    );
}

/// When the node's ranges change, addresses in use stay in use, also where the new range has them.
#[test]
fn ranges_change() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    assert_eq!(ipam.allocate(&[], 0).unwrap(), [ip("10.0.0.2")]);
    ipam.set_ranges(&nets(&["10.1.0.0/24"]), &[]);
    assert_eq!(ipam.allocate(&[], 0).unwrap(), [ip("10.1.0.2")]);
    ipam.set_ranges(&nets(&["10.0.0.0/24"]), &[]);
    assert_eq!(ipam.allocate(&[], 0).unwrap(), [ip("10.0.0.3")]);
}

/// Looking whether there is room takes none away.
#[test]
fn check_free_takes_nothing() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    for _ in 0..50 {
        ipam.check_free(0).unwrap();
    }
    for _ in 0..5 {
        ipam.allocate(&[], 0).unwrap();
    }
    assert!(ipam.check_free(0).is_err());
}

/// What the world knows: who has which address, and when which was released.
#[derive(Default)]
struct Model {
    pods: Vec<Vec<IpAddr>>,
    released: Vec<(IpAddr, u64)>,
}

impl Model {
    fn available(&self, address: IpAddr, now_s: u64) -> bool {
        let used = self.pods.iter().flatten().any(|used| *used == address);
        let last = self
            .released
            .iter()
            .rev()
            .find(|(released, _)| *released == address);
        !used && last.is_none_or(|(_, at)| at + ADDRESS_COOLDOWN_S <= now_s)
    }

    fn restarted(&self, ranges: &[IpNet]) -> Ipam {
        let mut ipam = Ipam::new(ranges, &[]);
        for address in self.pods.iter().flatten() {
            ipam.hold(*address);
        }
        for (address, at) in &self.released {
            ipam.rest(*address, at + ADDRESS_COOLDOWN_S);
        }
        ipam
    }
}

/// Over 50 000 random steps (allocate, request, release, restart, time passing) no address is given
/// twice or too early, and an allocation fails only when no address is to be had.
#[test]
fn against_a_naive_model() {
    let ranges = nets(&["10.0.0.0/27", "fd00::/123"]);
    let all_v4: Vec<_> = (2..31).map(|last| ip(&format!("10.0.0.{last}"))).collect();
    let all_v6: Vec<_> = (2..32).map(|last| ip(&format!("fd00::{last:x}"))).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (mut model, mut now_s) = (Model::default(), 1_000);
    let mut ipam = Ipam::new(&ranges, &[]);
    let (mut allocated, mut exhausted) = (0, 0);
    for _ in 0..50_000 {
        now_s += random(12);
        match random(100) {
            0..=54 => {
                let mut requested = Vec::new();
                if random(8) == 0 {
                    requested.push(all_v4[usize::try_from(random(29)).unwrap()]);
                }
                let possible = |all: &[IpAddr]| all.iter().any(|a| model.available(*a, now_s));
                match ipam.allocate(&requested, now_s) {
                    Ok(got) => {
                        assert_eq!(got.len(), 2);
                        assert!(all_v4.contains(&got[0]) && all_v6.contains(&got[1]));
                        assert!(got.iter().all(|address| model.available(*address, now_s)));
                        assert!(requested.iter().all(|address| got.contains(address)));
                        model.pods.push(got);
                        allocated += 1;
                    }
                    Err(error) if requested.is_empty() => {
                        assert!(!possible(&all_v4) || !possible(&all_v6), "{error}");
                        exhausted += 1;
                    }
                    Err(_) => assert!(!model.available(requested[0], now_s) || !possible(&all_v6)),
                }
            }
            55..=96 if !model.pods.is_empty() => {
                let pods = u64::try_from(model.pods.len()).unwrap();
                let pod = model
                    .pods
                    .swap_remove(usize::try_from(random(pods)).unwrap());
                for address in pod {
                    ipam.release(address, now_s);
                    model.released.retain(|(released, _)| *released != address);
                    model.released.push((address, now_s));
                }
            }
            97.. => ipam = model.restarted(&ranges),
            _ => {}
        }
    }
    assert!(
        allocated > 5_000 && exhausted > 1_000,
        "{allocated} {exhausted}"
    );
}
