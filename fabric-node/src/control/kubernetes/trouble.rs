//! What is wrong between this node and the API server, in words for the operator, said once.
//!
//! Comes in: errors of the client. Goes out: one [`Trouble`] for each, which names what was asked for
//! and what to do, and whose text is the same for the same cause. Never done here: trying again.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the client has many errors that mean the same here"
)]

use std::{collections::BTreeMap, error::Error as StdError, fmt, time::Duration};

use kube::{Error, core::Status, runtime::watcher};

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What was tried, as in "watching FabricNodes".
    pub what: String,
    /// Why it failed.
    pub problem: String,
    /// What to do about it.
    pub cure: &'static str,
    /// How long the API server asks to be left alone.
    pub retry_after: Option<Duration>,
    /// What was seen so far may be wrong or too old to go on from: the next attempt is a list.
    pub begin_anew: bool,
    /// The API server knows who asks, and does not allow it.
    pub is_refused: bool,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.problem, self.cure)
    }
}

impl Trouble {
    /// Of a single request.
    #[must_use]
    pub fn of_request(what: &str, error: &Error) -> Self {
        match error {
            Error::Api(status) => Self::of_status(what, status),
            Error::SerdeError(_) | Error::FromUtf8(_) => {
                let problem = format!("its answer cannot be read ({error})");
                let cure = "see that an API server answers at this address, and nothing else";
                Self::new(what, problem, cure)
            }
            Error::Auth(_) => {
                let cure = "see that the service account's token is mounted and can be read";
                Self::new(what, causes(error), cure)
            }
            _ => {
                let cure = "see that the API server runs and that this node reaches its address; what is in force stays";
                Self::new(what, causes(error), cure)
            }
        }
    }

    /// Of a watch. What was seen stays good after an answer that only asks to come back later, and
    /// after a connection that ended; after anything else the next attempt begins with a list.
    #[must_use]
    pub fn of_watch(what: &str, error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error) => Self::of_request(what, error).anew(),
            watcher::Error::WatchStartFailed(error) => {
                let trouble = Self::of_request(what, error);
                match error {
                    Error::Api(status) if status.code == 429 || status.code >= 500 => trouble,
                    _ => trouble.anew(),
                }
            }
            watcher::Error::WatchError(status) => Self::of_status(what, status).anew(),
            watcher::Error::WatchFailed(error) => {
                let trouble = Self::of_request(what, error);
                match error {
                    Error::ReadEvents(_) | Error::HyperError(_) | Error::Service(_) => trouble,
                    _ => trouble.anew(),
                }
            }
            watcher::Error::NoResourceVersion => {
                let problem = "its answer has no resourceVersion".to_owned();
                let cure = "see that an API server answers at this address, and nothing else";
                Self::new(what, problem, cure).anew()
            }
        }
    }

    /// Of something that took too long.
    #[must_use]
    pub fn of_silence(what: &str, after: Duration) -> Self {
        let problem = format!("no answer within {after:?}");
        let cure = "see that the API server is not overloaded and that this node reaches it; what is in force stays";
        Self::new(what, problem, cure)
    }

    fn of_status(what: &str, status: &Status) -> Self {
        let message = first_line(&status.message);
        let problem = match status.code {
            401 => format!("the API server does not know this node's service account ({message})"),
            403 => format!("not allowed ({message})"),
            429 => "the API server asks for fewer requests (429)".to_owned(),
            410 => "what was seen is too old to go on from (410)".to_owned(),
            code => format!("the API server answers {code} ({message})"),
        };
        let cure = match status.code {
            401 => {
                "see that the token that is mounted is of this cluster, and that the clocks agree"
            }
            403 => "apply the ClusterRole fabric-node of the manifest, and its binding",
            404 => "apply the manifest: it defines the resource fabricnodes.fabric.dev",
            410 => "the list is read anew; nothing to do",
            422 | 400 => {
                "see that the definition of FabricNode (CRD) is of the same release as fabric-node"
            }
            _ => "see the API server's own log; it is asked again, and what is in force stays",
        };
        let asked = status
            .details
            .as_ref()
            .map(|details| details.retry_after_seconds);
        Self {
            retry_after: asked
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.into())),
            is_refused: status.code == 403,
            ..Self::new(what, problem, cure)
        }
    }

    fn new(what: &str, problem: String, cure: &'static str) -> Self {
        Self {
            what: what.to_owned(),
            problem,
            cure,
            retry_after: None,
            begin_anew: false,
            is_refused: false,
        }
    }

    fn anew(self) -> Self {
        Self {
            begin_anew: true,
            ..self
        }
    }
}

/// Troubles that last. Each distinct one is logged once, and so is its end.
#[derive(Debug, Default)]
pub struct Troubles {
    by_what: BTreeMap<String, String>,
}

impl Troubles {
    /// Notes that something failed. True if that is news, which is logged.
    pub fn begin(&mut self, trouble: &Trouble) -> bool {
        let text = format!("{}; {}", trouble.problem, trouble.cure);
        if self.by_what.get(&trouble.what) == Some(&text) {
            return false;
        }
        tracing::warn!(
            problem = trouble.problem,
            cure = trouble.cure,
            "{} fails",
            trouble.what
        );
        self.by_what.insert(trouble.what.clone(), text);
        true
    }

    /// Notes that it worked.
    pub fn end(&mut self, what: &str) {
        if self.by_what.remove(what).is_some() {
            tracing::info!("{what} works again");
        }
    }

    /// Those that last, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let troubles = self.by_what.iter();
        troubles
            .map(|(what, text)| format!("{what}: {text}"))
            .collect()
    }
}

/// Messages of an API server can hold a whole request.
const MESSAGE_CHARS_MAX: usize = 300;

fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// The error with what lies beneath it, which the client's own texts do not name.
fn causes(error: &Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn StdError> = error.source().or(Some(error));
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        next = cause.source();
    }
    first_line(&text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn status(code: u16, message: &str) -> Box<Status> {
        let mut status = Status::failure(message, "Reason");
        status.code = code;
        status.boxed()
    }

    /// Each answer names what was asked and a cure of its own.
    #[test]
    fn answers_have_cures() {
        for (code, wanted) in [
            (401, "clocks agree"),
            (403, "ClusterRole fabric-node"),
            (404, "apply the manifest"),
            (410, "read anew"),
            (422, "same release"),
            (429, "asked again"),
            (500, "API server's own log"),
        ] {
            let error = Error::Api(status(code, "a message\nand more"));
            let text = Trouble::of_request("watching Nodes", &error).to_string();
            assert!(text.starts_with("watching Nodes: "), "{text}");
            assert!(
                text.contains(wanted) && !text.contains("more)"),
                "{code}: {text}"
            );
        }
    }

    /// After an answer that asks to come back, and after a connection that ended, a watch goes on
    /// where it was; after anything else it begins anew.
    #[test]
    fn a_watch_knows_when_to_begin_anew() {
        let api = |code| Error::Api(status(code, ""));
        let broken = || Error::ReadEvents(std::io::ErrorKind::ConnectionReset.into());
        let refused = || Error::Service("refused".into());
        for (error, anew) in [
            (watcher::Error::WatchStartFailed(api(429)), false),
            (watcher::Error::WatchStartFailed(api(500)), false),
            (watcher::Error::WatchFailed(broken()), false),
            (watcher::Error::WatchStartFailed(refused()), true),
            (watcher::Error::WatchStartFailed(api(410)), true),
            (watcher::Error::WatchError(status(410, "")), true),
            (watcher::Error::InitialListFailed(api(500)), true),
            (watcher::Error::NoResourceVersion, true),
        ] {
            let trouble = Trouble::of_watch("watching", &error);
            assert_eq!(trouble.begin_anew, anew, "{error}");
        }
    }

    /// The same trouble is said once, another one again, and its end once.
    #[test]
    fn a_trouble_is_said_once() {
        let mut troubles = Troubles::default();
        let refused = Trouble::of_request("asking", &Error::Service("refused".into()));
        assert!(refused.problem.contains("refused"), "{refused}");
        assert!(troubles.begin(&refused));
        assert!(!troubles.begin(&refused));
        let other = Trouble::of_silence("asking", Duration::from_secs(3));
        assert!(troubles.begin(&other));
        assert_eq!(troubles.lines().len(), 1);
        troubles.end("asking");
        assert!(troubles.lines().is_empty());
        assert!(troubles.begin(&refused));
    }

    /// What the API server asks to wait is read from its answer.
    #[test]
    fn retry_after_is_read() {
        let mut busy = status(429, "busy");
        let details = serde_json::from_str(r#"{"retryAfterSeconds": 4}"#).unwrap();
        busy.details = Some(details);
        let trouble = Trouble::of_request("asking", &Error::Api(busy));
        assert_eq!(trouble.retry_after, Some(Duration::from_secs(4)));
    }
}
