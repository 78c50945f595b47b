//! Tables of calls that are refused.

use super::Call;

/// A refused call: status 1, the error JSON with this code on stdout, and words that name the cause.
pub(crate) struct Refused {
    name: &'static str,
    call: Call,
    code: u64,
    names: &'static [&'static str],
    /// Whether the daemon may have been asked.
    asks: bool,
}

/// One that must not reach the daemon.
pub(crate) fn refused(
    name: &'static str,
    call: Call,
    code: u64,
    names: &'static [&'static str],
) -> Refused {
    Refused {
        name,
        call,
        code,
        names,
        asks: false,
    }
}

/// One that may have reached the daemon.
pub(crate) fn asked(
    name: &'static str,
    call: Call,
    code: u64,
    names: &'static [&'static str],
) -> Refused {
    Refused {
        name,
        call,
        code,
        names,
        asks: true,
    }
}

/// Each call is refused as its row says.
pub(crate) fn check_refused(cases: Vec<Refused>) {
    for case in cases {
        let outcome = case.call.run();
        let name = case.name;
        assert_eq!(outcome.status, 1, "{name}: {outcome:?}");
        let error = outcome.json();
        assert_eq!(error["code"], case.code, "{name}: {outcome:?}");
        assert!(error["cniVersion"].is_string(), "{name}: {outcome:?}");
        let words = format!("{} {}", error["msg"], error["details"]);
        for part in case.names {
            assert!(words.contains(part), "{name}: {part:?} not in {words}");
        }
        let keys = error.as_object().unwrap().keys();
        assert!(
            keys.clone()
                .all(|key| ["cniVersion", "code", "msg", "details"].contains(&key.as_str())),
            "{name}: {outcome:?}"
        );
        assert_eq!(
            outcome.stdout.matches('\n').count(),
            1,
            "{name}: {outcome:?}"
        );
        assert!(
            case.asks || outcome.requests.is_empty(),
            "{name}: {outcome:?}"
        );
    }
}
