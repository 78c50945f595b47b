//! The CNI plugin: environment and stdin in, one request to the daemon, one result out.
//!
//! The runtime executes it once per call, so it starts no threads and reads nothing but its
//! environment, stdin and the daemon's socket. It decides nothing: [`invocation`] checks what the
//! runtime says, [`client`] asks the daemon, [`output`] words the answer.
#![forbid(unsafe_code)]

mod client;
mod error;
mod invocation;
mod output;
mod pending;
mod version;

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    process::ExitCode,
};

use fabric_proto::cni::code;

use crate::{
    error::CniError,
    invocation::{Invocation, STDIN_BYTES_MAX, Verb},
};

fn main() -> ExitCode {
    let environment = match environment() {
        Ok(environment) => environment,
        Err(error) => return output::failure(None, &error),
    };
    let command = match invocation::command(&environment) {
        Ok(Some(command)) => command,
        Ok(None) => return output::about(),
        Err(error) => return output::failure(None, &error),
    };
    if command == Verb::Version {
        return output::versions();
    }
    let stdin = match read_stdin() {
        Ok(stdin) => stdin,
        Err(error) => return output::failure(None, &error),
    };
    let invocation = match Invocation::parse(command, &environment, &stdin) {
        Ok(invocation) => invocation,
        Err(error) => return output::failure(invocation::version_for_errors(&stdin), &error),
    };
    match run(&invocation) {
        Ok(done) => output::success(&invocation, &done),
        Err(error) => output::failure(Some(invocation.version), &error),
    }
}

fn run(invocation: &Invocation) -> Result<client::Done, CniError> {
    if let Some(netns) = &invocation.netns
        && !invocation.own_netns_allowed
        && is_own_netns(netns)
    {
        return Err(CniError::new(
            code::INVALID_NETNS,
            format!("CNI_NETNS {netns:?} is the network namespace of the plugin itself"),
        )
        .cure("give the container a namespace of its own, or set CNI_NETNS_OVERRIDE=1"));
    }
    client::call(invocation)
}

/// A path that cannot be examined is not ours: the daemon says what is wrong with it.
fn is_own_netns(path: &str) -> bool {
    let identity = |path: &str| {
        std::fs::metadata(path)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()))
    };
    identity(path).is_some_and(|theirs| identity("/proc/self/ns/net") == Some(theirs))
}

/// The variables of the CNI specification, and no others: nothing else steers the plugin.
fn environment() -> Result<BTreeMap<&'static str, String>, CniError> {
    let mut environment = BTreeMap::new();
    for name in invocation::VARIABLES {
        match std::env::var(name) {
            Ok(value) => drop(environment.insert(name, value)),
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(CniError::new(
                    code::INVALID_ENVIRONMENT,
                    format!("{name} is not UTF-8"),
                ));
            }
        }
    }
    Ok(environment)
}

fn read_stdin() -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(STDIN_BYTES_MAX).unwrap_or(u64::MAX);
    io::stdin()
        .lock()
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| CniError::new(code::IO, format!("cannot read stdin: {error}")))?;
    if bytes.len() > STDIN_BYTES_MAX {
        return Err(CniError::new(
            code::DECODE,
            format!("network configuration on stdin is larger than {STDIN_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}
