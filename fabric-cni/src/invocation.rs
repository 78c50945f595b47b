//! Pure: the environment and stdin of one call in, a checked [`Invocation`] out.
//!
//! Nothing here touches the file system, the network or the process environment.

mod arguments;
mod config;
mod names;
mod prev_result;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use fabric_proto::cni::{AttachmentKey, FRAME_BYTES_MAX, PodIdentity, ValidAttachment, code};
use serde_json::Value;

use crate::{error::CniError, version::CniVersion};
pub(crate) use config::Config;
pub(crate) use prev_result::PrevResult;

use arguments::{Arguments, is_yes};
use names::{NAME_RULE, check_ifname, is_name};

/// Largest network configuration read from stdin (bytes).
pub const STDIN_BYTES_MAX: usize = 4 * 1024 * 1024;
// The list of a GC takes as much room in a frame as in the configuration it came in.
const _: () = assert!(STDIN_BYTES_MAX < FRAME_BYTES_MAX);
/// The variables that the plugin looks at.
pub const VARIABLES: [&str; 7] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
    "CNI_NETNS_OVERRIDE",
];

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// One checked call.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// Version of the configuration, and so of the result.
    pub(crate) version: CniVersion,
    /// The daemon's CNI socket.
    pub(crate) socket: PathBuf,
    /// The daemon's state directory.
    pub(crate) state_dir: PathBuf,
    /// CNI_NETNS where the verb has one and it is not empty.
    pub(crate) netns: Option<String>,
    /// CNI_NETNS_OVERRIDE: the namespace may be the plugin's own.
    pub(crate) own_netns_allowed: bool,
    /// What to do.
    pub(crate) action: Action,
}

/// The verb with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Add {
        key: AttachmentKey,
        netns: String,
        pod: PodIdentity,
        /// Addresses asked for.
        addresses: Vec<IpAddr>,
        /// Result of the plugins before this one in the chain.
        prev_result: Option<PrevResult>,
    },
    Del {
        key: AttachmentKey,
    },
    Check {
        key: AttachmentKey,
        netns: String,
        /// Addresses in the runtime's prevResult.
        addresses: Vec<IpAddr>,
    },
    Gc {
        network: String,
        /// What must be left alone; `None`: the runtime sent no list.
        valid: Option<Vec<ValidAttachment>>,
    },
    Status,
}

/// [`VARIABLES`] by name, those that are set.
pub type Environment = BTreeMap<&'static str, String>;

/// The verb in CNI_COMMAND; `None` when the variable is missing: a person has called, not a runtime.
pub(crate) fn command(environment: &Environment) -> Result<Option<Verb>, CniError> {
    let Some(command) = given(environment, "CNI_COMMAND") else {
        return Ok(None);
    };
    let verb = match command {
        "ADD" => Verb::Add,
        "DEL" => Verb::Del,
        "CHECK" => Verb::Check,
        "GC" => Verb::Gc,
        "STATUS" => Verb::Status,
        "VERSION" => Verb::Version,
        unknown => {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("unknown CNI_COMMAND: {unknown}"),
            )
            .cure("use ADD, DEL, CHECK, GC, STATUS or VERSION"));
        }
    };
    Ok(Some(verb))
}

/// The version to word an error in, when the configuration as a whole was refused.
pub(crate) fn version_for_errors(stdin: &[u8]) -> Option<CniVersion> {
    let config: Value = serde_json::from_slice(stdin).ok()?;
    CniVersion::from_config(config.get("cniVersion")).ok()
}

impl Invocation {
    /// Checks the environment and the network configuration of a call to `verb`.
    pub(crate) fn parse(
        verb: Verb,
        environment: &Environment,
        stdin: &[u8],
    ) -> Result<Self, CniError> {
        let config = config_of(verb, environment, stdin)?;
        let (netns, action) = match verb {
            Verb::Add => (netns(environment), add(environment, &config)?),
            Verb::Del => (
                netns(environment),
                Action::Del {
                    key: key(environment, &config)?,
                },
            ),
            Verb::Check => (netns(environment), check(environment, &config)?),
            Verb::Gc => (
                None,
                Action::Gc {
                    network: config.name.clone(),
                    valid: config.valid_attachments()?,
                },
            ),
            Verb::Status | Verb::Version => (None, Action::Status),
        };
        Ok(Self {
            version: config.version,
            socket: config.socket.clone(),
            state_dir: config.state_dir,
            netns,
            own_netns_allowed: own_netns_allowed(environment),
            action,
        })
    }
}

/// The configuration on stdin, once the variables that `verb` needs are there, and where the
/// configuration's version has that verb.
pub(crate) fn config_of(
    verb: Verb,
    environment: &Environment,
    stdin: &[u8],
) -> Result<Config, CniError> {
    require(verb, environment)?;
    let config = Config::parse(stdin)?;
    match verb {
        Verb::Check => config.version.at_least(CniVersion::V0_4_0, "CHECK")?,
        Verb::Gc => config.version.at_least(CniVersion::V1_1_0, "GC")?,
        Verb::Status => config.version.at_least(CniVersion::V1_1_0, "STATUS")?,
        Verb::Add | Verb::Del | Verb::Version => {}
    }
    Ok(config)
}

fn add(environment: &Environment, config: &Config) -> Result<Action, CniError> {
    let key = key(environment, config)?;
    let arguments = Arguments::parse(given(environment, "CNI_ARGS").unwrap_or_default())?;
    config.refuse_unsupported()?;
    let prev_result = config.prev_result()?;
    if let Some(prev_result) = &prev_result
        && prev_result.has_container_interface(&key.ifname)
    {
        return Err(CniError::new(
            code::INTERFACE_EXISTS,
            format!(
                "prevResult already holds an interface {:?} in the container",
                key.ifname
            ),
        )
        .cure("an earlier plugin of the chain made it: make this plugin the first, or remove that one"));
    }
    let mut addresses = config.requested_addresses()?;
    if addresses.is_empty() {
        addresses = arguments.addresses;
    }
    Ok(Action::Add {
        key,
        netns: netns(environment).unwrap_or_default(),
        pod: arguments.pod,
        addresses,
        prev_result,
    })
}

fn check(environment: &Environment, config: &Config) -> Result<Action, CniError> {
    let key = key(environment, config)?;
    let Some(prev_result) = config.prev_result()? else {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "CHECK needs prevResult in the network configuration, and it is missing",
        ));
    };
    Ok(Action::Check {
        key,
        netns: netns(environment).unwrap_or_default(),
        addresses: prev_result.addresses(),
    })
}

/// Names every missing variable at once.
fn require(verb: Verb, environment: &Environment) -> Result<(), CniError> {
    let required: &[&str] = match verb {
        Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
        Verb::Gc | Verb::Status => &["CNI_PATH"],
        Verb::Version => &[],
    };
    let missing: Vec<&str> = required
        .iter()
        .copied()
        .filter(|name| given(environment, name).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CniError::new(
        code::INVALID_ENVIRONMENT,
        format!(
            "required environment variables missing: {}",
            missing.join(", ")
        ),
    ))
}

/// Which interface of which container, by names that are safe to use.
pub(crate) fn key(environment: &Environment, config: &Config) -> Result<AttachmentKey, CniError> {
    let container_id = given(environment, "CNI_CONTAINERID").unwrap_or_default();
    if !is_name(container_id) {
        return Err(CniError::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_CONTAINERID {container_id:?} is not valid"),
        )
        .cure(NAME_RULE));
    }
    let ifname = given(environment, "CNI_IFNAME").unwrap_or_default();
    check_ifname(ifname)?;
    Ok(AttachmentKey {
        network: config.name.clone(),
        container_id: container_id.to_owned(),
        ifname: ifname.to_owned(),
    })
}

/// CNI_NETNS, where it is set and not empty.
pub(crate) fn netns(environment: &Environment) -> Option<String> {
    given(environment, "CNI_NETNS").map(str::to_owned)
}

/// CNI_NETNS_OVERRIDE: the namespace may be the plugin's own.
pub(crate) fn own_netns_allowed(environment: &Environment) -> bool {
    given(environment, "CNI_NETNS_OVERRIDE").is_some_and(is_yes)
}

/// A variable's value, where it is set and not empty.
fn given<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests;
