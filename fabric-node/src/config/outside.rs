//! `[outside]` and `[host]`: what is not the fabric's, and the host that carries it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::place::{Misplaced, Source};
use crate::sys::sysctl::PROC_SYS;

/// `[outside]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutsideConfig {
    /// `outside.via`: `"none"` (default) or `"host"`.
    pub via: Via,
    /// `outside.masquerade`: whether what pods send to the outside leaves with the host's address.
    /// `false`: somebody else translates it, or the network outside knows the way to pods.
    pub masquerade: bool,
}

/// Where packets go that nobody in the fabric has the address of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Nowhere: there is no route.
    #[default]
    None,
    /// To the host, whose kernel translates and routes.
    Host,
}

impl OutsideConfig {
    /// Whether there is no way to the outside.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.via == Via::None
    }

    /// Nothing is masqueraded that does not leave by the host.
    pub(super) fn check(self, source: &Source<'_>) -> Result<(), Misplaced> {
        if self.masquerade && self.via == Via::None {
            let problem = "nothing leaves by the host: set `via = \"host\"` as well";
            return Err(source.at_key("outside.masquerade", problem.to_owned()));
        }
        Ok(())
    }
}

/// `[host]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// `host.proc_sys`: where the kernel's settings are found and changed. [`PROC_SYS`].
    pub proc_sys: PathBuf,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            proc_sys: PROC_SYS.into(),
        }
    }
}
