//! C1 to C7: what the environment says.

use fabric_proto::cni::Request;
use serde_json::json;

use crate::support::{
    Call, Outcome,
    table::{Expected, Row, check, refused, rows, silent},
};

const OWN_NETNS: &str = "/proc/self/ns/net";

pub(super) fn rows() -> Vec<Row> {
    [
        required(),
        names(),
        interfaces(),
        commands(),
        arguments(),
        others(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every variable that a verb needs and does not get is named, before the daemon hears of the call.
#[test]
fn c1_required_variables() {
    check(required());
}

/// Container ids and network names that could not be file names are refused.
#[test]
fn c2_names() {
    check(names());
}

/// Interface names that the kernel would not take are refused, all others reach the daemon.
#[test]
fn c3_interface_names() {
    check(interfaces());
}

/// Unknown verbs are refused; without a verb the program says what it is.
#[test]
fn c4_commands() {
    check(commands());
}

/// CNI_ARGS is read strictly, in any order, and counts less than the configuration.
#[test]
fn c5_arguments() {
    check(arguments());
}

/// Other variables do not steer the plugin, and its own namespace is refused where it would be used.
#[test]
fn c6_c7_other_variables() {
    check(others());
}

fn add() -> Call {
    Call::new("ADD")
}

fn required() -> Vec<Row> {
    let check = || Call::new("CHECK").set("prevResult", json!({}));
    let del = || Call::new("DEL");
    let bare = |verb| {
        let call = Call::new(verb).unset("CNI_CONTAINERID").unset("CNI_NETNS");
        call.unset("CNI_IFNAME").unset("CNI_PATH")
    };
    rows! {
        "C1 ADD without a container": add().unset("CNI_CONTAINERID") => refused(4, &["CNI_CONTAINERID"]);
        "C1 ADD without a namespace": add().unset("CNI_NETNS") => refused(4, &["CNI_NETNS"]);
        "C1 ADD without an interface": add().unset("CNI_IFNAME") => refused(4, &["CNI_IFNAME"]);
        "C1 ADD without a path": add().unset("CNI_PATH") => refused(4, &["CNI_PATH"]);
        "C1 ADD with an empty container": add().env("CNI_CONTAINERID", "") => refused(4, &["CNI_CONTAINERID"]);
        "C1 ADD with an empty namespace": add().env("CNI_NETNS", "") => refused(4, &["CNI_NETNS"]);
        "C1 ADD with an empty interface": add().env("CNI_IFNAME", "") => refused(4, &["CNI_IFNAME"]);
        "C1 ADD without anything": bare("ADD")
            => refused(4, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]);
        "C1 CHECK without a container": check().unset("CNI_CONTAINERID") => refused(4, &["CNI_CONTAINERID"]);
        "C1 CHECK without a namespace": check().unset("CNI_NETNS") => refused(4, &["CNI_NETNS"]);
        "C1 CHECK without an interface": check().unset("CNI_IFNAME") => refused(4, &["CNI_IFNAME"]);
        "C1 CHECK without anything": bare("CHECK")
            => refused(4, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]);
        "C1 DEL without a container": del().unset("CNI_CONTAINERID") => refused(4, &["CNI_CONTAINERID"]);
        "C1 DEL without an interface": del().unset("CNI_IFNAME") => refused(4, &["CNI_IFNAME"]);
        "C1 DEL without anything": bare("DEL") => refused(4, &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]);
        "C1 GC without a path": Call::new("GC").unset("CNI_PATH") => refused(4, &["CNI_PATH"]);
        "C1 STATUS without a path": Call::new("STATUS").unset("CNI_PATH") => refused(4, &["CNI_PATH"]);
    }
}

fn names() -> Vec<Row> {
    let id = |id: &str| add().env("CNI_CONTAINERID", id);
    let network = |name: &str| add().set("name", json!(name));
    let long = "c".repeat(1025);
    rows! {
        "C2 id with a slash": id("a/b") => refused(4, &["a/b"]);
        "C2 id that climbs": id("../x") => refused(4, &["../x"]);
        "C2 id with a leading dot": id(".x") => refused(4, &[".x"]);
        "C2 id with a leading dash": id("-x") => refused(4, &["-x"]);
        "C2 id with a leading underscore": id("_x") => refused(4, &["_x"]);
        "C2 id with a space": id("a b") => refused(4, &["a b"]);
        "C2 id with a line break": id("a\n") => refused(4, &["CNI_CONTAINERID"]);
        "C2 id that is not ASCII": id("caf\u{e9}") => refused(4, &["CNI_CONTAINERID"]);
        "C2 id without end": id(&long) => refused(4, &["CNI_CONTAINERID"]);
        "C2 id that climbs, in a DEL": Call::new("DEL").env("CNI_CONTAINERID", "../x") => refused(4, &["../x"]);
        "C2 id of all characters allowed": Call::new("DEL").env("CNI_CONTAINERID", "0aZ_.-") => silent();
        "C2 id as long as allowed": Call::new("DEL").env("CNI_CONTAINERID", &long[..1024]) => silent();
        "C2 network that climbs": network("../etc") => refused(7, &["../etc"]);
        "C2 network with a slash": network("a/b") => refused(7, &["a/b"]);
        "C2 network without a name": network("") => refused(7, &["name"]);
        "C2 network that is a number": add().set("name", json!(7)) => refused(7, &["7"]);
    }
}

fn interfaces() -> Vec<Row> {
    let named = |name: &str| add().env("CNI_IFNAME", name);
    fn taken(outcome: &Outcome) {
        let [Request::Add { key, .. }] = &outcome.requests[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!(outcome.json()["interfaces"][0]["name"], key.ifname);
    }
    rows! {
        "C3 name of 16 bytes": named("abcdefghijklmnop") => refused(4, &["15 bytes"]);
        "C3 name of 15 bytes": named("abcdefghijklmno") => Expected::Prints(taken);
        "C3 name .": named(".") => refused(4, &["CNI_IFNAME"]);
        "C3 name ..": named("..") => refused(4, &["CNI_IFNAME"]);
        "C3 name with dots": named("eth0.100") => Expected::Prints(taken);
        "C3 name with a slash": named("a/b") => refused(4, &["a/b"]);
        "C3 name with a colon": named("a:b") => refused(4, &["a:b"]);
        "C3 name with a space": named("a b") => refused(4, &["a b"]);
        "C3 name with a tab": named("a\tb") => refused(4, &["CNI_IFNAME"]);
        "C3 name with a control character": named("a\u{7}") => refused(4, &["CNI_IFNAME"]);
        "C3 name that is a pattern": named("eth%d") => refused(4, &["eth%d"]);
        "C3 name with a percent sign": named("100%") => refused(4, &["100%"]);
        "C3 name all": named("all") => refused(4, &["all"]);
        "C3 name default": named("default") => refused(4, &["default"]);
        "C3 name that begins with all": named("all0") => Expected::Prints(taken);
    }
}

fn commands() -> Vec<Row> {
    fn about(outcome: &Outcome) {
        assert_eq!(outcome.stdout, "");
        let words = ["fabric-cni", "0.3.1, 0.4.0, 1.0.0, 1.1.0"];
        assert!(words.iter().all(|word| outcome.stderr.contains(word)));
    }
    rows! {
        "C4 unknown verb": Call::new("UPDATE") => refused(4, &["unknown CNI_COMMAND: UPDATE"]);
        "C4 verb in small letters": Call::new("add") => refused(4, &["unknown CNI_COMMAND: add"]);
        "C4 verb with a space": Call::new("ADD ") => refused(4, &["unknown CNI_COMMAND"]);
        "C4 no verb": add().unset("CNI_COMMAND").stdin(b"") => Expected::Prints(about);
        "C4 empty verb": Call::new("").stdin(b"") => Expected::Prints(about);
    }
}

fn arguments() -> Vec<Row> {
    let with = |arguments: &str| add().env("CNI_ARGS", arguments);
    let ips = |ips: &str| json!({"ips": [ips]});
    let from_all = with("IP=10.0.0.7").set("args", json!({"cni": ips("10.0.0.8")}));
    let from_two = from_all.clone();
    let from_all = from_all.set("runtimeConfig", ips("10.0.0.9/24"));
    fn pod(outcome: &Outcome) {
        let [Request::Add { pod, .. }] = &outcome.requests[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!(pod.namespace.as_deref(), Some("ns"));
        assert_eq!(pod.name.as_deref(), Some("web"));
        assert_eq!(pod.uid.as_deref(), Some("u"));
    }
    rows! {
        "C5 no '=' sign": with("IgnoreUnknown") => refused(4, &["IgnoreUnknown"]);
        "C5 two '=' signs": with("A=b=c") => refused(4, &["A=b=c"]);
        "C5 unknown name": with("COLOUR=red") => refused(4, &["COLOUR", "IgnoreUnknown=1"]);
        "C5 unknown name that is not to be ignored": with("COLOUR=red;IgnoreUnknown=0") => refused(4, &["COLOUR"]);
        "C5 unknown name, ignored by 1": with("IgnoreUnknown=1;COLOUR=red")
            => Expected::By(|call| assert!(requested(call).is_empty()));
        "C5 unknown name, ignored by true": with("COLOUR=red;IgnoreUnknown=true")
            => Expected::By(|call| assert!(requested(call).is_empty()));
        "C5 nothing between semicolons": with(";;IgnoreUnknown=1;")
            => Expected::By(|call| assert!(requested(call).is_empty()));
        "C5 empty": with("") => Expected::By(|call| assert!(requested(call).is_empty()));
        "C5 two '=' signs under IgnoreUnknown": with("IgnoreUnknown=1;A=b=c") => refused(4, &["A=b=c"]);
        "C5 order of the pod's names": with("K8S_POD_UID=u;K8S_POD_NAME=web;IgnoreUnknown=1;K8S_POD_NAMESPACE=ns")
            => Expected::Prints(pod);
        "C5 another order of them": with("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u")
            => Expected::Prints(pod);
        "C5 IP that is none": with("IP=300.1.1.1") => refused(4, &["300.1.1.1"]);
        "C5 IP alone": with("IP=10.0.0.7") => Expected::By(|call| assert_eq!(requested(call), ["10.0.0.7"]));
        "C5 args.cni.ips before IP": from_two => Expected::By(|call| assert_eq!(requested(call), ["10.0.0.8"]));
        "C5 runtimeConfig.ips before both": from_all
            => Expected::By(|call| assert_eq!(requested(call), ["10.0.0.9"]));
        "C5 broken, in a DEL": Call::new("DEL").env("CNI_ARGS", "broken") => silent();
    }
}

/// The addresses that a successful ADD asks the daemon for.
fn requested(call: Call) -> Vec<String> {
    let outcome = call.run();
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let [Request::Add { addresses, .. }] = &outcome.requests[..] else {
        panic!("{outcome:?}");
    };
    addresses.iter().map(ToString::to_string).collect()
}

fn others() -> Vec<Row> {
    let own = |verb| Call::new(verb).env("CNI_NETNS", OWN_NETNS);
    let overridden = |yes| own("ADD").env("CNI_NETNS_OVERRIDE", yes);
    let check = own("CHECK").set("prevResult", json!({}));
    let steered = add()
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .env("HTTP_PROXY", "http://192.0.2.1")
        .env("TRACEPARENT", "00-0-0-0")
        .env("LD_DEBUG", "")
        .env("FABRIC_SOCKET", "/elsewhere");
    fn as_ever(outcome: &Outcome) {
        let plain = add().run();
        assert_eq!(outcome.stdout, plain.stdout);
        assert_eq!(outcome.requests, plain.requests);
        assert_eq!(outcome.stderr, "");
    }
    rows! {
        "C6 other variables do not steer": steered => Expected::Prints(as_ever);
        "C7 own namespace in an ADD": own("ADD") => refused(8, &[OWN_NETNS, "CNI_NETNS_OVERRIDE"]);
        "C7 own namespace in a CHECK": check.clone() => refused(8, &[OWN_NETNS]);
        "C7 own namespace in a DEL": own("DEL") => silent();
        "C7 override by 1": overridden("1") => Expected::Prints(own_netns_asked_for);
        "C7 override by true": overridden("true") => Expected::Prints(own_netns_asked_for);
        "C7 override by TRUE": overridden("TRUE") => Expected::Prints(own_netns_asked_for);
        "C7 override by 0": overridden("0") => refused(8, &[OWN_NETNS]);
        "C7 override by yes": overridden("yes") => refused(8, &[OWN_NETNS]);
        "C7 override in a CHECK": check.env("CNI_NETNS_OVERRIDE", "1") => silent();
    }
}

/// The daemon has the last word about a namespace that the plugin lets through.
fn own_netns_asked_for(outcome: &Outcome) {
    let [Request::Add { netns, .. }] = &outcome.requests[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(netns, OWN_NETNS);
}
