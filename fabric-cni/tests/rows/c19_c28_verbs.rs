//! C19 to C30 and the habits of runtimes: DEL, CHECK, GC, STATUS and what comes with a call.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use fabric_proto::cni::{PendingDelete, Request, ValidAttachment};
use serde_json::{Value, json};

use crate::support::{
    Call, Daemon, Outcome, key_of,
    table::{Expected, Row, check, refused, rows, silent, silent_alone},
};

pub(super) fn rows() -> Vec<Row> {
    [
        dels(),
        kept_dels(),
        checks(),
        gcs(),
        statuses(),
        tolerated(),
        capabilities(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A DEL goes through whatever is missing or broken beside its key.
#[test]
fn c19_dels() {
    check(dels());
}

/// A DEL that no daemon takes is on disk when it succeeds, once however often it comes.
#[test]
fn c19_kept_dels() {
    check(kept_dels());
}

/// CHECK needs a prevResult, and gives the daemon what is in it.
#[test]
fn c20_checks() {
    check(checks());
}

/// GC tells a list that is empty from one that is missing, and carries a full node's.
#[test]
fn c21_c22_gcs() {
    check(gcs());
}

/// STATUS answers within 2 s, and nothing depends on it.
#[test]
fn c23_c25_statuses() {
    check(statuses());
}

/// What runtimes send beside the call itself stands in nobody's way.
#[test]
fn c26_tolerated() {
    check(tolerated());
}

/// What will not be done is refused, before anything is touched.
#[test]
fn c27_c30_capabilities() {
    check(capabilities());
}

fn add() -> Call {
    Call::new("ADD")
}

fn del() -> Call {
    Call::new("DEL")
}

fn dels() -> Vec<Row> {
    let ports = json!({"portMappings": [{"hostPort": 80}]});
    fn by_key(call: Call) {
        let outcome = call.run();
        let [Request::Del { key, .. }] = &outcome.requests[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!(*key, key_of("c1"));
        assert_eq!((outcome.status, &*outcome.stdout), (0, ""));
    }
    rows! {
        "C19 DEL frees by key": del() => Expected::By(by_key);
        "C19 DEL without a namespace": del().unset("CNI_NETNS") => silent();
        "C19 DEL with an empty namespace": del().env("CNI_NETNS", "") => silent();
        "C19 DEL with a namespace that has gone": del().env("CNI_NETNS", "/run/netns/gone") => silent();
        "C19 DEL with a namespace that is a file": del().env("CNI_NETNS", "/etc/hostname") => silent();
        "C19 DEL with a namespace that is the plugin's": del().env("CNI_NETNS", "/proc/self/ns/net") => silent();
        "C19 DEL with a broken prevResult": del().set("prevResult", json!(7)) => silent();
        "C19 DEL with what an ADD refuses": del().set("runtimeConfig", ports) => silent();
        "C19 DEL with a broken runtimeConfig": del().set("runtimeConfig", json!(7)).set("args", json!([]))
            => silent();
        "C19 DEL in 0.3.1": del().set("cniVersion", json!("0.3.1")) => silent();
        "G9 DEL when containerd has closed the namespace": del().env("CNI_NETNS", "") => silent();
        "G15 DEL with the configuration of the ADD": del().set("prevResult", json!({"ips": [{"address": "10.244.1.5/32"}]}))
            => silent();
        "G12 DEL after the runtime's cache has gone": del().without("prevResult") => silent();
    }
}

fn kept_dels() -> Vec<Row> {
    fn kept_once(call: Call) {
        for _ in 0..2 {
            let outcome = call.run();
            assert_eq!((outcome.status, &*outcome.stdout), (0, ""), "{outcome:?}");
        }
        let files = call.kept_deletes();
        let [file] = &files[..] else {
            panic!("{files:?}");
        };
        let kept: PendingDelete = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(kept, PendingDelete::new(key_of("c1")));
    }
    fn cleans_up(call: Call) {
        let folder = call.state_dir().join("pending-deletes");
        fs::create_dir_all(&folder).unwrap();
        let old = fs::File::create(folder.join("unfinished-1.tmp")).unwrap();
        let age = PendingDelete::UNFINISHED_AGE + Duration::from_secs(5);
        old.set_modified(std::time::SystemTime::now() - age)
            .unwrap();
        kept_once(call);
    }
    fn side_by_side(call: Call) {
        thread::scope(|scope| {
            for index in 0..32 {
                let call = call
                    .clone()
                    .env("CNI_CONTAINERID", &format!("c{}", index / 2));
                scope.spawn(move || assert_eq!(call.run().status, 0));
            }
        });
        let names: BTreeSet<_> = call.kept_deletes().into_iter().collect();
        assert_eq!(names.len(), 16, "{names:?}");
        for file in names {
            let kept: PendingDelete = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
            assert_eq!(kept.version, PendingDelete::VERSION);
        }
    }
    let alone = || del().unset("CNI_NETNS").daemon(Daemon::Absent);
    rows! {
        "G7 DEL without a daemon is kept": alone() => Expected::By(kept_once);
        "G7 DEL with a stale socket is kept": alone().daemon(Daemon::Stale) => Expected::By(kept_once);
        "G7 DEL that the daemon hangs up on is kept": alone().daemon(Daemon::Sends(Vec::new()))
            => Expected::By(kept_once);
        "G7 DEL that the daemon answers with garbage is kept": alone().daemon(Daemon::Sends(b"\0\0\0\x01x".to_vec()))
            => Expected::By(kept_once);
        "G7 files that killed plugins left unfinished go": alone() => Expected::By(cleans_up);
        "G6 DEL after a failed ADD is kept": alone().env("CNI_NETNS", "/run/netns/failed")
            => Expected::By(kept_once);
        "C25 DELs side by side": alone() => Expected::By(side_by_side);
    }
}

fn checks() -> Vec<Row> {
    let check = |prev_result: Value| Call::new("CHECK").set("prevResult", prev_result);
    fn compared(call: Call) {
        let outcome = call.run();
        let [
            Request::Check {
                key,
                netns,
                addresses,
            },
        ] = &outcome.requests[..]
        else {
            panic!("{outcome:?}");
        };
        assert_eq!((key, &**netns), (&key_of("c1"), "/run/netns/absent"));
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.244.1.5", "fd00::5"]);
    }
    let both = json!({"ips": [{"address": "10.244.1.5/32"}, {"address": "fd00::5/128"}]});
    rows! {
        "C20 CHECK without prevResult": Call::new("CHECK") => refused(7, &["prevResult"]);
        "C20 CHECK with prevResult null": check(Value::Null) => refused(7, &["prevResult"]);
        "C20 CHECK with a broken prevResult": check(json!({"ips": [{"address": "x"}]}))
            => refused(6, &["prevResult"]);
        "C20 CHECK in 0.3.1": check(json!({})).set("cniVersion", json!("0.3.1")) => refused(1, &["CHECK", "0.4.0"]);
        "C20 CHECK in 0.4.0": check(json!({})).set("cniVersion", json!("0.4.0")) => silent();
        "C20 CHECK compares addresses": check(both) => Expected::By(compared);
        "G15b CHECK as CRI-O calls it": check(json!({"interfaces": [{"name": "eth0", "sandbox": "/n"}], "ips": [{"address": "10.244.1.5/32", "interface": 0}]}))
            => silent();
    }
}

const VALID: &str = "cni.dev/valid-attachments";
const MISSPELT: &str = "cni.dev/attachments";

fn gcs() -> Vec<Row> {
    let gc = || Call::new("GC");
    let one = || json!([{"containerID": "c9", "ifname": "eth0"}]);
    // As libcni sends them on a full node: both keys, ids of 64 characters.
    let full: Vec<Value> = (0..16_384)
        .map(|index| json!({"containerID": format!("{index:064x}"), "ifname": "eth0"}))
        .collect();
    let mut over = full.clone();
    over.push(json!({"containerID": "one-more", "ifname": "eth0"}));
    let foreign =
        json!([{"containerID": "../x", "ifname": "eth0"}, {"containerID": "c9", "ifname": "eth0"}]);
    rows! {
        "C21 GC without a list": gc() => silent_alone();
        "C21 GC without a list and without a daemon": gc().daemon(Daemon::Absent) => silent_alone();
        "C21 GC with a list": gc().set(VALID, one()) => Expected::By(|call| assert_eq!(kept(call), 1));
        "C21 GC with an empty list": gc().set(VALID, json!([])) => Expected::By(|call| assert_eq!(kept(call), 0));
        "C21 GC with the misspelt key alone": gc().set(MISSPELT, one())
            => Expected::By(|call| assert_eq!(kept(call), 1));
        "C21 GC with the misspelt key null": gc().set(MISSPELT, Value::Null)
            => Expected::By(|call| assert_eq!(kept(call), 0));
        "C21 GC with both keys": gc().set(VALID, one()).set(MISSPELT, json!([]))
            => Expected::By(|call| assert_eq!(kept(call), 1));
        "C21 GC of a full node": gc().set(VALID, json!(full)).set(MISSPELT, json!(full))
            => Expected::By(|call| assert_eq!(kept(call), 16_384));
        "C21 GC beyond a full node": gc().set(VALID, json!(over)) => refused(7, &["16384"]);
        "C21 GC with names that no ADD takes": gc().set(VALID, foreign)
            => Expected::By(|call| assert_eq!(kept(call), 1));
        "C21 GC with a list that is none": gc().set(VALID, json!({})) => refused(7, &[VALID]);
        "C21 GC with an entry that says nothing": gc().set(VALID, json!([{}])) => refused(7, &["containerID"]);
        "C22 GC names its network": gc().set("name", json!("other")).set(VALID, one()) => Expected::By(of_network);
        "C22 GC with disableGC": gc().set("disableGC", json!(true)).set(VALID, one())
            => Expected::By(|call| assert_eq!(kept(call), 1));
        "G15c GC as CRI-O sends it for a network without pods": gc().set(VALID, Value::Null).set(MISSPELT, Value::Null)
            => Expected::By(|call| assert_eq!(kept(call), 0));
    }
}

/// How many attachments the daemon is told to leave alone.
fn kept(call: Call) -> usize {
    let outcome = call.run();
    assert_eq!((outcome.status, &*outcome.stdout), (0, ""), "{outcome:?}");
    let [Request::Gc { network, valid }] = &outcome.requests[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(network, "fabric");
    valid.len()
}

fn of_network(call: Call) {
    let valid = vec![ValidAttachment {
        container_id: "c9".into(),
        ifname: "eth0".into(),
    }];
    let network = "other".to_owned();
    assert_eq!(call.run().requests, [Request::Gc { network, valid }]);
}

fn statuses() -> Vec<Row> {
    let status = || Call::new("STATUS");
    let bare = status()
        .unset("CNI_CONTAINERID")
        .unset("CNI_IFNAME")
        .unset("CNI_NETNS");
    fn in_time(call: Call) {
        let started = Instant::now();
        let outcome = call.run();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!((&outcome.json()["code"], outcome.status), (&json!(50), 1));
    }
    fn only_add(outcome: &Outcome) {
        let [Request::Add { .. }] = &outcome.requests[..] else {
            panic!("{outcome:?}");
        };
    }
    rows! {
        "C23 STATUS without a container": bare => silent();
        "C23 STATUS with an empty container": status().env("CNI_CONTAINERID", "").env("CNI_NETNS", "") => silent();
        "C23 STATUS of a daemon that says nothing": status().daemon(Daemon::Silent) => Expected::By(in_time);
        "C23 STATUS without a daemon": status().daemon(Daemon::Absent)
            => refused(50, &["start the fabric-node daemon"]);
        "C24 ADD asks for nothing but itself": add() => Expected::Prints(only_add);
    }
}

fn tolerated() -> Vec<Row> {
    let runtime = |key: &str, value: Value| add().set("runtimeConfig", json!({ key: value }));
    let containerd = json!({
        "io.kubernetes.cri.pod-annotations": {"a": "b"},
        "cgroupPath": "/kubepods/pod1",
        "dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]},
        "portMappings": [],
    });
    let names = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u";
    fn attached(outcome: &Outcome) {
        assert_eq!(outcome.stdout, add().run().stdout);
        let [Request::Add { key, addresses, .. }] = &outcome.requests[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!((key, addresses.len()), (&key_of("c1"), 0));
    }
    fn by_id(outcome: &Outcome) {
        attached(outcome);
        let [Request::Add { pod, .. }] = &outcome.requests[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!(pod.uid.as_deref(), Some("u"));
    }
    rows! {
        "C26 mac": runtime("mac", json!("02:00:00:00:00:01")) => Expected::Prints(attached);
        "C26 dns": runtime("dns", json!({"servers": ["10.96.0.10"]})) => Expected::Prints(attached);
        "C26 ipRanges": runtime("ipRanges", json!([[{"subnet": "10.0.0.0/24"}]])) => Expected::Prints(attached);
        "C26 aliases": runtime("aliases", json!({"fabric": ["web"]})) => Expected::Prints(attached);
        "C26 deviceID": runtime("deviceID", json!("0000:04:00.5")) => Expected::Prints(attached);
        "C26 cgroupPath": runtime("cgroupPath", json!("/kubepods")) => Expected::Prints(attached);
        "C26 pod annotations": runtime("io.kubernetes.cri.pod-annotations", json!({"a": "b"}))
            => Expected::Prints(attached);
        "C26 args.cni.labels": add().set("args", json!({"cni": {"labels": [{"key": "a", "value": "b"}]}}))
            => Expected::Prints(attached);
        "C26 keys of cni.dev": add().set("cni.dev/other", json!({"x": 1})) => Expected::Prints(attached);
        "C26 unknown keys": add().set("whatever", json!([1])).set("capabilities", json!({"mac": true}))
            => Expected::Prints(attached);
        "G2 ADD as containerd calls it": add().env("CNI_ARGS", names).set("runtimeConfig", containerd)
            => Expected::Prints(by_id);
        "G11 ADD goes by the container, not by the pod": add().env("CNI_ARGS", names) => Expected::Prints(by_id);
        "G17 ADD without K8S_*": add().unset("CNI_ARGS") => Expected::Prints(attached);
    }
}

fn capabilities() -> Vec<Row> {
    let runtime = |config: Value| add().set("runtimeConfig", config);
    let old = |verb: &str, version: &str| Call::new(verb).set("cniVersion", json!(version));
    fn nothing_asked(outcome: &Outcome) {
        assert_eq!(outcome.requests.len(), 1);
    }
    fn spoken(_: Call) {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/cni/10-fabric.conflist"
        );
        let list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let known = Call::new("VERSION").run().json();
        assert_eq!(list["cniVersions"], known["supportedVersions"]);
        assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
        assert_eq!(list["plugins"][0], json!({"type": "fabric-cni"}));
        for version in list["cniVersions"].as_array().unwrap() {
            assert_eq!(add().set("cniVersion", version.clone()).run().status, 0);
        }
    }
    rows! {
        "C27 port mapping": runtime(json!({"portMappings": [{"hostPort": 80}]}))
            => refused(2, &["portMappings", "80"]);
        "C27 bandwidth": runtime(json!({"bandwidth": {"egressRate": 9}})) => refused(2, &["bandwidth", "9"]);
        "C27 no port in portMappings": runtime(json!({"portMappings": []})) => Expected::Prints(nothing_asked);
        "C27 no rate in bandwidth": runtime(json!({"bandwidth": {"ingressRate": 0, "egressRate": 0}}))
            => Expected::Prints(nothing_asked);
        "C29 the conflist lists what is spoken": add() => Expected::By(spoken);
        "C30 GC in 0.4.0": old("GC", "0.4.0") => refused(1, &["GC", "1.1.0"]);
        "C30 GC in 1.0.0": old("GC", "1.0.0") => refused(1, &["GC", "1.1.0"]);
        "C30 STATUS in 0.3.1": old("STATUS", "0.3.1") => refused(1, &["STATUS", "1.1.0"]);
        "C30 STATUS in 1.0.0": old("STATUS", "1.0.0") => refused(1, &["STATUS", "1.1.0"]);
    }
}
