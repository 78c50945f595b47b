//! What the CNI specification allows a plugin to say, written down apart from the plugin.
//!
//! Comes in: a call, what the plugin printed, how it ended. Goes out: what that was, or what is wrong
//! with it. Sources: CNI specification 1.1.0, sections 2 (environment, errors) and 5 (results), and
//! `SPEC.md` of 0.3.1, 0.4.0 and 1.0.0 for what each version's results hold.

use std::net::IpAddr;

use fabric_proto::cni::{Attached, Response};
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::call::Call;

mod strict;

/// The versions that the plugin speaks, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the plugin said.
#[derive(Clone, Debug, PartialEq)]
pub enum Words {
    /// Nothing, and success.
    Silence,
    /// The versions it speaks.
    Versions,
    /// An error with its code.
    Error(u64),
    /// A result in this version.
    Result(&'static str, Map<String, Value>),
}

/// Reads what the plugin printed; `status` is the exit status of a plugin that was not killed.
///
/// # Errors
///
/// The specification does not allow it.
pub fn words(stdout: &[u8], status: i32) -> Result<Words, String> {
    if stdout.is_empty() {
        return match status {
            0 => Ok(Words::Silence),
            _ => Err(format!("status {status} without a word")),
        };
    }
    let line = stdout
        .strip_suffix(b"\n")
        .filter(|line| !line.contains(&b'\n'))
        .ok_or("stdout is not one line")?;
    let Value::Object(object) = strict::parse(line)? else {
        return Err("stdout is not an object".into());
    };
    let version = object.get("cniVersion").and_then(Value::as_str);
    let version = VERSIONS
        .into_iter()
        .find(|known| Some(*known) == version)
        .ok_or("cniVersion is none of the four")?;
    if object.contains_key("code") || object.contains_key("msg") {
        return error(&object, status);
    }
    if status != 0 {
        return Err(format!("status {status} without a code"));
    }
    if let Some(versions) = object.get("supportedVersions") {
        let all = versions.as_array().ok_or("supportedVersions is no list")?;
        return if *all == VERSIONS {
            Ok(Words::Versions)
        } else {
            Err(format!("supportedVersions is {versions}"))
        };
    }
    check_result(version, &object)?;
    Ok(Words::Result(version, object))
}

fn error(object: &Map<String, Value>, status: i32) -> Result<Words, String> {
    if status == 0 {
        return Err("an error with status 0".into());
    }
    let known = ["cniVersion", "code", "msg", "details"];
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("an error with a key {key:?}"));
    }
    let is_text = |key| object.get(key).is_none_or(Value::is_string);
    if !object.contains_key("msg") || !is_text("msg") || !is_text("details") {
        return Err("msg or details are no texts".into());
    }
    let code = object.get("code").and_then(Value::as_u64);
    let code = code.filter(|code| u32::try_from(*code).is_ok());
    code.map(Words::Error)
        .ok_or_else(|| "code is no number of 32 bits".into())
}

fn check_result(version: &str, result: &Map<String, Value>) -> Result<(), String> {
    let interfaces = list(result, "interfaces")?;
    for interface in interfaces {
        let wrong = |what: &str| format!("interface {interface}: {what}");
        text(interface, "name").ok_or_else(|| wrong("no name"))?;
        for key in ["mac", "sandbox"] {
            if !interface.get(key).is_none_or(Value::is_string) {
                return Err(wrong("mac or sandbox are no texts"));
            }
        }
        let mtu = interface.get("mtu").filter(|_| version == "1.1.0");
        if !mtu.is_none_or(Value::is_u64) {
            return Err(wrong("mtu is no number"));
        }
    }
    for ip in list(result, "ips")? {
        let wrong = |what: &str| format!("address {ip}: {what}");
        let address = text(ip, "address").and_then(|text| text.parse::<IpNet>().ok());
        let address = address.ok_or_else(|| wrong("no CIDR"))?;
        if let Some(index) = ip.get("interface").filter(|index| !index.is_null()) {
            let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
            if index.is_none_or(|index| index >= interfaces.len()) {
                return Err(wrong("its interface is not in the list"));
            }
        }
        check_address(ip, "gateway").map_err(|what| wrong(&what))?;
        let family = if address.addr().is_ipv4() { "4" } else { "6" };
        let given = ip.get("version").filter(|_| version < "1.0.0");
        if given.is_some_and(|given| given != family) {
            return Err(wrong("it has the version of the other family"));
        }
    }
    for route in list(result, "routes")? {
        let wrong = |what: &str| format!("route {route}: {what}");
        text(route, "dst")
            .and_then(|text| text.parse::<IpNet>().ok())
            .ok_or_else(|| wrong("no CIDR in dst"))?;
        check_address(route, "gw").map_err(|what| wrong(&what))?;
    }
    check_dns(result.get("dns").unwrap_or(&Value::Null))
}

fn check_dns(dns: &Value) -> Result<(), String> {
    let Value::Object(dns) = dns else {
        return if dns.is_null() {
            Ok(())
        } else {
            Err("dns is no object".into())
        };
    };
    let is_texts = |value: &Value| match value {
        Value::Null => true,
        Value::Array(entries) => entries.iter().all(Value::is_string),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => false,
    };
    let lists = ["nameservers", "search", "options"];
    if lists.iter().filter_map(|key| dns.get(*key)).all(is_texts)
        && dns
            .get("domain")
            .is_none_or(|domain| domain.is_null() || domain.is_string())
    {
        Ok(())
    } else {
        Err("dns holds what is no text".into())
    }
}

fn check_address(holder: &Value, key: &str) -> Result<(), String> {
    match holder.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(text)) if text.is_empty() || text.parse::<IpAddr>().is_ok() => Ok(()),
        Some(other) => Err(format!("{key} is {other}")),
    }
}

fn list<'a>(result: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], String> {
    match result.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(entries)) if entries.iter().all(Value::is_object) => Ok(entries),
        Some(_) => Err(format!("{key} is no list of objects")),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

/// Checks that a result says what the daemon answered, behind what earlier plugins said, in the
/// words of its version and in no others.
///
/// # Errors
///
/// The first difference.
pub fn check_attached(
    call: &Call,
    attached: &Attached,
    version: &str,
    result: &Map<String, Value>,
) -> Result<(), String> {
    let config: Value = serde_json::from_slice(&call.stdin).map_err(|error| error.to_string())?;
    if config.get("cniVersion").and_then(Value::as_str) != Some(version) {
        return Err(format!("the result has version {version}"));
    }
    let earlier = |key: &str| {
        let list = config.get("prevResult").and_then(|prev| prev.get(key));
        list.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let index = earlier("interfaces").len();
    let variable = |name| String::from_utf8_lossy(call.variable(name).unwrap_or_default());
    let mut interface = serde_json::json!({
        "name": variable("CNI_IFNAME"),
        "sandbox": variable("CNI_NETNS"),
        "mac": "00:00:00:00:00:00",
    });
    if version == "1.1.0" {
        interface["mtu"] = attached.mtu.into();
    }
    let ips = attached.addresses.iter().map(|address| {
        let (bits, family) = if address.is_ipv4() {
            (32, "4")
        } else {
            (128, "6")
        };
        let mut ip = serde_json::json!({
            "address": format!("{address}/{bits}"),
            "interface": index,
        });
        if version < "1.0.0" {
            ip["version"] = family.into();
        }
        ip
    });
    let routes = attached.addresses.iter().map(|address| {
        let default = if address.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        serde_json::json!({ "dst": default })
    });
    for (key, ours) in [
        ("interfaces", vec![interface]),
        ("ips", ips.collect()),
        ("routes", routes.collect()),
    ] {
        let expected: Vec<Value> = earlier(key).into_iter().chain(ours).collect();
        if list(result, key)? != expected {
            return Err(format!("{key} are not {}", Value::Array(expected)));
        }
    }
    Ok(())
}

/// Checks what a plugin said after the daemon had answered `response`; `None` for a daemon that broke
/// off, which only a DEL survives.
///
/// # Errors
///
/// It does not go with the answer.
pub fn check_concluded(
    call: &Call,
    response: Option<&Response>,
    words: &Words,
) -> Result<(), String> {
    let is_add = call.variable("CNI_COMMAND") == Some(b"ADD");
    match (response, words) {
        (Some(Response::Attached(attached)), Words::Result(version, result)) if is_add => {
            check_attached(call, attached, version, result)
        }
        (Some(Response::Done), Words::Silence) if !is_add => Ok(()),
        (Some(Response::Failed(failure)), Words::Error(code))
            if u64::from(failure.code) == *code =>
        {
            Ok(())
        }
        // An answer to another question.
        (Some(Response::Attached(_)), Words::Error(_)) if !is_add => Ok(()),
        (Some(Response::Done), Words::Error(_)) if is_add => Ok(()),
        (None, Words::Error(_)) => Ok(()),
        _ => Err(format!(
            "the daemon said {response:?}, the plugin {words:?}"
        )),
    }
}

/// Checks that a call which was not refused is one that the specification allows.
///
/// # Errors
///
/// What should have been refused.
pub fn check_accepted(call: &Call) -> Result<(), String> {
    let variable = |name| {
        call.variable(name)
            .filter(|value| !value.is_empty())
            .map(|value| str::from_utf8(value).map_err(|_| format!("{name} is no text")))
            .transpose()
    };
    let verb = variable("CNI_COMMAND")?.ok_or("there is no CNI_COMMAND")?;
    let (needed, least): (&[&str], &str) = match verb {
        "ADD" => (
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            "0.3.1",
        ),
        "CHECK" => (
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            "0.4.0",
        ),
        "DEL" => (&["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"], "0.3.1"),
        "GC" | "STATUS" => (&["CNI_PATH"], "1.1.0"),
        other => return Err(format!("CNI_COMMAND {other:?} was accepted")),
    };
    for name in needed {
        variable(name)?.ok_or_else(|| format!("{verb} without {name} was accepted"))?;
    }
    let config: Value = serde_json::from_slice(&call.stdin)
        .map_err(|error| format!("a configuration that is no JSON was accepted: {error}"))?;
    let version = config.get("cniVersion").and_then(Value::as_str);
    if !version.is_some_and(|version| VERSIONS.contains(&version) && version >= least) {
        return Err(format!("{verb} in version {version:?} was accepted"));
    }
    let name = config.get("name").and_then(Value::as_str);
    if !name.is_some_and(is_name) {
        return Err(format!("network name {name:?} was accepted"));
    }
    if needed.contains(&"CNI_IFNAME") {
        let id = variable("CNI_CONTAINERID")?.unwrap_or_default();
        let ifname = variable("CNI_IFNAME")?.unwrap_or_default();
        let is_wrong = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if !is_name(id) || ifname.len() > 15 || [".", ".."].contains(&ifname) {
            return Err(format!(
                "container {id:?} or interface {ifname:?} was accepted"
            ));
        }
        if ifname.contains(is_wrong) {
            return Err(format!("interface {ifname:?} was accepted"));
        }
    }
    Ok(())
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`.
fn is_name(name: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(is_alphanumeric)
        && name
            .chars()
            .all(|c| is_alphanumeric(c) || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.0.0.5/32","interface":0}]}"#;

    /// The three things that a plugin may say are told apart by what they hold and by the status.
    #[test]
    fn words_of_a_plugin() {
        let error = br#"{"cniVersion":"0.4.0","code":7,"msg":"m"}
"#;
        assert_eq!(words(error, 1), Ok(Words::Error(7)));
        assert_eq!(words(b"", 0), Ok(Words::Silence));
        let versions =
            br#"{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}
"#;
        assert_eq!(words(versions, 0), Ok(Words::Versions));
        let result = words(format!("{RESULT}\n").as_bytes(), 0);
        assert!(
            matches!(result, Ok(Words::Result("1.1.0", _))),
            "{result:?}"
        );
    }

    /// What the specification does not allow is found: no word, more than a line, no JSON, a status
    /// that says something else, parts that no runtime can read.
    #[test]
    fn faults_are_found() {
        let of = |from: &str, to: &str| format!("{}\n", RESULT.replace(from, to));
        for (stdout, status) in [
            (String::new(), 1),
            (RESULT.into(), 0),
            (format!("{RESULT}\n\n"), 0),
            (format!("{RESULT}\n"), 1),
            ("{}\n".into(), 0),
            ("[]\n".into(), 0),
            ("not JSON\n".into(), 1),
            (of("1.1.0", "1.2.0"), 0),
            (of("\"name\":\"eth0\",", ""), 0),
            (of("\"/n\"", "5"), 0),
            (of("10.0.0.5/32", "10.0.0.5"), 0),
            (of("\"interface\":0", "\"interface\":1"), 0),
            (of("\"interface\":0", "\"gateway\":\"x\""), 0),
            (of("\"ips\"", "\"ips\":[],\"ips\""), 0),
            (
                "{\"cniVersion\":\"1.0.0\",\"code\":7,\"msg\":\"m\"}\n".into(),
                0,
            ),
            ("{\"cniVersion\":\"1.0.0\",\"code\":7}\n".into(), 1),
            (
                "{\"cniVersion\":\"1.0.0\",\"code\":-7,\"msg\":\"m\"}\n".into(),
                1,
            ),
            (
                "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.1.0\"]}\n".into(),
                0,
            ),
        ] {
            let judged = words(stdout.as_bytes(), status);
            assert!(judged.is_err(), "{judged:?} of {stdout}");
        }
    }
}
