//! A deleted Node's FabricNode is deleted, so that all other nodes cut it off at once.
//!
//! Comes in: the names of Nodes and of FabricNodes, by two watches of metadata. Goes out: deletions. The
//! cluster's garbage collector does the same by the owner reference, later.
//!
//! A deletion cuts a node off, so none follows from what was merely not seen: not from an empty list, not
//! from a watch that broke, not from a proxy's 404. Before each the API server is asked for that very Node,
//! and its answer must be its own "not found" for that name. The deletion names the FabricNode that was
//! looked at: one that a new Node of the same name has made meanwhile stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, PartialObjectMeta, Preconditions},
    core::GroupVersionKind,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};

use crate::pki::kubernetes::{api_reason, is_code};

/// What could not be found out or done is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Names that are looked at in one go; the others follow in the next.
const AT_ONCE_MAX: usize = 100;

type Names = BTreeMap<String, Option<String>>;

/// What is known of one kind: names and, where they matter, uids.
#[derive(Default)]
struct Seen {
    names: Names,
    /// Names of a list that is being read.
    reading: Names,
    /// Whether a complete list has been read.
    is_complete: bool,
}

impl Seen {
    /// Follows an event; the name that has gone or come by it.
    fn follow(&mut self, event: Event<PartialObjectMeta<impl Clone>>) -> Option<String> {
        match event {
            Event::Init => self.reading.clear(),
            Event::InitApply(object) => {
                self.reading.insert(name_of(&object), object.metadata.uid);
            }
            Event::InitDone => {
                self.names = std::mem::take(&mut self.reading);
                self.is_complete = true;
            }
            Event::Apply(object) => {
                let name = name_of(&object);
                self.names.insert(name.clone(), object.metadata.uid);
                return Some(name);
            }
            Event::Delete(object) => {
                let name = name_of(&object);
                self.names.remove(&name);
                return Some(name);
            }
        }
        None
    }
}

fn name_of(object: &PartialObjectMeta<impl Clone>) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

/// FabricNodes whose Node is not there, as far as the two watches know: candidates, no more.
///
/// None before both lists are complete, and none from an empty list of Nodes: a cluster that has FabricNodes
/// has had Nodes, so that list is more likely wrong.
fn orphans(nodes: &Seen, fabric_nodes: &Seen) -> BTreeSet<String> {
    if !nodes.is_complete || !fabric_nodes.is_complete || nodes.names.is_empty() {
        return BTreeSet::new();
    }
    let missing = |name: &&String| !nodes.names.contains_key(*name);
    fabric_nodes.names.keys().filter(missing).cloned().collect()
}

/// The kind FabricNode.
#[must_use]
pub fn fabric_node() -> ApiResource {
    let kind = GroupVersionKind::gvk("fabric.dev", "v1alpha1", "FabricNode");
    ApiResource::from_gvk_with_plural(&kind, "fabricnodes")
}

/// Deletes the FabricNodes of Nodes that are gone, for ever.
pub async fn follow(client: &Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    let fabric_nodes: Api<DynamicObject> = Api::all_with(client.clone(), &fabric_node());
    let node_events = events::<Node>(Api::all(client.clone()));
    let resource = fabric_node();
    let fabric_events = fabric_events(client, &resource);
    tokio::pin!(node_events, fabric_events);
    let (mut seen, mut fabric_seen) = (Seen::default(), Seen::default());
    let mut deleted: BTreeSet<String> = BTreeSet::new();
    loop {
        let mut waiting = orphans(&seen, &fabric_seen);
        // The last Node's deletion was seen as such, which an empty list is not.
        waiting.extend(
            deleted
                .iter()
                .filter(|name| fabric_seen.names.contains_key(*name))
                .cloned(),
        );
        deleted.retain(|name| waiting.contains(name));
        let mut again = false;
        for name in waiting.iter().take(AT_ONCE_MAX) {
            match cut_off(&nodes, &fabric_nodes, name, &mut fabric_seen).await {
                Ok(()) => {
                    deleted.remove(name);
                }
                Err(error) => {
                    tracing::warn!(
                        node = name,
                        reason = api_reason(&error),
                        "cannot look after a Node that seems gone"
                    );
                    again = true;
                    break;
                }
            }
        }
        again |= waiting.len() > AT_ONCE_MAX;
        tokio::select! {
            Some(event) = node_events.next() => match event {
                Ok(event) => {
                    let is_deletion = matches!(event, Event::Delete(_));
                    if let Some(name) = seen.follow(event) {
                        if is_deletion {
                            deleted.insert(name);
                        } else {
                            deleted.remove(&name);
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "watching Nodes"),
            },
            Some(event) = fabric_events.next() => match event {
                Ok(event) => drop(fabric_seen.follow(event)),
                Err(error) => tracing::debug!(%error, "watching FabricNodes"),
            },
            () = tokio::time::sleep(RETRY), if again => {}
            else => return,
        }
    }
}

fn events<K>(
    api: Api<PartialObjectMeta<K>>,
) -> impl Stream<Item = watcher::Result<Event<PartialObjectMeta<K>>>> + Send
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    PartialObjectMeta<K>: kube::Resource<DynamicType = ()>,
{
    watcher(api, watcher::Config::default()).default_backoff()
}

fn fabric_events(
    client: &Client,
    resource: &ApiResource,
) -> impl Stream<Item = watcher::Result<Event<PartialObjectMeta<DynamicObject>>>> + Send {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), resource);
    watcher(api, watcher::Config::default()).default_backoff()
}

/// Deletes a FabricNode if the API server itself says that there is no such Node.
async fn cut_off(
    nodes: &Api<Node>,
    fabric_nodes: &Api<DynamicObject>,
    name: &str,
    seen: &mut Seen,
) -> kube::Result<()> {
    match nodes.get_metadata(name).await {
        // The watch is late.
        Ok(_) => return Ok(()),
        Err(error) if is_not_found(&error, name) => {}
        Err(error) => return Err(error),
    }
    let Some(found) = fabric_nodes.get_opt(name).await? else {
        seen.names.remove(name);
        return Ok(());
    };
    let preconditions = Preconditions {
        uid: found.uid(),
        resource_version: found.resource_version(),
    };
    let delete = DeleteParams::default().preconditions(preconditions);
    match fabric_nodes.delete(name, &delete).await {
        Ok(_) => {
            tracing::info!(
                node = name,
                "the Node is gone: its FabricNode is deleted, other nodes cut it off"
            );
            seen.names.remove(name);
            Ok(())
        }
        Err(error) if is_code(&error, 404) => {
            seen.names.remove(name);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whether it is the API server's own "not found" for this Node, and not that of something in between.
fn is_not_found(error: &kube::Error, name: &str) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let details = status.details.as_ref();
    status.code == 404
        && status.reason == "NotFound"
        && details.is_some_and(|details| details.name == name && details.kind == "nodes")
}

#[cfg(test)]
mod tests {
    use kube::core::{Status, response::StatusDetails};

    use super::*;

    fn object(name: &str) -> PartialObjectMeta<Node> {
        let mut object = PartialObjectMeta::<Node>::default();
        object.metadata.name = Some(name.to_owned());
        object
    }

    fn listed(names: &[&str]) -> Seen {
        let mut seen = Seen::default();
        seen.follow(Event::<PartialObjectMeta<Node>>::Init);
        for name in names {
            seen.follow(Event::InitApply(object(name)));
        }
        seen.follow(Event::<PartialObjectMeta<Node>>::InitDone);
        seen
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Only what is missing from a complete and non-empty list of Nodes is a candidate.
    #[test]
    fn an_outage_orphans_nobody() {
        let fabric = listed(&["a", "b"]);
        assert_eq!(orphans(&listed(&["a"]), &fabric), names(&["b"]));
        assert_eq!(orphans(&listed(&["a", "b", "c"]), &fabric), names(&[]));
        assert_eq!(orphans(&listed(&[]), &fabric), names(&[]));
        assert_eq!(orphans(&Seen::default(), &fabric), names(&[]));
        assert_eq!(orphans(&listed(&["a"]), &Seen::default()), names(&[]));
        // A list that is being read counts when it is complete.
        let mut nodes = listed(&["a", "b"]);
        nodes.follow(Event::<PartialObjectMeta<Node>>::Init);
        nodes.follow(Event::InitApply(object("a")));
        assert_eq!(orphans(&nodes, &fabric), names(&[]));
        nodes.follow(Event::<PartialObjectMeta<Node>>::InitDone);
        assert_eq!(orphans(&nodes, &fabric), names(&["b"]));
        assert_eq!(
            nodes.follow(Event::Delete(object("a"))).as_deref(),
            Some("a")
        );
        assert_eq!(
            nodes.follow(Event::Apply(object("b"))).as_deref(),
            Some("b")
        );
        assert_eq!(orphans(&nodes, &fabric), names(&["a"]));
    }

    /// A "not found" counts only as the API server says it, about this Node.
    #[test]
    fn only_the_api_servers_own_not_found_counts() {
        let said = |code, reason: &str, kind: &str, name: &str| {
            kube::Error::Api(Box::new(Status {
                code,
                reason: reason.to_owned(),
                details: Some(StatusDetails {
                    name: name.to_owned(),
                    group: String::new(),
                    kind: kind.to_owned(),
                    uid: String::new(),
                    causes: Vec::new(),
                    retry_after_seconds: 0,
                }),
                ..Status::default()
            }))
        };
        assert!(is_not_found(&said(404, "NotFound", "nodes", "a"), "a"));
        for other in [
            said(404, "NotFound", "nodes", "b"),
            said(404, "NotFound", "services", "a"),
            said(404, "Failed to parse error data", "nodes", "a"),
            said(500, "NotFound", "nodes", "a"),
            said(403, "Forbidden", "nodes", "a"),
        ] {
            assert!(!is_not_found(&other, "a"), "{other:?}");
        }
    }
}
