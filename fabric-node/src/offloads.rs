//! Which offloads a node uses, and why it does without others.
//!
//! Comes in: what the configuration wants, what TUN devices and sockets got. Goes out: names and
//! reasons for the log and for the operator. Never done here: asking the kernel.

use rustix::io::Errno;

use crate::{
    config::offloads::{Offload, Offloads},
    sys::tun::TunOffloads,
    tunnel::{
        segmentation::Availability,
        socket::{SocketOffloads, WantedOffloads},
    },
};

/// An offload that is not in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Its name.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

/// What to ask of TUN devices.
#[must_use]
pub fn of_devices(wanted: Offloads) -> TunOffloads {
    let uso = wanted.has(Offload::Uso);
    TunOffloads {
        checksum: wanted.has(Offload::Checksum),
        tso4: wanted.has(Offload::Tso4),
        tso6: wanted.has(Offload::Tso6),
        uso4: uso,
        uso6: uso,
    }
}

/// What to ask of sockets on the underlay.
#[must_use]
pub fn of_sockets(wanted: Offloads) -> WantedOffloads {
    WantedOffloads {
        gso: wanted.has(Offload::UdpGso),
        gro: wanted.has(Offload::UdpGro),
    }
}

/// The names of the offloads that a device uses.
#[must_use]
pub fn device_names(offloads: TunOffloads) -> Vec<&'static str> {
    by_name(offloads)
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| name)
        .collect()
}

/// The names of the offloads that the sockets use.
#[must_use]
pub fn socket_names(offloads: SocketOffloads) -> Vec<&'static str> {
    [("udp-gso", offloads.gso), ("udp-gro", offloads.gro)]
        .into_iter()
        .filter(|(_, availability)| *availability == Availability::InUse)
        .map(|(name, _)| name)
        .collect()
}

/// What is not in use, in the order of the names, with the reason.
#[must_use]
pub fn lacking(
    wanted: TunOffloads,
    device: (TunOffloads, Option<Errno>),
    sockets: SocketOffloads,
) -> Vec<Lacking> {
    let (has, refused) = device;
    let of_device = by_name(wanted).into_iter().zip(by_name(has));
    let device = of_device
        .filter(|(_, (_, in_use))| !in_use)
        .map(|((name, wanted), _)| Lacking {
            name,
            reason: match (wanted, refused) {
                (false, _) => SWITCHED_OFF.to_owned(),
                (true, Some(errno)) => by_kernel(errno),
                (true, None) => "the device was set up without it".to_owned(),
            },
        });
    let sockets = [("udp-gso", sockets.gso), ("udp-gro", sockets.gro)]
        .into_iter()
        .filter_map(|(name, availability)| {
            let reason = match availability {
                Availability::InUse => return None,
                Availability::SwitchedOff => SWITCHED_OFF.to_owned(),
                Availability::Refused(errno) => by_kernel(errno),
            };
            Some(Lacking { name, reason })
        });
    device.chain(sockets).collect()
}

const SWITCHED_OFF: &str = "off in node.toml";

fn by_kernel(errno: Errno) -> String {
    format!("refused by the kernel: {errno}")
}

fn by_name(offloads: TunOffloads) -> [(&'static str, bool); 5] {
    [
        ("checksum", offloads.checksum),
        ("tso4", offloads.tso4),
        ("tso6", offloads.tso6),
        ("uso4", offloads.uso4),
        ("uso6", offloads.uso6),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the configuration turns off and what the kernel refuses is told apart; what is in use is
    /// not told as lacking.
    #[test]
    fn reasons_are_told_apart() {
        let wanted = of_devices(Offloads::ALL.without(Offload::Tso6));
        let has = TunOffloads {
            uso4: false,
            uso6: false,
            ..wanted
        };
        let sockets = SocketOffloads {
            gso: Availability::SwitchedOff,
            gro: Availability::Refused(Errno::NOPROTOOPT),
        };
        let told: Vec<(&str, String)> = lacking(wanted, (has, Some(Errno::INVAL)), sockets)
            .into_iter()
            .map(|it| (it.name, it.reason))
            .collect();
        let off = || SWITCHED_OFF.to_owned();
        let invalid = || by_kernel(Errno::INVAL);
        let expected = [
            ("tso6", off()),
            ("uso4", invalid()),
            ("uso6", invalid()),
            ("udp-gso", off()),
            ("udp-gro", by_kernel(Errno::NOPROTOOPT)),
        ];
        assert_eq!(told, expected);
        assert_eq!(device_names(has), ["checksum", "tso4"]);
        assert!(socket_names(sockets).is_empty());
    }

    /// Without checksums a device is asked for nothing.
    #[test]
    fn devices_without_checksums_have_nothing() {
        let wanted = of_devices(Offloads::ALL.without(Offload::Checksum));
        assert_eq!(wanted, TunOffloads::NONE);
        assert_eq!(of_devices(Offloads::ALL), TunOffloads::ALL);
    }
}
