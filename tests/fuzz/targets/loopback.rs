//! The plugin `loopback` without its process and without a kernel: what it accepts and says.

use fabric_cni::loopback::{Decision, Lo, conclude, decide};
use fabric_core::testing::packets::Generator;

use super::plugin::{environment, stdin};
use crate::fuzz::{
    Outcome, Target,
    call::Call,
    oracle::{Words, words},
};

/// `decide`, then `conclude` with a `lo` that has no address.
pub(super) struct Loopback;

impl Target for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        Call::make(corpus, random).encode()
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let call = Call::decode(input);
        let verb = call.variable("CNI_COMMAND").unwrap_or_default();
        let (printed, is_acted) = match decide(environment(&call), || stdin(&call)) {
            Decision::Print(printed) => (printed, false),
            Decision::Act(accepted) => (conclude(&accepted, Ok(Lo::default())), true),
        };
        let words = words(printed.stdout.as_bytes(), printed.status.into())?;
        match (&words, verb) {
            (Words::Result(version, _), b"ADD") if is_acted => {
                Ok(format!("ADD result {version}").into())
            }
            (Words::Silence, b"DEL" | b"CHECK") if is_acted => Ok("done".into()),
            // Of a namespace that is gone.
            (Words::Silence, b"DEL") if call.variable("CNI_NETNS").is_none_or(<[u8]>::is_empty) => {
                Ok("DEL without a namespace".into())
            }
            (Words::Silence, b"GC" | b"STATUS") if !is_acted => Ok("nothing to do".into()),
            (Words::Silence, b"") if !is_acted => Ok("about".into()),
            (Words::Versions, b"VERSION") => Ok("VERSION".into()),
            (Words::Error(code), _) if !is_acted => Ok(format!("refused {code}").into()),
            _ => Err(format!("it said {words:?}")),
        }
    }

    fn expected(&self) -> &'static [&'static str] {
        &[
            "about",
            "VERSION",
            "ADD result 0.3.1",
            "ADD result 0.4.0",
            "ADD result 1.0.0",
            "ADD result 1.1.0",
            "done",
            "nothing to do",
            "refused 1",
            "refused 4",
            "refused 5",
            "refused 6",
            "refused 7",
        ]
    }

    fn per_mille(&self) -> u64 {
        100
    }
}
