//! Pure: the result of the plugins before this one, and addresses as texts.

use std::net::IpAddr;

use fabric_proto::cni::code;
use serde_json::{Map, Value};

use crate::error::CniError;

/// The result of the plugins before this one, kept as it came: what this plugin does not know
/// passes through.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PrevResult(Map<String, Value>);

impl PrevResult {
    /// Checks as much as a reader of results relies on: lists of objects, with addresses where
    /// addresses belong.
    pub(super) fn parse(value: &Value) -> Result<Self, CniError> {
        let Value::Object(object) = value else {
            return Err(broken("not an object"));
        };
        for key in ["interfaces", "ips", "routes"] {
            match object.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(entries)) if entries.iter().all(Value::is_object) => {}
                Some(_) => return Err(broken(format!("{key} is not a list of objects"))),
            }
        }
        if !matches!(
            object.get("dns"),
            None | Some(Value::Null | Value::Object(_))
        ) {
            return Err(broken("dns is not an object"));
        }
        let prev_result = Self(object.clone());
        for interface in prev_result.list("interfaces") {
            if !matches!(interface.get("name"), None | Some(Value::String(_))) {
                return Err(broken(format!(
                    "interfaces: the name in {interface} is not a string"
                )));
            }
        }
        for (key, part) in [("ips", "address"), ("routes", "dst")] {
            for entry in prev_result.list(key) {
                address_in(entry, part)
                    .ok_or_else(|| broken(format!("{key}: {entry} has no {part}")))?;
            }
        }
        Ok(prev_result)
    }

    /// Everything, to be written into a result.
    pub(crate) fn into_object(self) -> Map<String, Value> {
        self.0
    }

    /// Whether an interface of this name is inside a container: those have a sandbox.
    pub(super) fn has_container_interface(&self, ifname: &str) -> bool {
        self.list("interfaces").iter().any(|interface| {
            let text = |key| interface.get(key).and_then(Value::as_str).unwrap_or("");
            text("name") == ifname && !text("sandbox").is_empty()
        })
    }

    /// The addresses without their prefix lengths.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.list("ips")
            .iter()
            .filter_map(|ip| address_in(ip, "address"))
            .collect()
    }

    fn list(&self, key: &str) -> &[Value] {
        self.0
            .get(key)
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }
}

/// Reads addresses, each with or without a prefix length.
pub(super) fn addresses<'a>(
    texts: impl Iterator<Item = &'a str>,
    source: &str,
    code: u32,
) -> Result<Vec<IpAddr>, CniError> {
    texts
        .map(|text| {
            parse_address(text).ok_or_else(|| {
                CniError::new(code, format!("{source}: {text:?} is not an IP address"))
            })
        })
        .collect()
}

fn address_in(entry: &Value, key: &str) -> Option<IpAddr> {
    entry
        .get(key)
        .and_then(Value::as_str)
        .and_then(parse_address)
}

/// `10.0.0.1` or `10.0.0.1/24`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.trim().parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    match prefix {
        Some(prefix) if prefix.parse::<u8>().ok()? > bits => None,
        _ => Some(address),
    }
}

fn broken(what: impl Into<String>) -> CniError {
    CniError::new(code::DECODE, format!("prevResult: {}", what.into()))
}
