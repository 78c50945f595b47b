//! Pure: CNI_ARGS.

use std::net::IpAddr;

use fabric_proto::cni::{PodIdentity, code};

use super::prev_result::addresses;
use crate::error::CniError;

/// What CNI_ARGS says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// Who the pod is.
    pub(super) pod: PodIdentity,
    /// Addresses asked for.
    pub(super) addresses: Vec<IpAddr>,
}

impl Arguments {
    /// Reads `NAME=VALUE;NAME=VALUE`. The order means nothing: runtimes shuffle it.
    pub(super) fn parse(text: &str) -> Result<Self, CniError> {
        let pairs = pairs(text)?;
        let ignore_unknown = pairs
            .iter()
            .any(|&(name, value)| name == "IgnoreUnknown" && is_yes(value));
        let mut arguments = Self::default();
        for (name, value) in pairs {
            let text = || (!value.is_empty()).then(|| value.to_owned());
            match name {
                "K8S_POD_NAMESPACE" => arguments.pod.namespace = text(),
                "K8S_POD_NAME" => arguments.pod.name = text(),
                "K8S_POD_UID" => arguments.pod.uid = text(),
                "K8S_POD_INFRA_CONTAINER_ID" | "IgnoreUnknown" => {}
                "IP" => {
                    arguments.addresses = addresses(
                        value.split(',').filter(|part| !part.is_empty()),
                        "CNI_ARGS IP",
                        code::INVALID_ENVIRONMENT,
                    )?;
                }
                _ if ignore_unknown => {}
                unknown => {
                    return Err(invalid(format!("CNI_ARGS: unknown argument {unknown:?}"))
                        .cure("remove it, or add IgnoreUnknown=1"));
                }
            }
        }
        Ok(arguments)
    }
}

/// `1` or `true`: how runtimes say yes in a variable.
pub(super) fn is_yes(value: &str) -> bool {
    value == "1" || value.eq_ignore_ascii_case("true")
}

fn pairs(text: &str) -> Result<Vec<(&str, &str)>, CniError> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split('=').collect::<Vec<_>>()[..] {
            [name, value] => Ok((name, value)),
            _ => Err(invalid(format!(
                "CNI_ARGS: {pair:?} is not one NAME=VALUE pair"
            ))),
        })
        .collect()
}

fn invalid(msg: String) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, msg)
}
