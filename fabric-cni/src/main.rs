//! The CNI plugin: environment and stdin in, one request to the daemon, one result out.
//!
//! The runtime executes it once per call, so it starts no threads and reads nothing but its
//! environment, stdin and the daemon's socket. What it does with them is in the library.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use fabric_cni::{CniError, Decision, Environment, Printed, STDIN_BYTES_MAX, VARIABLES};

/// Exit status when the result did not reach the runtime, which then undoes the call.
const UNPRINTED: u8 = 1;

fn main() -> ExitCode {
    let printed = match fabric_cni::decide(environment(), read_stdin) {
        Decision::Print(printed) => printed,
        Decision::Ask(invocation) => {
            let answer = fabric_cni::ask(&invocation);
            fabric_cni::conclude(&invocation, answer)
        }
    };
    print(&printed)
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

fn print(printed: &Printed) -> ExitCode {
    let _ = io::stderr().write_all(printed.stderr.as_bytes());
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(printed.stdout.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => ExitCode::from(printed.status),
        Err(error) => {
            let _ = writeln!(io::stderr(), "fabric-cni: cannot write to stdout: {error}");
            ExitCode::from(UNPRINTED)
        }
    }
}
