//! wireguard-go, at the version of `benches/peers/go.mod`.

use std::path::Path;

use super::{
    Site, Tunnel,
    program::{self, GoProgram},
    wireguard::{self, Implementation},
};

/// UDP port of both ends: WireGuard's usual one.
const PORT: u16 = 51_820;
const PROGRAM: GoProgram = GoProgram {
    pins: "",
    module: "golang.zx2c4.com/wireguard",
    package: "golang.zx2c4.com/wireguard",
    name: "wireguard-go",
};

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let implementation = Implementation {
        program: site.programs.go(PROGRAM)?,
        arguments: &["--foreground"],
        port: PORT,
    };
    wireguard::start(site, folder, implementation)
}

/// Its version in the text of the `go.mod`.
#[must_use]
pub fn pinned(go_mod: &str) -> Option<&str> {
    program::pinned(go_mod, PROGRAM.module)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The pinned version is found in the repository's own go.mod.
    #[test]
    fn the_version_is_pinned() {
        let go_mod = include_str!("../../peers/go.mod");
        assert!(pinned(go_mod).unwrap().starts_with("v0.0."));
    }
}
