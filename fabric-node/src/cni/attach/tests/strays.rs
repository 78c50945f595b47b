//! Pods that no record knows.

use std::sync::atomic::Ordering;

use super::{
    super::*,
    POD, add, add_answered,
    kernel::{Devices, Pods, inspect, kernel},
    key, start, used,
};
use crate::sys::{
    netlink::Netlink,
    netns::Netns,
    tun::{Tun, TunOffloads},
};

/// With the state directory wiped under a running pod, its addresses are given to nobody while it
/// lives, also when asked for by name, and rest when it has gone.
#[test]
fn wiped_state() {
    let (state, world) = start();
    let lost = add_answered(&world.attacher(state.path()), "c1", POD);
    world.die();
    let wiped = tempfile::tempdir().unwrap();
    let attacher = Arc::new(world.attacher(wiped.path()));
    assert_eq!(attacher.restore().withheld, 2);
    let other = add_answered(&attacher, "c2", super::OTHER);
    assert_ne!(other.addresses, lost.addresses);
    world.add_namespace("/run/netns/third", NetnsId { dev: 4, ino: 12 });
    let mut again = super::request("/run/netns/third");
    again.addresses = lost.addresses;
    let ticket = attacher.begin_add(key("c3"));
    let error = attacher.add(&ticket, again).unwrap_err();
    assert!(error.to_string().contains("is in use"), "{error}");
    assert_eq!(used(&attacher), [(2, 0), (2, 0)]);

    world.remove_namespace(POD);
    let later = |s| world.0.uptime_s.fetch_add(s, Ordering::SeqCst);
    for expected in [(2, 0), (1, 1)] {
        later(30);
        assert_eq!(attacher.sweep().withheld, 0);
        assert_eq!(used(&attacher)[0], expected);
    }
    later(ADDRESS_COOLDOWN_S);
    assert_eq!(used(&attacher), [(1, 0), (1, 0)]);
}

/// An address that a stray has beside an attached pod is withheld as soon as the attached one lets go of it.
#[test]
fn a_stray_beside_an_attached_pod() {
    let (state, world) = start();
    let lost = add_answered(&world.attacher(state.path()), "c1", POD);
    world.die();
    let wiped = tempfile::tempdir().unwrap();
    let attacher = world.attacher(wiped.path());
    let other = add_answered(&attacher, "c2", super::OTHER);
    assert_eq!(other.addresses, lost.addresses);
    let later = |s| world.0.uptime_s.fetch_add(s, Ordering::SeqCst);
    later(30);
    assert_eq!(attacher.sweep().withheld, 0);
    attacher.del(&key("c2")).unwrap();
    later(30);
    assert_eq!(attacher.sweep().withheld, 2);
    later(ADDRESS_COOLDOWN_S);
    let fresh = add_answered(&attacher, "c3", super::OTHER);
    assert!(!fresh.addresses.iter().any(|it| lost.addresses.contains(it)));
}

/// A pod that is attached while the looks go on is none without a record, and neither is one whose
/// DEL has come.
#[test]
fn recorded_pods_are_no_strays() {
    let (state, world) = start();
    let attacher = Arc::new(world.attacher(state.path()));
    assert_eq!(attacher.restore().withheld, 0);
    for _ in 0..3 {
        add(&attacher, "c1", POD).unwrap();
        world.0.uptime_s.fetch_add(30, Ordering::SeqCst);
        assert_eq!(attacher.sweep().withheld, 0);
        attacher.del(&key("c1")).unwrap();
        world.0.uptime_s.fetch_add(30, Ordering::SeqCst);
        assert_eq!(attacher.sweep().withheld, 0);
    }
    assert_eq!(used(&attacher)[0].0, 0);
}

/// The kernel's part: a pod's device that no record knows is found and left in place, one without
/// addresses is removed, and devices of others, TUN devices among them, are not ours.
#[test]
fn devices_are_told_apart() {
    let pods = Pods::new();
    let [lost, empty, foreign] = ["lost", "empty", "foreign"].map(|name| pods.make(name));
    let state = tempfile::tempdir().unwrap();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    let addresses = add_answered(&attacher, "c1", &lost).addresses;
    add_answered(&attacher, "c2", &empty);
    drop(attacher);
    let before = inspect(&lost);
    let away = Netns::open(&foreign).unwrap();
    let moved = Netns::open(&empty).unwrap().run(|| {
        let netlink = Netlink::connect().unwrap();
        let index = netlink.link("eth0").unwrap().unwrap().index;
        for address in netlink.addresses(index).unwrap() {
            netlink.delete_address(index, address).unwrap();
        }
    });
    moved.unwrap();
    let of_others = away.run(|| {
        let tun = Tun::create("eth0", TunOffloads::ALL).unwrap();
        let netlink = Netlink::connect().unwrap();
        let index = netlink.link("eth0").unwrap().unwrap().index;
        netlink
            .add_address(index, "10.0.0.9/32".parse().unwrap())
            .unwrap();
        tun
    });
    let of_others = of_others.unwrap();

    let wiped = tempfile::tempdir().unwrap();
    let attacher = Attacher::open(wiped.path(), Arc::<Devices>::default(), kernel(&pods));
    let attacher = Arc::new(attacher.unwrap());
    assert_eq!(attacher.restore().withheld, addresses.len());
    assert_eq!((inspect(&lost), inspect(&empty)), (before, None));
    assert!(inspect(&foreign).is_some());
    let fresh = add_answered(&attacher, "c3", &empty);
    assert!(!fresh.addresses.iter().any(|it| addresses.contains(it)));
    drop(of_others);
}
