//! What became of a packet.

use crate::ids::{PeerId, PortId};

/// The one outcome of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To a port of this node.
    Deliver(PortId),
    /// To the peer node that owns the destination.
    Send(PeerId),
    /// The destination link takes smaller packets only and this IPv4 packet may be cut: see
    /// [`crate::packet::fragment`]. The next hop is the same as in the unfragmented case.
    Fragment(NextHop),
    /// An ICMP error is in the reply buffer; it goes back where the packet came from.
    Answer,
    /// Nowhere, for one reason.
    Drop(DropReason),
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// A port of this node.
    Local(PortId),
    /// A peer node.
    Peer(PeerId),
    /// Inside this node's pod range, but no pod has the address.
    Unassigned,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet was dropped. One counter each; the names are the same in the CLI, JSON,
        /// metrics and docs/operations.md.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name, UPPER_SNAKE.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say.
    Truncated = "TRUNCATED",
    /// Neither IPv4 nor IPv6.
    BadVersion = "BAD_VERSION",
    /// A header length that cannot be: IPv4 below 20 bytes or beyond the packet, a malformed IPv4
    /// option list, TCP below 20 bytes.
    BadHeaderLength = "BAD_HEADER_LENGTH",
    /// Total length below the header's, or an IPv6 jumbogram.
    BadTotalLength = "BAD_TOTAL_LENGTH",
    /// IPv4 header checksum wrong.
    BadHeaderChecksum = "BAD_HEADER_CHECKSUM",
    /// IPv4 loose or strict source route option.
    SourceRoute = "SOURCE_ROUTE",
    /// IPv6 routing header of type 0 (RFC 5095).
    RoutingHeader = "ROUTING_HEADER",
    /// IPv6 extension headers beyond the limit, or out of bounds.
    ExtensionHeaders = "EXTENSION_HEADERS",
    /// Virtio metadata that contradicts the packet.
    BadOffload = "BAD_OFFLOAD",
    /// A pod or the host sent from an address that is not its own.
    SourceNotAllowed = "SOURCE_NOT_ALLOWED",
    /// A peer sent from an address outside its assigned ranges.
    PeerSourceNotAllowed = "PEER_SOURCE_NOT_ALLOWED",
    /// A peer sent to an address that is not local to this node.
    DestinationNotLocal = "DESTINATION_NOT_LOCAL",
    /// An ICMP redirect of the host's kernel: routes are the fabric's to choose.
    Redirect = "REDIRECT",
    /// Multicast or broadcast destination.
    Multicast = "MULTICAST",
    /// Link-local or loopback destination.
    NotForwardable = "NOT_FORWARDABLE",
    /// No route, and no ICMP error was due.
    NoRoute = "NO_ROUTE",
    /// The address is in this node's pod range but no pod has it, and no ICMP error was due.
    NoSuchPod = "NO_SUCH_POD",
    /// TTL or hop limit used up, and no ICMP error was due.
    TtlExpired = "TTL_EXPIRED",
    /// Larger than the link and not to be fragmented, and no ICMP error was due.
    TooBig = "TOO_BIG",
    /// The peer node has no live connection.
    PeerUnreachable = "PEER_UNREACHABLE",
    /// The queue towards the peer is full.
    PeerQueueFull = "PEER_QUEUE_FULL",
    /// The queue towards the peer was long for too long, and this packet's sender understands loss
    /// only.
    PeerQueueAqm = "PEER_QUEUE_AQM",
    /// The connection ended while the packet waited in its queue.
    PeerDisconnected = "PEER_DISCONNECTED",
    /// A record from a peer that does not decode; its connection is closed.
    BadRecord = "BAD_RECORD",
    /// The port's device is gone.
    PortGone = "PORT_GONE",
    /// The kernel refused the packet on its way into a TUN device.
    DeviceRefused = "DEVICE_REFUSED",
}
