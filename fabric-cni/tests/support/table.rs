//! Tables of calls and what comes of them.

use super::{Call, Outcome};

/// One call, and what must come of it. The name begins with the item that the row proves.
pub(crate) struct Row {
    pub name: &'static str,
    pub call: Call,
    pub expected: Expected,
}

/// What must come of a call.
#[derive(Clone, Copy)]
pub(crate) enum Expected {
    /// Status 1, one line of error JSON with this code, and these words in it.
    Refused {
        code: u64,
        words: &'static [&'static str],
        /// Whether the daemon may have been asked.
        asks: bool,
    },
    /// Status 0 and no output at all.
    Silent {
        /// Requests to the daemon.
        requests: usize,
    },
    /// Status 0, and the rest as the function says.
    Prints(fn(&Outcome)),
    /// The function makes the calls.
    By(fn(Call)),
}

/// Refused before the daemon is asked.
pub(crate) fn refused(code: u64, words: &'static [&'static str]) -> Expected {
    let asks = false;
    Expected::Refused { code, words, asks }
}

/// Refused, and the daemon may have been asked.
pub(crate) fn asked(code: u64, words: &'static [&'static str]) -> Expected {
    let asks = true;
    Expected::Refused { code, words, asks }
}

/// Done by the daemon.
pub(crate) fn silent() -> Expected {
    Expected::Silent { requests: 1 }
}

/// Done without the daemon.
pub(crate) fn silent_alone() -> Expected {
    Expected::Silent { requests: 0 }
}

/// A table: `"C1 what": call => expected;`.
macro_rules! rows {
    ($($name:literal: $call:expr => $expected:expr;)*) => {
        vec![$($crate::support::table::Row {
            name: $name,
            call: $call,
            expected: $expected,
        }),*]
    };
}
pub(crate) use rows;

/// Each row holds.
#[expect(
    clippy::print_stderr,
    reason = "names the row whose own assertion fails"
)]
pub(crate) fn check(rows: Vec<Row>) {
    for row in rows {
        let name = row.name;
        match row.expected {
            Expected::Refused { code, words, asks } => {
                let outcome = row.call.run();
                check_refused(name, &row.call, &outcome, code, words);
                assert!(asks || outcome.requests.is_empty(), "{name}: {outcome:?}");
            }
            Expected::Silent { requests } => {
                let outcome = row.call.run();
                assert_eq!(outcome.status, 0, "{name}: {outcome:?}");
                let said = outcome.stdout.len() + outcome.stderr.len();
                assert_eq!(said, 0, "{name}: {outcome:?}");
                assert_eq!(outcome.requests.len(), requests, "{name}: {outcome:?}");
            }
            Expected::Prints(check) => {
                eprintln!("{name}");
                let outcome = row.call.run();
                assert_eq!(outcome.status, 0, "{name}: {outcome:?}");
                check(&outcome);
            }
            Expected::By(check) => {
                eprintln!("{name}");
                check(row.call);
            }
        }
    }
}

fn check_refused(name: &str, call: &Call, outcome: &Outcome, code: u64, words: &[&str]) {
    assert_eq!(outcome.status, 1, "{name}: {outcome:?}");
    let error = outcome.json();
    assert_eq!(error["code"], code, "{name}: {outcome:?}");
    let said = format!("{} {}", error["msg"], error["details"]);
    for word in words {
        assert!(said.contains(word), "{name}: {word:?} not in {said}");
    }
    assert!(
        error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "{name}"
    );
    let mut keys = error.as_object().unwrap().keys();
    assert!(
        keys.all(|key| ["cniVersion", "code", "msg", "details"].contains(&&**key)),
        "{name}: {outcome:?}"
    );
    assert_eq!(outcome.stdout.lines().count(), 1, "{name}: {outcome:?}");
    assert!(outcome.stdout.ends_with('\n'), "{name}: {outcome:?}");
    assert!(outcome.stderr.is_empty(), "{name}: {outcome:?}");
    let spoken = call.config["cniVersion"].as_str().filter(|version| {
        call.stdin.is_none() && ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].contains(version)
    });
    assert_eq!(error["cniVersion"], spoken.unwrap_or("1.1.0"), "{name}");
}
