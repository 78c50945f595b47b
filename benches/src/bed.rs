//! Two workers with every system on them: a lab, the contenders in the lab's own worker namespaces
//! over the same underlay, and a plain virtual cable between two namespaces of its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use anyhow::Context as _;
use fabric_node::{
    lab::{Families, Interrupt, Lab, LabName, LabOptions, Progress},
    sys::{
        netlink::{LinkSettings, Netlink},
        netns::Netns,
    },
};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    contender::{
        Contender, End, Site,
        program::{self, Programs},
    },
    iperf::Ends,
    plan::Measure,
    system::System,
};

/// Pods of each worker: a-1 and a-2 on one, b-1 on the other.
const PODS: [usize; 2] = [2, 1];
/// Addresses on the plain virtual cable.
const CABLE_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
/// The cable, and each contender, is a network of this size.
const PREFIX_LEN: u8 = 24;
/// Interfaces at the ends of the cable.
const CABLE_ENDS: [&str; 2] = ["cable-a", "cable-b"];

/// What to build.
#[derive(Clone, Debug)]
pub struct BedOptions {
    /// Name of the lab.
    pub name: LabName,
    /// Folder of `fabric-node` and `fabric-cni`.
    pub bin_dir: PathBuf,
    /// Folder of the `go.mod` files that pin contenders.
    pub peers: PathBuf,
    /// Folder for the contenders' programs that are built.
    pub peers_bin_dir: PathBuf,
    /// MTU of the underlay (bytes).
    pub underlay_mtu: u32,
    /// Systems to set up.
    pub systems: Vec<System>,
}

/// A system that is not there, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub system: System,
    /// One line.
    pub reason: String,
}

/// Everything is up. Its end takes all of it down.
#[derive(Debug)]
pub struct Bed {
    // Dropped in this order: contenders run in namespaces that belong to the lab.
    contenders: BTreeMap<System, Contender>,
    cable: Option<[Netns; 2]>,
    workers: [Netns; 2],
    underlay: [IpAddr; 2],
    pods: [Netns; 3],
    pod_addresses: [IpAddr; 3],
    daemons: Vec<u32>,
    missing: Vec<Missing>,
    _lab: Lab,
}

impl Bed {
    /// Builds the lab, then the other systems.
    ///
    /// # Errors
    ///
    /// The lab cannot be built. Another system that cannot is [`Bed::missing`].
    pub fn up(
        options: &BedOptions,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let lab = Lab::up_with(
            &LabOptions {
                pods: PODS.to_vec(),
                underlay_mtu: options.underlay_mtu,
                families: Families::Ipv4,
                ..LabOptions::new(options.name.clone(), PODS.len(), 0, options.bin_dir.clone())
            },
            progress,
            interrupt,
        )?;
        let mut bed = Self::of(lab)?;
        let programs = Programs {
            pins: options.peers.clone(),
            built: options.peers_bin_dir.clone(),
            own: options.bin_dir.clone(),
        };
        let wanted = |system: &System| options.systems.contains(system);
        for system in System::ALL.into_iter().filter(wanted) {
            let outcome = if system == System::Fabric {
                Ok(())
            } else if system == System::Veth {
                lay_cable().map(|ends| bed.cable = Some(ends))
            } else {
                progress.step(&format!("setting up {}", system.title()));
                bed.start(system, &programs, options.underlay_mtu)
            };
            interrupt.check()?;
            if let Err(error) = outcome {
                bed.miss(system, &error);
            }
        }
        Ok(bed)
    }

    /// Systems that could not be built or started.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Between whom `measure` runs on `system`; `None` where that makes no sense or is missing.
    #[must_use]
    pub fn ends(&self, system: System, measure: Measure) -> Option<Ends<'_>> {
        let same_node = measure.is_same_node();
        let [pod_a1, pod_a2, pod_b1] = &self.pods;
        let [_, address_a2, address_b1] = self.pod_addresses;
        let [worker_a, worker_b] = &self.workers;
        let ends = |client, server, address| {
            Some(Ends {
                client,
                server,
                address,
            })
        };
        match (system, same_node) {
            (System::Fabric, false) => ends(pod_a1, pod_b1, address_b1),
            (System::Fabric, true) => ends(pod_a1, pod_a2, address_a2),
            (System::Veth, false) => ends(worker_a, worker_b, self.underlay[1]),
            (System::Veth, true) => {
                let [one, other] = self.cable.as_ref()?;
                ends(one, other, CABLE_ADDRESSES[1].into())
            }
            (contender, false) if self.contenders.contains_key(&contender) => {
                ends(worker_a, worker_b, inner_address(contender, 1).into())
            }
            _ => None,
        }
    }

    /// Processes that carry the packets of `system`, both ends; none for what the kernel does and for
    /// what is missing.
    #[must_use]
    pub fn pids(&self, system: System) -> Vec<u32> {
        match self.contenders.get(&system) {
            Some(contender) => contender.pids(),
            None if system == System::Fabric => self.daemons.clone(),
            None => Vec::new(),
        }
    }

    /// What runs as `system`: the version of a program, or the kernel; `None` for what is missing.
    #[must_use]
    pub fn version(&self, system: System) -> Option<String> {
        match self.contenders.get(&system) {
            Some(contender) => Some(contender.version().to_owned()),
            None if system == System::Fabric => Some(env!("CARGO_PKG_VERSION").to_owned()),
            None if system == System::Veth => program::kernel().ok(),
            None => None,
        }
    }

    fn of(lab: Lab) -> anyhow::Result<Self> {
        let netns = |path: Option<&PathBuf>| -> anyhow::Result<Netns> {
            Ok(Netns::open(path.context("the lab is too small")?)?)
        };
        let (workers, pods) = (lab.workers(), lab.pods());
        let worker = |index: usize| netns(workers.get(index).map(|worker| &worker.netns));
        let pod = |index: usize| netns(pods.get(index).map(|pod| &pod.netns));
        let underlay = |index: usize| {
            let worker = workers.get(index);
            worker
                .and_then(|worker| worker.underlay_addresses.first().copied())
                .context("a worker without an address")
        };
        let address = |index: usize| {
            let pod = pods.get(index);
            pod.and_then(|pod| pod.addresses.first().copied())
                .context("a pod without an address")
        };
        Ok(Self {
            contenders: BTreeMap::new(),
            cable: None,
            workers: [worker(0)?, worker(1)?],
            underlay: [underlay(0)?, underlay(1)?],
            pods: [pod(0)?, pod(1)?, pod(2)?],
            pod_addresses: [address(0)?, address(1)?, address(2)?],
            daemons: workers.iter().filter_map(|worker| worker.pid).collect(),
            missing: Vec::new(),
            _lab: lab,
        })
    }

    fn start(
        &mut self,
        system: System,
        programs: &Programs,
        underlay_mtu: u32,
    ) -> anyhow::Result<()> {
        let end = |index: usize| -> anyhow::Result<End<'_>> {
            let letter = ["a", "b"][index];
            Ok(End {
                netns: &self.workers[index],
                ifname: format!("peer{:x}-{}{letter}", system as u8, std::process::id()),
                underlay: self.underlay[index],
                inner: network(inner_address(system, index as u8))?,
            })
        };
        let site = Site {
            ends: [end(0)?, end(1)?],
            underlay_mtu,
            programs,
        };
        let contender = Contender::start(system, &site)?;
        self.contenders.insert(system, contender);
        Ok(())
    }

    fn miss(&mut self, system: System, error: &anyhow::Error) {
        self.missing.push(Missing {
            system,
            reason: format!("{error:#}"),
        });
    }
}

/// Address of one end inside a contender's tunnel: each has a network of its own.
fn inner_address(system: System, end: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, system as u8, end + 1)
}

/// A virtual cable between two new namespaces without names, with the kernel's defaults.
fn lay_cable() -> anyhow::Result<[Netns; 2]> {
    let ends = [Netns::create()?, Netns::create()?];
    let [one, other] = &ends;
    one.run(|| -> anyhow::Result<()> {
        let netlink = Netlink::connect()?;
        netlink.add_veth(CABLE_ENDS[0], CABLE_ENDS[1])?;
        netlink.move_to_netns(index(&netlink, CABLE_ENDS[1])?, other)?;
        plug_in(&netlink, 0)
    })??;
    other.run(|| plug_in(&Netlink::connect()?, 1))??;
    Ok(ends)
}

fn plug_in(netlink: &Netlink, end: usize) -> anyhow::Result<()> {
    netlink.set_loopback_up()?;
    let index = index(netlink, CABLE_ENDS[end])?;
    let settings = LinkSettings {
        up: Some(true),
        ..LinkSettings::default()
    };
    netlink.configure_link(index, settings)?;
    Ok(netlink.add_address(index, network(CABLE_ADDRESSES[end])?)?)
}

fn index(netlink: &Netlink, ifname: &str) -> anyhow::Result<u32> {
    let link = netlink.link(ifname)?;
    Ok(link
        .with_context(|| format!("there is no interface {ifname}"))?
        .index)
}

fn network(address: Ipv4Addr) -> anyhow::Result<IpNet> {
    Ok(Ipv4Net::new(address, PREFIX_LEN)?.into())
}
