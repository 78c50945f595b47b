#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

pub(in super::super) fn moment(uptime_s: u64) -> Moment {
    Moment {
        boot: "0a1b2c3d-0000".into(),
        uptime_s,
        wall_s: 1_000_000 + uptime_s,
    }
}

fn record(id: u64, addresses: &[&str]) -> Record {
    Record {
        id,
        key: AttachmentKey {
            network: "fabric".into(),
            container_id: format!("c{id}"),
            ifname: "eth0".into(),
        },
        pod: PodIdentity::default(),
        netns: "/run/netns/p".into(),
        netns_id: StoredNetnsId { dev: 4, ino: id },
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        attached_at: moment(5),
        state: State::Planned,
    }
}

fn open(state: &Path) -> (Store, Loaded) {
    Store::open(state, &moment(10)).unwrap()
}

fn files(state: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(state.join(ATTACHMENTS_DIR))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with(".lock"))
        .collect();
    files.sort();
    files
}

/// What was put is there after a restart in its last version, what was removed is not, and numbers
/// are not given twice.
#[test]
fn records_survive() {
    let state = tempfile::tempdir().unwrap();
    let (store, loaded) = open(state.path());
    assert!(loaded.records.is_empty());
    let mut first = record(store.new_id(), &["10.0.0.2", "fd00::2"]);
    let second = record(store.new_id(), &["10.0.0.3"]);
    store.put(&first).unwrap();
    store.put(&second).unwrap();
    first.state = State::Released { at: moment(9) };
    store.put(&first).unwrap();
    store.remove(&second).unwrap();
    store.remove(&second).unwrap();
    drop(store);
    let (store, loaded) = open(state.path());
    assert_eq!(loaded.records, [first]);
    assert_eq!(store.new_id(), 2);
}

/// Two daemons cannot have the same state directory.
#[test]
fn one_owner() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path());
    let second = Store::open(state.path(), &moment(10));
    assert!(matches!(second, Err(StoreError::Locked { .. })));
    drop(store);
    open(state.path());
}

/// Whoever only looks sees the records that can be read, also while another process has them open, and changes
/// nothing; without a folder it is an error.
#[test]
fn looking_changes_nothing() {
    let state = tempfile::tempdir().unwrap();
    assert!(Store::look(state.path()).is_err());
    let (store, _) = open(state.path());
    store.put(&record(2, &["10.0.0.3"])).unwrap();
    store.put(&record(1, &["10.0.0.2", "fd00::2"])).unwrap();
    store.put(&record(3, &["10.0.0.4"])).unwrap();
    fs::write(&files(state.path())[2], b"damaged").unwrap();
    let before = files(state.path());
    let seen = Store::look(state.path()).unwrap();
    assert_eq!(
        seen,
        [
            record(1, &["10.0.0.2", "fd00::2"]),
            record(2, &["10.0.0.3"])
        ]
    );
    assert_eq!(files(state.path()), before);
}

/// Any single changed byte and any truncation of a file is noticed.
#[test]
fn every_damage_is_found() {
    let whole = file::encode(&record(7, &["10.0.0.2", "fd00::2"])).unwrap();
    assert!(file::decode(&whole).is_ok());
    for len in 0..whole.len() {
        assert!(file::decode(&whole[..len]).is_err(), "{len} bytes");
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            assert!(file::decode(&damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
}

/// A damaged record is set aside, its addresses are withheld within the boot, also at the next
/// start, and recovered after a reboot.
#[test]
fn damaged_records_withhold_their_addresses() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path());
    store.put(&record(1, &["10.0.0.2", "fd00::2"])).unwrap();
    store.put(&record(2, &["10.0.0.3"])).unwrap();
    drop(store);
    fs::write(&files(state.path())[0], b"").unwrap();
    for _ in 0..2 {
        let (store, loaded) = open(state.path());
        assert_eq!(loaded.records, [record(2, &["10.0.0.3"])]);
        assert_eq!(
            loaded.withheld,
            record(1, &["10.0.0.2", "fd00::2"]).addresses
        );
        assert_eq!(store.new_id(), 3);
        assert!(
            files(state.path())[0]
                .to_str()
                .unwrap()
                .ends_with(".record.corrupt")
        );
    }
    let rebooted = Moment {
        boot: "ffffffff".into(),
        ..moment(1)
    };
    let (_store, loaded) = Store::open(state.path(), &rebooted).unwrap();
    assert!(loaded.withheld.is_empty());
    assert_eq!(
        loaded.recovered,
        record(1, &["10.0.0.2", "fd00::2"]).addresses
    );
    assert_eq!(files(state.path()).len(), 1);
}

/// A record under another record's name is damage too.
#[test]
fn swapped_files_are_found() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path());
    store.put(&record(1, &["10.0.0.2"])).unwrap();
    store.put(&record(2, &["10.0.0.3"])).unwrap();
    drop(store);
    let files = files(state.path());
    fs::copy(&files[0], &files[1]).unwrap();
    let (_store, loaded) = open(state.path());
    assert_eq!(loaded.records, [record(1, &["10.0.0.2"])]);
    assert_eq!(loaded.withheld, record(2, &["10.0.0.3"]).addresses);
}

/// A file that was being written when the power went is removed, and foreign files are left alone.
#[test]
fn unfinished_and_foreign_files() {
    let state = tempfile::tempdir().unwrap();
    drop(open(state.path()));
    let folder = state.path().join(ATTACHMENTS_DIR);
    fs::write(
        folder.join("0000000000000001@0a1b2c3d@10.0.0.2.record.tmp"),
        b"x",
    )
    .unwrap();
    fs::write(folder.join("README"), b"x").unwrap();
    let (_store, loaded) = open(state.path());
    assert!(loaded.records.is_empty() && loaded.withheld.is_empty());
    assert_eq!(files(state.path()), [folder.join("README")]);
}
