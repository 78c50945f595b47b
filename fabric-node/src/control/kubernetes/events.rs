//! Everything that can happen to the source, in one type, so that it is looked at in order.

use super::{
    pruned::{Backends, Listed, OwnNode},
    watch::Change,
    writer::Outcome,
};

/// Something happened.
#[derive(Debug)]
pub(super) enum Input {
    /// To this node's Node.
    Node(Change<OwnNode>),
    /// To FabricNodes.
    FabricNodes(Change<Listed>),
    /// To the addresses of the API servers.
    Servers(Change<Backends>),
    /// To a write.
    Outcome(Outcome),
}

impl From<Change<OwnNode>> for Input {
    fn from(change: Change<OwnNode>) -> Self {
        Self::Node(change)
    }
}

impl From<Change<Listed>> for Input {
    fn from(change: Change<Listed>) -> Self {
        Self::FabricNodes(change)
    }
}

impl From<Change<Backends>> for Input {
    fn from(change: Change<Backends>) -> Self {
        Self::Servers(change)
    }
}

impl From<Outcome> for Input {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}
