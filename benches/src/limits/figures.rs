//! Figures and their limits, as lines, as JSON and as a Markdown table.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

/// A question with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Time to look up a route.
    Lookup,
    /// Time to attach a pod.
    Attach,
    /// What a daemon with many peers and nothing to do costs.
    Idle,
    /// Time from a daemon's start to its first packet.
    Restart,
}

impl Limit {
    /// All, the quickest first.
    pub const ALL: [Self; 4] = [Self::Lookup, Self::Attach, Self::Restart, Self::Idle];

    /// As on the command line.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Attach => "attach",
            Self::Idle => "idle",
            Self::Restart => "restart",
        }
    }
}

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Which question it answers.
    pub limit: Limit,
    /// What was measured.
    pub what: String,
    /// The value.
    pub value: f64,
    /// What it counts.
    pub unit: &'static str,
    /// The most it may be; `None` for what is told beside.
    pub most: Option<f64>,
}

impl Figure {
    /// Whether it keeps its limit. What is no number does not.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.most.is_none_or(|most| self.value <= most)
    }

    fn verdict(&self) -> &'static str {
        match (self.most, self.holds()) {
            (None, _) => "",
            (Some(_), true) => "ok",
            (Some(_), false) => "FAILED",
        }
    }

    fn most(&self) -> String {
        self.most.map_or_else(String::new, |most| {
            format!("at most {most} {}", self.unit)
                .trim_end()
                .to_owned()
        })
    }
}

/// A question without an answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Which.
    pub limit: Limit,
    /// One line.
    pub reason: String,
}

/// All of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What could not be.
    pub missing: Vec<Missing>,
    /// Processor, number of processors, kernel.
    pub machine: String,
}

impl Report {
    /// Lines that say what is wrong; none if everything was measured and keeps its limit.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let broken = self.figures.iter().filter(|figure| !figure.holds());
        let broken = broken.map(|figure| {
            format!(
                "FAILED: {}: {}: {}, {}",
                figure.limit.title(),
                figure.what,
                number(figure.value, figure.unit),
                figure.most()
            )
        });
        let missing = self.missing.iter();
        let missing =
            missing.map(|missing| format!("FAILED: {}: {}", missing.limit.title(), missing.reason));
        broken.chain(missing).collect()
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|figure| {
                let mut value = json!(figure);
                value["holds"] = json!(figure.holds());
                value
            })
            .collect();
        json!({ "machine": self.machine, "figures": figures, "missing": self.missing })
    }

    /// For people.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "{}\n\n| | measure | value | limit | |\n|---|---|---|---|---|\n",
            self.machine
        );
        for figure in &self.figures {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                figure.limit.title(),
                figure.what,
                number(figure.value, figure.unit),
                figure.most(),
                figure.verdict()
            );
        }
        for missing in &self.missing {
            let title = missing.limit.title();
            let _ = writeln!(
                text,
                "| {title} | not measured | {} | | FAILED |",
                missing.reason
            );
        }
        text
    }
}

fn number(value: f64, unit: &str) -> String {
    let digits = if value.abs() < 10.0 && value.fract() != 0.0 {
        2
    } else {
        1
    };
    let digits = if value.fract() == 0.0 { 0 } else { digits };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, most: Option<f64>) -> Figure {
        Figure {
            limit: Limit::Attach,
            what: "ADD, p50".to_owned(),
            value,
            unit: "ms",
            most,
        }
    }

    /// A limit is kept up to exactly its value, and never by what is no number.
    #[test]
    fn limits_hold_up_to_their_value() {
        assert!(figure(15.0, Some(15.0)).holds());
        assert!(!figure(15.1, Some(15.0)).holds());
        assert!(!figure(f64::NAN, Some(15.0)).holds());
        assert!(figure(99.0, None).holds());
    }

    /// A broken limit and a missing measurement both are failures, told in one line each.
    #[test]
    fn failures_are_told() {
        let report = Report {
            figures: vec![figure(3.0, Some(15.0)), figure(20.25, Some(15.0))],
            missing: vec![Missing {
                limit: Limit::Idle,
                reason: "no lab".to_owned(),
            }],
            machine: "m".to_owned(),
        };
        assert_eq!(
            report.failures(),
            [
                "FAILED: attach: ADD, p50: 20.2 ms, at most 15 ms",
                "FAILED: idle: no lab"
            ]
        );
        let text = report.to_markdown();
        assert!(
            text.contains("| attach | ADD, p50 | 3 ms | at most 15 ms | ok |"),
            "{text}"
        );
        assert!(
            text.contains("| idle | not measured | no lab | | FAILED |"),
            "{text}"
        );
        assert_eq!(report.to_json()["figures"][1]["holds"], false);
    }
}
