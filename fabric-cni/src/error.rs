//! What goes wrong, in the words of the CNI specification.

use fabric_proto::cni::{Failure, code};
use thiserror::Error;

/// A failed call: code, what is wrong and where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{msg} (code {code})")]
pub struct CniError {
    /// Error code of the CNI specification, or ours from 100 on.
    pub code: u32,
    /// One line.
    pub msg: String,
    /// What to do; may be empty.
    pub details: String,
}

impl CniError {
    pub(crate) fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The environment variable `name` holds bytes that are no text.
    #[must_use]
    pub fn not_utf8(name: &str) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, format!("{name} is not UTF-8"))
    }

    /// CNI_NETNS is the namespace that the plugin itself runs in.
    pub(crate) fn own_netns(netns: &str) -> Self {
        Self::new(
            code::INVALID_NETNS,
            format!("CNI_NETNS {netns:?} is the network namespace of the plugin itself"),
        )
        .cure("give the container a namespace of its own, or set CNI_NETNS_OVERRIDE=1")
    }

    /// A panic: a mistake in the plugin itself.
    pub(crate) fn internal(what: &str) -> Self {
        Self::new(code::INTERNAL, format!("the plugin failed: {what}"))
            .cure("this is a fault of the plugin: report it with this message and the call's input")
    }

    /// Adds what to do about it.
    pub(crate) fn cure(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

impl From<Failure> for CniError {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code,
            msg: failure.msg,
            details: failure.details,
        }
    }
}
