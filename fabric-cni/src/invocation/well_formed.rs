//! Pure: whether the result of earlier plugins is a result.
//!
//! It becomes a part of this plugin's own result, which the runtime must be able to read: a damaged one
//! is refused before anything is made. What the specification does not name may be there and is not
//! looked at. Source: CNI specification 1.1.0, section 5.

use std::net::IpAddr;

use serde_json::{Map, Value};

/// Keys that make an error or a list of versions of a result.
const FOREIGN_KEYS: [&str; 3] = ["code", "msg", "supportedVersions"];

/// Checks a `prevResult`; the error is one line for people.
pub(super) fn check(result: &Map<String, Value>) -> Result<(), String> {
    if let Some(key) = FOREIGN_KEYS.iter().find(|key| result.contains_key(**key)) {
        return Err(format!("it has a key {key:?}, which no result has"));
    }
    let interfaces = list(result, "interfaces");
    for interface in interfaces {
        if !interface.get("name").is_some_and(Value::is_string) {
            return wrong("interfaces", interface, "has no name");
        }
        if !are(interface, &["mac", "sandbox"], Value::is_string) {
            return wrong(
                "interfaces",
                interface,
                "has a mac or sandbox that is not a string",
            );
        }
        if !are(interface, &["mtu"], Value::is_u64) {
            return wrong("interfaces", interface, "has an mtu that is not a number");
        }
    }
    let is_index = |value: &Value| {
        let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
        value.is_null() || index.is_some_and(|index| index < interfaces.len())
    };
    for ip in list(result, "ips") {
        let Some(address) = cidr(ip, "address") else {
            return wrong("ips", ip, "has no address with a prefix length");
        };
        if !are(ip, &["interface"], is_index) {
            return wrong("ips", ip, "belongs to no interface in the list");
        }
        if !are(ip, &["gateway"], is_address) {
            return wrong("ips", ip, "has a gateway that is not an address");
        }
        let family = if address.is_ipv4() { "4" } else { "6" };
        if !are(ip, &["version"], |version| version == family) {
            return wrong("ips", ip, "has the version of another family");
        }
    }
    for route in list(result, "routes") {
        if cidr(route, "dst").is_none() || !are(route, &["gw"], is_address) {
            return wrong(
                "routes",
                route,
                "has no dst with a prefix length, or a gw that is not an address",
            );
        }
    }
    check_dns(result.get("dns").unwrap_or(&Value::Null))
}

fn wrong(list: &str, entry: &Value, what: &str) -> Result<(), String> {
    Err(format!("{list}: {entry} {what}"))
}

fn check_dns(dns: &Value) -> Result<(), String> {
    let is_texts = |value: &Value| {
        let entries = value.as_array();
        value.is_null() || entries.is_some_and(|entries| entries.iter().all(Value::is_string))
    };
    let is_text = |value: &Value| value.is_null() || value.is_string();
    if are(dns, &["nameservers", "search", "options"], is_texts) && are(dns, &["domain"], is_text) {
        Ok(())
    } else {
        Err(format!("dns {dns} holds what is not a string"))
    }
}

/// Whether those of `keys` that are there are as `wanted`.
fn are(entry: &Value, keys: &[&str], wanted: impl Fn(&Value) -> bool) -> bool {
    keys.iter().filter_map(|key| entry.get(*key)).all(wanted)
}

fn list<'a>(result: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    let list = result.get(key).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

/// An address, or none as some plugins write it.
fn is_address(value: &Value) -> bool {
    let is_one = |text: &str| text.is_empty() || text.parse::<IpAddr>().is_ok();
    value.is_null() || value.as_str().is_some_and(is_one)
}

/// `10.0.0.1/24`, in the one spelling that all parsers take.
fn cidr(entry: &Value, key: &str) -> Option<IpAddr> {
    let (address, prefix) = entry.get(key)?.as_str()?.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = prefix.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (bits <= longest && bits.to_string() == prefix).then_some(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Results of other plugins pass, whatever they hold that the specification does not name; each
    /// kind of damage is found.
    #[test]
    fn damage_is_found() {
        for good in [
            r#"{}"#,
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth1","x":1}],"x":{}}"#,
            r#"{"interfaces":[{"name":"a"}],"ips":[{"address":"fd00::5/64","gateway":"","interface":0}]}"#,
            r#"{"ips":[{"version":"4","address":"10.0.0.5/24","gateway":"10.0.0.1"}],"routes":null}"#,
            r#"{"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}],"dns":{"nameservers":["10.0.0.2"]}}"#,
        ] {
            assert_eq!(
                check(&serde_json::from_str(good).unwrap()),
                Ok(()),
                "{good}"
            );
        }
        for bad in [
            r#"{"code":7,"msg":"x"}"#,
            r#"{"interfaces":[{"sandbox":"/n"}]}"#,
            r#"{"interfaces":[{"name":"a","mac":5}]}"#,
            r#"{"interfaces":[{"name":"a","mtu":"1500"}]}"#,
            r#"{"ips":[{"address":"10.0.0.5"}]}"#,
            r#"{"ips":[{"address":"10.0.0.5/33"}]}"#,
            r#"{"ips":[{"address":"10.0.0.5/+24"}]}"#,
            r#"{"ips":[{"address":"10.0.0.5/24","interface":0}]}"#,
            r#"{"ips":[{"address":"10.0.0.5/24","gateway":"x"}]}"#,
            r#"{"ips":[{"address":"10.0.0.5/24","version":"6"}]}"#,
            r#"{"routes":[{"gw":"10.0.0.1"}]}"#,
            r#"{"routes":[{"dst":"0.0.0.0/0","gw":1}]}"#,
            r#"{"dns":{"nameservers":[1]}}"#,
        ] {
            assert!(check(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }
}
