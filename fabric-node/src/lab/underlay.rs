//! The lab's stand-in for a data centre: namespaces for workers and pods, and a bridge with one
//! virtual cable to each worker. This is scenery around the product, never part of it.

use std::path::Path;

use anyhow::Context as _;
use ipnet::IpNet;

use super::{
    plan::underlay_network,
    state::{LabState, Worker},
};
use crate::sys::{
    netlink::{LinkSettings, Netlink, enable_ipv6},
    netns::Netns,
};

/// The bridge between the workers, in the namespace of the underlay.
pub const BRIDGE: &str = "br0";
/// A worker's interface on the underlay.
pub const WORKER_IFNAME: &str = "eth0";

/// Runs `f` in the network namespace at `netns`.
///
/// # Errors
///
/// The namespace cannot be entered, or what `f` answers.
pub fn inside<T: Send>(
    netns: &Path,
    f: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    Netns::open(netns)?.run(f)?
}

/// Makes all namespaces and connects the workers.
///
/// # Errors
///
/// Any step failed; what was made until then stays for the caller to take down.
pub fn make(state: &LabState) -> anyhow::Result<()> {
    for path in state.netns_paths() {
        Netns::create_named(path)?.run(|| -> anyhow::Result<()> {
            Netlink::connect()?.set_loopback_up()?;
            Ok(enable_ipv6("lo")?)
        })??;
    }
    inside(&state.underlay_netns, || {
        let netlink = Netlink::connect()?;
        netlink.add_bridge(BRIDGE)?;
        up(&netlink, BRIDGE, state.underlay_mtu)
    })?;
    for worker in &state.workers {
        connect(state, worker)
            .with_context(|| format!("cannot connect {} to the underlay", worker.name))?;
    }
    Ok(())
}

/// Takes a worker's link to the underlay down or up, as pulling its cable does: the worker's own
/// addresses stay.
///
/// # Errors
///
/// The link is not there or cannot be changed.
pub fn set_link(state: &LabState, worker: &Worker, up: bool) -> anyhow::Result<()> {
    inside(&state.underlay_netns, || {
        let netlink = Netlink::connect()?;
        let settings = LinkSettings {
            up: Some(up),
            ..LinkSettings::default()
        };
        Ok(netlink.configure_link(index(&netlink, &worker.name)?, settings)?)
    })
}

fn connect(state: &LabState, worker: &Worker) -> anyhow::Result<()> {
    let netns = Netns::open(&worker.netns)?;
    inside(&state.underlay_netns, || {
        let netlink = Netlink::connect()?;
        netlink.add_veth(&worker.name, WORKER_IFNAME)?;
        netlink.move_to_netns(index(&netlink, WORKER_IFNAME)?, &netns)?;
        netlink.set_master(index(&netlink, &worker.name)?, index(&netlink, BRIDGE)?)?;
        up(&netlink, &worker.name, state.underlay_mtu)
    })?;
    netns.run(|| {
        let netlink = Netlink::connect()?;
        // Without duplicate detection an IPv6 address can be used at once.
        enable_ipv6(WORKER_IFNAME)?;
        up(&netlink, WORKER_IFNAME, state.underlay_mtu)?;
        for &address in &worker.underlay_addresses {
            let (address, prefix) = underlay_network(address);
            netlink.add_address(
                index(&netlink, WORKER_IFNAME)?,
                IpNet::new(address, prefix)?,
            )?;
        }
        Ok(())
    })?
}

fn up(netlink: &Netlink, ifname: &str, mtu: u32) -> anyhow::Result<()> {
    let settings = LinkSettings {
        mtu: Some(mtu),
        // Its chatter would only blur captures.
        ipv6_addr_gen_none: true,
        up: Some(true),
        ..LinkSettings::default()
    };
    Ok(netlink.configure_link(index(netlink, ifname)?, settings)?)
}

fn index(netlink: &Netlink, ifname: &str) -> anyhow::Result<u32> {
    let link = netlink.link(ifname)?;
    Ok(link
        .with_context(|| format!("there is no interface {ifname}"))?
        .index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        fs,
        net::{SocketAddr, UdpSocket},
        path::PathBuf,
        time::Duration,
    };

    use super::*;
    use crate::lab::{
        place::Place,
        plan::{LabOptions, lay_out},
        teardown::{Remains, take_down},
    };

    fn underlay(place: &Place, options: &LabOptions) -> LabState {
        place.prepare().unwrap();
        let state = lay_out(options, place).unwrap();
        fs::create_dir(&state.folder).unwrap();
        state.write().unwrap();
        place.prepare_netns_dir(&options.name).unwrap();
        make(&state).expect("this test makes network namespaces: run it as root");
        state
    }

    /// Whether a datagram of `len` bytes gets from the first worker to the second.
    fn arrives(state: &LabState, family: usize, len: usize, patience: Duration) -> bool {
        let [from, to] = state.workers.as_slice() else {
            panic!("two workers")
        };
        let bind = |worker: &Worker| {
            let address = SocketAddr::new(worker.underlay_addresses[family], 0);
            inside(&worker.netns, || Ok(UdpSocket::bind(address)?)).unwrap()
        };
        let (sender, receiver) = (bind(from), bind(to));
        receiver.set_read_timeout(Some(patience)).unwrap();
        let sent = sender.send_to(&vec![7; len], receiver.local_addr().unwrap());
        sent.is_ok()
            && receiver
                .recv(&mut vec![0; len])
                .is_ok_and(|received| received == len)
    }

    /// Workers reach each other over both families at the MTU asked for; a cut cable stops that, a
    /// mended one lets it go on; and taking a lab down that was never finished leaves nothing.
    #[test]
    fn workers_are_connected_until_taken_down() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::inside(dir.path().join("labs"));
        let options = LabOptions {
            underlay_mtu: 1400,
            ..LabOptions::new("t".parse().unwrap(), 2, 1, PathBuf::from("/nowhere"))
        };
        let state = underlay(&place, &options);
        let mtu = inside(&state.workers[0].netns, || {
            Ok(Netlink::connect()?
                .link(WORKER_IFNAME)?
                .map(|link| link.mtu))
        });
        assert_eq!(mtu.unwrap(), Some(1400));
        let (long, short) = (Duration::from_secs(10), Duration::from_millis(200));
        for family in [0, 1] {
            assert!(arrives(&state, family, 4000, long));
        }
        set_link(&state, &state.workers[1], false).unwrap();
        assert!(!arrives(&state, 0, 10, short));
        set_link(&state, &state.workers[1], true).unwrap();
        for family in [0, 1] {
            assert!(arrives(&state, family, 10, long));
        }
        assert_eq!(Remains::of(&options.name, &place).namespaces.len(), 5);
        assert!(take_down(&options.name, &place).unwrap());
        assert!(Remains::of(&options.name, &place).is_empty());
        assert!(!place.base().exists());
        assert!(!take_down(&options.name, &place).unwrap());
    }
}
