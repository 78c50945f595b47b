//! The pod's interface: made, found again, examined, removed.
//!
//! Comes in: a namespace and what the interface should be. Goes out: its device. Never done here:
//! knowing why. [`Links`] is what [`super::attach`] needs of the kernel; [`KernelLinks`] is the
//! kernel.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use fabric_core::snapshot::POD_MTU;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use tracing::warn;

use super::{
    roots::NetnsRoots,
    survey::{self, Stray, Survey},
};
use crate::sys::{
    netlink::{self, Link, LinkSettings, Netlink, NetlinkError, RouteSpec},
    netns::{Netns, NetnsError, NetnsId},
    sysctl::Sysctl,
    tun::{self, Tun, TunError, TunOffloads, TunOwner},
};

/// What the kernel keeps for the daemon while it is busy with other pods (packets); the driver's
/// default of 500 is little when each may be a single segment.
const TX_QUEUE_PACKETS: u32 = 1_000;
/// Metric of a default route where another interface has one, the interface's index not counted: more than
/// the 1,024 of the kernel's own (`IP6_RT_PRIO_USER` of `linux/ipv6_route.h`).
const SECOND_DEFAULT_METRIC: u32 = 2_000;

/// Why the pod's interface is not as it should be.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The namespace has gone, or something else is at its path.
    #[error("{0}")]
    Gone(String),
    /// The interface name is taken.
    #[error("interface {0} exists in the pod's network namespace")]
    Exists(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What the interface should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePlan {
    /// CNI_IFNAME.
    pub ifname: String,
    /// Its addresses, each a single host.
    pub addresses: Vec<IpAddr>,
}

/// What the interface is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceState {
    /// Administratively up.
    pub up: bool,
    /// MTU (bytes).
    pub mtu: u32,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
    /// A default route of IPv4 leaves by it.
    pub default_v4: bool,
    /// A default route of IPv6 leaves by it.
    pub default_v6: bool,
}

/// The kernel, as attaching a pod needs it. Every call may block.
pub trait Links: Send + Sync + 'static {
    /// The daemon's end of the interface.
    type Device: Send + 'static;
    /// An open namespace.
    type Namespace: Send + Sync;

    /// Opens the namespace at a path and tells its identity.
    ///
    /// # Errors
    ///
    /// [`LinkError::Gone`] only when there certainly is no namespace at the path.
    fn open(&self, path: &Path) -> Result<(Self::Namespace, NetnsId), LinkError>;

    /// Whether the namespace `id` is at `path`, without opening it: for looks that are taken all the
    /// time. `false` proves nothing; [`Links::open`] tells more.
    fn is_at(&self, path: &Path, id: NetnsId) -> bool;

    /// Whether interfaces can be made at all; makes none.
    ///
    /// # Errors
    ///
    /// [`LinkError::Failed`].
    fn ready(&self) -> Result<(), LinkError>;

    /// Whether a runtime may name this path as a pod's namespace.
    ///
    /// # Errors
    ///
    /// [`LinkError::Failed`] says which paths are allowed.
    fn admit(&self, path: &Path) -> Result<(), LinkError>;

    /// Identity of the namespace that the daemon itself is in.
    ///
    /// # Errors
    ///
    /// [`LinkError::Failed`].
    fn own(&self) -> Result<NetnsId, LinkError>;

    /// Makes the interface; it outlives the device. On failure nothing is left of it.
    ///
    /// # Errors
    ///
    /// [`LinkError::Exists`] if any interface has the name, and the others.
    fn create(
        &self,
        namespace: &Self::Namespace,
        plan: &InterfacePlan,
    ) -> Result<Self::Device, LinkError>;

    /// Takes an interface up again that an earlier process made, or makes it where it has gone or
    /// somebody else holds it.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    fn reopen(
        &self,
        namespace: &Self::Namespace,
        plan: &InterfacePlan,
    ) -> Result<Self::Device, LinkError>;

    /// What an interface is; `None` where there is none of the name.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    fn inspect(
        &self,
        namespace: &Self::Namespace,
        ifname: &str,
    ) -> Result<Option<InterfaceState>, LinkError>;

    /// Looks for devices of this daemon in all namespaces but those in `settled`.
    ///
    /// # Errors
    ///
    /// [`LinkError`] when nothing could be looked at.
    fn survey(&self, settled: &HashSet<NetnsId>) -> Result<Survey, LinkError>;

    /// Removes a device that a survey found; one that has gone is no error.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    fn remove_stray(&self, stray: &Stray) -> Result<(), LinkError>;

    /// Lets go of a device for good: it ends with its last user, wherever the pod has put it.
    fn discard(&self, device: Arc<Self::Device>);

    /// Removes the interface, also under another name that the pod has given it; one that is not
    /// there is no error, and interfaces that are not ours stay.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    fn delete(&self, namespace: &Self::Namespace, plan: &InterfacePlan) -> Result<(), LinkError>;
}

/// The kernel.
#[derive(Clone, Debug)]
pub struct KernelLinks {
    offloads: TunOffloads,
    roots: NetnsRoots,
    owner: TunOwner,
    sysctl: Sysctl,
}

impl KernelLinks {
    /// Devices with these offloads, in namespaces below `roots`.
    ///
    /// # Errors
    ///
    /// The daemon's own namespace cannot be examined.
    pub fn new(offloads: TunOffloads, roots: NetnsRoots) -> Result<Self, LinkError> {
        let home = Netns::current()?.identity();
        Ok(Self {
            offloads,
            roots,
            owner: TunOwner::of_daemon_in(home),
            sysctl: Sysctl::default(),
        })
    }

    /// Finds the kernel's settings elsewhere than in `/proc/sys`; in a pod's namespace they are the pod's.
    #[must_use]
    pub fn with_sysctl(self, sysctl: Sysctl) -> Self {
        Self { sysctl, ..self }
    }

    /// Makes `tun` a pod's device: for nobody else, with addresses and routes, and there to stay.
    fn finish(&self, tun: Tun, plan: &InterfacePlan) -> Result<Tun, LinkError> {
        tun.set_owner(self.owner)
            .map_err(failed("set the owner of the device"))?;
        configure(plan, &self.sysctl)?;
        // Last, so that every failure above takes a new device with it.
        tun.set_persistent(true)
            .map_err(failed("make the device outlive the daemon"))?;
        Ok(tun)
    }
}

impl Links for KernelLinks {
    type Device = Tun;
    type Namespace = Netns;

    fn open(&self, path: &Path) -> Result<(Netns, NetnsId), LinkError> {
        let netns = Netns::open(path).map_err(|error| match LinkError::from(error) {
            LinkError::Gone(reason) if !can_tell(path) => LinkError::Failed(reason),
            error @ (LinkError::Gone(_) | LinkError::Exists(_) | LinkError::Failed(_)) => error,
        })?;
        let id = netns.identity();
        Ok((netns, id))
    }

    fn is_at(&self, path: &Path, id: NetnsId) -> bool {
        NetnsId::of_file(path).is_ok_and(|found| found == id)
    }

    fn own(&self) -> Result<NetnsId, LinkError> {
        Ok(Netns::current()?.identity())
    }

    fn ready(&self) -> Result<(), LinkError> {
        Ok(tun::probe()?)
    }

    fn admit(&self, path: &Path) -> Result<(), LinkError> {
        if self.roots.allow(path) {
            return Ok(());
        }
        let folders = self.roots.folders().iter();
        let folders: Vec<_> = folders.map(|folder| folder.display().to_string()).collect();
        Err(LinkError::Failed(format!(
            "this is neither below {} nor /proc/PID/ns/net: add its folder to cni.netns_roots in node.toml",
            folders.join(", ")
        )))
    }

    fn create(&self, namespace: &Netns, plan: &InterfacePlan) -> Result<Tun, LinkError> {
        namespace.run(|| self.finish(Tun::create(&plan.ifname, self.offloads)?, plan))?
    }

    fn reopen(&self, namespace: &Netns, plan: &InterfacePlan) -> Result<Tun, LinkError> {
        namespace.run(|| {
            remove(plan, Which::Renamed)?;
            let tun = match Tun::open(&plan.ifname, self.offloads) {
                Err(TunError::Busy { name }) => {
                    let (namespace, addresses) = (namespace.identity(), &plan.addresses);
                    warn!(interface = name, %namespace, ?addresses, "a process in the pod holds the pod's device: it is removed and made anew");
                    remove(plan, Which::All)?;
                    Tun::create(&plan.ifname, self.offloads)
                }
                opened => opened,
            }?;
            self.finish(tun, plan)
        })?
    }

    fn inspect(
        &self,
        namespace: &Netns,
        ifname: &str,
    ) -> Result<Option<InterfaceState>, LinkError> {
        namespace.run(|| inspect(ifname))?
    }

    fn survey(&self, settled: &HashSet<NetnsId>) -> Result<Survey, LinkError> {
        survey::survey(&self.roots, self.owner, settled)
    }

    fn remove_stray(&self, stray: &Stray) -> Result<(), LinkError> {
        survey::remove(stray, self.owner)
    }

    fn discard(&self, device: Arc<Tun>) {
        // One that has gone already has nothing to say.
        let _ = device.set_persistent(false);
    }

    fn delete(&self, namespace: &Netns, plan: &InterfacePlan) -> Result<(), LinkError> {
        namespace.run(|| remove(plan, Which::All))?
    }
}

/// Which devices of an attachment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// All.
    All,
    /// Those that have the attachment's addresses under another name than its own.
    Renamed,
}

/// Removes TUN devices of an attachment from the calling thread's namespace: the one with its name,
/// and those of ours that have one of its addresses, which the pod has renamed.
fn remove(plan: &InterfacePlan, which: Which) -> Result<(), LinkError> {
    let netlink = Netlink::connect()?;
    for tun in netlink.tuns()? {
        let is_ours = tun
            .owner
            .is_some_and(|owner| owner.user == TunOwner::FABRIC_USER);
        let goes = if tun.link.name == plan.ifname {
            // Where devices cannot be given an owner, the name and the kind must do.
            which == Which::All && (is_ours || tun.owner.is_none())
        } else {
            is_ours && has_one_of(&netlink, &tun.link, &plan.addresses)?
        };
        if goes {
            match netlink.delete_link(tun.link.index) {
                Err(NetlinkError::NotFound { .. }) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn has_one_of(netlink: &Netlink, link: &Link, addresses: &[IpAddr]) -> Result<bool, LinkError> {
    let found = netlink.addresses(link.index)?;
    Ok(found.iter().any(|net| addresses.contains(&net.addr())))
}

/// Whether the absence of `path` says anything: with its folder missing too, the daemon may well look
/// at another mount namespace than the runtime. Below `/proc` folders come and go with processes.
fn can_tell(path: &Path) -> bool {
    path.starts_with("/proc") || path.parent().is_some_and(Path::is_dir)
}

/// Brings the interface to what the plan says; what is so already stays.
fn configure(plan: &InterfacePlan, sysctl: &Sysctl) -> Result<(), LinkError> {
    let netlink = Netlink::connect()?;
    let index =
        netlink::index_of(&plan.ifname).map_err(failed("find the device that was just made"))?;
    if plan.addresses.iter().any(IpAddr::is_ipv6) {
        // Runtimes may start a namespace with IPv6 off.
        sysctl
            .enable_ipv6(&plan.ifname)
            .map_err(failed("turn on IPv6 in the namespace"))?;
    }
    netlink.configure_link(
        index,
        LinkSettings {
            mtu: Some(POD_MTU),
            tx_queue_len: Some(TX_QUEUE_PACKETS),
            ipv6_addr_gen_none: true,
            up: None,
        },
    )?;
    for address in &plan.addresses {
        match netlink.add_address(index, IpNet::from(*address)) {
            Ok(()) | Err(NetlinkError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let up = LinkSettings {
        up: Some(true),
        ..LinkSettings::default()
    };
    netlink.configure_link(index, up)?;
    for address in &plan.addresses {
        let route = RouteSpec {
            destination: default_of(*address),
            index,
            source: None,
            gateway: None,
            mtu: None,
        };
        // A second interface of a pod must not take the first one's way out.
        netlink.add_route_behind(&route, SECOND_DEFAULT_METRIC + index)?;
    }
    Ok(())
}

fn inspect(ifname: &str) -> Result<Option<InterfaceState>, LinkError> {
    let netlink = Netlink::connect()?;
    let Some(link) = netlink.link(ifname)? else {
        return Ok(None);
    };
    let addresses = netlink.addresses(link.index)?;
    let routes = netlink.routes(link.index)?;
    let has_default = |address: IpAddr| {
        routes
            .iter()
            .any(|route| route.destination == default_of(address))
    };
    Ok(Some(InterfaceState {
        up: link.up,
        mtu: link.mtu,
        addresses: addresses.iter().map(IpNet::addr).collect(),
        default_v4: has_default(Ipv4Addr::UNSPECIFIED.into()),
        default_v6: has_default(Ipv6Addr::UNSPECIFIED.into()),
    }))
}

/// The default route of an address's family.
fn default_of(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> LinkError {
    move |error| LinkError::Failed(format!("cannot {action}: {error}"))
}

impl From<NetnsError> for LinkError {
    fn from(error: NetnsError) -> Self {
        let gone = match &error {
            NetnsError::Open { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
            NetnsError::NotANamespace { .. } => true,
            NetnsError::Enter { .. }
            | NetnsError::Thread { .. }
            | NetnsError::Create { .. }
            | NetnsError::Name { .. } => false,
        };
        if gone {
            Self::Gone(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<TunError> for LinkError {
    fn from(error: TunError) -> Self {
        if let TunError::Exists { name } = error {
            Self::Exists(name)
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<NetlinkError> for LinkError {
    fn from(error: NetlinkError) -> Self {
        Self::Failed(error.to_string())
    }
}
