//! Looks into the network namespaces of the machine for pods' devices that no record knows.
//!
//! Comes in: where namespaces may be, which ones need no look. Goes out: the devices that a daemon of
//! this node has made in the others ([`Stray`]). That is what is left of pods whose record was lost:
//! the state directory was wiped or replaced while they ran. Never done here: deciding what becomes
//! of them, which is [`super::attach`]'s part.
//!
//! A device is ours by the owner that [`super::links`] gives it. A process in a user namespace of its
//! own cannot give that to a device, so it cannot make the node withhold addresses. One with
//! CAP_NET_ADMIN in the host's user namespace can, and could do worse.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use tracing::{debug, warn};

use super::{links::LinkError, roots::NetnsRoots};
use crate::sys::{
    netlink::{Netlink, TunLink},
    netns::{Netns, NetnsId},
    tun::TunOwner,
};

/// Network namespaces told apart in one look. With more, some are not looked into, which is logged.
const NAMESPACES_MAX: usize = 4_096;
/// Processes whose namespace is looked up in one look.
const PROCESSES_MAX: usize = 32_768;
/// Addresses of one device that matter: a pod has one per family, the first ones; what it adds itself
/// comes after them.
const ADDRESSES_MAX: usize = 8;

/// A pod's device in a namespace that needed a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Identity of the namespace.
    pub netns_id: NetnsId,
    /// Where it was found.
    pub netns: PathBuf,
    /// Name of the device.
    pub ifname: String,
    /// Its index in the namespace.
    pub index: u32,
    /// Its first addresses.
    pub addresses: Vec<IpAddr>,
}

/// Result of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Devices of this node's daemon.
    pub strays: Vec<Stray>,
    /// All namespaces that exist, those without need of a look too.
    pub present: HashSet<NetnsId>,
    /// Namespaces that could not be looked into; the next survey tries again.
    pub failed: HashSet<NetnsId>,
}

/// Looks for devices with `owner` in all namespaces but the daemon's own and those in `settled`.
///
/// # Errors
///
/// The daemon's own namespace cannot be examined.
pub(super) fn survey(
    roots: &NetnsRoots,
    owner: TunOwner,
    settled: &HashSet<NetnsId>,
) -> Result<Survey, LinkError> {
    let own = Netns::current()?.identity();
    let mut survey = Survey::default();
    for (id, path) in census(roots, own) {
        survey.present.insert(id);
        if settled.contains(&id) {
            continue;
        }
        match look_into(id, &path, owner) {
            Ok(strays) => survey.strays.extend(strays),
            Err(error) => {
                debug!(netns = %path.display(), %error, "cannot look for pods' devices");
                survey.failed.insert(id);
            }
        }
    }
    Ok(survey)
}

/// Removes a stray device; one that is not there is no error.
///
/// # Errors
///
/// The namespace cannot be entered, or the kernel refuses.
pub(super) fn remove(stray: &Stray, owner: TunOwner) -> Result<(), LinkError> {
    let netns = Netns::open(&stray.netns)?;
    if netns.identity() != stray.netns_id {
        return Ok(());
    }
    netns.run(|| {
        let netlink = Netlink::connect()?;
        let is_it = |tun: &TunLink| tun.link.index == stray.index && tun.owner == Some(owner);
        if netlink.tuns()?.iter().any(is_it) {
            netlink.delete_link(stray.index)?;
        }
        Ok(())
    })?
}

fn look_into(id: NetnsId, path: &Path, owner: TunOwner) -> Result<Vec<Stray>, LinkError> {
    let netns = Netns::open(path)?;
    if netns.identity() != id {
        return Err(LinkError::Gone("another namespace took its place".into()));
    }
    netns.run(|| {
        let netlink = Netlink::connect()?;
        let mut strays = Vec::new();
        for tun in netlink.tuns()? {
            if tun.owner == Some(owner) {
                let addresses = netlink.addresses(tun.link.index)?;
                strays.push(Stray {
                    netns_id: id,
                    netns: path.to_owned(),
                    ifname: tun.link.name,
                    index: tun.link.index,
                    addresses: pick(addresses.iter().map(ipnet::IpNet::addr)),
                });
            }
        }
        Ok(strays)
    })?
}

/// The first addresses of each family; those that the kernel makes itself say nothing.
fn pick(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let is_pods = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.filter(is_pods).partition(IpAddr::is_ipv4);
    let half = ADDRESSES_MAX / 2;
    v4.into_iter()
        .take(half)
        .chain(v6.into_iter().take(half))
        .collect()
}

/// Every namespace but `own`, and a path to it: a name where it has one, else that of a process.
fn census(roots: &NetnsRoots, own: NetnsId) -> HashMap<NetnsId, PathBuf> {
    let mut found = HashMap::new();
    let mut note = |path: PathBuf, unreadable: &mut usize| {
        match NetnsId::of_file(&path) {
            // All namespaces are files of one file system, the daemon's own among them.
            Ok(id) if id.dev == own.dev && id != own && found.len() < NAMESPACES_MAX => {
                found.entry(id).or_insert(path);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                *unreadable = unreadable.saturating_add(1);
            }
            Ok(_) | Err(_) => {}
        }
    };
    let mut unreadable = 0;
    for folder in roots.folders() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            note(entry.path(), &mut unreadable);
        }
    }
    if roots.processes() {
        let is_process = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.map(|entry| entry.path()).filter(is_process);
        for process in processes.take(PROCESSES_MAX) {
            note(process.join("ns/net"), &mut unreadable);
        }
    }
    if found.len() >= NAMESPACES_MAX {
        warn!(
            limit = NAMESPACES_MAX,
            "more network namespaces than are looked into for pods without a record"
        );
    }
    if unreadable > 0 {
        debug!(
            processes = unreadable,
            "network namespaces of processes that need CAP_SYS_PTRACE are not looked into"
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first addresses of each family count, those the kernel made do not, and a pod that adds
    /// hundreds has none of them counted beyond the limit.
    #[test]
    fn the_first_addresses_count() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|_| [0; 4].into());
        let mut all = vec![ip("fe80::1"), ip("10.0.0.2"), ip("fd00::2")];
        all.extend((0..=255).map(|last| IpAddr::from([10, 0, 1, last])));
        let picked = pick(all.into_iter());
        assert_eq!(picked.first(), Some(&ip("10.0.0.2")));
        assert_eq!(picked.last(), Some(&ip("fd00::2")));
        assert_eq!(picked.len(), ADDRESSES_MAX / 2 + 1);
    }
}
