//! The daemons that are asked: whose pods there are, where an address leads, what was dropped.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use fabric_proto::admin::{DropList, Route};
use ipnet::IpNet;
use serde::Serialize;

use super::pods::PodAt;
use crate::{
    admin::client::{Client, ClientError, TIMEOUT},
    cli::{bench::args::BenchArgs, daemon::block_on},
    lab::{Lab, LabState, place::Place, rootless},
    terminal::{exit::Failure, output::Output},
};

/// The daemons of this machine that are known.
#[derive(Debug)]
pub(super) struct Nodes(Vec<Node>);

#[derive(Debug)]
struct Node {
    name: String,
    client: Client,
}

/// Packets that a daemon dropped while a load ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Drops {
    /// Whose daemon.
    pub(super) node: String,
    /// During what: `tcp`, `udp-64`.
    pub(super) during: String,
    /// Reason of `fabric drops`.
    pub(super) reason: String,
    /// How many.
    pub(super) packets: u64,
}

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To this node itself.
    Here,
    /// To another node.
    Node(String),
    /// To nobody.
    Nowhere,
}

/// What each daemon has dropped until now, by node and reason; none where it does not answer.
#[derive(Debug)]
pub(super) struct DropMark(BTreeMap<String, Option<DropList>>);

impl Nodes {
    /// Finds the daemons: those of the lab that is named or that `socket` belongs to, or those of the
    /// sockets. Where the lab lives inside of a user namespace, this runs the command again in there.
    pub(super) fn find(args: &BenchArgs, socket: &Path, output: Output) -> Result<Self, Failure> {
        let place = Place::here();
        let lab = match &args.lab {
            Some(name) => Some(Lab::open(name)?.state().clone()),
            None => lab_of(&place, socket),
        };
        let Some(lab) = lab else {
            return Self::ask(
                std::iter::once(socket).chain(args.also_socket.iter().map(PathBuf::as_path)),
            );
        };
        if !place.can_build() {
            return Err(rootless::run_again_in(&place, &lab).into());
        }
        rootless::restore_folder();
        let mut found = Vec::new();
        for worker in &lab.workers {
            let asked = worker.admin_socket();
            match Self::ask([asked.as_path()].into_iter()) {
                Ok(nodes) => found.extend(nodes.0),
                Err(failure) if args.lab.is_none() && asked == socket => return Err(failure),
                // The others can still be measured.
                Err(failure) => output.say(&format!("without {}: {failure}", worker.name)),
            }
        }
        if found.is_empty() {
            return Err(anyhow::anyhow!("no daemon of lab {} answers", lab.name).into());
        }
        Ok(Self(found))
    }

    fn ask<'a>(sockets: impl Iterator<Item = &'a Path>) -> Result<Self, Failure> {
        let node = |socket: &Path| {
            let client = Client::new(socket, TIMEOUT);
            let status = block_on(async { Ok(client.status().await?) })?;
            let name = status.content.node;
            Ok(Node { name, client })
        };
        Ok(Self(sockets.map(node).collect::<Result<_, Failure>>()?))
    }

    /// All pods of all daemons.
    pub(super) fn pods(&self) -> Result<Vec<PodAt>, Failure> {
        let mut pods = Vec::new();
        for Node { name, client } in &self.0 {
            let list = block_on(async { Ok(client.pods().await?) })?;
            pods.extend(list.content.items.into_iter().map(|pod| PodAt {
                node: name.clone(),
                pod,
            }));
        }
        Ok(pods)
    }

    /// Where the routes of `node` lead for `address`.
    pub(super) fn way(&self, node: &str, address: IpAddr) -> Result<Way, Failure> {
        let found = self.0.iter().find(|found| found.name == node);
        let client = &found.context("its daemon is not known")?.client;
        let routes = block_on(async { Ok(client.routes().await?) })?;
        Ok(way(&routes.content.items, address))
    }

    /// The present state of all counters of drops.
    pub(super) fn mark(&self) -> DropMark {
        let ask = |client: &Client| -> Result<DropList, Failure> {
            block_on(async {
                Ok::<_, ClientError>(client.drops().await?.content).map_err(Failure::from)
            })
        };
        let counted = self
            .0
            .iter()
            .map(|node| (node.name.clone(), ask(&node.client).ok()));
        DropMark(counted.collect())
    }
}

impl DropMark {
    /// What was dropped since: by node and reason, and the nodes of which it is not known, because a
    /// daemon did not answer or began again.
    pub(super) fn until(&self, later: &Self, during: &str) -> (Vec<Drops>, Vec<String>) {
        let (mut drops, mut unknown) = (Vec::new(), Vec::new());
        for (node, before) in &self.0 {
            let after = later.0.get(node).and_then(Option::as_ref);
            let grown = before
                .as_ref()
                .zip(after)
                .and_then(|(before, after)| grown(before, after));
            match grown {
                Some(grown) => drops.extend(grown.into_iter().map(|(reason, packets)| Drops {
                    node: node.clone(),
                    during: during.to_owned(),
                    reason,
                    packets,
                })),
                None => unknown.push(node.clone()),
            }
        }
        (drops, unknown)
    }
}

/// Reasons that occurred in between; none if a counter went back.
fn grown(before: &DropList, after: &DropList) -> Option<Vec<(String, u64)>> {
    let before: BTreeMap<&str, u64> = before
        .items
        .iter()
        .map(|drop| (drop.reason.as_str(), drop.packets))
        .collect();
    let mut grown = Vec::new();
    for drop in &after.items {
        let earlier = before
            .get(drop.reason.as_str())
            .copied()
            .unwrap_or_default();
        let packets = drop.packets.checked_sub(earlier)?;
        if packets > 0 {
            grown.push((drop.reason.clone(), packets));
        }
    }
    Some(grown)
}

/// The longest prefix that covers `address`, as the data plane looks it up.
fn way(routes: &[Route], address: IpAddr) -> Way {
    let covering = routes.iter().filter_map(|route| {
        let prefix: IpNet = route.prefix.parse().ok()?;
        prefix
            .contains(&address)
            .then_some((prefix.prefix_len(), route))
    });
    match covering.max_by_key(|(length, _)| *length) {
        Some((_, route)) => match route.kind.as_str() {
            "peer" => Way::Node(route.target.clone()),
            "pod" | "host" => Way::Here,
            _ => Way::Nowhere,
        },
        None => Way::Nowhere,
    }
}

/// The lab of this user to which the admin socket belongs.
fn lab_of(place: &Place, socket: &Path) -> Option<LabState> {
    let folders = std::fs::read_dir(place.base()).ok()?;
    folders
        .filter_map(|folder| LabState::read(&folder.ok()?.path()).ok()?)
        .find(|lab| {
            lab.workers
                .iter()
                .any(|worker| worker.admin_socket() == socket)
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fabric_proto::admin::DropCount;

    use super::*;

    fn drops(counts: &[(&str, u64)]) -> DropList {
        let items = counts.iter().map(|(reason, packets)| DropCount {
            reason: (*reason).to_owned(),
            packets: *packets,
        });
        DropList {
            items: items.collect(),
        }
    }

    fn mark(nodes: &[(&str, Option<DropList>)]) -> DropMark {
        DropMark(
            nodes
                .iter()
                .map(|(node, drops)| ((*node).to_owned(), drops.clone()))
                .collect(),
        )
    }

    /// Only what grew is told, with its node; a daemon that began again or is silent is named instead.
    #[test]
    fn drops_are_the_growth() {
        let before = mark(&[
            ("a", Some(drops(&[("NO_ROUTE", 3), ("PEER_QUEUE_FULL", 5)]))),
            ("b", Some(drops(&[("NO_ROUTE", 3)]))),
            ("c", Some(drops(&[]))),
        ]);
        let after = mark(&[
            (
                "a",
                Some(drops(&[
                    ("NO_ROUTE", 3),
                    ("PEER_QUEUE_FULL", 12),
                    ("NEW", 1),
                ])),
            ),
            ("b", Some(drops(&[("NO_ROUTE", 1)]))),
            ("c", None),
        ]);
        let (found, unknown) = before.until(&after, "tcp");
        let told: Vec<_> = found
            .iter()
            .map(|it| (it.node.as_str(), it.reason.as_str(), it.packets))
            .collect();
        assert_eq!(told, [("a", "PEER_QUEUE_FULL", 7), ("a", "NEW", 1)]);
        assert_eq!(unknown, ["b", "c"]);
    }

    /// The longest prefix tells where an address leads.
    #[test]
    fn the_longest_prefix_decides() {
        let route = |prefix: &str, kind: &str, target: &str| Route {
            prefix: prefix.to_owned(),
            kind: kind.to_owned(),
            target: target.to_owned(),
        };
        let routes = [
            route("10.1.0.0/24", "unassigned", ""),
            route("10.1.0.5/32", "pod", "default/web"),
            route("10.1.1.0/24", "peer", "worker-b"),
            route("fd00::/64", "peer", "worker-c"),
        ];
        let to = |address: &str| way(&routes, address.parse().unwrap());
        assert_eq!(to("10.1.0.5"), Way::Here);
        assert_eq!(to("10.1.0.6"), Way::Nowhere);
        assert_eq!(to("10.1.1.6"), Way::Node("worker-b".to_owned()));
        assert_eq!(to("fd00::6"), Way::Node("worker-c".to_owned()));
        assert_eq!(to("192.0.2.1"), Way::Nowhere);
    }
}
