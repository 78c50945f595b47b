//! The systems that are measured beside each other.

use clap::ValueEnum;
use serde::Serialize;

/// A way to carry packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// This project, between pods.
    Fabric,
    /// The userspace WireGuard in Go, between its tunnel addresses on the workers.
    #[value(name = "wireguard-go")]
    WireguardGo,
    /// No tunnel: the underlay across workers, one virtual cable between two namespaces on a node.
    Veth,
}

impl System {
    /// All, in the order in which they stand in a report.
    pub const ALL: [Self; 3] = [Self::Fabric, Self::WireguardGo, Self::Veth];

    /// As on the command line.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Fabric => "fabric",
            Self::WireguardGo => "wireguard-go",
            Self::Veth => "veth",
        }
    }

    /// Whether it is an encrypted network that somebody could pick. Yardsticks are none, although
    /// they encrypt.
    #[must_use]
    pub fn encrypted(self) -> bool {
        match self {
            Self::Fabric | Self::WireguardGo => true,
            Self::Veth => false,
        }
    }
}
