//! `dataplane.offloads`: which offloads to use, all at once or each by its name.
//!
//! Comes in: `true`, `false` or a table. Goes out: [`Offloads`] in which nothing is asked for that
//! depends on something that is off. Never done here: asking the kernel.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::place::{Misplaced, Source};

/// Offloads to use where the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Offloads {
    /// `checksum`: packets of TUN devices may carry partial checksums. The next three build on it.
    pub checksum: bool,
    /// `tso4`: TUN devices carry TCP super-packets over IPv4.
    pub tso4: bool,
    /// `tso6`: TUN devices carry TCP super-packets over IPv6.
    pub tso6: bool,
    /// `uso`: TUN devices carry UDP super-packets, over both families: kernels have both or neither.
    pub uso: bool,
    /// `udp_gso`: the kernel cuts batches that go to the underlay.
    pub udp_gso: bool,
    /// `udp_gro`: the kernel joins what comes from the underlay.
    pub udp_gro: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Offload {
    /// Partial checksums on TUN devices; without them no super-packets either
    Checksum,
    /// TCP super-packets over IPv4 on TUN devices
    Tso4,
    /// TCP super-packets over IPv6 on TUN devices
    Tso6,
    /// UDP super-packets on TUN devices
    Uso,
    /// Batches sent on the underlay
    UdpGso,
    /// Batches received from the underlay
    UdpGro,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Checksum,
        Self::Tso4,
        Self::Tso6,
        Self::Uso,
        Self::UdpGso,
        Self::UdpGro,
    ];

    /// Its key below `dataplane.offloads`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Tso4 => "tso4",
            Self::Tso6 => "tso6",
            Self::Uso => "uso",
            Self::UdpGso => "udp_gso",
            Self::UdpGro => "udp_gro",
        }
    }

    /// Whether it builds on [`Offload::Checksum`].
    #[must_use]
    pub fn needs_checksum(self) -> bool {
        matches!(self, Self::Tso4 | Self::Tso6 | Self::Uso)
    }
}

impl Offloads {
    /// `offloads = true`.
    pub const ALL: Self = Self::each(true);
    /// `offloads = false`.
    pub const NONE: Self = Self::each(false);

    const fn each(on: bool) -> Self {
        Self {
            checksum: on,
            tso4: on,
            tso6: on,
            uso: on,
            udp_gso: on,
            udp_gro: on,
        }
    }

    /// Whether nothing is off.
    #[must_use]
    pub fn are_all(&self) -> bool {
        *self == Self::ALL
    }

    /// Whether `offload` is asked for.
    #[must_use]
    pub fn has(self, offload: Offload) -> bool {
        let on = match offload {
            Offload::Checksum => self.checksum,
            Offload::Tso4 => self.tso4,
            Offload::Tso6 => self.tso6,
            Offload::Uso => self.uso,
            Offload::UdpGso => self.udp_gso,
            Offload::UdpGro => self.udp_gro,
        };
        on && (self.checksum || !offload.needs_checksum())
    }

    /// The same without `offload` and what builds on it.
    #[must_use]
    pub fn without(mut self, offload: Offload) -> Self {
        let place = match offload {
            Offload::Checksum => &mut self.checksum,
            Offload::Tso4 => &mut self.tso4,
            Offload::Tso6 => &mut self.tso6,
            Offload::Uso => &mut self.uso,
            Offload::UdpGso => &mut self.udp_gso,
            Offload::UdpGro => &mut self.udp_gro,
        };
        *place = false;
        self.masked()
    }

    /// Takes away what builds on something that is off.
    ///
    /// # Errors
    ///
    /// The file asks for it by name.
    pub(super) fn complete(self, source: &Source<'_>) -> Result<Self, Misplaced> {
        let builds_on_nothing = Offload::ALL
            .into_iter()
            .filter(|offload| offload.needs_checksum() && !self.checksum && self.is_set(*offload));
        for offload in builds_on_nothing {
            let key = format!("dataplane.offloads.{}", offload.key());
            if source.has(&key) {
                let problem = "true needs dataplane.offloads.checksum: the kernel cuts no packet whose checksum it does not complete";
                return Err(source.at_key(&key, problem.to_owned()));
            }
        }
        Ok(self.masked())
    }

    /// As written, whatever it builds on.
    fn is_set(self, offload: Offload) -> bool {
        Self {
            checksum: true,
            ..self
        }
        .has(offload)
    }

    fn masked(self) -> Self {
        Self {
            tso4: self.has(Offload::Tso4),
            tso6: self.has(Offload::Tso6),
            uso: self.has(Offload::Uso),
            ..self
        }
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::ALL
    }
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    checksum: bool,
    tso4: bool,
    tso6: bool,
    uso: bool,
    udp_gso: bool,
    udp_gro: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            checksum: true,
            tso4: true,
            tso6: true,
            uso: true,
            udp_gso: true,
            udp_gro: true,
        }
    }
}

impl<'de> Deserialize<'de> for Offloads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum would lose the place of a wrong key.
        deserializer.deserialize_any(SwitchOrTable)
    }
}

struct SwitchOrTable;

impl<'de> Visitor<'de> for SwitchOrTable {
    type Value = Offloads;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false or a table of offloads")
    }

    fn visit_bool<E>(self, on: bool) -> Result<Offloads, E> {
        Ok(Offloads::each(on))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Offloads, A::Error> {
        let table = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Offloads {
            checksum: table.checksum,
            tso4: table.tso4,
            tso6: table.tso6,
            uso: table.uso,
            udp_gso: table.udp_gso,
            udp_gro: table.udp_gro,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn parsed(text: &str) -> Result<Offloads, String> {
        let (path, text) = (Path::new("node.toml"), format!("node = \"a\"\n{text}"));
        let source = Source { path, text: &text };
        let config = crate::config::parse(&source, None).map_err(|error| error.to_string())?;
        Ok(config.dataplane.offloads)
    }

    /// One value turns all on or off; a table turns off what it names, in a section or in a line.
    #[test]
    fn a_switch_or_a_table() {
        assert_eq!(parsed(""), Ok(Offloads::ALL));
        assert_eq!(parsed("dataplane.offloads = true"), Ok(Offloads::ALL));
        assert_eq!(parsed("dataplane.offloads = false"), Ok(Offloads::NONE));
        assert_eq!(parsed("[dataplane.offloads]"), Ok(Offloads::ALL));
        for offload in Offload::ALL {
            let key = offload.key();
            let without = Offloads::ALL.without(offload);
            let expected = Ok(without);
            assert_eq!(
                parsed(&format!("[dataplane.offloads]\n{key} = false")),
                expected
            );
            let line = format!("[dataplane]\noffloads = {{ {key} = false }}");
            assert_eq!(parsed(&line), expected);
            assert!(!without.has(offload));
        }
    }

    /// What builds on checksums goes with them; the sockets' offloads do not.
    #[test]
    fn without_checksums_nothing_is_cut() {
        let offloads = parsed("dataplane.offloads.checksum = false").unwrap();
        let expected = Offloads {
            udp_gso: true,
            udp_gro: true,
            ..Offloads::NONE
        };
        assert_eq!(offloads, expected);
    }

    /// A wrong key, a wrong value and a contradiction are refused where they are.
    #[test]
    fn faults_are_located() {
        for (text, expected) in [
            (
                "[dataplane.offloads]\ntso = false",
                "node.toml:3:1: dataplane.offloads.tso: unknown field `tso`, expected one of `checksum`, `tso4`, `tso6`, `uso`, `udp_gso`, `udp_gro`",
            ),
            (
                "[dataplane]\noffloads = { udp_gso = 1 }",
                "node.toml:3:24: dataplane.offloads.udp_gso: invalid type: integer `1`, expected a boolean",
            ),
            (
                "[dataplane]\noffloads = \"off\"",
                "node.toml:3:12: dataplane.offloads: invalid type: string \"off\", expected true, false or a table of offloads",
            ),
            (
                "[dataplane.offloads]\nchecksum = false\ntso6 = true",
                "node.toml:4:8: dataplane.offloads.tso6: true needs dataplane.offloads.checksum: the kernel cuts no packet whose checksum it does not complete",
            ),
        ] {
            assert_eq!(parsed(text).unwrap_err(), expected, "{text:?}");
        }
    }
}
