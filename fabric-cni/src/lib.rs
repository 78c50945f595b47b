//! What the plugin decides: the call of a runtime in, words for it or a question to the daemon out;
//! then the daemon's answer in, words out.
//!
//! The program `fabric-cni` is a thin shell around [`decide`], [`ask`] and [`conclude`]. The first and
//! the last are pure and take anything: they never panic. Under the name `loopback` the program is
//! another plugin: [`loopback`].
#![forbid(unsafe_code)]

mod client;
mod error;
mod invocation;
pub mod loopback;
mod namespace;
mod output;
mod panics;
mod pending;
mod version;

use std::io;

use fabric_proto::cni::{Response, code};

use crate::invocation::{Action, Verb};
pub use crate::{
    client::ask,
    error::CniError,
    invocation::{Environment, Invocation, STDIN_BYTES_MAX, VARIABLES},
    output::Printed,
    panics::report_panics,
};

/// What to do about a call.
#[derive(Debug)]
pub enum Decision {
    /// Nobody needs to be asked: print this and end.
    Print(Printed),
    /// The daemon decides: [`ask`] it, then [`conclude`].
    Ask(Box<Invocation>),
}

/// Checks a call. `stdin` is called only for verbs that need it; what it gives is refused if it is
/// longer than [`STDIN_BYTES_MAX`].
pub fn decide(
    environment: Result<Environment, CniError>,
    stdin: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Decision {
    const WHAT: &str = "attaches containers to the fabric";
    let (verb, environment, stdin) = match listen(environment, stdin, "fabric-cni", WHAT) {
        Listened::Print(printed) => return Decision::Print(printed),
        Listened::Call {
            verb,
            environment,
            stdin,
        } => (verb, environment, stdin),
    };
    match Invocation::parse(verb, &environment, &stdin) {
        // Without a list there is nothing to be freed, and nothing to be asked.
        Ok(Invocation {
            action: Action::Gc { valid: None, .. },
            ..
        }) => Decision::Print(Printed::default()),
        Ok(invocation) => Decision::Ask(Box::new(invocation)),
        Err(error) => Decision::Print(output::failure(
            invocation::version_for_errors(&stdin),
            &error,
        )),
    }
}

/// Words what the daemon answered, or why nobody did.
#[must_use]
pub fn conclude(invocation: &Invocation, answer: Result<Response, CniError>) -> Printed {
    match answer.and_then(|response| client::done(invocation, response)) {
        Ok(done) => output::success(invocation, &done),
        Err(error) => output::failure(Some(invocation.version), &error),
    }
}

/// What a runtime said, as far as it is the same for all plugins.
enum Listened {
    /// Nothing needs to be done.
    Print(Printed),
    /// A call to be checked.
    Call {
        verb: Verb,
        environment: Environment,
        stdin: Vec<u8>,
    },
}

/// Answers those who want to know what this is, and reads the rest of a call.
fn listen(
    environment: Result<Environment, CniError>,
    stdin: impl FnOnce() -> io::Result<Vec<u8>>,
    program: &str,
    what: &str,
) -> Listened {
    let refused = |error| Listened::Print(output::failure(None, &error));
    let environment = match environment {
        Ok(environment) => environment,
        Err(error) => return refused(error),
    };
    let verb = match invocation::command(&environment) {
        Ok(Some(Verb::Version)) => return Listened::Print(output::versions()),
        Ok(Some(verb)) => verb,
        Ok(None) => return Listened::Print(output::about(program, what)),
        Err(error) => return refused(error),
    };
    match stdin().map_err(unreadable).and_then(within_limit) {
        Ok(stdin) => Listened::Call {
            verb,
            environment,
            stdin,
        },
        Err(error) => refused(error),
    }
}

fn unreadable(error: io::Error) -> CniError {
    CniError::new(code::IO, format!("cannot read stdin: {error}"))
}

fn within_limit(stdin: Vec<u8>) -> Result<Vec<u8>, CniError> {
    if stdin.len() > STDIN_BYTES_MAX {
        return Err(CniError::new(
            code::DECODE,
            format!("network configuration on stdin is larger than {STDIN_BYTES_MAX} bytes"),
        ));
    }
    Ok(stdin)
}
