//! Records as a crash of the machine may leave them.

use std::{fs, sync::atomic::Ordering};

use super::{super::*, POD, add_answered, key, start, used};
use crate::cni::store::ATTACHMENTS_DIR;

/// Where the disk lost that an earlier attachment of a container was released, the later one stands, and the
/// addresses of the earlier one rest and are then free.
#[test]
fn two_records_of_one_attachment() {
    let (state, world) = start();
    let attacher = world.attacher(state.path());
    let folder = state.path().join(ATTACHMENTS_DIR);
    let earlier = add_answered(&attacher, "c1", POD);
    let file = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| !path.ends_with(".lock"))
        .unwrap();
    let as_attached = fs::read(&file).unwrap();
    attacher.del(&key("c1")).unwrap();
    let later = add_answered(&attacher, "c1", POD);
    assert_ne!(earlier.addresses, later.addresses);
    drop(attacher);
    world.die();
    fs::write(&file, as_attached).unwrap();

    let attacher = Arc::new(world.attacher(state.path()));
    assert_eq!(attacher.restore().restored, 1);
    assert_eq!(attacher.attachments()[0].addresses, later.addresses);
    assert_eq!(used(&attacher), [(1, 1), (1, 1)]);
    world
        .0
        .uptime_s
        .fetch_add(ADDRESS_COOLDOWN_S, Ordering::SeqCst);
    assert_eq!(attacher.sweep().rested, 1);
    assert_eq!(used(&attacher), [(1, 0), (1, 0)]);
    assert!(!file.exists());
}
