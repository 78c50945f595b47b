//! Checks of what the running daemon does without.

use std::path::Path;

use fabric_proto::admin::{PeerList, Status};

use super::Finding;
use crate::{
    admin::client::{Client, TIMEOUT},
    cli::daemon::block_on,
    tunnel::segmentation::Segmentation,
};

/// What the daemon at `socket` says of its offloads; nothing where none answers, which another check
/// tells.
pub(super) fn examine(socket: &Path) -> Vec<Finding> {
    let asked = block_on(async {
        let client = Client::new(socket, TIMEOUT);
        Ok((client.status().await?, client.peers().await?))
    });
    match asked {
        Ok((status, peers)) => vec![offloads(&status.content), batches(&peers.content)],
        Err(_) => Vec::new(),
    }
}

fn offloads(status: &Status) -> Finding {
    let name = "offloads-in-use";
    if status.offloads_off.is_empty() {
        return Finding::ok(name, "all");
    }
    let off = status.offloads_off.iter();
    let off: Vec<String> = off
        .map(|it| format!("{}: {}", it.name, it.reason))
        .collect();
    Finding::warning(
        name,
        format!("without {}", off.join(", ")),
        "see docs/performance.md for the cost; node.toml: dataplane.offloads",
    )
}

fn batches(peers: &PeerList) -> Finding {
    let name = "batches-to-peers";
    let on = Segmentation::On.to_string();
    let off = peers.items.iter();
    let off: Vec<String> = off
        .filter(|peer| !peer.gso.is_empty() && peer.gso != on)
        .map(|peer| format!("{}: {}", peer.name, peer.gso))
        .collect();
    if off.is_empty() {
        return Finding::ok(name, "leave whole");
    }
    Finding::warning(
        name,
        format!("leave one payload at a time: {}", off.join(", ")),
        "ethtool -K INTERFACE tx on; with IPsec on the way it stays so",
    )
}

#[cfg(test)]
mod tests {
    use fabric_proto::admin::{OffloadOff, Peer};

    use super::*;
    use crate::{
        admin::{STATE_READY, View, sample::Sample},
        cli::doctor::Verdict,
    };

    /// What is off is a warning that names it with its reason; nothing off is well.
    #[test]
    fn what_is_off_is_named() {
        let mut status = Sample { state: STATE_READY }.status();
        status.offloads_off.clear();
        assert_eq!(offloads(&status).status, Verdict::Ok);
        status.offloads_off.push(OffloadOff {
            name: "uso4".to_owned(),
            reason: "off in node.toml".to_owned(),
        });
        let finding = offloads(&status);
        assert_eq!(finding.status, Verdict::Warning);
        assert_eq!(finding.detail, "without uso4: off in node.toml");
    }

    /// Only peers to which batches do not leave whole are named; one without a connection is not.
    #[test]
    fn peers_without_batches_are_named() {
        let peer = |name: &str, gso: &str| Peer {
            name: name.to_owned(),
            gso: gso.to_owned(),
            ..Peer::default()
        };
        let mut items = vec![peer("a", "on"), peer("b", "")];
        let well = batches(&PeerList {
            items: items.clone(),
        });
        assert_eq!(well.status, Verdict::Ok);
        items.push(peer("c", "off (EIO)"));
        let finding = batches(&PeerList { items });
        assert_eq!(finding.status, Verdict::Warning);
        assert!(
            finding.detail.ends_with("a time: c: off (EIO)"),
            "{finding:?}"
        );
    }

    /// Where no daemon answers there is nothing to say.
    #[test]
    fn no_daemon_no_finding() {
        assert!(examine(Path::new("/nonexistent/admin.sock")).is_empty());
    }
}
