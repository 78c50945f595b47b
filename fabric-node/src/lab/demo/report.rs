//! What the proofs found, as lines with ticks and a table, or as one JSON document.

use std::{collections::BTreeMap, time::Duration};

use anstyle::{AnsiColor, Style};
use fabric_proto::admin::API_VERSION;
use serde::Serialize;

use crate::lab::{progress::Progress, status::table};

/// What a proof found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    value: String,
    numbers: BTreeMap<&'static str, f64>,
    in_table: bool,
}

impl Finding {
    pub(super) fn new(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            numbers: BTreeMap::new(),
            in_table: false,
        }
    }

    /// Adds a measured number for programs; its finding is shown in the table, too.
    pub(super) fn with(mut self, name: &'static str, number: f64) -> Self {
        self.numbers.insert(name, number);
        self.in_table = true;
        self
    }
}

/// A proof that was made.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Proof {
    id: String,
    title: String,
    ok: bool,
    /// What was measured, or why the proof failed.
    value: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    measured: BTreeMap<&'static str, f64>,
    #[serde(skip)]
    in_table: bool,
}

/// The document `kind: LabDemo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    api_version: &'static str,
    kind: &'static str,
    ok: bool,
    seconds: f64,
    proofs: Vec<Proof>,
    #[serde(skip)]
    lines: bool,
}

impl Report {
    /// An empty report, printed line by line, or as a document at its end.
    pub(super) fn new(lines: bool) -> Self {
        Self {
            api_version: API_VERSION,
            kind: "LabDemo",
            ok: false,
            seconds: 0.0,
            proofs: Vec::new(),
            lines,
        }
    }

    pub(super) fn introduce(&self, text: &str, progress: &Progress) {
        if self.lines {
            progress.around(|| anstream::println!("{text}\n"));
        }
    }

    pub(super) fn add(
        &mut self,
        id: String,
        title: String,
        found: anyhow::Result<Finding>,
        progress: &Progress,
    ) {
        let proof = match found {
            Ok(Finding {
                value,
                numbers,
                in_table,
            }) => Proof {
                id,
                title,
                ok: true,
                value,
                measured: numbers,
                in_table,
            },
            Err(error) => Proof {
                id,
                title,
                ok: false,
                value: format!("{error:#}"),
                measured: BTreeMap::new(),
                in_table: false,
            },
        };
        if self.lines {
            progress.around(|| anstream::println!("{}", proof.line()));
        }
        self.proofs.push(proof);
    }

    pub(super) fn all_hold(&self) -> bool {
        !self.proofs.is_empty() && self.proofs.iter().all(|proof| proof.ok)
    }

    /// Prints the table or the document.
    pub(super) fn finish(&mut self, took: Duration, progress: &Progress) -> anyhow::Result<()> {
        self.ok = self.all_hold();
        self.seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
        let text = if self.lines {
            self.summary()
        } else {
            serde_json::to_string_pretty(self)?
        };
        progress.around(|| anstream::println!("{text}"));
        Ok(())
    }

    fn summary(&self) -> String {
        let mut measured = table(["MEASURED", ""]);
        for proof in self.proofs.iter().filter(|proof| proof.in_table) {
            measured.add_row([proof.title.clone(), proof.value.clone()]);
        }
        let holding = self.proofs.iter().filter(|proof| proof.ok).count();
        format!(
            "\n{}\n\n{holding} of {} proofs hold, in {:.1} s",
            measured.trim_fmt(),
            self.proofs.len(),
            self.seconds
        )
    }
}

impl Proof {
    fn line(&self) -> String {
        let (mark, color) = if self.ok {
            ("✓", AnsiColor::Green)
        } else {
            ("✗", AnsiColor::Red)
        };
        let style = Style::new().fg_color(Some(color.into())).bold();
        format!("{style}{mark}{style:#} {}: {}", self.title, self.value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn report(last: anyhow::Result<Finding>) -> Report {
        let mut report = Report::new(false);
        let silent = Progress::silent();
        let fast = Finding::new("12.3 Gbit/s").with("gbitPerSecond", 12.3);
        report.add("speed".into(), "iperf3".into(), Ok(fast), &silent);
        report.add("last".into(), "the last".into(), last, &silent);
        report.ok = report.all_hold();
        report
    }

    /// One failed proof fails the whole, and its error is its value.
    #[test]
    fn one_failed_proof_fails_the_whole() {
        assert!(report(Ok(Finding::new("fine"))).all_hold());
        let failed = report(Err(anyhow::anyhow!("inner").context("outer")));
        assert!(!failed.all_hold());
        assert!(failed.summary().contains("1 of 2 proofs hold"));
        assert!(failed.proofs[1].line().contains("✗"));
        assert!(!Report::new(true).all_hold(), "no proof proves nothing");
    }

    /// The JSON document has a stable shape, with numbers for programs.
    #[test]
    fn the_document_has_a_stable_shape() {
        let failed = report(Err(anyhow::anyhow!("inner").context("outer")));
        let expected = json!({
            "apiVersion": "fabric/v1",
            "kind": "LabDemo",
            "ok": false,
            "seconds": 0.0,
            "proofs": [
                {"id": "speed", "title": "iperf3", "ok": true, "value": "12.3 Gbit/s",
                 "measured": {"gbitPerSecond": 12.3}},
                {"id": "last", "title": "the last", "ok": false, "value": "outer: inner"},
            ],
        });
        assert_eq!(serde_json::to_value(failed).unwrap(), expected);
    }
}
