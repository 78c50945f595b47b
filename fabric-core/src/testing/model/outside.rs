//! The rules of what passes through the host's kernel, written down a second time: sets and `if`s, and
//! packets told in words, not bytes.

use std::{collections::HashSet, net::IpAddr};

use super::{Expected, Model, Owner, dropped, outcome, special};
use crate::{
    ids::{PeerId, PortId},
    offload::Offload,
    packet::Headers,
    snapshot::SnapshotBuilder,
    verdict::{DropReason, Verdict},
};

/// A flow: source, destination, protocol, source port, destination port.
pub type Talk = (IpAddr, IpAddr, u8, u16, u16);

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A whole packet of a flow.
    Whole(Talk),
    /// A fragment; the first one tells the flow.
    Fragment(Option<Talk>),
    /// An ICMP error about a packet of a flow.
    Error(Talk),
    /// An ICMP error about a fragment between two addresses.
    ErrorAboutFragment(IpAddr, IpAddr),
    /// An ICMP redirect.
    Redirect,
}

/// The reference fabric beside a kernel that translates. Its memory has no end and no clock.
#[derive(Clone, Debug)]
pub struct OutsideModel {
    model: Model,
    peer_hosts: Vec<IpAddr>,
    flows: HashSet<Talk>,
    pairs: HashSet<[IpAddr; 2]>,
    given: HashSet<IpAddr>,
}

impl OutsideModel {
    /// The model of a state that passes the checks of [`SnapshotBuilder::build`].
    #[must_use]
    pub fn new(state: &SnapshotBuilder) -> Self {
        Self {
            model: Model::new(state),
            peer_hosts: state.peer_hosts.clone(),
            flows: HashSet::new(),
            pairs: HashSet::new(),
            given: HashSet::new(),
        }
    }

    /// What must become of a packet of ordinary TTL and size that port `from` sends.
    pub fn egress(&mut self, from: PortId, headers: &Headers, content: Content) -> Expected {
        let to = self.model.owner(headers.destination);
        let by = self.model.owner(headers.source);
        if from == PortId::HOST && by != Owner::Host {
            return self.host_for_another(by, to, headers, content);
        }
        let expected = self.model.egress(from, headers, Offload::NONE);
        if expected.verdict == Verdict::Drop(DropReason::SourceNotAllowed)
            || special(headers.destination).is_some()
        {
            return expected;
        }
        if from == PortId::HOST {
            return if content == Content::Redirect {
                dropped(DropReason::Redirect)
            } else {
                expected
            };
        }
        let by_the_host = match to {
            Owner::Stranger => true,
            Owner::Pod(_) | Owner::Peer(_) => self.answers(headers, content),
            Owner::Host | Owner::NobodyHere => false,
        };
        if by_the_host {
            outcome(Verdict::Deliver(PortId::HOST))
        } else {
            expected
        }
    }

    /// What must become of a packet of ordinary TTL that peer `from` sends to this node.
    pub fn ingress(&mut self, from: PeerId, headers: &Headers, content: Content) -> Expected {
        let expected = self.model.ingress(from, headers);
        let Verdict::Deliver(port) = expected.verdict else {
            return expected;
        };
        if port == PortId::HOST {
            self.given.insert(headers.source);
            return expected;
        }
        if self.answers(headers, content) {
            return outcome(Verdict::Deliver(PortId::HOST));
        }
        expected
    }

    fn host_for_another(
        &mut self,
        by: Owner,
        to: Owner,
        headers: &Headers,
        content: Content,
    ) -> Expected {
        let (source, destination) = (headers.source, headers.destination);
        let to_local_pod = matches!(to, Owner::Pod(_));
        let known = self.peer_hosts.contains(&source) || self.given.contains(&source);
        let pair = self.pairs.contains(&sorted(source, destination));
        let (allowed, remembered) = match by {
            Owner::Pod(_) => (to != Owner::Host, true),
            Owner::Stranger => (to_local_pod, false),
            Owner::Peer(_) => (to_local_pod && (known || pair), known),
            Owner::Host | Owner::NobodyHere => (false, false),
        };
        if !allowed || special(source).is_some() {
            return dropped(DropReason::SourceNotAllowed);
        }
        if let Some(reason) = special(destination) {
            return dropped(reason);
        }
        if content == Content::Redirect {
            return dropped(DropReason::Redirect);
        }
        let onward = match to {
            Owner::Pod(port) => Verdict::Deliver(port),
            Owner::Peer(peer) => Verdict::Send(peer),
            Owner::NobodyHere => {
                return self
                    .model
                    .error(headers, (3, 1), (1, 3), DropReason::NoSuchPod);
            }
            Owner::Host | Owner::Stranger => {
                return self
                    .model
                    .error(headers, (3, 0), (1, 0), DropReason::NoRoute);
            }
        };
        if remembered {
            self.pairs.insert(sorted(source, destination));
            let flow = match content {
                Content::Whole(talk) => Some(talk),
                Content::Fragment(talk) => talk,
                Content::Error(_) | Content::ErrorAboutFragment(..) | Content::Redirect => None,
            };
            if let Some(flow) = flow.filter(|flow| !self.flows.contains(&turned(*flow))) {
                self.flows.insert(flow);
            }
        }
        outcome(onward)
    }

    /// Whether a packet from a pod or a peer belongs to what the host sent.
    fn answers(&mut self, headers: &Headers, content: Content) -> bool {
        let between = sorted(headers.source, headers.destination);
        let belongs = match content {
            Content::Whole(talk) => self.flows.contains(&turned(talk)),
            Content::Fragment(_) => self.pairs.contains(&between),
            Content::Error(talk) if talk.0 == headers.destination => self.flows.contains(&talk),
            Content::ErrorAboutFragment(source, destination) if source == headers.destination => {
                self.pairs.contains(&sorted(source, destination))
            }
            // About a packet of somebody else.
            Content::Error(_) | Content::ErrorAboutFragment(..) => false,
            // For a pod it is a message like any other, of a flow that nobody has in these tests.
            Content::Redirect => false,
        };
        if belongs && matches!(content, Content::Error(_) | Content::ErrorAboutFragment(..)) {
            self.pairs.insert(between);
        }
        belongs
    }
}

fn sorted(one: IpAddr, other: IpAddr) -> [IpAddr; 2] {
    [one.min(other), one.max(other)]
}

fn turned((source, destination, protocol, from, to): Talk) -> Talk {
    (destination, source, protocol, to, from)
}
