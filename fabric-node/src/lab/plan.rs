//! The plan of a lab: options in, every name, address and path out. Touches nothing.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{
    name::{self, LabName, UNDERLAY},
    place::Place,
    state::{LabState, Pod, STATE_VERSION, Worker, Wrappers},
};
use crate::config::{offloads::Offloads, outside::OutsideConfig};

/// Most workers in one lab: each is a process with several threads.
pub const WORKERS_MAX: usize = 64;
/// Most pods on one worker.
pub const PODS_PER_WORKER_MAX: usize = 100;
/// Smallest underlay MTU (bytes): IPv6 needs it (RFC 8200 section 5).
pub const UNDERLAY_MTU_MIN: u32 = 1280;
/// Largest underlay MTU (bytes): what a veth device takes.
pub const UNDERLAY_MTU_MAX: u32 = 65_535;
/// UDP port of worker thread 0 of each node.
pub const QUIC_PORT: u16 = 7946;

const _: () = assert!(WORKERS_MAX <= name::WORKER_NAMES_MAX);

/// Prefix length of the underlay's IPv4 and IPv6 network.
const UNDERLAY_PREFIXES: (u8, u8) = (24, 64);
/// Longest path of a unix socket (bytes, unix(7)), without the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Whether `address` is of this family.
    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

/// Families of the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    #[default]
    Dual,
}

impl Families {
    /// The families, IPv4 first.
    #[must_use]
    pub fn list(self) -> &'static [Family] {
        match self {
            Self::Ipv4 => &[Family::Ipv4],
            Self::Ipv6 => &[Family::Ipv6],
            Self::Dual => &[Family::Ipv4, Family::Ipv6],
        }
    }
}

/// What to build.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Name of the lab.
    pub name: LabName,
    /// Pods of each worker; as many workers as entries.
    pub pods: Vec<usize>,
    /// MTU of the network between the workers (bytes).
    pub underlay_mtu: u32,
    /// Families of the pods, and of the underlay unless `underlay` says otherwise.
    pub families: Families,
    /// Family of the underlay that carries the tunnels. With [`Families::Dual`] the underlay has
    /// both and this one is listed first; with a single family it has only this one.
    pub underlay: Option<Family>,
    /// Offloads that the daemons use.
    pub offloads: Offloads,
    /// What becomes of packets that nobody in the fabric is meant by.
    pub outside: OutsideConfig,
    /// Folder of the programs `fabric-node` and `fabric-cni`.
    pub bin_dir: PathBuf,
    /// Commands that the programs are run under.
    pub wrappers: Wrappers,
}

impl LabOptions {
    /// A dual-stack lab of `workers` workers with `pods` pods each, on an underlay with MTU 1500.
    #[must_use]
    pub fn new(name: LabName, workers: usize, pods: usize, bin_dir: PathBuf) -> Self {
        Self {
            name,
            pods: vec![pods; workers],
            underlay_mtu: 1500,
            families: Families::Dual,
            underlay: None,
            offloads: Offloads::ALL,
            outside: OutsideConfig::default(),
            bin_dir,
            wrappers: Wrappers::default(),
        }
    }

    /// Families of the underlay, the one that carries the tunnels first.
    #[must_use]
    pub fn underlay_families(&self) -> Vec<Family> {
        match (self.families, self.underlay) {
            (Families::Dual, Some(Family::Ipv6)) => vec![Family::Ipv6, Family::Ipv4],
            (Families::Dual, _) => vec![Family::Ipv4, Family::Ipv6],
            (Families::Ipv4 | Families::Ipv6, Some(family)) => vec![family],
            (Families::Ipv4, None) => vec![Family::Ipv4],
            (Families::Ipv6, None) => vec![Family::Ipv6],
        }
    }
}

/// Lays the lab out.
///
/// # Errors
///
/// A number outside its limits, or a folder so deep that the socket paths do not fit.
pub fn lay_out(options: &LabOptions, place: &Place) -> anyhow::Result<LabState> {
    check_limits(options)?;
    let folder = place.folder(&options.name);
    let netns = |member: &str| {
        place
            .netns_dir(&options.name)
            .join(options.name.netns(member))
    };
    let mut workers = Vec::new();
    let mut pods = Vec::new();
    for (index, &pod_count) in options.pods.iter().enumerate() {
        let number = u16::try_from(index + 1)?;
        let worker = Worker {
            name: name::worker(index),
            netns: netns(&name::worker(index)),
            pid: None,
            underlay_addresses: options
                .underlay_families()
                .into_iter()
                .map(|family| underlay_address(family, number))
                .collect::<anyhow::Result<_>>()?,
            pod_cidrs: options
                .families
                .list()
                .iter()
                .map(|&family| pod_cidr(family, number))
                .collect::<anyhow::Result<_>>()?,
            folder: folder.join(name::worker(index)),
        };
        let socket = worker.admin_socket();
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            bail!(
                "{} is too long for a socket (at most {SOCKET_PATH_BYTES_MAX} bytes): choose a \
                 shorter --name or a shorter XDG_RUNTIME_DIR",
                socket.display()
            );
        }
        for pod_number in 1..=pod_count {
            let pod = name::pod(index, pod_number);
            pods.push(Pod {
                netns: netns(&pod),
                container_id: options.name.netns(&pod),
                name: pod,
                worker: worker.name.clone(),
                addresses: Vec::new(),
            });
        }
        workers.push(worker);
    }
    Ok(LabState {
        version: STATE_VERSION,
        name: options.name.as_str().to_owned(),
        underlay_netns: netns(UNDERLAY),
        folder,
        bin_dir: options.bin_dir.clone(),
        wrappers: options.wrappers.clone(),
        underlay_mtu: options.underlay_mtu,
        offloads: options.offloads,
        outside: options.outside,
        netns_dir_made: false,
        holder: None,
        workers,
        pods,
    })
}

fn check_limits(options: &LabOptions) -> anyhow::Result<()> {
    let workers = options.pods.len();
    ensure!(
        (1..=WORKERS_MAX).contains(&workers),
        "a lab has 1 to {WORKERS_MAX} workers, not {workers}"
    );
    for &pods in &options.pods {
        ensure!(
            pods <= PODS_PER_WORKER_MAX,
            "a worker has at most {PODS_PER_WORKER_MAX} pods, not {pods}"
        );
    }
    ensure!(
        (UNDERLAY_MTU_MIN..=UNDERLAY_MTU_MAX).contains(&options.underlay_mtu),
        "the underlay's MTU is {UNDERLAY_MTU_MIN} to {UNDERLAY_MTU_MAX} bytes, not {}",
        options.underlay_mtu
    );
    Ok(())
}

/// Address of worker `number`, counted from 1, on the underlay.
fn underlay_address(family: Family, number: u16) -> anyhow::Result<IpAddr> {
    Ok(match family {
        Family::Ipv4 => Ipv4Addr::new(10, 90, 0, u8::try_from(number)?).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, number).into(),
    })
}

/// An underlay address with the prefix length of its network.
#[must_use]
pub fn underlay_network(address: IpAddr) -> (IpAddr, u8) {
    let (ipv4, ipv6) = UNDERLAY_PREFIXES;
    (address, if address.is_ipv4() { ipv4 } else { ipv6 })
}

/// Range of the pods of worker `number`, counted from 1.
fn pod_cidr(family: Family, number: u16) -> anyhow::Result<IpNet> {
    Ok(match family {
        Family::Ipv4 => Ipv4Net::new(Ipv4Addr::new(10, 244, u8::try_from(number)?, 0), 24)?.into(),
        Family::Ipv6 => Ipv6Net::new(Ipv6Addr::new(0xfd44, 0, 0, number, 0, 0, 0, 0), 64)?.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use super::*;

    fn options(workers: usize, pods: usize) -> LabOptions {
        LabOptions::new("lab".parse().unwrap(), workers, pods, PathBuf::from("/bin"))
    }

    fn place() -> Place {
        Place::root()
    }

    /// The largest lab has distinct names, addresses and ranges, and ranges do not overlap the
    /// underlay.
    #[test]
    fn the_largest_lab_has_no_duplicates() {
        let state = lay_out(&options(WORKERS_MAX, PODS_PER_WORKER_MAX), &place()).unwrap();
        let addresses: Vec<IpAddr> = state
            .workers
            .iter()
            .flat_map(|w| w.underlay_addresses.clone())
            .collect();
        let ranges: Vec<IpNet> = state
            .workers
            .iter()
            .flat_map(|w| w.pod_cidrs.clone())
            .collect();
        let netns: HashSet<_> = state.netns_paths().collect();
        assert_eq!(
            addresses.iter().collect::<HashSet<_>>().len(),
            2 * WORKERS_MAX
        );
        assert_eq!(
            netns.len(),
            1 + WORKERS_MAX + WORKERS_MAX * PODS_PER_WORKER_MAX
        );
        for (i, range) in ranges.iter().enumerate() {
            assert!(!addresses.iter().any(|a| range.contains(a)));
            assert!(
                !ranges
                    .iter()
                    .skip(i + 1)
                    .any(|r| r.contains(range) || range.contains(r))
            );
        }
    }

    /// The default lab has the documented names, addresses and ranges.
    #[test]
    fn the_default_lab_is_as_documented() {
        let state = lay_out(&options(2, 1), &place()).unwrap();
        let b = &state.workers[1];
        assert_eq!(b.name, "worker-b");
        assert_eq!(b.netns.to_str(), Some("/run/netns/fabric-lab-worker-b"));
        assert_eq!(
            b.underlay_addresses,
            [
                "10.90.0.2".parse::<IpAddr>().unwrap(),
                "fd90::2".parse().unwrap()
            ]
        );
        assert_eq!(
            b.pod_cidrs,
            [
                "10.244.2.0/24".parse::<IpNet>().unwrap(),
                "fd44:0:0:2::/64".parse().unwrap()
            ]
        );
        assert_eq!(state.pods[1].name, "pod-b-1");
    }

    /// Each choice of families gives the underlay exactly the families it names, the carrier first.
    #[test]
    fn families_choose_the_underlay() {
        use Family::{Ipv4, Ipv6};
        let cases: [(Families, Option<Family>, &[Family]); 8] = [
            (Families::Dual, None, &[Ipv4, Ipv6]),
            (Families::Dual, Some(Ipv4), &[Ipv4, Ipv6]),
            (Families::Dual, Some(Ipv6), &[Ipv6, Ipv4]),
            (Families::Ipv4, None, &[Ipv4]),
            (Families::Ipv4, Some(Ipv6), &[Ipv6]),
            (Families::Ipv6, None, &[Ipv6]),
            (Families::Ipv6, Some(Ipv4), &[Ipv4]),
            (Families::Ipv6, Some(Ipv6), &[Ipv6]),
        ];
        for (families, underlay, expected) in cases {
            let options = LabOptions {
                families,
                underlay,
                ..options(1, 1)
            };
            assert_eq!(
                options.underlay_families(),
                expected,
                "{families:?} {underlay:?}"
            );
        }
    }

    /// Numbers outside their limits are refused with the limit in the message.
    #[test]
    fn limits_are_enforced() {
        for (bad, word) in [
            (options(0, 1), "workers"),
            (options(WORKERS_MAX + 1, 0), "workers"),
            (options(1, PODS_PER_WORKER_MAX + 1), "pods"),
            (
                LabOptions {
                    underlay_mtu: 1279,
                    ..options(1, 1)
                },
                "MTU",
            ),
            (
                LabOptions {
                    underlay_mtu: 65_536,
                    ..options(1, 1)
                },
                "MTU",
            ),
        ] {
            let error = lay_out(&bad, &place()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
