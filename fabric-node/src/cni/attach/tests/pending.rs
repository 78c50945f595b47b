//! DELs that the plugin kept on disk.

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use fabric_proto::cni::{PENDING_DELETES_DIR, PendingDelete};

use super::{super::*, POD, add_answered, key, start};

fn leave_pending(state: &Path, container_id: &str) {
    let folder = state.join(PENDING_DELETES_DIR);
    fs::create_dir_all(&folder).unwrap();
    let pending = PendingDelete::new(key(container_id));
    let path = folder.join(PendingDelete::file_name(&pending.key));
    fs::write(path, serde_json::to_vec(&pending).unwrap()).unwrap();
}

/// DELs left on disk are carried out before pods are taken up, and damaged ones are thrown away.
#[test]
fn pending_deletes_at_the_start() {
    let (state, world) = start();
    drop(add_answered(&world.attacher(state.path()), "c1", POD));
    world.die();
    leave_pending(state.path(), "c1");
    leave_pending(state.path(), "never-seen");
    let folder = state.path().join(PENDING_DELETES_DIR);
    fs::write(folder.join("damaged.delete"), b"{").unwrap();
    let attacher = Arc::new(world.attacher(state.path()));
    let report = attacher.restore();
    assert_eq!((report.deleted, report.restored), (2, 0));
    assert_eq!((world.attached(), world.interfaces()), (0, 0));
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}

/// What cannot be read for a reason that may pass, and what another release wrote, is kept for later.
#[test]
fn requests_that_cannot_be_read_are_kept() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let folder = state.path().join(PENDING_DELETES_DIR);
    // Reading a folder fails for everybody, also for root.
    let (unreadable, newer) = (folder.join("folder.delete"), folder.join("newer.delete"));
    fs::create_dir_all(&unreadable).unwrap();
    fs::write(&newer, br#"{"version":2,"what":"is new"}"#).unwrap();
    assert_eq!(attacher.sweep().deleted, 0);
    assert!(unreadable.exists() && newer.exists());
}

/// A DEL on disk is older than an ADD that comes later: the ADD stands, also after the next sweep.
#[test]
fn pending_delete_before_an_add() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    add_answered(&attacher, "c1", POD);
    leave_pending(state.path(), "c1");
    let again = add_answered(&attacher, "c1", POD);
    assert_eq!(again.addresses[0].to_string(), "10.0.0.3");
    assert_eq!(attacher.sweep().deleted, 0);
    attacher
        .check(&key("c1"), Path::new(POD), &again.addresses)
        .unwrap();
}

/// What plugins that were killed while they wrote have left is removed by the next sweep once it is
/// old; one that a plugin may be writing stays, and so does what is not the plugin's.
#[test]
fn unfinished_requests() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let folder = state.path().join(PENDING_DELETES_DIR);
    fs::create_dir_all(&folder).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(61);
    for (name, modified) in [
        ("0123.delete.77.tmp", long_ago),
        ("4567.delete.78.tmp", SystemTime::now()),
        ("README", long_ago),
    ] {
        let file = File::create(folder.join(name)).unwrap();
        file.set_modified(modified).unwrap();
    }
    assert_eq!(attacher.sweep().deleted, 0);
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["4567.delete.78.tmp", "README"]);
}

/// A DEL that the plugin kept while the daemon was about to listen is carried out by the next look,
/// without anybody asking.
#[test]
fn pending_delete_behind_the_start() {
    let (state, world) = start();
    add_answered(&world.attacher(state.path()), "c1", POD);
    world.die();
    let attacher = Arc::new(world.attacher(state.path()));
    assert_eq!(attacher.restore().restored, 1);
    leave_pending(state.path(), "c1");
    assert_eq!(attacher.sweep().deleted, 1);
    assert_eq!((world.attached(), world.interfaces()), (0, 0));
}
