//! The plugin binary as a runtime sees it: environment and stdin in, stdout and exit status out.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use fabric_proto::cni::{AttachmentKey, Failure, PendingDelete, Request, Response};
use serde_json::{Value, json};

use support::{Call, Daemon, Outcome, attached};

/// A refused call: status 1, the error JSON with this code on stdout, and words that name the cause.
struct Refused {
    name: &'static str,
    call: Call,
    code: u64,
    names: &'static [&'static str],
    /// Whether the daemon may have been asked.
    asks: bool,
}

fn refused(name: &'static str, call: Call, code: u64, names: &'static [&'static str]) -> Refused {
    Refused {
        name,
        call,
        code,
        names,
        asks: false,
    }
}

fn asked(name: &'static str, call: Call, code: u64, names: &'static [&'static str]) -> Refused {
    Refused {
        name,
        call,
        code,
        names,
        asks: true,
    }
}

fn failed(code: u32) -> Daemon {
    Daemon::Answers(Response::Failed(Failure {
        code,
        msg: "address range exhausted".into(),
        details: "wait".into(),
    }))
}

fn check_refused(cases: Vec<Refused>) {
    for case in cases {
        let outcome = case.call.run();
        let name = case.name;
        assert_eq!(outcome.status, 1, "{name}: {outcome:?}");
        let error = outcome.json();
        assert_eq!(error["code"], case.code, "{name}: {outcome:?}");
        assert!(error["cniVersion"].is_string(), "{name}: {outcome:?}");
        let words = format!("{} {}", error["msg"], error["details"]);
        for part in case.names {
            assert!(words.contains(part), "{name}: {part:?} not in {words}");
        }
        let keys = error.as_object().unwrap().keys();
        assert!(
            keys.clone()
                .all(|key| ["cniVersion", "code", "msg", "details"].contains(&key.as_str())),
            "{name}: {outcome:?}"
        );
        assert_eq!(
            outcome.stdout.matches('\n').count(),
            1,
            "{name}: {outcome:?}"
        );
        assert!(
            case.asks || outcome.requests.is_empty(),
            "{name}: {outcome:?}"
        );
    }
}

/// Each missing or broken variable is refused with code 4 before the daemon hears of it.
#[test]
fn environment_errors() {
    let add = || Call::new("ADD");
    check_refused(vec![
        refused(
            "unknown verb",
            Call::new("UPDATE"),
            4,
            &["unknown CNI_COMMAND: UPDATE"],
        ),
        refused(
            "lower-case verb",
            Call::new("add"),
            4,
            &["unknown CNI_COMMAND: add"],
        ),
        refused(
            "ADD without container",
            add().unset("CNI_CONTAINERID"),
            4,
            &["CNI_CONTAINERID"],
        ),
        refused(
            "ADD without netns",
            add().unset("CNI_NETNS"),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "ADD with empty netns",
            add().env("CNI_NETNS", ""),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "ADD without ifname",
            add().unset("CNI_IFNAME"),
            4,
            &["CNI_IFNAME"],
        ),
        refused(
            "ADD without path",
            add().unset("CNI_PATH"),
            4,
            &["CNI_PATH"],
        ),
        refused(
            "ADD without anything",
            add()
                .unset("CNI_CONTAINERID")
                .unset("CNI_NETNS")
                .unset("CNI_IFNAME")
                .unset("CNI_PATH"),
            4,
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        ),
        refused(
            "DEL without container",
            Call::new("DEL").unset("CNI_CONTAINERID"),
            4,
            &["CNI_CONTAINERID"],
        ),
        refused(
            "DEL without ifname",
            Call::new("DEL").unset("CNI_IFNAME"),
            4,
            &["CNI_IFNAME"],
        ),
        refused(
            "CHECK without netns",
            Call::new("CHECK").unset("CNI_NETNS"),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "GC without path",
            Call::new("GC").unset("CNI_PATH"),
            4,
            &["CNI_PATH"],
        ),
        refused(
            "STATUS without path",
            Call::new("STATUS").unset("CNI_PATH"),
            4,
            &["CNI_PATH"],
        ),
        refused(
            "container id with a slash",
            add().env("CNI_CONTAINERID", "a/b"),
            4,
            &["a/b"],
        ),
        refused(
            "container id that climbs",
            add().env("CNI_CONTAINERID", "../x"),
            4,
            &["../x"],
        ),
        refused(
            "container id with a leading dot",
            add().env("CNI_CONTAINERID", ".x"),
            4,
            &[".x"],
        ),
        refused(
            "container id with a space",
            add().env("CNI_CONTAINERID", "a b"),
            4,
            &["a b"],
        ),
        refused(
            "ifname of 16 bytes",
            add().env("CNI_IFNAME", "abcdefghijklmnop"),
            4,
            &["15 bytes"],
        ),
        refused("ifname .", add().env("CNI_IFNAME", "."), 4, &["CNI_IFNAME"]),
        refused(
            "ifname ..",
            add().env("CNI_IFNAME", ".."),
            4,
            &["CNI_IFNAME"],
        ),
        refused(
            "ifname with a slash",
            add().env("CNI_IFNAME", "a/b"),
            4,
            &["a/b"],
        ),
        refused(
            "ifname with a colon",
            add().env("CNI_IFNAME", "a:b"),
            4,
            &["a:b"],
        ),
        refused(
            "ifname with a space",
            add().env("CNI_IFNAME", "a b"),
            4,
            &["a b"],
        ),
        refused(
            "arguments without =",
            add().env("CNI_ARGS", "IgnoreUnknown"),
            4,
            &["IgnoreUnknown"],
        ),
        refused(
            "arguments with two =",
            add().env("CNI_ARGS", "A=b=c"),
            4,
            &["A=b=c"],
        ),
        refused(
            "unknown argument",
            add().env("CNI_ARGS", "COLOUR=red"),
            4,
            &["COLOUR"],
        ),
        refused(
            "argument IP that is none",
            add().env("CNI_ARGS", "IP=300.1.1.1"),
            4,
            &["300.1.1.1"],
        ),
    ]);
}

/// Broken, incomplete or contradictory configurations get the specification's codes.
#[test]
fn configuration_errors() {
    let add = || Call::new("ADD");
    let eth0 = json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/p"}]});
    check_refused(vec![
        refused(
            "empty stdin",
            add().stdin(b""),
            6,
            &["no network configuration"],
        ),
        refused(
            "blank stdin",
            add().stdin(b" \n"),
            6,
            &["no network configuration"],
        ),
        refused("not JSON", add().stdin(b"{"), 6, &["JSON"]),
        refused("JSON list", add().stdin(b"[]"), 6, &["JSON"]),
        refused(
            "not UTF-8",
            add().stdin(b"{\"name\":\"\xff\"}"),
            6,
            &["JSON"],
        ),
        refused(
            "endless stdin",
            add().stdin(&vec![b' '; 5 << 20]),
            6,
            &["larger than"],
        ),
        refused(
            "deep nesting",
            add().stdin(&[b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat()),
            6,
            &["JSON"],
        ),
        refused("no name", add().without("name"), 7, &["name"]),
        refused("empty name", add().set("name", json!("")), 7, &["name"]),
        refused(
            "name that climbs",
            add().set("name", json!("../etc")),
            7,
            &["../etc"],
        ),
        refused(
            "name that is a number",
            add().set("name", json!(7)),
            7,
            &["7"],
        ),
        refused(
            "relative socket",
            add().set("socket", json!("cni.sock")),
            7,
            &["socket", "absolute"],
        ),
        refused(
            "socket that is a number",
            add().set("socket", json!(1)),
            7,
            &["socket"],
        ),
        refused(
            "relative stateDir",
            add().set("stateDir", json!("state")),
            7,
            &["stateDir"],
        ),
        refused(
            "port mapping",
            add().set("runtimeConfig", json!({"portMappings": [{"hostPort": 80}]})),
            2,
            &["portMappings", "80"],
        ),
        refused(
            "bandwidth",
            add().set("runtimeConfig", json!({"bandwidth": {"egressRate": 9}})),
            2,
            &["bandwidth", "9"],
        ),
        refused(
            "runtimeConfig that is a list",
            add().set("runtimeConfig", json!([])),
            7,
            &["runtimeConfig"],
        ),
        refused(
            "requested address that is none",
            add().set("runtimeConfig", json!({"ips": ["x"]})),
            7,
            &["runtimeConfig.ips", "x"],
        ),
        refused(
            "requested addresses that are no list",
            add().set("args", json!({"cni": {"ips": "10.0.0.1"}})),
            7,
            &["args.cni.ips"],
        ),
        refused(
            "prevResult that is no object",
            add().set("prevResult", json!("x")),
            6,
            &["prevResult"],
        ),
        refused(
            "prevResult with broken ips",
            add().set("prevResult", json!({"ips": [1]})),
            6,
            &["prevResult", "ips"],
        ),
        refused(
            "prevResult with our interface",
            add().set("prevResult", eth0),
            100,
            &["eth0", "chain"],
        ),
        refused(
            "CHECK without prevResult",
            Call::new("CHECK"),
            7,
            &["prevResult"],
        ),
        refused(
            "CHECK with broken prevResult",
            Call::new("CHECK").set("prevResult", json!({"ips": [{"address": "x"}]})),
            6,
            &["prevResult"],
        ),
        refused(
            "GC without a list",
            Call::new("GC"),
            7,
            &["valid-attachments"],
        ),
        refused(
            "GC with a broken list",
            Call::new("GC").set("cni.dev/valid-attachments", json!([{}])),
            7,
            &["containerID"],
        ),
    ]);
}

/// Versions that are not spoken, and verbs that came later than the configuration's version, get
/// code 1 with both sides; what is no version at all gets code 6.
#[test]
fn version_rules() {
    let with = |verb: &str, version: Value| Call::new(verb).set("cniVersion", version);
    check_refused(vec![
        refused("0.1.0", with("ADD", json!("0.1.0")), 1, &["0.1.0", "1.1.0"]),
        refused("0.2.0", with("ADD", json!("0.2.0")), 1, &["0.2.0", "1.1.0"]),
        refused("0.3.0", with("ADD", json!("0.3.0")), 1, &["0.3.0"]),
        refused("1.2.0", with("ADD", json!("1.2.0")), 1, &["1.2.0", "0.3.1"]),
        refused("2.0.0", with("DEL", json!("2.0.0")), 1, &["2.0.0"]),
        refused(
            "missing",
            Call::new("ADD").without("cniVersion"),
            1,
            &["0.1.0"],
        ),
        refused("empty", with("ADD", json!("")), 1, &["0.1.0"]),
        refused("word", with("ADD", json!("newest")), 6, &["newest"]),
        refused(
            "four numbers",
            with("ADD", json!("1.0.0.0")),
            6,
            &["1.0.0.0"],
        ),
        refused("number", with("ADD", json!(1.1)), 6, &["1.1"]),
        refused(
            "CHECK in 0.3.1",
            with("CHECK", json!("0.3.1")),
            1,
            &["CHECK", "0.4.0"],
        ),
        refused(
            "GC in 1.0.0",
            with("GC", json!("1.0.0")),
            1,
            &["GC", "1.1.0"],
        ),
        refused("GC in 0.4.0", with("GC", json!("0.4.0")), 1, &["GC"]),
        refused(
            "STATUS in 1.0.0",
            with("STATUS", json!("1.0.0")),
            1,
            &["STATUS", "1.1.0"],
        ),
    ]);
    let old = with("CHECK", json!("0.3.1")).run().json();
    assert_eq!(
        old["cniVersion"], "0.3.1",
        "the error speaks the configuration's version"
    );
}

/// A daemon that is not there, not answering or not understood: "try again" with the socket's path
/// and the cure for ADD, CHECK and GC; "not available" for STATUS.
#[test]
fn daemon_trouble() {
    let gc = || Call::new("GC").set("cni.dev/valid-attachments", json!([]));
    let check = || Call::new("CHECK").set("prevResult", json!({}));
    let sends = |bytes: &[u8]| Daemon::Sends(bytes.to_vec());
    check_refused(vec![
        refused(
            "ADD, no socket",
            Call::new("ADD").daemon(Daemon::Absent),
            11,
            &["cni.sock", "start the fabric-node daemon"],
        ),
        refused(
            "ADD, stale socket",
            Call::new("ADD").daemon(Daemon::Stale),
            11,
            &["cni.sock", "refused"],
        ),
        refused(
            "CHECK, no socket",
            check().daemon(Daemon::Absent),
            11,
            &["cni.sock"],
        ),
        refused(
            "GC, no socket",
            gc().daemon(Daemon::Absent),
            11,
            &["cni.sock"],
        ),
        refused(
            "STATUS, no socket",
            Call::new("STATUS").daemon(Daemon::Absent),
            50,
            &["cni.sock"],
        ),
        refused(
            "STATUS, stale socket",
            Call::new("STATUS").daemon(Daemon::Stale),
            50,
            &["cni.sock"],
        ),
        asked(
            "ADD, hang-up",
            Call::new("ADD").daemon(sends(b"")),
            11,
            &["closed"],
        ),
        asked(
            "ADD, half a header",
            Call::new("ADD").daemon(sends(&[0, 0])),
            11,
            &["closed"],
        ),
        asked(
            "ADD, endless frame",
            Call::new("ADD").daemon(sends(&[0xff; 4])),
            11,
            &["frame"],
        ),
        asked(
            "ADD, empty frame",
            Call::new("ADD").daemon(sends(&[0; 4])),
            11,
            &["frame"],
        ),
        asked(
            "ADD, garbage",
            Call::new("ADD").daemon(sends(b"\0\0\0\x02xx")),
            11,
            &["frame"],
        ),
        asked(
            "ADD, answer to another question",
            Call::new("ADD").daemon(Daemon::Answers(Response::Done)),
            6,
            &["same release"],
        ),
        asked(
            "STATUS, answer to another question",
            Call::new("STATUS").daemon(Daemon::Answers(attached())),
            6,
            &["same release"],
        ),
        asked(
            "ADD, refused by the daemon",
            Call::new("ADD").daemon(failed(11)),
            11,
            &["exhausted", "wait"],
        ),
        asked(
            "CHECK, refused by the daemon",
            check().daemon(failed(101)),
            101,
            &["exhausted"],
        ),
        asked(
            "DEL, refused by the daemon",
            Call::new("DEL").daemon(failed(5)),
            5,
            &["exhausted"],
        ),
        asked(
            "STATUS, refused by the daemon",
            Call::new("STATUS").daemon(failed(51)),
            51,
            &["exhausted"],
        ),
    ]);
}

/// STATUS gives its answer within 2 s of a daemon that takes the connection and says nothing.
#[test]
fn status_does_not_hang() {
    let started = Instant::now();
    let outcome = Call::new("STATUS").daemon(Daemon::Silent).run();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(outcome.json()["code"], 50);
}

/// ADD prints the result in the version of the configuration, with the namespace path as it was
/// given.
#[test]
fn add_in_all_versions() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let outcome = Call::new("ADD").set("cniVersion", json!(version)).run();
        assert_eq!(outcome.status, 0, "{outcome:?}");
        let result = outcome.json();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][0]["sandbox"], "/run/netns/absent");
        assert_eq!(
            result["interfaces"][0].get("mtu").is_some(),
            version == "1.1.0"
        );
        assert_eq!(result["ips"][0]["address"], "10.244.1.5/32");
        assert_eq!(result["ips"][1].get("version").is_some(), version < "1.0.0");
        assert_eq!(
            result["routes"],
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
    }
}

/// What the runtime says reaches the daemon whole.
#[test]
fn add_request() {
    let outcome = Call::new("ADD")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u;OTHER=x")
        .set("runtimeConfig", json!({"ips": ["10.244.1.9/24"], "mac": "02::", "dns": {}, "io.kubernetes.cri.pod-annotations": {"a": "b"}}))
        .set("cni.dev/other", json!({"x": 1}))
        .run();
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let [
        Request::Add {
            key,
            netns,
            pod,
            addresses,
        },
    ] = &outcome.requests[..]
    else {
        panic!("{outcome:?}");
    };
    assert_eq!(*key, key_of("c1"));
    assert_eq!(netns, "/run/netns/absent");
    assert_eq!(pod.name.as_deref(), Some("web"));
    assert_eq!(
        addresses[..],
        ["10.244.1.9".parse::<std::net::IpAddr>().unwrap()]
    );
}

fn key_of(container_id: &str) -> AttachmentKey {
    AttachmentKey {
        network: "fabric".into(),
        container_id: container_id.into(),
        ifname: "eth0".into(),
    }
}

fn silent(outcome: &Outcome) {
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(
        outcome.stdout.is_empty() && outcome.stderr.is_empty(),
        "{outcome:?}"
    );
}

/// DEL, CHECK, GC and STATUS that succeed print nothing at all.
#[test]
fn success_is_silent() {
    silent(&Call::new("DEL").run());
    silent(&Call::new("DEL").unset("CNI_NETNS").run());
    silent(&Call::new("DEL").env("CNI_NETNS", "").run());
    silent(
        &Call::new("DEL")
            .env("CNI_ARGS", "broken")
            .set("prevResult", json!(7))
            .run(),
    );
    silent(
        &Call::new("STATUS")
            .unset("CNI_CONTAINERID")
            .unset("CNI_IFNAME")
            .unset("CNI_NETNS")
            .run(),
    );
    silent(&Call::new("STATUS").env("CNI_CONTAINERID", "").run());
    let check =
        Call::new("CHECK").set("prevResult", json!({"ips": [{"address": "10.244.1.5/32"}]}));
    let outcome = check.run();
    silent(&outcome);
    assert!(
        matches!(&outcome.requests[..], [Request::Check { addresses, .. }] if addresses.len() == 1)
    );
    let gc = Call::new("GC").set(
        "cni.dev/valid-attachments",
        json!([{"containerID": "c9", "ifname": "eth0"}]),
    );
    let outcome = gc.run();
    silent(&outcome);
    assert_eq!(
        outcome.requests,
        [Request::Gc {
            network: "fabric".into(),
            valid: vec![key_of("c9")]
        }]
    );
    silent(
        &Call::new("GC")
            .set("cni.dev/valid-attachments", Value::Null)
            .run(),
    );
}

/// A DEL that no daemon takes succeeds and leaves its key on disk, once however often it comes.
#[test]
fn del_without_a_daemon() {
    for daemon in [Daemon::Absent, Daemon::Stale, Daemon::Sends(Vec::new())] {
        let call = Call::new("DEL").unset("CNI_NETNS").daemon(daemon);
        silent(&call.run());
        silent(&call.run());
        let files: Vec<_> = fs::read_dir(call.state_dir().join("pending-deletes"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let kept: PendingDelete = serde_json::from_slice(&fs::read(&files[0]).unwrap()).unwrap();
        assert_eq!(kept, PendingDelete::new(key_of("c1")));
    }
}

/// A DEL that can be kept nowhere fails and says both reasons.
#[test]
fn del_without_daemon_and_disk() {
    let call = Call::new("DEL")
        .set("stateDir", json!("/proc/nowhere"))
        .daemon(Daemon::Absent);
    check_refused(vec![refused(
        "no state directory",
        call,
        5,
        &["cni.sock", "/proc/nowhere"],
    )]);
}

/// VERSION needs neither configuration nor container nor daemon, and ignores what stdin holds.
#[test]
fn version_needs_nothing() {
    let bare = Call::new("VERSION")
        .unset("CNI_CONTAINERID")
        .unset("CNI_NETNS")
        .unset("CNI_IFNAME")
        .unset("CNI_PATH")
        .daemon(Daemon::Absent);
    for stdin in [&b""[..], b"{", br#"{"cniVersion":"1.0.0"}"#] {
        let outcome = bare.clone().stdin(stdin).run();
        assert_eq!(outcome.status, 0);
        assert_eq!(
            outcome.json()["supportedVersions"],
            json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
}

/// Run by hand, the plugin says on stderr what it is and leaves stdout alone.
#[test]
fn without_a_command() {
    for call in [Call::new("ADD").unset("CNI_COMMAND"), Call::new("")] {
        let outcome = call.stdin(b"").run();
        assert_eq!((outcome.status, outcome.stdout.as_str()), (0, ""));
        assert!(
            outcome.stderr.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{outcome:?}"
        );
    }
}

/// The plugin's own namespace is refused before the daemon is asked, unless the runtime insists.
#[test]
fn own_namespace() {
    let own = |verb: &str| Call::new(verb).env("CNI_NETNS", "/proc/self/ns/net");
    check_refused(vec![
        refused(
            "ADD",
            own("ADD"),
            8,
            &["/proc/self/ns/net", "CNI_NETNS_OVERRIDE"],
        ),
        refused("DEL", own("DEL"), 8, &["/proc/self/ns/net"]),
    ]);
    for yes in ["1", "TRUE", "true"] {
        let outcome = own("ADD").env("CNI_NETNS_OVERRIDE", yes).run();
        assert_eq!(outcome.status, 0, "{outcome:?}");
    }
}

/// Variables outside the specification change nothing.
#[test]
fn other_variables_do_not_steer() {
    let outcome = Call::new("ADD")
        .env("RUST_LOG", "trace")
        .env("HTTP_PROXY", "http://192.0.2.1")
        .env("TRACEPARENT", "00-0-0-0")
        .env("FABRIC_SOCKET", "/elsewhere")
        .run();
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, ""),
        "{outcome:?}"
    );
}
