//! What an operator does: commands of the real `fabric` program, and a look at the log.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::{Worker, command};
use fabric_proto::admin::{Document, DropList, Peer, PeerList, PodList, RouteList, Status};
use serde::de::DeserializeOwned;

use crate::stage::Stage;

/// How long one command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Runs `fabric` with `arguments`.
///
/// # Errors
///
/// It cannot be started or does not end.
pub fn fabric(stage: &Stage, arguments: &[&str]) -> anyhow::Result<command::Answer> {
    let mut program = Command::new(stage.program("fabric"));
    program.args(arguments);
    command::run(program, b"", COMMAND_MAX)
}

/// A document of the daemon of `worker`, asked for with the command `fabric WHAT -o json`.
///
/// # Errors
///
/// The command fails or prints something else.
pub fn ask<T: DeserializeOwned>(stage: &Stage, worker: &Worker, what: &str) -> anyhow::Result<T> {
    let socket = worker.admin_socket();
    let socket = socket.to_str().context("the socket's path is no text")?;
    let answer = fabric(stage, &[what, "--socket", socket, "-o", "json"])?;
    ensure!(
        answer.status.success(),
        "fabric {what} ended with {}: {}",
        answer.status,
        answer.stderr
    );
    let document: Document<T> = serde_json::from_str(&answer.stdout)
        .with_context(|| format!("fabric {what} printed {}", answer.stdout))?;
    Ok(document.content)
}

/// `fabric status`.
///
/// # Errors
///
/// As [`ask`].
pub fn status(stage: &Stage, worker: &Worker) -> anyhow::Result<Status> {
    ask(stage, worker, "status")
}

/// `fabric routes`: whether there is a route to `prefix`.
///
/// # Errors
///
/// As [`ask`].
pub fn has_route(stage: &Stage, worker: &Worker, prefix: &str) -> anyhow::Result<bool> {
    let routes: RouteList = ask(stage, worker, "routes")?;
    Ok(routes.items.iter().any(|route| route.prefix == prefix))
}

/// `fabric peers`: what is said of `peer`, if anything.
///
/// # Errors
///
/// As [`ask`].
pub fn peer(stage: &Stage, worker: &Worker, peer: &str) -> anyhow::Result<Option<Peer>> {
    let peers: PeerList = ask(stage, worker, "peers")?;
    Ok(peers.items.into_iter().find(|found| found.name == peer))
}

/// `fabric pods`.
///
/// # Errors
///
/// As [`ask`].
pub fn pods(stage: &Stage, worker: &Worker) -> anyhow::Result<PodList> {
    ask(stage, worker, "pods")
}

/// `fabric drops`: packets dropped for any of `reasons`.
///
/// # Errors
///
/// As [`ask`].
pub fn dropped(stage: &Stage, worker: &Worker, reasons: &[&str]) -> anyhow::Result<u64> {
    let drops: DropList = ask(stage, worker, "drops")?;
    Ok(drops
        .items
        .iter()
        .filter(|drop| reasons.contains(&drop.reason.as_str()))
        .map(|drop| drop.packets)
        .sum())
}

/// A place in a daemon's log, to look only at what comes after it.
#[derive(Debug)]
pub struct LogMark {
    bytes: usize,
}

impl LogMark {
    /// The present end of the log of `worker`.
    #[must_use]
    pub fn at_end(worker: &Worker) -> Self {
        Self {
            bytes: read(&worker.log_file()).len(),
        }
    }

    /// The first later line that has all of `words`.
    ///
    /// # Errors
    ///
    /// There is none; the message has all later lines.
    pub fn line(&self, worker: &Worker, words: &[&str]) -> anyhow::Result<String> {
        let text = read(&worker.log_file());
        let new = text.get(self.bytes..).unwrap_or_default();
        with_words(new, words)
            .next()
            .map(str::to_owned)
            .with_context(|| {
                format!(
                    "no line of the log of {} has all of {words:?}; it says\n{new}",
                    worker.name
                )
            })
    }

    /// How many later lines have all of `words`.
    #[must_use]
    pub fn count(&self, worker: &Worker, words: &[&str]) -> usize {
        let text = read(&worker.log_file());
        with_words(text.get(self.bytes..).unwrap_or_default(), words).count()
    }
}

/// The lines that have all of `words`.
fn with_words<'a>(text: &'a str, words: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    text.lines().filter(has_all)
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}
