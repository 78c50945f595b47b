//! The words of the plugin: results and errors as the CNI specification has them.
//!
//! Comes in: what happened. Goes out: what to print, and the exit status. Pure, but for
//! [`Printed::write`].

use std::{
    io::{self, Write as _},
    net::IpAddr,
};

use fabric_proto::cni::Attached;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    client::Done,
    error::CniError,
    invocation::{Action, Invocation, PrevResult},
    version::{CniVersion, supported},
};

/// Exit status of every failure; the code is in the JSON.
const FAILED: u8 = 1;
/// The hardware address of a device without one.
const NO_MAC: &str = "00:00:00:00:00:00";

/// What the program prints, and how it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// For the runtime: nothing, or one line of JSON.
    pub stdout: String,
    /// For people.
    pub stderr: String,
    /// Exit status: 0 for success.
    pub status: u8,
}

impl Printed {
    /// Says what is to be said; the exit status for the program. A result that did not reach the
    /// runtime is a failure: it then undoes the call.
    #[must_use]
    pub fn write(&self) -> u8 {
        let _ = io::stderr().write_all(self.stderr.as_bytes());
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(self.stdout.as_bytes())
            .and_then(|()| stdout.flush());
        match written {
            Ok(()) => self.status,
            Err(error) => {
                let _ = writeln!(io::stderr(), "fabric-cni: cannot write to stdout: {error}");
                FAILED
            }
        }
    }
}

/// The result of a call that succeeded; verbs other than ADD say nothing.
pub(crate) fn success(invocation: &Invocation, done: &Done) -> Printed {
    let (
        Done::Attached(attached),
        Action::Add {
            key,
            netns,
            prev_result,
            ..
        },
    ) = (done, &invocation.action)
    else {
        return Printed::default();
    };
    let result = add_result(
        invocation.version,
        &key.ifname,
        netns,
        attached,
        prev_result.clone().unwrap_or_default(),
    );
    printed(&result, 0)
}

/// The result of an ADD of `loopback`.
pub(crate) fn loopback_success(
    version: CniVersion,
    netns: &str,
    addresses: &[(IpAddr, u8)],
    prev_result: Option<PrevResult>,
) -> Printed {
    printed(&loopback_result(version, netns, addresses, prev_result), 0)
}

/// An error. Without a version that the runtime asked for, the newest stands.
pub(crate) fn failure(version: Option<CniVersion>, error: &CniError) -> Printed {
    printed(
        &error_object(version.unwrap_or(CniVersion::NEWEST), error),
        FAILED,
    )
}

/// The versions the plugin speaks. stdin is not read: a caller may keep it open.
pub(crate) fn versions() -> Printed {
    printed(&versions_object(), 0)
}

/// Tells a person what this program is; stdout is for runtimes.
pub(crate) fn about(program: &str, what: &str) -> Printed {
    Printed {
        stderr: format!(
            "{program} {}: CNI plugin that {what}; run by a container runtime\nCNI protocol versions supported: {}\n",
            env!("CARGO_PKG_VERSION"),
            supported()
        ),
        ..Printed::default()
    }
}

fn printed(object: &impl Serialize, status: u8) -> Printed {
    match serde_json::to_string(object) {
        Ok(mut stdout) => {
            stdout.push('\n');
            Printed {
                stdout,
                stderr: String::new(),
                status,
            }
        }
        Err(error) => Printed {
            stdout: String::new(),
            stderr: format!("fabric-cni: cannot word the result: {error}\n"),
            status: FAILED,
        },
    }
}

/// What earlier plugins of the chain reported, with all that this one does not know, and the pod's
/// interface with its addresses and routes behind it.
///
/// A TUN device has no hardware address. It is reported as all zeros, as for `lo`, because podman refuses
/// a result without one.
fn add_result(
    version: CniVersion,
    ifname: &str,
    netns: &str,
    attached: &Attached,
    prev_result: PrevResult,
) -> Map<String, Value> {
    let mut interface = json!({ "name": ifname, "mac": NO_MAC, "sandbox": netns });
    if version >= CniVersion::V1_1_0 {
        set(&mut interface, "mtu", json!(attached.mtu));
    }
    let mut result = prev_result.into_object();
    let index = append(&mut result, "interfaces", vec![interface]);
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for &address in &attached.addresses {
        let (bits, default) = match address {
            IpAddr::V4(_) => (32, "0.0.0.0/0"),
            IpAddr::V6(_) => (128, "::/0"),
        };
        ips.push(ip(version, address, bits, index));
        routes.push(json!({ "dst": default }));
    }
    append(&mut result, "ips", ips);
    append(&mut result, "routes", routes);
    finish(version, &mut result);
    result
}

/// The result of `loopback`: what earlier plugins reported, as it came, else the interface `lo` with
/// its addresses.
fn loopback_result(
    version: CniVersion,
    netns: &str,
    addresses: &[(IpAddr, u8)],
    prev_result: Option<PrevResult>,
) -> Map<String, Value> {
    let mut result = prev_result.map_or_else(
        || {
            let interface = json!({ "name": "lo", "mac": NO_MAC, "sandbox": netns });
            let ips = addresses.iter();
            let mut result = Map::new();
            append(&mut result, "interfaces", vec![interface]);
            append(
                &mut result,
                "ips",
                ips.map(|&(address, bits)| ip(version, address, bits, 0))
                    .collect(),
            );
            result
        },
        PrevResult::into_object,
    );
    finish(version, &mut result);
    result
}

/// An address as a result has it: up to 0.4.0 it names its family.
fn ip(version: CniVersion, address: IpAddr, bits: u8, interface: usize) -> Value {
    let mut ip = json!({ "address": format!("{address}/{bits}"), "interface": interface });
    if version <= CniVersion::V0_4_0 {
        let family = if address.is_ipv4() { "4" } else { "6" };
        set(&mut ip, "version", json!(family));
    }
    ip
}

/// Puts `entries` behind those that the list `key` holds, and says how many these were.
fn append(result: &mut Map<String, Value>, key: &str, entries: Vec<Value>) -> usize {
    let list = result.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Value::Array(list) = list else {
        return 0;
    };
    let before = list.len();
    list.extend(entries);
    before
}

/// A result speaks the version of the configuration, and has a `dns`.
fn finish(version: CniVersion, result: &mut Map<String, Value>) {
    result.insert("cniVersion".into(), json!(version.as_str()));
    let dns = result.entry("dns").or_insert_with(|| json!({}));
    if dns.is_null() {
        *dns = json!({});
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(object) = object {
        object.insert(key.to_owned(), value);
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorObject<'a> {
    cni_version: &'static str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

fn error_object(version: CniVersion, error: &CniError) -> ErrorObject<'_> {
    ErrorObject {
        cni_version: version.as_str(),
        code: error.code,
        msg: &error.msg,
        details: &error.details,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VersionsObject {
    cni_version: &'static str,
    supported_versions: [&'static str; 4],
}

fn versions_object() -> VersionsObject {
    VersionsObject {
        cni_version: CniVersion::NEWEST.as_str(),
        supported_versions: CniVersion::ALL.map(CniVersion::as_str),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn attached(addresses: &[&str]) -> Attached {
        Attached {
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    /// A pod with one family gets one default route.
    #[test]
    fn single_family() {
        let result = add_result(
            CniVersion::V1_0_0,
            "eth0",
            "/n",
            &attached(&["fd00::5"]),
            PrevResult::default(),
        );
        assert_eq!(result["routes"], json!([{"dst": "::/0"}]));
    }

    /// An error carries version, code, message and cure; an empty cure is left out.
    #[test]
    fn errors() {
        let error = CniError::new(7, "bad").cure("mend it");
        assert_eq!(
            serde_json::to_string(&error_object(CniVersion::V0_4_0, &error)).unwrap(),
            r#"{"cniVersion":"0.4.0","code":7,"msg":"bad","details":"mend it"}"#
        );
        let error = CniError::new(7, "bad");
        assert_eq!(
            serde_json::to_string(&error_object(CniVersion::V1_1_0, &error)).unwrap(),
            r#"{"cniVersion":"1.1.0","code":7,"msg":"bad"}"#
        );
    }

    /// VERSION lists all versions, oldest first.
    #[test]
    fn version_list() {
        assert_eq!(
            serde_json::to_string(&versions_object()).unwrap(),
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        );
    }
}
