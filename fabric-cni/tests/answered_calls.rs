//! The plugin binary as a runtime sees it, where it does what it is asked: environment and stdin in,
//! stdout, requests to the daemon and exit status out.

#![allow(clippy::unwrap_used)]

mod support;

use fabric_proto::cni::Request;
use serde_json::{Value, json};

use support::{Call, Daemon, check_silent, key_of};

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

/// DEL, CHECK, GC and STATUS that succeed print nothing at all.
#[test]
fn success_is_silent() {
    check_silent(&Call::new("DEL").run());
    check_silent(&Call::new("DEL").unset("CNI_NETNS").run());
    check_silent(&Call::new("DEL").env("CNI_NETNS", "").run());
    check_silent(
        &Call::new("DEL")
            .env("CNI_ARGS", "broken")
            .set("prevResult", json!(7))
            .run(),
    );
    check_silent(
        &Call::new("STATUS")
            .unset("CNI_CONTAINERID")
            .unset("CNI_IFNAME")
            .unset("CNI_NETNS")
            .run(),
    );
    check_silent(&Call::new("STATUS").env("CNI_CONTAINERID", "").run());
    let check =
        Call::new("CHECK").set("prevResult", json!({"ips": [{"address": "10.244.1.5/32"}]}));
    let outcome = check.run();
    check_silent(&outcome);
    assert!(
        matches!(&outcome.requests[..], [Request::Check { addresses, .. }] if addresses.len() == 1)
    );
    let gc = Call::new("GC").set(
        "cni.dev/valid-attachments",
        json!([{"containerID": "c9", "ifname": "eth0"}]),
    );
    let outcome = gc.run();
    check_silent(&outcome);
    assert_eq!(
        outcome.requests,
        [Request::Gc {
            network: "fabric".into(),
            valid: vec![key_of("c9")]
        }]
    );
    check_silent(
        &Call::new("GC")
            .set("cni.dev/valid-attachments", Value::Null)
            .run(),
    );
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
