//! The CNI plugin: environment and stdin in, one request to the daemon, one result out.
//!
//! The runtime executes it once per call, so it starts no threads and reads nothing but its
//! environment, stdin and the daemon's socket. What it does with them is in the library. Under the
//! file name `loopback` it is the plugin of that name, and asks the kernel in the daemon's place.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read as _},
    process::ExitCode,
};

use fabric_cni::{CniError, Decision, Environment, Printed, STDIN_BYTES_MAX, VARIABLES, loopback};

fn main() -> ExitCode {
    fabric_cni::report_panics();
    let is_loopback = std::env::args_os()
        .next()
        .is_some_and(|program| loopback::is_called(&program));
    let printed = if is_loopback { set_lo() } else { attach() };
    ExitCode::from(printed.write())
}

fn attach() -> Printed {
    match fabric_cni::decide(environment(), read_stdin) {
        Decision::Print(printed) => printed,
        Decision::Ask(invocation) => {
            let answer = fabric_cni::ask(&invocation);
            fabric_cni::conclude(&invocation, answer)
        }
    }
}

fn set_lo() -> Printed {
    match loopback::decide(environment(), read_stdin) {
        loopback::Decision::Print(printed) => printed,
        loopback::Decision::Act(call) => {
            let found = loopback::act(&call);
            loopback::conclude(&call, found)
        }
    }
}

/// The variables of the CNI specification, and no others: nothing else steers the plugin.
fn environment() -> Result<Environment, CniError> {
    let mut environment = Environment::new();
    for name in VARIABLES {
        match std::env::var(name) {
            Ok(value) => drop(environment.insert(name, value)),
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => return Err(CniError::not_utf8(name)),
        }
    }
    Ok(environment)
}

/// As much of stdin as shows that it is too long.
fn read_stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(STDIN_BYTES_MAX).unwrap_or(u64::MAX);
    io::stdin()
        .lock()
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
