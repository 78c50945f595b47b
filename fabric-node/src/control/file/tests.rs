#![allow(clippy::unwrap_used)]

use std::{
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use super::{watch::*, *};

const A: &str = r#"
[[node]]
id = "worker-a"
underlay = ["192.0.2.1:7946", "[2001:db8::1]:7946"]
pod_cidrs = ["10.244.1.0/24", "fd00:1::/64"]
"#;

const B: &str = r#"
[[node]]
id = "worker-b"
underlay = ["192.0.2.2:7946", "192.0.2.2:8046"]
pod_cidrs = ["10.244.2.0/24", "10.245.2.0/24"]
host_addresses = ["192.0.2.2", "198.51.100.2"]
"#;

/// A directory with these files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// The error of these files, without the directory's name.
fn error_of(files: &[(&str, &str)]) -> String {
    let dir = directory(files);
    let error = read_directory(dir.path()).unwrap_err().to_string();
    error.replace(&format!("{}", dir.path().display()), "D")
}

fn names(state: &DesiredState) -> Vec<&str> {
    state.nodes.keys().map(NodeId::as_str).collect()
}

/// All nodes of all files come together, with every value as written.
#[test]
fn files_make_one_state() {
    let c = B
        .replace("worker-b", "worker-c")
        .replace(".2:", ".3:")
        .replace(".2.0/", ".3.0/")
        .replace(".2\"", ".3\"");
    let both = format!("{A}{c}");
    let dir = directory(&[("10-b.toml", B), ("00-a.toml", &both)]);
    let state = read_directory(dir.path()).unwrap();
    assert_eq!(names(&state), ["worker-a", "worker-b", "worker-c"]);
    let b = &state.nodes[&NodeId::new("worker-b").unwrap()];
    let wanted = NodeSpec {
        underlay: vec![
            "192.0.2.2:7946".parse().unwrap(),
            "192.0.2.2:8046".parse().unwrap(),
        ],
        pod_cidrs: vec![
            "10.244.2.0/24".parse().unwrap(),
            "10.245.2.0/24".parse().unwrap(),
        ],
        host_addresses: vec![
            "192.0.2.2".parse().unwrap(),
            "198.51.100.2".parse().unwrap(),
        ],
        identity_keys: Vec::new(),
    };
    assert_eq!(b, &wanted);
}

/// What editors and file managers leave beside the files is not read.
#[test]
fn other_files_are_left_out() {
    let dir = directory(&[
        ("a.toml", A),
        (".a.toml.swp", "!"),
        (".hidden.toml", "!"),
        ("#a.toml#", "!"),
        ("#a.toml", "!"),
        ("a.toml~", "!"),
        ("a.toml.bak", "!"),
        ("README.md", "!"),
    ]);
    fs::create_dir(dir.path().join("old")).unwrap();
    assert_eq!(names(&read_directory(dir.path()).unwrap()), ["worker-a"]);
}

/// One table with one value of a node replaced.
fn with(key: &str, value: &str) -> String {
    A.lines()
        .map(|line| {
            if line.starts_with(key) {
                format!("{key} = {value}\n")
            } else {
                format!("{line}\n")
            }
        })
        .collect()
}

/// Each bad value is reported with file, line, column, key, what is wrong and what is expected.
#[test]
fn bad_values_are_located() {
    let cases = [
        (
            "id",
            "\"Worker A\"",
            "3:6: node.id: \"Worker A\" is not a node name: use lower-case letters, digits, '-' and '.', at most 253 bytes",
        ),
        (
            "id",
            "7",
            "3:6: node.id: invalid type: integer `7`, expected a string",
        ),
        (
            "underlay",
            "[]",
            "4:12: node.underlay: the list is empty: expected at least an address and port, such as \"192.0.2.1:7946\"",
        ),
        (
            "underlay",
            "[\"192.0.2.1\"]",
            "4:13: node.underlay: \"192.0.2.1\" is no address and port: expected \"192.0.2.1:7946\" or \"[2001:db8::1]:7946\"",
        ),
        (
            "underlay",
            "[\"192.0.2.1:7946\", \"192.0.2.9:0\"]",
            "4:31: node.underlay: port 0 is out of range: expected 1 to 65472 (worker i listens on the port + i)",
        ),
        (
            "underlay",
            "[\"192.0.2.1:65473\"]",
            "4:13: node.underlay: port 65473 is out of range: expected 1 to 65472 (worker i listens on the port + i)",
        ),
        (
            "underlay",
            "[\"0.0.0.0:7946\"]",
            "4:13: node.underlay: 0.0.0.0 is the unspecified address: expected a unicast address that other nodes can reach",
        ),
        (
            "underlay",
            "[\"[ff02::1]:7946\"]",
            "4:13: node.underlay: ff02::1 is a multicast address: expected a unicast address that other nodes can reach",
        ),
        (
            "underlay",
            "[\"255.255.255.255:7946\"]",
            "4:13: node.underlay: 255.255.255.255 is the broadcast address: expected a unicast address that other nodes can reach",
        ),
        (
            "underlay",
            "[\"[fe80::1]:7946\"]",
            "4:13: node.underlay: fe80::1 is a link-local address: expected a unicast address that other nodes can reach",
        ),
        (
            "underlay",
            "[\"[::ffff:192.0.2.1]:7946\"]",
            "4:13: node.underlay: ::ffff:192.0.2.1 is an IPv4-mapped address: expected a unicast address that other nodes can reach",
        ),
        (
            "pod_cidrs",
            "[]",
            "5:13: node.pod_cidrs: the list is empty: expected at least a range, such as \"10.244.1.0/24\"",
        ),
        (
            "pod_cidrs",
            "[\n  \"10.244.1.0/24\",\n  \"10.245.1.5/24\",\n]",
            "7:3: node.pod_cidrs: \"10.245.1.5/24\" has bits set beyond its prefix: expected \"10.245.1.0/24\"",
        ),
        (
            "pod_cidrs",
            "[\"10.244.1.0\"]",
            "5:14: node.pod_cidrs: \"10.244.1.0\" is no address range: expected \"10.244.1.0/24\" or \"fd00:244:1::/64\"",
        ),
        (
            "pod_cidrs",
            "[\"10.244.1.0/31\"]",
            "5:14: node.pod_cidrs: \"10.244.1.0/31\" is too small to hold a gateway and a pod: expected /8 to /30",
        ),
        (
            "pod_cidrs",
            "[\"fd00::/127\"]",
            "5:14: node.pod_cidrs: \"fd00::/127\" is too small to hold a gateway and a pod: expected /32 to /126",
        ),
        (
            "pod_cidrs",
            "[\"::/0\"]",
            "5:14: node.pod_cidrs: \"::/0\" is too large: expected /32 to /126",
        ),
        (
            "pod_cidrs",
            "[\"224.1.0.0/24\"]",
            "5:14: node.pod_cidrs: 224.1.0.0 is a multicast range: expected a unicast range that other nodes can reach",
        ),
        (
            "pod_cidrs",
            "[\"127.0.0.0/24\"]",
            "5:14: node.pod_cidrs: \"127.0.0.0/24\" is a loopback range",
        ),
        (
            "pod_cidrs",
            "[\"10.244.1.0/24\"]\nhost_addresses = [\"192.0.2.7/32\"]",
            "6:19: node.host_addresses: \"192.0.2.7/32\" is no address: expected \"192.0.2.1\" or \"2001:db8::1\", without a prefix length",
        ),
        (
            "pod_cidrs",
            "[\"10.244.1.0/24\"]\npod_cidr = []",
            "6:1: node.pod_cidr: unknown field `pod_cidr`, expected one of `id`, `underlay`, `pod_cidrs`, `host_addresses`",
        ),
        (
            "pod_cidrs",
            "[\"10.244.1.0/24\"",
            "5:29: unclosed array, expected `]`",
        ),
    ];
    for (key, value, wanted) in cases {
        let text = with(key, value);
        assert_eq!(
            error_of(&[("a.toml", &text)]),
            format!("D/a.toml:{wanted}"),
            "{text}"
        );
    }
    assert_eq!(
        error_of(&[("a.toml", &A.replace("underlay =", "#"))]),
        "D/a.toml:2:1: node: missing field `underlay`"
    );
    assert_eq!(
        error_of(&[("a.toml", "[node]\nid = \"a\"\n")]),
        "D/a.toml:1:1: node: invalid type: map, expected a sequence"
    );
}

/// Two owners of one name, range or address are both named, with both files and lines.
#[test]
fn two_owners_are_both_named() {
    let b = |from: &str, to: &str| B.replace(from, to);
    let cases = [
        (
            b("worker-b", "worker-a"),
            "3:6: node.id: node worker-a is defined a second time: the first is at D/a.toml:3; expected each node once",
        ),
        (
            b("10.244.2.0/24", "10.244.0.0/16"),
            "5:14: node.pod_cidrs: pod range 10.244.0.0/16 of node worker-b overlaps pod range 10.244.1.0/24 of node worker-a at D/a.toml:5; expected each address to have one owner",
        ),
        (
            b("10.244.2.0/24", "fd00:1::/64"),
            "5:14: node.pod_cidrs: pod range fd00:1::/64 of node worker-b overlaps pod range fd00:1::/64 of node worker-a at D/a.toml:5; expected each address to have one owner",
        ),
        (
            b("192.0.2.2:7946", "192.0.2.1:9946"),
            "4:13: node.underlay: address 192.0.2.1 of node worker-b overlaps address 192.0.2.1 of node worker-a at D/a.toml:4; expected each address to have one owner",
        ),
        (
            b("198.51.100.2", "10.244.1.9"),
            "6:32: node.host_addresses: address 10.244.1.9 of node worker-b overlaps pod range 10.244.1.0/24 of node worker-a at D/a.toml:5; expected each address to have one owner",
        ),
        (
            b("198.51.100.2", "10.244.2.9"),
            "6:32: node.host_addresses: address 10.244.2.9 of node worker-b overlaps pod range 10.244.2.0/24 of node worker-b at D/b.toml:5; expected each address to have one owner",
        ),
        (
            b("10.245.2.0/24", "10.244.2.128/25"),
            "5:31: node.pod_cidrs: pod range 10.244.2.128/25 of node worker-b overlaps pod range 10.244.2.0/24 of node worker-b at D/b.toml:5; expected each address to have one owner",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(
            error_of(&[("a.toml", A), ("b.toml", &text)]),
            format!("D/b.toml:{wanted}")
        );
    }
}

/// Neither a missing directory nor one without nodes is an empty fabric; files that cannot be read
/// or are too large are named.
#[test]
fn nothing_is_not_an_empty_fabric() {
    let dir = directory(&[]);
    let gone = dir.path().join("gone");
    assert_eq!(
        read_directory(&gone).unwrap_err().to_string(),
        format!(
            "cannot read the nodes directory {}: No such file or directory (os error 2); check source.path",
            gone.display()
        )
    );
    let empty = "no node in D: expected at least one [[node]] in a file named *.toml";
    assert_eq!(error_of(&[]), empty);
    assert_eq!(error_of(&[("a.toml", "# nothing\n")]), empty);
    assert_eq!(
        error_of(&[("a.toml", A), ("b.toml", " \n")]),
        "D/b.toml:1:1: the file is empty: expected [[node]], or no such file"
    );
    std::os::unix::fs::symlink("nowhere", dir.path().join("a.toml")).unwrap();
    let error = read_directory(dir.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("a.toml: No such file or directory (os error 2)"),
        "{error}"
    );
    let dir = directory(&[]);
    let large = fs::File::create(dir.path().join("a.toml")).unwrap();
    large.set_len(FILE_BYTES_MAX + 1).unwrap();
    let error = read_directory(dir.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("a.toml has 4194305 bytes: expected at most 4194304"),
        "{error}"
    );
}

/// A fabric of the largest size is read in reasonable time and checked for overlaps.
#[test]
fn a_large_fabric_is_read() {
    let mut text = String::new();
    for n in 0..2_000 {
        let (high, low) = (n / 250, n % 250);
        text += &format!(
            "[[node]]\nid = \"n{n}\"\nunderlay = [\"192.168.{high}.{low}:7946\"]\npod_cidrs = [\"10.{high}.{low}.0/24\"]\n"
        );
    }
    let dir = directory(&[("all.toml", &text)]);
    assert_eq!(read_directory(dir.path()).unwrap().nodes.len(), 2_000);
}

/// Events only: no reading by the clock within the test's patience.
const BY_EVENT: Timing = Timing {
    quiet: Duration::from_millis(10),
    burst_max: Duration::from_millis(100),
    reread: Duration::from_secs(3_600),
    retry: Duration::from_secs(3_600),
};

const PATIENCE: Duration = Duration::from_secs(20);

fn watched(
    timing: Timing,
    path: &Path,
    in_force: DesiredState,
) -> (FileWatch, Receiver<SourceEvent>) {
    let (sender, events) = mpsc::channel();
    let watch = watch_with(timing, path, in_force, move |event| {
        sender.send(event).unwrap();
    });
    (watch.unwrap(), events)
}

fn changed(events: &Receiver<SourceEvent>) -> DesiredState {
    match events.recv_timeout(PATIENCE).unwrap() {
        SourceEvent::Changed(state) => state,
        other @ (SourceEvent::Failed(_) | SourceEvent::Recovered) => panic!("{other:?}"),
    }
}

/// A file that is put in place, replaced or removed is seen without a restart.
#[test]
fn changes_are_seen() {
    let dir = directory(&[("a.toml", A)]);
    let (_watch, events) = watched(BY_EVENT, dir.path(), DesiredState::default());
    assert_eq!(names(&changed(&events)), ["worker-a"]);
    fs::write(dir.path().join(".b.tmp"), B).unwrap();
    fs::rename(dir.path().join(".b.tmp"), dir.path().join("b.toml")).unwrap();
    assert_eq!(names(&changed(&events)), ["worker-a", "worker-b"]);
    fs::write(dir.path().join(".b.tmp"), B.replace("worker-b", "worker-c")).unwrap();
    fs::rename(dir.path().join(".b.tmp"), dir.path().join("b.toml")).unwrap();
    assert_eq!(names(&changed(&events)), ["worker-a", "worker-c"]);
    fs::remove_file(dir.path().join("b.toml")).unwrap();
    assert_eq!(names(&changed(&events)), ["worker-a"]);
}

/// A bad file is reported once and changes nothing; mending it without a change is a recovery.
#[test]
fn a_bad_file_changes_nothing() {
    let dir = directory(&[("a.toml", A)]);
    let in_force = read_directory(dir.path()).unwrap();
    let (watch, events) = watched(BY_EVENT, dir.path(), in_force);
    fs::write(dir.path().join("b.toml"), "[[node]]\n").unwrap();
    let event = events.recv_timeout(PATIENCE).unwrap();
    let SourceEvent::Failed(SourceError::Invalid(misplaced)) = event else {
        panic!("{event:?}");
    };
    assert_eq!(misplaced.path, dir.path().join("b.toml"));
    assert_eq!(misplaced.line, 1);
    fs::remove_file(dir.path().join("b.toml")).unwrap();
    let event = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(event, SourceEvent::Recovered), "{event:?}");
    drop(watch);
    assert!(events.recv().is_err(), "an event after the end, or twice");
}

/// A directory that is removed is a failure; one made in its place is read and watched again.
#[test]
fn a_new_directory_is_taken_up() {
    let parent = directory(&[]);
    let path = parent.path().join("nodes.d");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.toml"), A).unwrap();
    let timing = Timing {
        retry: Duration::from_millis(10),
        ..BY_EVENT
    };
    let (_watch, events) = watched(timing, &path, DesiredState::default());
    assert_eq!(names(&changed(&events)), ["worker-a"]);
    fs::rename(&path, parent.path().join("old")).unwrap();
    fs::remove_dir_all(parent.path().join("old")).unwrap();
    loop {
        // The files may be seen to go before the directory.
        match events.recv_timeout(PATIENCE).unwrap() {
            SourceEvent::Failed(SourceError::Directory { .. }) => break,
            SourceEvent::Failed(_) => {}
            other @ (SourceEvent::Changed(_) | SourceEvent::Recovered) => panic!("{other:?}"),
        }
    }
    let staged = parent.path().join("staged");
    fs::create_dir(&staged).unwrap();
    fs::write(staged.join("b.toml"), B).unwrap();
    fs::rename(&staged, &path).unwrap();
    assert_eq!(names(&changed(&events)), ["worker-b"]);
    fs::write(path.join("a.toml"), A).unwrap();
    assert_eq!(names(&changed(&events)), ["worker-a", "worker-b"]);
}

/// Without any event the clock finds the change.
#[test]
fn lost_events_are_made_up_for() {
    let dir = directory(&[("a.toml", A)]);
    // A change behind a symbolic link makes no event in the directory that holds the link.
    let behind = directory(&[("b.toml", B)]);
    let target = behind.path().join("b.toml");
    std::os::unix::fs::symlink(&target, dir.path().join("b.toml")).unwrap();
    let timing = Timing {
        reread: Duration::from_millis(20),
        ..BY_EVENT
    };
    let (_watch, events) = watched(timing, dir.path(), DesiredState::default());
    assert_eq!(names(&changed(&events)), ["worker-a", "worker-b"]);
    fs::write(behind.path().join("new"), B.replace("worker-b", "worker-z")).unwrap();
    fs::rename(behind.path().join("new"), &target).unwrap();
    assert_eq!(names(&changed(&events)), ["worker-a", "worker-z"]);
}
