#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm
)]

pub(in crate::cni) mod fake;
mod kernel;
mod paths;
mod pending;
mod records;
mod requests;
mod strays;
mod vandals;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Barrier, atomic::Ordering},
    thread,
};

use fabric_proto::cni::{Attached, Failure, code};
use tempfile::TempDir;

use super::*;
use fake::{Hand, OTHER, POD, World};

pub(in crate::cni) fn key(container_id: &str) -> AttachmentKey {
    AttachmentKey {
        network: "fabric".into(),
        container_id: container_id.into(),
        ifname: "eth0".into(),
    }
}

fn request(netns: &str) -> AddRequest {
    AddRequest {
        netns: netns.into(),
        pod: PodIdentity::default(),
        addresses: Vec::new(),
    }
}

fn add<L: Links>(
    attacher: &Attacher<L>,
    container_id: &str,
    netns: &str,
) -> Result<Attached, AttachError> {
    attacher.add(&attacher.begin_add(key(container_id)), request(netns))
}

fn add_answered<L: Links>(attacher: &Attacher<L>, container_id: &str, netns: &str) -> Attached {
    let ticket = attacher.begin_add(key(container_id));
    let attached = attacher.add(&ticket, request(netns)).unwrap();
    attacher.answered(&ticket);
    attached
}

fn used<L: Links>(attacher: &Attacher<L>) -> Vec<(u64, u64)> {
    let now_s = (attacher.clock)().unwrap().uptime_s;
    lock(&attacher.ipam)
        .usage(now_s)
        .iter()
        .map(|usage| (usage.used, usage.cooling))
        .collect()
}

fn start() -> (TempDir, Hand) {
    (tempfile::tempdir().unwrap(), World::begin())
}

fn records(state: &Path) -> usize {
    std::fs::read_dir(state.join(crate::cni::store::ATTACHMENTS_DIR))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension() == Some("record".as_ref()))
        .count()
}

/// ADD attaches with one address per family; DEL takes everything back and can be repeated, and the
/// addresses rest, across a restart too, until their time is over.
#[test]
fn add_and_del() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let attached = add_answered(&attacher, "c1", POD);
    assert_eq!(attached.mtu, 1500);
    assert_eq!(
        attached.addresses,
        [
            "10.0.0.2".parse::<IpAddr>().unwrap(),
            "fd00::2".parse().unwrap()
        ]
    );
    assert_eq!((world.attached(), world.interfaces()), (1, 1));
    attacher
        .check(&key("c1"), Path::new(POD), &attached.addresses)
        .unwrap();
    for _ in 0..3 {
        attacher.del(&key("c1")).unwrap();
    }
    assert_eq!((world.attached(), world.interfaces()), (0, 0));
    assert_eq!(used(&attacher), [(0, 1), (0, 1)]);
    drop(attacher);
    let attacher = world.attacher(state.path());
    assert_eq!(used(&attacher), [(0, 1), (0, 1)]);
    world
        .0
        .uptime_s
        .fetch_add(ADDRESS_COOLDOWN_S, Ordering::SeqCst);
    assert_eq!(used(&attacher), [(0, 0), (0, 0)]);
    assert_eq!(attacher.sweep().rested, 1);
    assert_eq!(records(state.path()), 0);
}

/// DEL of what was never added succeeds.
#[test]
fn del_of_the_unknown() {
    let (state, world) = start();
    world.attacher(state.path()).del(&key("c9")).unwrap();
}

/// A second ADD is refused without side effects once the first was answered, and gets the same
/// result when the first was not.
#[test]
fn add_again() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let first = add(&attacher, "c1", POD).unwrap();
    assert_eq!(add(&attacher, "c1", POD).unwrap(), first);
    assert_eq!(add_answered(&attacher, "c1", POD), first);
    let error = add(&attacher, "c1", POD).unwrap_err();
    assert_eq!(Failure::from(error).code, code::INTERFACE_EXISTS);
    let error = add(&attacher, "c1", OTHER).unwrap_err();
    assert!(matches!(error, AttachError::AttachedElsewhere { .. }));
    assert_eq!(
        (world.attached(), used(&attacher)),
        (1, vec![(1, 0), (1, 0)])
    );
    attacher
        .check(&key("c1"), Path::new(POD), &first.addresses)
        .unwrap();
}

/// A container whose namespace has gone without a DEL can be added again in another.
#[test]
fn add_after_the_namespace_has_gone() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "c1", POD);
    world.remove_namespace(POD);
    let again = add_answered(&attacher, "c1", OTHER);
    assert_eq!(
        again.addresses[0].to_string(),
        "10.0.0.3",
        "the first rests"
    );
    assert_eq!((world.attached(), world.interfaces()), (1, 1));
}

/// An interface of the same name that is not ours is refused and left alone.
#[test]
fn foreign_interface() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "c1", POD);
    let error = add(&attacher, "c2", POD).unwrap_err();
    assert!(matches!(error, AttachError::InterfaceExists { .. }));
    attacher.del(&key("c2")).unwrap();
    assert_eq!(
        (world.interfaces(), used(&attacher)),
        (1, vec![(1, 0), (1, 0)])
    );
}

/// A missing namespace and the daemon's own are refused.
#[test]
fn namespaces_that_will_not_do() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    for path in ["/run/netns/missing", "/proc/self/ns/net"] {
        let failure = Failure::from(add(&attacher, "c1", path).unwrap_err());
        assert_eq!(failure.code, code::INVALID_NETNS);
        assert!(failure.msg.contains(path));
    }
    assert_eq!(used(&attacher), [(0, 0), (0, 0)]);
}

/// Whichever step fails, nothing stays: no device, no route, no address, no record.
#[test]
fn failures_are_undone() {
    for what in ["create", "attach", "store"] {
        let (state, world) = start();
        let mut attacher = world.attacher(state.path());
        world.0.refuse(Some(what));
        if what == "store" {
            // From the second write on there is no folder to write in.
            let folder = state.path().join(crate::cni::store::ATTACHMENTS_DIR);
            attacher.on_step = Box::new(move |step| {
                if step == Step::Published {
                    std::fs::remove_dir_all(&folder).unwrap();
                    std::fs::write(&folder, b"").unwrap();
                }
            });
        }
        add(&attacher, "c1", POD).unwrap_err();
        assert_eq!((world.attached(), world.interfaces()), (0, 0), "{what}");
        if what != "store" {
            assert_eq!(used(&attacher), [(0, 0), (0, 0)], "{what}");
            assert_eq!(records(state.path()), 0, "{what}");
            world.0.refuse(None);
            add(&attacher, "c1", POD).unwrap();
        }
    }
}

/// Exhaustion says how many addresses are used, cooling and there at all, and is "try again later".
#[test]
fn exhaustion() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    for index in 0..253 {
        lock(&world.0.namespaces).insert(
            format!("/n/{index}").into(),
            NetnsId {
                dev: 4,
                ino: 100 + index,
            },
        );
        add(&attacher, &format!("c{index}"), &format!("/n/{index}")).unwrap();
    }
    attacher.status().unwrap_err();
    attacher.del(&key("c7")).unwrap();
    let failure = Failure::from(add(&attacher, "new", POD).unwrap_err());
    assert_eq!(failure.code, code::TRY_AGAIN);
    assert!(
        failure.msg.contains("252 used and 1 cooling down of 253"),
        "{failure:?}"
    );
    assert_eq!(
        Failure::from(attacher.status().unwrap_err()).code,
        code::NOT_AVAILABLE
    );
    world
        .0
        .uptime_s
        .fetch_add(ADDRESS_COOLDOWN_S, Ordering::SeqCst);
    attacher.status().unwrap();
    add(&attacher, "new", POD).unwrap();
}

/// A DEL that arrives at any step of its ADD wins: the ADD fails and nothing is left.
#[test]
fn del_wins_over_add() {
    for at in Step::ALL {
        let (state, world) = start();
        let mut attacher = world.attacher(state.path());
        let keys = Arc::clone(&attacher.keys);
        attacher.on_step = Box::new(move |step| {
            if step == at {
                drop(keys.begin_delete(key("c1")));
            }
        });
        let error = add(&attacher, "c1", POD).unwrap_err();
        assert!(matches!(error, AttachError::Cancelled), "{at:?}: {error}");
        assert_eq!((world.attached(), world.interfaces()), (0, 0), "{at:?}");
        assert!(used(&attacher).iter().all(|(used, _)| *used == 0), "{at:?}");
    }
}

/// A DEL on another thread waits for the ADD it cancels, and afterwards nothing is left.
#[test]
fn del_on_another_thread() {
    let (state, world) = start();
    let attacher = Arc::new(world.attacher(state.path()));
    let ticket = Arc::new(attacher.begin_add(key("c1")));
    let started = Arc::new(Barrier::new(2));
    let hook = {
        let (ticket, started) = (Arc::clone(&ticket), Arc::clone(&started));
        move || {
            started.wait();
            while ticket.check().is_ok() {
                thread::yield_now();
            }
        }
    };
    *lock(&world.0.on_create) = Some(Arc::new(hook));
    thread::scope(|scope| {
        let adding = scope.spawn(|| attacher.add(&ticket, request(POD)));
        started.wait();
        attacher.del(&key("c1")).unwrap();
        assert!(matches!(
            adding.join().unwrap(),
            Err(AttachError::Cancelled)
        ));
    });
    assert_eq!((world.attached(), world.interfaces()), (0, 0));
}

/// ADDs of different containers run side by side: each waits here until all are at the same step.
#[test]
fn different_keys_run_in_parallel() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let together = Barrier::new(8);
    *lock(&world.0.on_create) = Some(Arc::new(move || {
        together.wait();
    }));
    thread::scope(|scope| {
        for index in 0..8 {
            lock(&world.0.namespaces).insert(
                format!("/n/{index}").into(),
                NetnsId {
                    dev: 4,
                    ino: 100 + index,
                },
            );
            let attacher = &attacher;
            scope.spawn(move || {
                add(attacher, &format!("c{index}"), &format!("/n/{index}")).unwrap()
            });
        }
    });
    assert_eq!(
        (world.attached(), used(&attacher)),
        (8, vec![(8, 0), (8, 0)])
    );
}

/// Many ADDs and DELs of the same few containers at once: every result is one of a serial order,
/// and when all are deleted nothing is left.
#[test]
fn storm() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    thread::scope(|scope| {
        for thread in 0..8_usize {
            let attacher = &attacher;
            scope.spawn(move || {
                for round in 0..40_usize {
                    let container = format!("c{}", (thread + round) % 3);
                    if (thread * 7 + round) % 2 == 0 {
                        let ticket = attacher.begin_add(key(&container));
                        if attacher.add(&ticket, request(POD)).is_ok() {
                            attacher.answered(&ticket);
                        }
                    } else {
                        attacher.del(&key(&container)).unwrap();
                    }
                }
            });
        }
    });
    for container in ["c0", "c1", "c2"] {
        attacher.del(&key(container)).unwrap();
    }
    assert_eq!((world.attached(), world.interfaces()), (0, 0));
    assert!(used(&attacher).iter().all(|(used, _)| *used == 0));
}

/// Killed after any step of ADD, the daemon leaves nothing behind that its next start does not
/// clear away or take up whole, and the runtime's DEL and a new ADD find everything in order.
#[test]
fn killed_at_any_step() {
    for at in Step::ALL {
        let (state, world) = start();
        let mut attacher = world.attacher(state.path());
        attacher.on_step = Box::new(move |step| {
            if step == at {
                std::panic::panic_any("killed");
            }
        });
        let killed = catch_unwind(AssertUnwindSafe(|| add(&attacher, "c1", POD)));
        assert!(killed.is_err());
        drop(attacher);
        world.die();

        let attacher = Arc::new(world.attacher(state.path()));
        let report = attacher.restore();
        let taken_up = usize::from(at == Step::Attached);
        assert_eq!(
            (report.restored, report.failed, report.unfinished),
            (taken_up, 0, 0),
            "{at:?}"
        );
        assert_eq!(
            (world.attached(), world.interfaces()),
            (taken_up, taken_up),
            "{at:?}"
        );
        attacher.del(&key("c1")).unwrap();
        assert_eq!((world.attached(), world.interfaces()), (0, 0), "{at:?}");
        assert!(used(&attacher).iter().all(|(used, _)| *used == 0), "{at:?}");
        add_answered(&attacher, "c1", POD);
        world
            .0
            .uptime_s
            .fetch_add(ADDRESS_COOLDOWN_S, Ordering::SeqCst);
        attacher.sweep();
        assert_eq!(used(&attacher), [(1, 0), (1, 0)], "{at:?}");
        assert_eq!(records(state.path()), 1, "{at:?}");
    }
}

/// After a restart pods keep their very addresses; those whose namespace has gone are released, and
/// one that cannot be taken up is tried again by every sweep.
#[test]
fn restart() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let kept = add_answered(&attacher, "c1", POD);
    add_answered(&attacher, "c2", OTHER);
    drop(attacher);
    world.die();
    world.remove_namespace(OTHER);
    world.0.refuse(Some("reopen"));

    let attacher = Arc::new(world.attacher(state.path()));
    let report = attacher.restore();
    assert_eq!((report.restored, report.released, report.failed), (0, 1, 1));
    assert_eq!(attacher.sweep().restored, 0);
    let error = add(&attacher, "c1", POD).unwrap_err();
    assert!(
        matches!(error, AttachError::InterfaceExists { .. }),
        "answered is answered: {error}"
    );
    world.0.refuse(None);
    assert_eq!(attacher.sweep().restored, 1);
    assert_eq!(
        lock(&world.0.attached)[&key("c1")].addresses,
        kept.addresses
    );
    attacher
        .check(&key("c1"), Path::new(POD), &kept.addresses)
        .unwrap();
}

/// A reboot takes all namespaces away, whatever numbers the new ones have.
#[test]
fn reboot() {
    let (state, world) = start();
    drop(add_answered(&world.attacher(state.path()), "c1", POD));
    world.die();
    let hand = world.clone();
    let rebooted = Moment {
        boot: "another".into(),
        uptime_s: 3,
        wall_s: 1_001_010,
    };
    let clock = Box::new(move || Ok(rebooted.clone()));
    let attacher = Attacher::with(hand, state.path(), Arc::new(world.clone()), clock).unwrap();
    let report = Arc::new(attacher).restore();
    assert_eq!((report.restored, report.released), (0, 1));
    assert_eq!(world.attached(), 0);
}

/// GC frees what is neither listed nor alive, in its own network only.
#[test]
fn gc_frees_only_the_dead() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "alive", POD);
    add_answered(&attacher, "dead", OTHER);
    world.remove_namespace(OTHER);
    assert_eq!(attacher.gc("fabric", &[key("dead")]).unwrap(), 0);
    assert_eq!(attacher.gc("elsewhere", &[]).unwrap(), 0);
    world.0.refuse(Some("open"));
    assert_eq!(
        attacher.gc("fabric", &[]).unwrap(),
        0,
        "not to be seen is not gone"
    );
    world.0.refuse(None);
    assert_eq!(attacher.gc("fabric", &[]).unwrap(), 1);
    assert_eq!(world.attached(), 1);
}

/// A namespace that has gone without a DEL is noticed by the second sweep, not the first.
#[test]
fn sweep_frees_what_has_gone() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "c1", POD);
    assert_eq!(attacher.sweep().released, 0);
    world.remove_namespace(POD);
    assert_eq!(attacher.sweep().released, 0);
    assert_eq!(attacher.sweep().released, 1);
    assert_eq!(world.attached(), 0);
}
