//! CHECK, STATUS, and which attachment a request is about.

use std::{
    sync::{Barrier, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use fabric_proto::cni::{Failure, code};

use super::{super::*, OTHER, POD, add, add_answered, key, request, start, used};

/// STATUS tells whether pods may feel that the daemon is not ready.
#[test]
fn status() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    attacher.status().unwrap();
    world.0.refuse(Some("ready"));
    let code_of = |error| Failure::from(error).code;
    assert_eq!(code_of(attacher.status().unwrap_err()), code::NOT_AVAILABLE);
    add(&attacher, "c1", POD).unwrap();
    assert_eq!(code_of(attacher.status().unwrap_err()), code::LIMITED);
    world.0.refuse(None);
    attacher.status().unwrap();
}

/// STATUS says so when devices cannot be made and when records cannot be written, which no attached
/// pod feels; looking leaves nothing behind.
#[test]
fn status_looks_at_devices_and_disk() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "c1", POD);
    world.0.refuse(Some("devices"));
    let failure = Failure::from(attacher.status().unwrap_err());
    assert_eq!(failure.code, code::NOT_AVAILABLE);
    assert!(failure.msg.contains("/dev/net/tun"), "{failure:?}");
    world.0.refuse(None);

    let folder = state.path().join(crate::cni::store::ATTACHMENTS_DIR);
    let files = || std::fs::read_dir(&folder).unwrap().count();
    let before = files();
    attacher.status().unwrap();
    assert_eq!(files(), before);
    std::fs::rename(&folder, state.path().join("away")).unwrap();
    let failure = Failure::from(attacher.status().unwrap_err());
    assert_eq!(failure.code, code::NOT_AVAILABLE);
    assert!(failure.msg.contains("disk not full"), "{failure:?}");
    std::fs::rename(state.path().join("away"), &folder).unwrap();
    attacher.status().unwrap();
}

/// CHECK notices each way in which an interface can differ, and tolerates additions.
#[test]
fn check_compares() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let attached = add_answered(&attacher, "c1", POD);
    let check = || attacher.check(&key("c1"), Path::new(POD), &attached.addresses);
    type Damage = fn(&mut crate::cni::links::InterfaceState);
    let cases: [(&str, Damage); 4] = [
        ("is down", |state| state.up = false),
        ("lacks the address", |state| state.addresses.truncate(1)),
        ("route of IPv4", |state| state.default_v4 = false),
        ("route of IPv6", |state| state.default_v6 = false),
    ];
    for (words, break_it) in cases {
        let whole = lock(&world.0.interfaces).clone();
        lock(&world.0.interfaces).values_mut().for_each(break_it);
        let failure = Failure::from(check().unwrap_err());
        assert_eq!(failure.code, code::CHECK_FAILED);
        assert!(failure.msg.contains(words), "{failure:?}");
        *lock(&world.0.interfaces) = whole;
    }
    let more: Vec<_> = attached
        .addresses
        .iter()
        .copied()
        .chain(["10.9.9.9".parse().unwrap()])
        .collect();
    attacher.check(&key("c1"), Path::new(POD), &more).unwrap();
    attacher
        .check(&key("c1"), Path::new(POD), &attached.addresses[1..])
        .unwrap_err();
    attacher
        .check(&key("c1"), Path::new(OTHER), &attached.addresses)
        .unwrap_err();
    attacher
        .check(&key("c2"), Path::new(POD), &attached.addresses)
        .unwrap_err();
    lock(&world.0.interfaces).clear();
    check().unwrap_err();
}

/// CHECK waits for a pod that the start has not come to, and agrees once it is taken up; when two
/// seconds were not enough it says that the pod is not taken up.
#[test]
fn check_waits_for_the_start() {
    let (state, world) = start();
    let attached = add_answered(&world.attacher(state.path()), "c1", POD);
    world.die();
    let attacher = Arc::new(world.attacher(state.path()));
    let check = || attacher.check(&key("c1"), Path::new(POD), &attached.addresses);
    let began = Instant::now();
    let error = check().unwrap_err().to_string();
    assert!(error.contains("not been taken up yet"), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(2));

    let asked = Barrier::new(2);
    thread::scope(|scope| {
        let checking = scope.spawn(|| {
            asked.wait();
            check()
        });
        asked.wait();
        assert_eq!(attacher.restore().restored, 1);
        checking.join().unwrap().unwrap();
    });
}

/// CHECK does not wait for a pod that cannot be taken up: it says at once why.
#[test]
fn check_of_a_pod_in_trouble() {
    let (state, world) = start();
    let attached = add_answered(&world.attacher(state.path()), "c1", POD);
    world.die();
    world.0.refuse(Some("reopen"));
    let attacher = Arc::new(world.attacher(state.path()));
    assert_eq!(attacher.restore().failed, 1);
    let began = Instant::now();
    let check = attacher.check(&key("c1"), Path::new(POD), &attached.addresses);
    let error = check.unwrap_err().to_string();
    assert!(error.contains("busy"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

/// A pod that is started anew has another container and the same uid. Whatever the order of the old
/// one's DEL and the new one's ADD, and however often the DEL comes, the new one stays attached.
#[test]
fn one_pod_two_containers() {
    let pod = PodIdentity {
        namespace: Some("default".into()),
        name: Some("web".into()),
        uid: Some("5a0c".into()),
    };
    for del_first in [true, false] {
        let (state, world) = start();
        let attacher = world.attacher(state.path());
        let add = |container: &str, netns: &str| {
            let mut request = request(netns);
            request.pod = pod.clone();
            let ticket = attacher.begin_add(key(container));
            let attached = attacher.add(&ticket, request).unwrap();
            attacher.answered(&ticket);
            attached
        };
        let old = add("old", POD);
        if del_first {
            attacher.del(&key("old")).unwrap();
        }
        let new = add("new", OTHER);
        assert!(!new.addresses.iter().any(|it| old.addresses.contains(it)));
        for _ in 0..2 {
            attacher.del(&key("old")).unwrap();
        }
        attacher
            .check(&key("new"), Path::new(OTHER), &new.addresses)
            .unwrap();
        assert_eq!((world.attached(), used(&attacher)[0]), (1, (1, 1)));
    }
}

/// Addresses that a runtime asks for are given; one that is taken, foreign or reserved is refused as
/// the request's mistake, one that rests as something to try again, and a refusal takes nothing, of
/// either family.
#[test]
fn addresses_asked_for() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let ask = |container: &str, netns: &str, addresses: &[&str]| {
        let mut request = request(netns);
        request.addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        attacher.add(&attacher.begin_add(key(container)), request)
    };
    let wanted = ["10.0.0.77", "fd00::77"];
    let attached = ask("c1", POD, &wanted).unwrap();
    assert_eq!(
        attached
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        wanted
    );
    let before = used(&attacher);
    for (addresses, expected) in [
        (["10.0.0.77", "fd00::78"], code::INVALID_CONFIG),
        (["10.0.0.78", "fd00::77"], code::INVALID_CONFIG),
        (["10.0.0.78", "fd00::1"], code::INVALID_CONFIG),
        (["192.0.2.1", "fd00::78"], code::INVALID_CONFIG),
        (["10.0.0.78", "10.0.0.79"], code::INVALID_CONFIG),
    ] {
        let failure = Failure::from(ask("c2", OTHER, &addresses).unwrap_err());
        assert_eq!(failure.code, expected, "{failure:?}");
        assert_eq!(used(&attacher), before, "{addresses:?}");
    }
    attacher.del(&key("c1")).unwrap();
    let failure = Failure::from(ask("c2", OTHER, &wanted).unwrap_err());
    assert_eq!(failure.code, code::TRY_AGAIN, "{failure:?}");
    let rested = &world.0.uptime_s;
    rested.fetch_add(ADDRESS_COOLDOWN_S, Ordering::SeqCst);
    ask("c2", OTHER, &wanted).unwrap();
}

/// GC waits for whoever is busy with an attachment, an ADD that notes that it was answered for one,
/// and does not pass it over.
#[test]
fn gc_waits_its_turn() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "dead", OTHER);
    world.remove_namespace(OTHER);
    let claim = attacher.keys.claim(key("dead"));
    let (turn, asked) = (claim.turn(), Barrier::new(2));
    thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            asked.wait();
            attacher.gc("fabric", &[])
        });
        asked.wait();
        drop(turn);
        assert_eq!(collecting.join().unwrap().unwrap(), 1);
    });
}
