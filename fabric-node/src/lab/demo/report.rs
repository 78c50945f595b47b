//! What the proofs found, as lines with ticks and a table, or as one JSON document.

use std::{collections::BTreeMap, time::Duration};

use anstyle::{AnsiColor, Style};
use fabric_proto::admin::{API_VERSION, Document};
use serde::Serialize;

use crate::{
    lab::progress::Progress,
    terminal::output::{Format, Output, Show, table},
};

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

/// Content of the document `kind: LabDemo`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    ok: bool,
    seconds: f64,
    proofs: Vec<Proof>,
}

/// Collects the proofs.
#[derive(Debug)]
pub(super) struct Report {
    content: Content,
    output: Output,
    lines: bool,
}

impl Report {
    /// An empty report, printed line by line for people, as a document at its end for programs.
    pub(super) fn new(output: Output) -> Self {
        let lines = matches!(output.format, Format::Table | Format::Wide);
        Self {
            content: Content::default(),
            output,
            lines,
        }
    }

    pub(super) fn introduce(&self, text: &str, progress: &Progress) {
        if self.lines {
            self.print(&format!("{text}\n\n"), progress);
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
            self.print(&format!("{}\n", proof.line()), progress);
        }
        self.content.proofs.push(proof);
    }

    pub(super) fn all_hold(&self) -> bool {
        let proofs = &self.content.proofs;
        !proofs.is_empty() && proofs.iter().all(|proof| proof.ok)
    }

    /// Prints the table or the document.
    pub(super) fn finish(self, took: Duration, progress: &Progress) -> anyhow::Result<bool> {
        let all_hold = self.all_hold();
        let document = Document {
            api_version: API_VERSION.to_owned(),
            kind: "LabDemo".to_owned(),
            content: Content {
                ok: all_hold,
                seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
                ..self.content
            },
        };
        progress
            .around(|| self.output.document(&document))
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        Ok(all_hold)
    }

    fn print(&self, text: &str, progress: &Progress) {
        // A reader that has gone must not end the demo before it has cleaned up.
        let _ = progress.around(|| self.output.data(text));
    }
}

impl Show for Content {
    fn show(&self, _wide: bool) -> String {
        let rows = self.proofs.iter().filter(|proof| proof.in_table);
        let rows = rows.map(|proof| vec![proof.title.clone(), proof.value.clone()]);
        let holding = self.proofs.iter().filter(|proof| proof.ok).count();
        format!(
            "\n{}\n{holding} of {} proofs hold, in {:.1} s\n",
            table(&["MEASURED", "VALUE"], rows),
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
        let mut report = Report::new(Output {
            format: Format::Json,
            quiet: true,
        });
        let silent = Progress::silent();
        let fast = Finding::new("12.3 Gbit/s").with("gbitPerSecond", 12.3);
        report.add("speed".into(), "iperf3".into(), Ok(fast), &silent);
        report.add("last".into(), "the last".into(), last, &silent);
        report
    }

    /// One failed proof fails the whole, and its error is its value; no proof proves nothing.
    #[test]
    fn one_failed_proof_fails_the_whole() {
        assert!(report(Ok(Finding::new("fine"))).all_hold());
        let failed = report(Err(anyhow::anyhow!("inner").context("outer")));
        assert!(!failed.all_hold());
        assert!(failed.content.show(false).contains("1 of 2 proofs hold"));
        assert!(failed.content.proofs[1].line().contains("✗"));
        assert!(!Report::new(failed.output).all_hold());
    }

    /// The JSON document has a stable shape, with numbers for programs.
    #[test]
    fn the_document_has_a_stable_shape() {
        let failed = report(Err(anyhow::anyhow!("inner").context("outer")));
        let expected = json!({
            "ok": false,
            "seconds": 0.0,
            "proofs": [
                {"id": "speed", "title": "iperf3", "ok": true, "value": "12.3 Gbit/s",
                 "measured": {"gbitPerSecond": 12.3}},
                {"id": "last", "title": "the last", "ok": false, "value": "outer: inner"},
            ],
        });
        assert_eq!(serde_json::to_value(failed.content).unwrap(), expected);
    }
}
