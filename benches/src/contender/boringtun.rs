//! boringtun-cli.

use std::path::Path;

use super::{
    Site, Tunnel,
    wireguard::{self, Implementation},
};

const CRATE: &str = "boringtun-cli";
const VERSION: &str = "0.7.1";
/// UDP port of both ends: wireguard-go has the usual one.
const PORT: u16 = 51_821;

pub(super) fn start(site: &Site<'_>, folder: &Path) -> anyhow::Result<Tunnel> {
    let implementation = Implementation {
        program: site.programs.of_crate(CRATE, VERSION)?,
        // It would become the user that has logged in, whom a machine in a test does not have.
        arguments: &["--foreground", "--disable-drop-privileges"],
        port: PORT,
    };
    wireguard::start(site, folder, implementation)
}
