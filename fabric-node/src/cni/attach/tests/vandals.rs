//! Pods that may change their own network namespace, and do. Needs root, and iproute2.

use std::{io::IoSlice, process::Command};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::{
    super::*,
    add_answered,
    kernel::{Devices, Pods, inspect, kernel, remove_interface},
    key, used,
};
use crate::sys::{
    netlink::Netlink,
    netns::Netns,
    tun::{TunError, TunOffloads},
};

/// Does to the pod's namespace what a process with CAP_NET_ADMIN in it can do.
fn ip(netns: &Netns, arguments: &str) {
    netns
        .run(|| {
            let done = Command::new("ip").args(arguments.split(' ')).output();
            let done = done.expect("this test needs iproute2");
            assert!(done.status.success(), "ip {arguments}: {done:?}");
        })
        .unwrap();
}

fn tuns(netns: &Netns) -> usize {
    let count = || Netlink::connect().unwrap().tuns().unwrap().len();
    netns.run(count).unwrap()
}

/// DEL takes the pod's device away, whatever the pod has done to it: no device, no address and no
/// record is left, and other pods keep theirs.
#[test]
fn del_after_vandalism() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let (victim, other, elsewhere) = (pods.make("pod"), pods.make("other"), pods.make("away"));
    let inside = Netns::open(&victim).unwrap();
    let away = Netns::open(&elsewhere).unwrap();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    add_answered(&attacher, "other", &other);
    let before = inspect(&other);
    for script in [
        vec!["link set eth0 down", "link set eth0 name net7"],
        vec![
            "link set eth0 down",
            "link set eth0 name net7",
            "addr flush dev net7",
        ],
        vec!["addr flush dev eth0", "route add blackhole default"],
        vec!["link set eth0 mtu 68"],
        vec![
            "addr add 10.0.0.2/24 dev eth0",
            "addr add 192.0.2.1/24 dev eth0",
        ],
        vec!["link delete eth0"],
        vec!["link delete eth0", "link add eth0 type bridge"],
        vec!["move"],
    ] {
        add_answered(&attacher, "c1", &victim);
        for step in &script {
            if *step == "move" {
                let netlink = inside.run(|| {
                    let netlink = Netlink::connect().unwrap();
                    let index = netlink.link("eth0").unwrap().unwrap().index;
                    netlink.move_to_netns(index, &away).unwrap();
                });
                netlink.unwrap();
            } else {
                ip(&inside, step);
            }
        }
        attacher.del(&key("c1")).unwrap();
        assert_eq!((tuns(&inside), tuns(&away)), (0, 0), "{script:?}");
        assert_eq!(inspect(&other), before, "{script:?}");
        assert!(
            used(&attacher).iter().all(|(used, _)| *used == 1),
            "{script:?}"
        );
        if script.len() == 2 && script[1].ends_with("bridge") {
            assert!(inspect(&victim).is_some(), "it is not ours to remove");
            ip(&inside, "link delete eth0");
        }
    }
}

/// What a pod renamed while the daemon was down is made anew under its name, and nothing of the old
/// device stays.
#[test]
fn renamed_while_down() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let netns = pods.make("pod");
    let inside = Netns::open(&netns).unwrap();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    add_answered(&attacher, "c1", &netns);
    let before = inspect(&netns);
    drop(attacher);
    ip(&inside, "link set eth0 down");
    ip(&inside, "link set eth0 name net7");
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods));
    let attacher = Arc::new(attacher.unwrap());
    assert_eq!(attacher.restore().restored, 1);
    assert_eq!((inspect(&netns), tuns(&inside)), (before, 1));
}

/// While no daemon runs, only a process with CAP_NET_ADMIN over the pod's namespace can attach to the
/// pod's device. One that does, and holds on to it, is left with a dead descriptor by the next start,
/// which gives the pod its interface again.
#[test]
fn taken_while_down() {
    let (state, pods) = (tempfile::tempdir().unwrap(), Pods::new());
    let netns = pods.make("pod");
    let inside = Netns::open(&netns).unwrap();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    let addresses = add_answered(&attacher, "c1", &netns).addresses;
    let before = inspect(&netns);
    drop(attacher);

    let refused = inside.run(|| {
        let nothing = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, nothing).unwrap();
        Tun::open("eth0", TunOffloads::ALL).unwrap_err()
    });
    let refused = refused.unwrap();
    assert!(matches!(refused, TunError::NotCapable { .. }), "{refused}");
    let thief = inside.run(|| Tun::open("eth0", TunOffloads::ALL).unwrap());
    let thief = thief.unwrap();

    let devices = Arc::<Devices>::default();
    let attacher = Attacher::open(state.path(), Arc::clone(&devices) as _, kernel(&pods));
    let attacher = Arc::new(attacher.unwrap());
    assert_eq!(attacher.restore().restored, 1);
    assert_eq!(inspect(&netns), before);
    attacher
        .check(&key("c1"), Path::new(&netns), &addresses)
        .unwrap();
    thief.write(&[IoSlice::new(&[0; 60])]).unwrap_err();
    let again = inside.run(|| Tun::open("eth0", TunOffloads::ALL).unwrap_err());
    let again = again.unwrap();
    assert!(matches!(again, TunError::Busy { .. }), "{again}");
    remove_interface(&netns);
    attacher.del(&key("c1")).unwrap();
}
