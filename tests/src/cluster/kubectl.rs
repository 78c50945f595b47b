//! `kubectl`, as a person at the control plane uses it.
//!
//! Comes in: words of a command line, manifests. Goes out: what it printed. An error tells the command, what it said,
//! and for what did not come about the object's own description.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command::{self, Answer};
use serde_json::Value;

use super::realm::Realm;

/// How long a command may take that waits for nothing.
const ASK_MAX: Duration = Duration::from_secs(60);
/// How much longer than what it waits for a command may take.
const GRACE: Duration = Duration::from_secs(20);
/// Lines of a description that an error tells.
const DESCRIPTION_LINES: usize = 30;

/// See the module's documentation. Speaks as who the kubeconfig names.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    folder: PathBuf,
    realm: Realm,
}

impl Kubectl {
    /// `program` with `kubeconfig` in `realm`; `folder` is its working folder and keeps its cache.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: &Path, folder: &Path, realm: &Realm) -> Self {
        Self {
            program: program.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            folder: folder.to_owned(),
            realm: realm.clone(),
        }
    }

    /// The same for someone else.
    #[must_use]
    pub fn with_kubeconfig(&self, kubeconfig: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            ..self.clone()
        }
    }

    /// The kubeconfig that it uses.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `kubectl WORDS`, with `stdin`, however it ends; at most `limit`.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end.
    pub fn answer(&self, words: &[&str], stdin: &[u8], limit: Duration) -> anyhow::Result<Answer> {
        let mut kubectl = self.realm.command(&self.program, &self.folder)?;
        kubectl
            .env("HOME", &self.folder)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(words);
        command::run(kubectl, stdin, limit).with_context(|| format!("kubectl {}", words.join(" ")))
    }

    /// `kubectl WORDS`, which must succeed; its output.
    ///
    /// # Errors
    ///
    /// It does not, or not within a minute.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        self.run_with(words, b"", ASK_MAX)
    }

    /// `kubectl WORDS -o json`.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&words)?)?)
    }

    /// `kubectl apply` of a manifest's text.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.run_with(&["apply", "-f", "-"], manifest.as_bytes(), ASK_MAX)
    }

    /// `kubectl delete` of a manifest's text; waits until it is gone, at most `limit`.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn delete(&self, manifest: &str, limit: Duration) -> anyhow::Result<String> {
        let words = ["delete", "--ignore-not-found", "-f", "-"];
        self.run_with(&words, manifest.as_bytes(), limit)
    }

    /// `kubectl wait --for=CONDITION WORDS`; how long that took.
    ///
    /// # Errors
    ///
    /// It did not come about within `limit`; with the description of what was waited for.
    pub fn wait(
        &self,
        condition: &str,
        words: &[&str],
        limit: Duration,
    ) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let condition = format!("--for={condition}");
        let timeout = format!("--timeout={}s", limit.as_secs());
        let mut all = vec!["wait", &condition, &timeout];
        all.extend(words);
        let answer = self.answer(&all, b"", limit + GRACE)?;
        if answer.status.success() {
            return Ok(begin.elapsed());
        }
        let said = answer.stderr.trim().to_owned();
        Err(anyhow::anyhow!(
            "kubectl {}: {said}{}",
            all.join(" "),
            self.describe(words)
        ))
    }

    /// `kubectl exec POD -- WORDS`, which must succeed; its output.
    ///
    /// # Errors
    ///
    /// It does not, or not within a minute.
    pub fn exec(&self, pod: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["exec", pod, "--"];
        all.extend(words);
        self.run(&all)
    }

    fn run_with(&self, words: &[&str], stdin: &[u8], limit: Duration) -> anyhow::Result<String> {
        let answer = self.answer(words, stdin, limit)?;
        ensure!(
            answer.status.success(),
            "kubectl {} ended with {}: {}{}",
            words.join(" "),
            answer.status.code().unwrap_or(-1),
            answer.stdout.trim(),
            answer.stderr.trim()
        );
        Ok(answer.stdout)
    }

    /// The end of `kubectl describe`, where the events are.
    fn describe(&self, words: &[&str]) -> String {
        let mut all = vec!["describe"];
        all.extend(words);
        let described = self.answer(&all, b"", ASK_MAX);
        let text = described.map(|answer| answer.stdout).unwrap_or_default();
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let from = lines.len().saturating_sub(DESCRIPTION_LINES);
        let lines = lines.get(from..).unwrap_or_default();
        lines
            .iter()
            .map(|line| format!("\n  {line}"))
            .collect::<String>()
    }
}
