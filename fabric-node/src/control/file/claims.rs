//! Who claims which name, address and range, and where it is written: nothing may have two owners.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    config::place::{Misplaced, Source},
    node_id::NodeId,
};

/// All claims of all files, in the order they were read.
#[derive(Default)]
pub(super) struct Claims<'a> {
    names: HashMap<NodeId, Position<'a>>,
    nets: Vec<Claim<'a>>,
}

#[derive(Clone, Copy)]
struct Position<'a> {
    path: &'a std::path::Path,
    text: &'a str,
    offset: usize,
}

struct Claim<'a> {
    net: IpNet,
    node: NodeId,
    kind: Kind,
    position: Position<'a>,
    /// When it was read.
    order: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Range,
    Address,
}

impl<'a> Claims<'a> {
    /// Takes a node's name, which nobody may have taken before.
    pub(super) fn name(
        &mut self,
        source: &Source<'a>,
        node: &NodeId,
        offset: usize,
    ) -> Result<(), Misplaced> {
        let position = Position::new(source, offset);
        match self.names.insert(node.clone(), position) {
            None => Ok(()),
            Some(first) => Err(position.misplaced(format!(
                "node {node} is defined a second time: the first is at {}; expected each node once",
                first.describe()
            ))),
        }
    }

    pub(super) fn range(&mut self, source: &Source<'a>, node: &NodeId, net: IpNet, offset: usize) {
        self.push(source, node, net, Kind::Range, offset);
    }

    /// A node may name an address of its own as often as it likes: with several ports, as underlay
    /// and as host address.
    pub(super) fn address(
        &mut self,
        source: &Source<'a>,
        node: &NodeId,
        address: IpAddr,
        offset: usize,
    ) {
        self.push(source, node, address.into(), Kind::Address, offset);
    }

    fn push(&mut self, source: &Source<'a>, node: &NodeId, net: IpNet, kind: Kind, offset: usize) {
        self.nets.push(Claim {
            net,
            node: node.clone(),
            kind,
            position: Position::new(source, offset),
            order: self.nets.len(),
        });
    }

    /// Finds two claims that share an address, in O(n log n).
    pub(super) fn check_overlaps(mut self) -> Result<(), Misplaced> {
        // Ranges are disjoint or nested: sorted by first address, the larger first, the only
        // candidate for an overlap is the claim that reaches farthest so far.
        self.nets
            .sort_by_key(|claim| (claim.net.network(), claim.net.prefix_len(), claim.order));
        let mut farthest: Option<&Claim<'_>> = None;
        for claim in &self.nets {
            if let Some(before) = farthest
                && before.net.contains(&claim.net)
            {
                if before.may_share_with(claim) {
                    continue;
                }
                return Err(before.conflict(claim));
            }
            farthest = Some(claim);
        }
        Ok(())
    }
}

impl Claim<'_> {
    fn may_share_with(&self, other: &Self) -> bool {
        self.node == other.node && self.kind == Kind::Address && other.kind == Kind::Address
    }

    /// Told at the place that was read later.
    fn conflict(&self, other: &Self) -> Misplaced {
        let (first, second) = if self.order < other.order {
            (self, other)
        } else {
            (other, self)
        };
        second.position.misplaced(format!(
            "{} of node {} overlaps {} of node {} at {}; expected each address to have one owner",
            second.describe(),
            second.node,
            first.describe(),
            first.node,
            first.position.describe()
        ))
    }

    fn describe(&self) -> String {
        match self.kind {
            Kind::Range => format!("pod range {}", self.net),
            Kind::Address => format!("address {}", self.net.addr()),
        }
    }
}

impl<'a> Position<'a> {
    fn new(source: &Source<'a>, offset: usize) -> Self {
        Self {
            path: source.path,
            text: source.text,
            offset,
        }
    }

    fn misplaced(&self, problem: String) -> Misplaced {
        let source = Source {
            path: self.path,
            text: self.text,
        };
        source.at(self.offset, problem)
    }

    fn describe(&self) -> String {
        let found = self.misplaced(String::new());
        format!("{}:{}", found.path.display(), found.line)
    }
}
