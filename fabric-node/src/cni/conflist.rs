//! The network list for runtimes, put in place by the daemon: last, once pods can be attached.
//!
//! A runtime takes a node for ready as soon as the list is there, so it comes when an ADD can succeed and not
//! before. Comes in: who can tell whether that is so, and who writes. Goes out: one list, or a log line that says
//! why not. Written once in the daemon's life: whoever takes it away meanwhile has reasons. Never done here: taking
//! it away, at a stop least of all: without it runtimes cannot detach pods either.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    causes::with_causes,
    cli::install::{Outcome, WrittenList},
};

/// How often it is looked whether pods can be attached.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// After a list that could not be written it is tried again this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Calls `write`, on a thread that may block, as soon as `obstacle` says that nothing keeps pods from being attached,
/// and until it succeeds.
pub async fn write_when_ready<O, W>(obstacle: O, write: W)
where
    O: Fn() -> Option<String>,
    W: Fn() -> anyhow::Result<WrittenList> + Clone + Send + 'static,
{
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failure = None;
    loop {
        look.tick().await;
        if obstacle().is_some() {
            continue;
        }
        let written = tokio::task::spawn_blocking(write.clone()).await;
        match written
            .context("writing the network list")
            .and_then(|it| it)
        {
            Ok(list) => return tell(&list),
            Err(error) => {
                let told = with_causes(&error);
                if failure.as_ref() != Some(&told) {
                    tracing::error!(
                        error = told,
                        "no network list for runtimes: the node does not become ready"
                    );
                    failure = Some(told);
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

fn tell(list: &WrittenList) {
    let path = list.path.display();
    match list.outcome {
        Outcome::Written => {
            tracing::info!(list = %path, "network list written: runtimes may attach pods")
        }
        Outcome::Unchanged => tracing::info!(list = %path, "the network list is in place"),
        Outcome::Kept => {
            tracing::warn!(list = %path, "the network list was changed by hand, and is kept")
        }
    }
    for other in &list.before {
        tracing::warn!(
            other = %other.display(),
            list = %path,
            "runtimes read another network first: pods are attached to that one"
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// The list is written once nothing is in the way, and not before.
    #[tokio::test]
    async fn the_list_waits_until_pods_can_be_attached() {
        let looks = AtomicU32::new(0);
        let obstacle =
            || (looks.fetch_add(1, Ordering::Relaxed) < 3).then(|| "no state".to_owned());
        let writes = Arc::new(AtomicU32::new(0));
        let counted = writes.clone();
        let write = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(WrittenList {
                path: "/x".into(),
                outcome: Outcome::Written,
                before: vec!["/w".into()],
            })
        };
        write_when_ready(obstacle, write).await;
        assert_eq!(looks.load(Ordering::Relaxed), 4);
        assert_eq!(writes.load(Ordering::Relaxed), 1);
    }
}
