//! The CNI plugin without its process: environment, stdin and the daemon's answer in, words out.

use std::io;

use fabric_cni::{CniError, Decision, Environment, VARIABLES, conclude, decide};
use fabric_core::testing::packets::Generator;
use fabric_proto::cni::code;
use serde_json::Value;

use crate::fuzz::{
    Outcome, Target,
    call::Call,
    oracle::{Words, check_accepted, check_concluded, words},
};

/// `decide`, then `conclude`.
pub(super) struct Plugin;

impl Target for Plugin {
    fn name(&self) -> &'static str {
        "plugin"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        Call::make(corpus, random).encode()
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let call = Call::decode(input);
        let invocation = match decide(environment(&call), || stdin(&call)) {
            Decision::Print(printed) => {
                let words = words(printed.stdout.as_bytes(), printed.status.into())?;
                return decided(&call, &words, &printed.stderr);
            }
            Decision::Ask(invocation) => invocation,
        };
        check_accepted(&call)?;
        let response = call.response();
        let answer = response.clone().ok_or_else(|| CniError {
            code: code::TRY_AGAIN,
            msg: "the daemon broke off".into(),
            details: String::new(),
        });
        let printed = conclude(&invocation, answer);
        let words = words(printed.stdout.as_bytes(), printed.status.into())?;
        check_concluded(&call, response.as_ref(), &words)?;
        Ok(match words {
            Words::Result(version, _) => format!("ADD result {version}").into(),
            Words::Error(code) => after(code),
            Words::Silence | Words::Versions => {
                let verb = call.variable("CNI_COMMAND").unwrap_or_default();
                format!("{} done", String::from_utf8_lossy(verb)).into()
            }
        })
    }

    fn expected(&self) -> &'static [&'static str] {
        &[
            "about",
            "VERSION",
            "ADD result 0.3.1",
            "ADD result 0.4.0",
            "ADD result 1.0.0",
            "ADD result 1.1.0",
            "DEL done",
            "CHECK done",
            "GC done",
            "STATUS done",
            "refused 1",
            "refused 2",
            "refused 4",
            "refused 5",
            "refused 6",
            "refused 7",
            "refused 100",
            "failed 5",
            "failed 6",
            "failed 7",
            "failed 8",
            "failed 11",
            "failed 50",
            "failed 51",
            "failed 100",
            "failed 101",
        ]
    }
}

/// A call that ended without a question to the daemon.
fn decided(call: &Call, words: &Words, stderr: &str) -> Result<Outcome, String> {
    let verb = call.variable("CNI_COMMAND").unwrap_or_default();
    match words {
        Words::Silence if verb.is_empty() && stderr.contains("CNI") => Ok("about".into()),
        Words::Versions if verb == b"VERSION" => Ok("VERSION".into()),
        // Without a list there is nothing to free, and nobody to ask.
        Words::Silence if verb == b"GC" && !lists_attachments(call) => Ok("GC of nothing".into()),
        Words::Error(code) => Ok(format!("refused {code}").into()),
        Words::Silence | Words::Versions | Words::Result(..) => {
            Err(format!("it said {words:?} and asked nobody"))
        }
    }
}

fn lists_attachments(call: &Call) -> bool {
    let config: Value = serde_json::from_slice(&call.stdin).unwrap_or_default();
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    keys.iter().any(|key| config.get(*key).is_some())
}

/// Codes that a daemon has no use for are one outcome.
fn after(code: u64) -> Outcome {
    match code {
        1..=11 | 50 | 51 | 100 | 101 | 999 => format!("failed {code}").into(),
        _ => "failed with another code".into(),
    }
}

/// As the program reads it: the variables it knows, which must be text.
pub(super) fn environment(call: &Call) -> Result<Environment, CniError> {
    let mut environment = Environment::new();
    for name in VARIABLES {
        if let Some(value) = call.variable(name) {
            let value = str::from_utf8(value).map_err(|_| CniError::not_utf8(name))?;
            environment.insert(name, value.to_owned());
        }
    }
    Ok(environment)
}

pub(super) fn stdin(call: &Call) -> io::Result<Vec<u8>> {
    if call.stdin_is_broken() {
        Err(io::ErrorKind::BrokenPipe.into())
    } else {
        Ok(call.stdin.clone())
    }
}
