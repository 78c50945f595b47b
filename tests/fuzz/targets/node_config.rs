//! `node.toml`, written by operators and their tools.

use std::fs;

use fabric_core::testing::packets::Generator;
use fabric_node::config::{DURATION_MS_MAX, SOCKET_PATH_BYTES_MAX, WORKERS_MAX, load};
use tempfile::TempDir;

use super::toml_text;
use crate::fuzz::{Outcome, Target};

/// The file.
pub(super) struct NodeConfig;

thread_local! {
    static FOLDER: Result<TempDir, String> =
        tempfile::tempdir().map_err(|error| error.to_string());
}

impl Target for NodeConfig {
    fn name(&self) -> &'static str {
        "node-config"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        toml_text::make(corpus, random, &WORDS)
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        let read = FOLDER.with(|folder| {
            let folder = folder.as_ref().map_err(Clone::clone)?;
            let file = folder.path().join("node.toml");
            fs::write(&file, input).map_err(|error| error.to_string())?;
            Ok::<_, String>(load(&file))
        })?;
        let config = match read {
            Ok(config) => config,
            Err(error) if error.to_string().contains("node.toml") => return Ok("refused".into()),
            Err(error) => return Err(format!("an error that names no file: {error}")),
        };
        let tunnel = &config.tunnel;
        let times = [
            tunnel.idle_timeout_ms,
            tunnel.keep_alive_ms,
            tunnel.reconnect_max_ms,
        ];
        if !times
            .iter()
            .all(|time| (1..=DURATION_MS_MAX).contains(time))
        {
            return Err(format!("times {times:?} were accepted"));
        }
        if !config
            .dataplane
            .workers
            .is_none_or(|count| (1..=WORKERS_MAX).contains(&count))
        {
            return Err(format!(
                "{:?} workers were accepted",
                config.dataplane.workers
            ));
        }
        let sockets = [&config.cni.socket, &config.admin.socket];
        let is_usable = |path: &&std::path::PathBuf| {
            path.is_absolute() && path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
        };
        if !sockets.iter().all(is_usable) {
            return Err(format!("sockets {sockets:?} were accepted"));
        }
        Ok("accepted".into())
    }

    fn expected(&self) -> &'static [&'static str] {
        &["accepted", "refused"]
    }

    fn per_mille(&self) -> u64 {
        5
    }
}

const WORDS: [&str; 16] = [
    "node = \"worker-a\"\n",
    "node = \"\"\n",
    "state_dir = \"relative\"\n",
    "run_dir = \"/run/x\"\n",
    "[source]\n",
    "[tunnel]\n",
    "idle_timeout_ms = 0\n",
    "idle_timeout_ms = 18446744073709551615\n",
    "keep_alive_ms = 3600001\n",
    "congestion = \"cubic\"\n",
    "[dataplane]\n",
    "workers = 65\n",
    "workers = -1\n",
    "[cni]\n",
    "socket = \"x\"\n",
    "unknown = 1\n",
];
