//! Exit codes, and which failure has which.

use std::{fmt, process::ExitCode};

use crate::{admin::client::ClientError, causes::with_causes};

/// Failed, degraded, or something required is missing.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// Installed, but runtimes read the network of another plugin first.
pub const NOT_IN_FORCE: u8 = 3;
/// The daemon cannot be reached.
pub const UNREACHABLE: u8 = 4;
/// A wait took too long.
pub const TIMED_OUT: u8 = 124;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The daemon did not answer, or not properly.
    Daemon(ClientError),
    /// What was waited for did not come.
    TimedOut(String),
    /// Anything else.
    Other(anyhow::Error),
}

impl Failure {
    /// The exit code of the process.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.number())
    }

    fn number(&self) -> u8 {
        match self {
            Self::Daemon(error) if error.is_unreachable() => UNREACHABLE,
            Self::Daemon(_) | Self::Other(_) => FAILED,
            Self::TimedOut(_) => TIMED_OUT,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon(error) => error.fmt(f),
            Self::TimedOut(what) => f.write_str(what),
            // The whole chain of causes on one line.
            Self::Other(error) => f.write_str(&with_causes(error)),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Daemon(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.into())
    }
}
