//! Files of `nodes.d`, written by operators and their tools.

use std::{collections::BTreeSet, fs, net::IpAddr};

use fabric_core::testing::packets::Generator;
use fabric_node::control::file::read_directory;
use tempfile::TempDir;

use super::toml_text;
use crate::fuzz::{Outcome, Target};

/// One file of the directory.
pub(super) struct Nodes;

thread_local! {
    static FOLDER: Result<TempDir, String> =
        tempfile::tempdir().map_err(|error| error.to_string());
}

impl Target for Nodes {
    fn name(&self) -> &'static str {
        "nodes"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        toml_text::make(corpus, random, &WORDS)
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let read = FOLDER.with(|folder| {
            let folder = folder.as_ref().map_err(Clone::clone)?;
            let file = folder.path().join("nodes.toml");
            fs::write(file, input).map_err(|error| error.to_string())?;
            Ok::<_, String>(read_directory(folder.path()))
        })?;
        let state = match read {
            Ok(state) => state,
            Err(error) if error.to_string().contains("nodes") => return Ok("refused".into()),
            Err(error) => return Err(format!("an error that names no file: {error}")),
        };
        let mut underlay: BTreeSet<IpAddr> = BTreeSet::new();
        let mut ranges = Vec::new();
        for (id, spec) in &state.nodes {
            if spec.underlay.is_empty() || spec.pod_cidrs.is_empty() {
                return Err(format!("{id} has no underlay or no range"));
            }
            // A node may have one address with two ports, two nodes may not.
            let own: BTreeSet<IpAddr> = spec.underlay.iter().map(|address| address.ip()).collect();
            if !own.into_iter().all(|address| underlay.insert(address)) {
                return Err("two nodes have one address".into());
            }
            ranges.extend(spec.pod_cidrs.iter().copied());
        }
        for (at, range) in ranges.iter().enumerate() {
            let others = &ranges[..at];
            if others
                .iter()
                .any(|other| range.contains(other) || other.contains(range))
            {
                return Err(format!("{range} overlaps another"));
            }
        }
        Ok(if state.nodes.len() > 1 {
            "nodes"
        } else {
            "node"
        }
        .into())
    }

    fn expected(&self) -> &'static [&'static str] {
        &["nodes", "node", "refused"]
    }

    fn per_mille(&self) -> u64 {
        5
    }
}

const WORDS: [&str; 16] = [
    "[[node]]\n",
    "[node]\n",
    "id = \"worker-b\"\n",
    "id = \"\"\n",
    "underlay = [\"192.0.2.1:7946\"]\n",
    "underlay = []\n",
    "pod_cidrs = [\"10.244.1.0/24\", \"fd00:244:1::/64\"]\n",
    "pod_cidrs = [\"10.244.1.128/25\"]\n",
    "pod_cidrs = [\"0.0.0.0/0\"]\n",
    "host_addresses = [\"198.51.100.1\"]\n",
    "\"10.244.2.0/24\"",
    "\"10.244.2.1/33\"",
    "\"::ffff:10.0.0.0/104\"",
    "\"[2001:db8::1]:7946\"",
    "\"192.0.2.1:0\"",
    "unknown = 1\n",
];
