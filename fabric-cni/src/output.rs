//! The words of the plugin: results and errors as the CNI specification has them.
//!
//! Comes in: what happened. Goes out: what to print, and the exit status. Pure.

use std::net::IpAddr;

use fabric_proto::cni::Attached;
use serde::Serialize;
use serde_json::{Value, json};

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
pub(crate) fn about() -> Printed {
    Printed {
        stderr: format!(
            "fabric-cni {}: CNI plugin that attaches containers to the fabric; run by a container runtime\nCNI protocol versions supported: {}\n",
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddResult {
    cni_version: &'static str,
    interfaces: Vec<Value>,
    ips: Vec<Value>,
    routes: Vec<Value>,
    dns: Value,
}

/// What earlier plugins of the chain reported, followed by the pod's interface.
///
/// A TUN device has no hardware address. It is reported as all zeros, as for `lo`, because podman refuses
/// a result without one.
fn add_result(
    version: CniVersion,
    ifname: &str,
    netns: &str,
    attached: &Attached,
    prev_result: PrevResult,
) -> impl Serialize + use<> {
    let PrevResult {
        mut interfaces,
        mut ips,
        mut routes,
        dns,
    } = prev_result;
    let index = interfaces.len();
    let mut interface = json!({ "name": ifname, "mac": NO_MAC, "sandbox": netns });
    if version >= CniVersion::V1_1_0 {
        set(&mut interface, "mtu", json!(attached.mtu));
    }
    interfaces.push(interface);
    for address in &attached.addresses {
        let (bits, family, default) = match address {
            IpAddr::V4(_) => (32, "4", "0.0.0.0/0"),
            IpAddr::V6(_) => (128, "6", "::/0"),
        };
        let mut ip = json!({ "address": format!("{address}/{bits}"), "interface": index });
        if version <= CniVersion::V0_4_0 {
            set(&mut ip, "version", json!(family));
        }
        ips.push(ip);
        routes.push(json!({ "dst": default }));
    }
    AddResult {
        cni_version: version.as_str(),
        interfaces,
        ips,
        routes,
        dns: dns.unwrap_or_else(|| json!({})),
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

    fn check(version: CniVersion, prev_result: PrevResult, expected: &str) {
        let result = add_result(
            version,
            "eth0",
            "/run/netns/p",
            &attached(&["10.244.1.5", "fd00::5"]),
            prev_result,
        );
        assert_eq!(serde_json::to_string(&result).unwrap(), expected);
    }

    /// Up to 0.4.0 each address names its family and the interface has no mtu.
    #[test]
    fn result_0_3_1_and_0_4_0() {
        for version in [CniVersion::V0_3_1, CniVersion::V0_4_0] {
            let expected = r#"{"cniVersion":"VERSION","interfaces":[{"mac":"00:00:00:00:00:00","name":"eth0","sandbox":"/run/netns/p"}],"ips":[{"address":"10.244.1.5/32","interface":0,"version":"4"},{"address":"fd00::5/128","interface":0,"version":"6"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dns":{}}"#;
            let expected = expected.replace("VERSION", version.as_str());
            check(version, PrevResult::default(), &expected);
        }
    }

    /// 1.0.0 knows neither the family of an address nor the mtu.
    #[test]
    fn result_1_0_0() {
        check(
            CniVersion::V1_0_0,
            PrevResult::default(),
            r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"00:00:00:00:00:00","name":"eth0","sandbox":"/run/netns/p"}],"ips":[{"address":"10.244.1.5/32","interface":0},{"address":"fd00::5/128","interface":0}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dns":{}}"#,
        );
    }

    /// 1.1.0 tells the mtu.
    #[test]
    fn result_1_1_0() {
        check(
            CniVersion::V1_1_0,
            PrevResult::default(),
            r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"00:00:00:00:00:00","mtu":1500,"name":"eth0","sandbox":"/run/netns/p"}],"ips":[{"address":"10.244.1.5/32","interface":0},{"address":"fd00::5/128","interface":0}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dns":{}}"#,
        );
    }

    /// What earlier plugins reported comes first and unchanged, and our addresses point at our
    /// interface behind theirs.
    #[test]
    fn result_in_a_chain() {
        let prev_result = PrevResult {
            interfaces: vec![json!({"name": "lo", "sandbox": "/run/netns/p", "x": 1})],
            ips: vec![json!({"address": "127.0.0.1/8", "interface": 0})],
            routes: Vec::new(),
            dns: Some(json!({"nameservers": ["10.96.0.10"]})),
        };
        check(
            CniVersion::V1_0_0,
            prev_result,
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"lo","sandbox":"/run/netns/p","x":1},{"mac":"00:00:00:00:00:00","name":"eth0","sandbox":"/run/netns/p"}],"ips":[{"address":"127.0.0.1/8","interface":0},{"address":"10.244.1.5/32","interface":1},{"address":"fd00::5/128","interface":1}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dns":{"nameservers":["10.96.0.10"]}}"#,
        );
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
        let result = serde_json::to_value(&result).unwrap();
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
