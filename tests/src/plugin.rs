//! Execs of the real plugin with any environment and configuration, as a container runtime does.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::{
    lab::{Lab, LabName, Worker, command, daemon::wrapped, plugin::PLUGIN, underlay::inside},
    sys::{
        netlink::{Netlink, enable_ipv6},
        netns::Netns,
    },
};
use serde_json::{Value, json};

use crate::stage::Stage;

/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(30);

/// A container that is attached to a worker.
#[derive(Debug)]
pub struct Container {
    /// CNI_CONTAINERID.
    pub id: String,
    /// CNI_NETNS.
    pub netns: PathBuf,
}

/// What the plugin answered.
#[derive(Debug)]
pub enum Answer {
    /// Exit status 0, with the result (null for verbs without one).
    Done(Value),
    /// A CNI error.
    Failed {
        /// Its code.
        code: u64,
        /// Its message and details.
        text: String,
    },
}

impl Answer {
    /// The result.
    ///
    /// # Errors
    ///
    /// It is a failure.
    pub fn done(self) -> anyhow::Result<Value> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Failed { code, text } => anyhow::bail!("code {code}: {text}"),
        }
    }

    /// Checks that it is a failure with `code` whose text has all of `words`; the text.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn failed(self, expected: u64, words: &[&str]) -> anyhow::Result<String> {
        match self {
            Self::Done(value) => anyhow::bail!("it succeeded with {value}"),
            Self::Failed { code, text } => {
                ensure!(
                    code == expected && words.iter().all(|word| text.contains(word)),
                    "expected code {expected} and {words:?}, but it is code {code}: {text}"
                );
                Ok(text)
            }
        }
    }
}

impl Container {
    /// A container with a namespace of its own, which the end of the lab removes.
    ///
    /// # Errors
    ///
    /// The namespace cannot be made.
    pub fn make(lab: &Lab, worker: &Worker, number: usize) -> anyhow::Result<Self> {
        let name: LabName = lab.state().name.parse().map_err(anyhow::Error::msg)?;
        let letter = worker.name.trim_start_matches("worker-");
        let id = name.netns(&format!("pod-{letter}-{number}"));
        let netns = worker.netns.with_file_name(&id);
        Netns::create_named(&netns)?.run(|| -> anyhow::Result<()> {
            Netlink::connect()?.set_loopback_up()?;
            Ok(enable_ipv6("lo")?)
        })??;
        Ok(Self { id, netns })
    }

    /// Calls the plugin for this container.
    ///
    /// # Errors
    ///
    /// It cannot be started, or breaks the protocol.
    pub fn call(&self, stage: &Stage, worker: &Worker, verb: &str) -> anyhow::Result<Answer> {
        call(stage, worker, verb, Some(self), json!({}))
    }

    /// CHECK with the result of ADD.
    ///
    /// # Errors
    ///
    /// As [`Container::call`].
    pub fn check(&self, stage: &Stage, worker: &Worker, result: &Value) -> anyhow::Result<Answer> {
        call(
            stage,
            worker,
            "CHECK",
            Some(self),
            json!({ "prevResult": result }),
        )
    }
}

/// Calls the plugin on a worker; `more` is added to the network configuration.
///
/// # Errors
///
/// It cannot be started, or breaks the protocol.
pub fn call(
    stage: &Stage,
    worker: &Worker,
    verb: &str,
    container: Option<&Container>,
    more: Value,
) -> anyhow::Result<Answer> {
    call_under(&[], stage, worker, verb, container, more)
}

/// As [`call`], with the plugin run under `wrapper`, as for tracing.
///
/// # Errors
///
/// As [`call`].
pub fn call_under(
    wrapper: &[String],
    stage: &Stage,
    worker: &Worker,
    verb: &str,
    container: Option<&Container>,
    more: Value,
) -> anyhow::Result<Answer> {
    let (program, config) = prepared(wrapper, stage, worker, verb, container, more);
    let answer = inside(&worker.netns, move || {
        command::run(program, config.as_bytes(), CALL_MAX)
    })?;
    parse(verb, &answer)
}

/// The command of one call, to be run in the worker's namespace, and what it reads from standard input.
#[must_use]
pub fn prepared(
    wrapper: &[String],
    stage: &Stage,
    worker: &Worker,
    verb: &str,
    container: Option<&Container>,
    more: Value,
) -> (Command, String) {
    let mut config = json!({
        "cniVersion": "1.1.0",
        "name": "fabric",
        "type": PLUGIN,
        "socket": worker.cni_socket(),
        "stateDir": worker.state_dir(),
    });
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    let mut program = wrapped(wrapper, &stage.program(PLUGIN));
    program
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_PATH", stage.program(""));
    if let Some(container) = container {
        program
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", &container.netns)
            .env("CNI_IFNAME", "eth0");
    }
    (program, config.to_string())
}

/// What the plugin answered to `verb`.
///
/// # Errors
///
/// It breaks the protocol.
pub fn parse(verb: &str, answer: &command::Answer) -> anyhow::Result<Answer> {
    let text = answer.stdout.trim();
    let value = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(text).with_context(|| format!("{verb} printed {text:?}"))?
    };
    if answer.status.success() {
        return Ok(Answer::Done(value));
    }
    let part = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let code = value
        .get("code")
        .and_then(Value::as_u64)
        .with_context(|| format!("{verb} failed without a code: {text:?} {}", answer.stderr))?;
    Ok(Answer::Failed {
        code,
        text: format!("{}; {}", part("msg"), part("details")),
    })
}

/// The addresses of a result of ADD, without their prefix lengths.
#[must_use]
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result.get("ips").and_then(Value::as_array);
    ips.into_iter()
        .flatten()
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next())
        .map(str::to_owned)
        .collect()
}
