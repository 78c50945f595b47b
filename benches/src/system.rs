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
    WireguardGo,
    /// A userspace WireGuard in Rust.
    BoringtunCli,
    /// An overlay network in Go, with certificates.
    Nebula,
    /// A peer-to-peer VPN in Rust.
    Vpncloud,
    /// The classic TLS VPN, its data channel in the process as well.
    Openvpn,
    /// The classic mesh VPN.
    Tinc,
    /// The kernel's VXLAN: nothing is encrypted.
    Vxlan,
    /// Yardstick: super-packets of a TUN in AES-GCM over UDP, losses are lost.
    Relay,
    /// Yardstick: the tunnel around the asynchronous QUIC library, as one would write it first.
    Quinn,
    /// No tunnel: the underlay across workers, one virtual cable between two namespaces on a node.
    Veth,
}

impl System {
    /// All, in the order in which they stand in a report.
    pub const ALL: [Self; 11] = [
        Self::Fabric,
        Self::WireguardGo,
        Self::BoringtunCli,
        Self::Nebula,
        Self::Vpncloud,
        Self::Openvpn,
        Self::Tinc,
        Self::Vxlan,
        Self::Relay,
        Self::Quinn,
        Self::Veth,
    ];

    /// As on the command line.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Fabric => "fabric",
            Self::WireguardGo => "wireguard-go",
            Self::BoringtunCli => "boringtun-cli",
            Self::Nebula => "nebula",
            Self::Vpncloud => "vpncloud",
            Self::Openvpn => "openvpn",
            Self::Tinc => "tinc",
            Self::Vxlan => "vxlan",
            Self::Relay => "relay",
            Self::Quinn => "quinn",
            Self::Veth => "veth",
        }
    }

    /// Whether it is an encrypted network that somebody could pick. The yardsticks are none,
    /// although they encrypt.
    #[must_use]
    pub fn encrypted(self) -> bool {
        match self {
            Self::Fabric
            | Self::WireguardGo
            | Self::BoringtunCli
            | Self::Nebula
            | Self::Vpncloud
            | Self::Openvpn
            | Self::Tinc => true,
            Self::Vxlan | Self::Relay | Self::Quinn | Self::Veth => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every system is listed once, in the order of its declaration, and is called the same in the
    /// report, in its JSON and on the command line.
    #[test]
    fn all_are_listed_by_one_name() {
        assert_eq!(System::value_variants(), System::ALL);
        for system in System::ALL {
            let on_the_command_line = system.to_possible_value();
            let on_the_command_line = on_the_command_line.as_ref().map(|value| value.get_name());
            assert_eq!(on_the_command_line, Some(system.title()));
            assert_eq!(serde_json::json!(system), system.title());
        }
    }
}
