//! Versions of the CNI protocol that the plugin speaks.

use std::fmt;

use fabric_proto::cni::code;
use serde_json::Value;

use crate::error::CniError;

/// A version of the protocol, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CniVersion {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl CniVersion {
    /// All of them, oldest first.
    pub(crate) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub(crate) const NEWEST: Self = Self::V1_1_0;
    /// What a configuration without `cniVersion` means (CNI specification, "Version").
    const WHEN_MISSING: &str = "0.1.0";

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads the `cniVersion` of a network configuration.
    pub(crate) fn from_config(value: Option<&Value>) -> Result<Self, CniError> {
        let text = match value {
            None => Self::WHEN_MISSING,
            Some(Value::String(text)) if text.is_empty() => Self::WHEN_MISSING,
            Some(Value::String(text)) => text,
            Some(other) => {
                return Err(CniError::new(
                    code::DECODE,
                    format!("cniVersion is {other}, not a string"),
                ));
            }
        };
        if let Some(version) = Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
        {
            return Ok(version);
        }
        if !is_dotted_number(text) {
            return Err(CniError::new(
                code::DECODE,
                format!("cniVersion {text:?} is not a version number"),
            ));
        }
        Err(
            Self::incompatible(format!("cniVersion {text:?} is not supported")).cure(format!(
                "the configuration says {text:?}; the plugin supports {}",
                supported()
            )),
        )
    }

    /// Refuses a verb that came into the protocol later.
    pub(crate) fn at_least(self, least: Self, verb: &str) -> Result<(), CniError> {
        if self >= least {
            return Ok(());
        }
        Err(
            Self::incompatible(format!("{verb} does not exist in cniVersion {self}")).cure(
                format!(
                    "the configuration says {self}; {verb} needs {least} or later, and the plugin supports {}",
                    supported()
                ),
            ),
        )
    }

    fn incompatible(msg: String) -> CniError {
        CniError::new(code::INCOMPATIBLE_VERSION, msg)
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The supported versions as a list for people.
pub(crate) fn supported() -> String {
    CniVersion::ALL.map(CniVersion::as_str).join(", ")
}

/// `1.2.3`, with an optional suffix after `-` or `+` as in semantic versioning.
fn is_dotted_number(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let mut parts = 0;
    core.split('.').all(|part| {
        parts += 1;
        !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit())
    }) && (1..=3).contains(&parts)
}
