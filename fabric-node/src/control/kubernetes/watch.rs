//! One watch of one kind of object, for as long as the daemon runs. All kinds are watched by this.
//!
//! Comes in: what the API server streams. Goes out: [`Change`]s with objects cut down at once to what
//! is used, and every trouble. Never done here: keeping the objects; giving up.
//!
//! The first list comes as a stream where the API server can do that, else in pages. The watch then
//! goes on from there, with bookmarks, and after an interruption from where it was; when that cannot
//! be, from a new list. A connection that is silent for longer than bookmarks ever are is ended by the
//! client ([`super::connector`]).

use std::{
    collections::BTreeMap,
    fmt::Debug,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc::Sender,
    time::{sleep, timeout},
};

use super::{
    backoff::{Backoff, random},
    trouble::Trouble,
};

/// A list that makes no progress for this long is asked for in another way, or anew.
pub const LIST_SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long the API server keeps a watch open, at least; up to a fifth more, so that the nodes do not
/// come back at the same time (the API server's own default is 30 to 60 minutes, the client's bound is
/// just below 5).
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(240);
/// Objects in a page of a list.
pub const PAGE_OBJECTS_MAX: u32 = 500;

/// What happened to the objects of one kind.
#[derive(Debug)]
pub enum Change<P> {
    /// This is all of them, by name.
    Listed(BTreeMap<String, P>),
    /// This one is new or has changed.
    Applied(String, P),
    /// This one is gone.
    Deleted(String),
    /// The watch does not work; it is tried again.
    Failed(Trouble),
    /// It works.
    Works,
}

/// A watch to be run.
pub struct Watch<K, F> {
    /// Which objects, and from whom.
    pub api: Api<K>,
    /// Which of them: a field selector, if not all.
    pub fields: Option<String>,
    /// In words, as in "watching FabricNodes".
    pub what: &'static str,
    /// Cuts an object down; none for one that is not used.
    pub prune: F,
}

impl<K, F> Watch<K, F>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Runs until the receiver of `changes` is gone.
    pub async fn run<P, I: From<Change<P>>>(self, changes: Sender<I>)
    where
        F: Fn(K) -> Option<(String, P)>,
    {
        let mut backoff = Backoff::new();
        let mut streaming = true;
        loop {
            let end = self.follow(streaming, &mut backoff, &changes).await;
            match end {
                End::ReceiverGone => return,
                End::Anew => {}
                // What lists in neither way may do so in the other one later.
                End::Otherwise => streaming = !streaming,
            }
        }
    }

    /// From a list on, until something asks for a new one.
    async fn follow<P, I: From<Change<P>>>(
        &self,
        streaming: bool,
        backoff: &mut Backoff,
        changes: &Sender<I>,
    ) -> End
    where
        F: Fn(K) -> Option<(String, P)>,
    {
        let mut events = pin!(watcher(self.api.clone(), self.settings(streaming)));
        let mut listed: Option<BTreeMap<String, P>> = Some(BTreeMap::new());
        let mut failing = false;
        loop {
            let next = if listed.is_some() {
                match timeout(LIST_SILENCE_MAX, events.next()).await {
                    Ok(next) => next,
                    // An API server that does not know streamed lists may never end one.
                    Err(_) if streaming => return End::Otherwise,
                    Err(_) => {
                        let trouble = Trouble::of_silence(self.what, LIST_SILENCE_MAX);
                        return match self.fail(trouble, backoff, changes).await {
                            Ok(()) => End::Otherwise,
                            Err(gone) => gone,
                        };
                    }
                }
            } else if failing {
                // A watch that goes on where it was tells nothing: silence is all it has to say.
                match timeout(LIST_SILENCE_MAX, events.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        failing = false;
                        if changes.send(Change::Works.into()).await.is_err() {
                            return End::ReceiverGone;
                        }
                        continue;
                    }
                }
            } else {
                events.next().await
            };
            // The stream of a watcher does not end.
            let Some(event) = next else { return End::Anew };
            let change = match event {
                Ok(Event::Init) => {
                    listed = Some(BTreeMap::new());
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    if let Some(listed) = &mut listed {
                        listed.extend((self.prune)(object));
                    }
                    continue;
                }
                Ok(Event::InitDone) => Change::Listed(listed.take().unwrap_or_default()),
                Ok(Event::Apply(object)) => match (self.prune)(object) {
                    Some((name, object)) => Change::Applied(name, object),
                    None => continue,
                },
                Ok(Event::Delete(object)) => {
                    Change::Deleted(object.meta().name.clone().unwrap_or_default())
                }
                Err(error) if streaming && listed.is_some() && refuses_streaming(&error) => {
                    tracing::debug!(%error, "a list cannot be streamed");
                    return End::Otherwise;
                }
                Err(error) => {
                    let trouble = Trouble::of_watch(self.what, &error);
                    let anew = trouble.begin_anew;
                    let in_pages = !streaming && listed.is_some();
                    match self.fail(trouble, backoff, changes).await {
                        Ok(()) if in_pages => return End::Otherwise,
                        Ok(()) if anew => return End::Anew,
                        Ok(()) => {
                            failing = true;
                            continue;
                        }
                        Err(gone) => return gone,
                    }
                }
            };
            failing = false;
            let works = changes.send(Change::Works.into()).await;
            if works.is_err() || changes.send(change.into()).await.is_err() {
                return End::ReceiverGone;
            }
        }
    }

    /// Tells of a failure, and waits before the next attempt.
    async fn fail<P, I: From<Change<P>>>(
        &self,
        trouble: Trouble,
        backoff: &mut Backoff,
        changes: &Sender<I>,
    ) -> Result<(), End> {
        let wait = backoff.next(Instant::now(), trouble.retry_after, random());
        tracing::debug!(%trouble, ?wait, "a watch failed");
        let told = changes.send(Change::Failed(trouble).into()).await;
        told.map_err(|_| End::ReceiverGone)?;
        sleep(wait).await;
        Ok(())
    }

    fn settings(&self, streaming: bool) -> watcher::Config {
        let seconds = WATCH_TIMEOUT.as_secs();
        let spread = random() % (seconds / 5);
        let mut settings = watcher::Config::default()
            .timeout(u32::try_from(seconds + spread).unwrap_or_default())
            .page_size(PAGE_OBJECTS_MAX);
        settings.field_selector.clone_from(&self.fields);
        if streaming {
            settings.streaming_lists()
        } else {
            settings
        }
    }
}

/// Why a watch begins with a new list.
enum End {
    ReceiverGone,
    Anew,
    /// In the other way: in pages if it was streamed.
    Otherwise,
}

/// An API server that cannot stream lists says that the request is not valid, or, where its etcd is
/// older than 3.5, that a storage feature is missing (500).
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "only two of the errors are answers to the request"
)]
fn refuses_streaming(error: &watcher::Error) -> bool {
    let code = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        _ => return false,
    };
    matches!(code, 400 | 422 | 500..)
}
