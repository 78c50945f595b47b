//! What the binary prints, compared with files that are written by hand after the specification: one
//! folder for each version.

use std::{fs, path::Path};

use fabric_proto::cni::{Attached, Response};
use serde_json::{Value, json};

use crate::support::{Call, Daemon};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The result of an ADD has the shape of its version.
#[test]
fn add() {
    for version in VERSIONS {
        compare(version, "add", &in_version(version));
    }
}

/// Behind another plugin the result of an ADD holds that one's too, whole.
#[test]
fn add_chained() {
    for version in VERSIONS {
        let mut ip = json!({"address": "127.0.0.1/8", "interface": 0});
        if version < "1.0.0" {
            ip["version"] = json!("4");
        }
        let prev_result = json!({
            "cniVersion": version,
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/pod"}],
            "ips": [ip],
            "dns": {"nameservers": ["10.96.0.10"]},
            "example.com/kept": true,
        });
        let call = in_version(version).set("prevResult", prev_result);
        compare(version, "add-chained", &call);
    }
}

/// An error speaks the version of the configuration.
#[test]
fn error() {
    for version in VERSIONS {
        let ports = json!({"portMappings": [{"hostPort": 80}]});
        let call = in_version(version).set("runtimeConfig", ports);
        compare(version, "error", &call);
    }
}

/// VERSION says the same whatever version the caller speaks.
#[test]
fn version() {
    for version in VERSIONS {
        let stdin = json!({ "cniVersion": version }).to_string();
        let call = Call::new("VERSION").stdin(stdin.as_bytes());
        compare(version, "version", &call);
    }
}

fn in_version(version: &str) -> Call {
    Call::new("ADD")
        .set("cniVersion", json!(version))
        .env("CNI_NETNS", "/run/netns/pod")
        .daemon(Daemon::Answers(Response::Attached(Attached {
            mtu: 1500,
            addresses: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        })))
}

/// The order of keys means nothing in JSON: both sides are sorted, and everything else must agree to
/// the byte.
fn compare(version: &str, name: &str, call: &Call) {
    let outcome = call.run();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(version)
        .join(name)
        .with_extension("json");
    let text = fs::read_to_string(&path).unwrap();
    let sorted = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        format!("{value:#}")
    };
    assert_eq!(sorted(&outcome.stdout), sorted(&text), "{}", path.display());
}
