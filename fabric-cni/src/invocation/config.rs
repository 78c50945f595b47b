//! Pure: the network configuration on stdin.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use fabric_proto::cni::{ValidAttachment, code};
use serde_json::{Map, Value};

use super::{
    names::{NAME_RULE, is_name, wrong_with_ifname},
    prev_result::{PrevResult, addresses},
};
use crate::{error::CniError, version::CniVersion};

/// Where the daemon listens unless the configuration says otherwise.
const SOCKET_DEFAULT: &str = "/run/fabric/cni.sock";
/// Where the daemon keeps its state unless the configuration says otherwise.
const STATE_DIR_DEFAULT: &str = "/var/lib/fabric";
/// Most attachments in one GC (attachments), far above what a node holds.
const VALID_ATTACHMENTS_MAX: usize = 16_384;

/// A network configuration with the keys that every verb needs already checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) version: CniVersion,
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) state_dir: PathBuf,
    raw: Map<String, Value>,
}

impl Config {
    pub(super) fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        if stdin.iter().all(u8::is_ascii_whitespace) {
            return Err(CniError::new(
                code::DECODE,
                "no network configuration on stdin",
            ));
        }
        let raw: Map<String, Value> = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(
                code::DECODE,
                format!("network configuration on stdin is not a JSON object: {error}"),
            )
        })?;
        let version = CniVersion::from_config(raw.get("cniVersion"))?;
        let name = match raw.get("name") {
            None => return Err(invalid("network configuration has no name")),
            Some(Value::String(name)) if is_name(name) => name.clone(),
            Some(other) => {
                return Err(invalid(format!("network name {other} is not valid")).cure(NAME_RULE));
            }
        };
        Ok(Self {
            version,
            name,
            socket: path(&raw, "socket", SOCKET_DEFAULT)?,
            state_dir: path(&raw, "stateDir", STATE_DIR_DEFAULT)?,
            raw,
        })
    }

    /// Refuses what was asked for and will not be done, before anything is touched.
    pub(super) fn refuse_unsupported(&self) -> Result<(), CniError> {
        let Some(runtime_config) = self.object("runtimeConfig")? else {
            return Ok(());
        };
        for key in ["portMappings", "bandwidth"] {
            if let Some(value) = runtime_config.get(key).filter(|value| !is_empty(value)) {
                return Err(CniError::new(
                    code::UNSUPPORTED_FIELD,
                    format!("runtimeConfig.{key} = {value} is not supported"),
                )
                .cure(format!(
                    "remove \"{key}\" from the plugin's capabilities, or ask for nothing in it"
                )));
            }
        }
        Ok(())
    }

    /// `runtimeConfig.ips`, else `args.cni.ips`.
    pub(super) fn requested_addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let runtime = self
            .object("runtimeConfig")?
            .and_then(|config| config.get("ips"));
        let args = self
            .object("args")?
            .and_then(|args| args.get("cni"))
            .and_then(|cni| cni.get("ips"));
        let sources = [("runtimeConfig.ips", runtime), ("args.cni.ips", args)];
        for (key, value) in sources {
            let Some(value) = value.filter(|value| !is_empty(value)) else {
                continue;
            };
            let not_a_list = || invalid(format!("{key} = {value} is not a list of addresses"));
            let texts: Vec<&str> = value
                .as_array()
                .ok_or_else(not_a_list)?
                .iter()
                .map(|entry| entry.as_str().ok_or_else(not_a_list))
                .collect::<Result<_, _>>()?;
            return addresses(texts.into_iter(), key, code::INVALID_CONFIG);
        }
        Ok(Vec::new())
    }

    /// The result of earlier plugins, where there is one.
    pub(crate) fn prev_result(&self) -> Result<Option<PrevResult>, CniError> {
        match self.raw.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => PrevResult::parse(value).map(Some),
        }
    }

    /// What GC must leave alone; `None` when there is no list. A list that is null or empty says that
    /// nothing is valid; a list that is not there says nothing at all.
    pub(super) fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>, CniError> {
        const KEY: &str = "cni.dev/valid-attachments";
        // libcni sends this misspelt key beside the right one.
        const KEY_OLD: &str = "cni.dev/attachments";
        let entries = match self.raw.get(KEY).or_else(|| self.raw.get(KEY_OLD)) {
            None => return Ok(None),
            Some(Value::Null) => return Ok(Some(Vec::new())),
            Some(Value::Array(entries)) if entries.len() <= VALID_ATTACHMENTS_MAX => entries,
            Some(Value::Array(_)) => {
                return Err(invalid(format!(
                    "{KEY} holds more than {VALID_ATTACHMENTS_MAX} attachments"
                )));
            }
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
                return Err(invalid(format!("{KEY} is not a list")));
            }
        };
        let mut valid = Vec::with_capacity(entries.len());
        for entry in entries {
            let text = |key| entry.get(key).and_then(Value::as_str);
            let (Some(container_id), Some(ifname)) = (text("containerID"), text("ifname")) else {
                return Err(invalid(format!(
                    "{KEY}: {entry} does not hold containerID and ifname"
                )));
            };
            // Names that no ADD is let through with belong to no attachment.
            if is_name(container_id) && wrong_with_ifname(ifname).is_none() {
                valid.push(ValidAttachment {
                    container_id: container_id.to_owned(),
                    ifname: ifname.to_owned(),
                });
            }
        }
        Ok(Some(valid))
    }

    fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, CniError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(invalid(format!("{key} = {other} is not an object"))),
        }
    }
}

/// Nothing is asked for: null, or a collection in which everything is empty or zero.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(entries) => entries.is_empty(),
        Value::Object(object) => object
            .values()
            .all(|value| is_empty(value) || value.as_f64() == Some(0.0)),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn path(raw: &Map<String, Value>, key: &str, default: &str) -> Result<PathBuf, CniError> {
    match raw.get(key) {
        None => Ok(PathBuf::from(default)),
        Some(Value::String(text)) if Path::new(text).is_absolute() && !text.contains('\0') => {
            Ok(PathBuf::from(text))
        }
        Some(other) => Err(invalid(format!("{key} = {other} is not an absolute path"))),
    }
}

fn invalid(msg: impl Into<String>) -> CniError {
    CniError::new(code::INVALID_CONFIG, msg)
}
