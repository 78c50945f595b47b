//! Small identities that a packet decision carries around.

/// One attachment point of this node: a pod's TUN or the host's `fabric0`.
///
/// Unique for the life of the daemon; never reused, so that a late packet cannot reach a new pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

impl PortId {
    /// The host side TUN, `fabric0`.
    pub const HOST: Self = Self(0);
}

/// A peer node. The control plane gives each node id one number for the life of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// Number of a snapshot; grows by one with every change of the desired state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);
