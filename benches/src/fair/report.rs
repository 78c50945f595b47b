//! Sums up what was measured: Markdown for people, JSON for programs, a verdict for each promise.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    measure::{Run, SENDERS, median_of},
    rtt::Rtt,
};

/// The least that one of several equal senders may get, in parts of a fair share.
pub const SHARE_MIN: f64 = 0.70;
/// The longest that 99 of 100 pings may take beside greedy streams (ms).
pub const RTT_P99_MS_MAX: f64 = 2.0;
/// The least that each TCP sender must get beside a flood, in parts of a fair share: below it is
/// starved, whatever else the flood may take.
pub const STARVED_SHARE: f64 = 0.25;

/// One case, repeated.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was done.
    pub title: String,
    /// The first pod floods the others' node with UDP.
    pub is_flood: bool,
    /// One after the other.
    pub runs: Vec<Run>,
}

/// A promise and what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether it is kept.
    pub holds: bool,
    /// In words.
    pub line: String,
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Machine and options, in one line.
    pub circumstances: String,
    /// The ping without load.
    pub idle: Vec<Rtt>,
    /// In the order in which they were measured.
    pub cases: Vec<Case>,
}

impl Report {
    /// A verdict for each promise of each case.
    ///
    /// # Errors
    ///
    /// A case was not measured.
    pub fn verdicts(&self) -> anyhow::Result<Vec<Verdict>> {
        let mut verdicts = Vec::new();
        for case in &self.cases {
            let share = median_of(&case.runs, Run::least_share)?;
            let (least, word) = if case.is_flood {
                (STARVED_SHARE, "starved is less than")
            } else {
                (SHARE_MIN, "at least")
            };
            verdicts.push(verdict(
                share >= least,
                format!("{}: least share {share:.2} ({word} {least:.2})", case.title),
            ));
            if !case.is_flood {
                let p99 = median_of(&case.runs, |run| run.rtt.p99_ms)?;
                verdicts.push(verdict(
                    p99 <= RTT_P99_MS_MAX,
                    format!(
                        "{}: RTT p99 of a ping beside it {p99:.2} ms (at most {RTT_P99_MS_MAX} ms)",
                        case.title
                    ),
                ));
            }
        }
        Ok(verdicts)
    }

    /// For people.
    ///
    /// # Errors
    ///
    /// As [`Self::verdicts`].
    pub fn to_markdown(&self) -> anyhow::Result<String> {
        let mut text = format!(
            "# Fairness between {SENDERS} pods of one node\n\n{}\n\nIdle: RTT p50 {:.2} ms, p99 {:.2} \
             ms.\n\n| case | Gbit/s of each pod, by repetition | sum | least share | RTT p50 ms | RTT \
             p99 ms | RTT max ms | pings lost |\n|---|---|---|---|---|---|---|---|\n",
            self.circumstances,
            median_of(&self.idle, |rtt| rtt.p50_ms)?,
            median_of(&self.idle, |rtt| rtt.p99_ms)?,
        );
        for case in &self.cases {
            let rates: Vec<String> = case.runs.iter().map(rates).collect();
            let lost: usize = case
                .runs
                .iter()
                .map(|run| run.rtt.sent - run.rtt.answered)
                .sum();
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {lost} |",
                case.title,
                rates.join("; "),
                median_of(&case.runs, Run::sum)?,
                median_of(&case.runs, Run::least_share)?,
                median_of(&case.runs, |run| run.rtt.p50_ms)?,
                median_of(&case.runs, |run| run.rtt.p99_ms)?,
                median_of(&case.runs, |run| run.rtt.max_ms)?,
            );
        }
        text.push('\n');
        for Verdict { holds, line } in self.verdicts()? {
            let _ = writeln!(text, "- {}: {line}", if holds { "ok" } else { "MISSED" });
        }
        Ok(text)
    }

    /// For programs.
    ///
    /// # Errors
    ///
    /// As [`Self::verdicts`].
    pub fn to_json(&self) -> anyhow::Result<Value> {
        let run = |run: &Run| {
            json!({
                "gbitPerSecond": run.rates,
                "leastShare": run.least_share(),
                "rtt": run.rtt,
            })
        };
        let case = |case: &Case| {
            json!({
                "title": case.title,
                "flood": case.is_flood,
                "runs": case.runs.iter().map(run).collect::<Vec<_>>(),
            })
        };
        let verdicts = self.verdicts()?;
        let verdict = |it: &Verdict| json!({"holds": it.holds, "line": it.line});
        Ok(json!({
            "circumstances": self.circumstances,
            "idle": self.idle,
            "cases": self.cases.iter().map(case).collect::<Vec<_>>(),
            "verdicts": verdicts.iter().map(verdict).collect::<Vec<_>>(),
        }))
    }
}

fn verdict(holds: bool, line: String) -> Verdict {
    Verdict { holds, line }
}

fn rates(run: &Run) -> String {
    let rates: Vec<String> = run.rates.iter().map(|rate| format!("{rate:.2}")).collect();
    rates.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn run(rates: [f64; 4], p99_ms: f64) -> Run {
        Run {
            rates: rates.to_vec(),
            rtt: Rtt {
                sent: 100,
                answered: 99,
                p50_ms: 0.5,
                p99_ms,
                max_ms: 9.0,
            },
        }
    }

    fn report(is_flood: bool, runs: Vec<Run>) -> Report {
        Report {
            circumstances: "a machine".to_owned(),
            idle: vec![run([1.0; 4], 0.2).rtt],
            cases: vec![Case {
                title: "case".to_owned(),
                is_flood,
                runs,
            }],
        }
    }

    /// Medians are judged: one bad repetition of three does not matter, two do.
    #[test]
    fn medians_are_judged() {
        let (good, bad) = (run([1.0; 4], 1.0), run([1.0, 1.0, 1.0, 0.5], 3.0));
        let holds = |runs: Vec<Run>| {
            let verdicts = report(false, runs).verdicts().unwrap();
            verdicts.iter().map(|it| it.holds).collect::<Vec<_>>()
        };
        assert_eq!(
            holds(vec![good.clone(), bad.clone(), good.clone()]),
            [true, true]
        );
        assert_eq!(holds(vec![good, bad.clone(), bad]), [false, false]);
    }

    /// Beside a flood only starving counts, of the TCP senders and of the flood alike.
    #[test]
    fn beside_a_flood_nobody_starves() {
        let verdicts = |rates| report(true, vec![run(rates, 50.0)]).verdicts().unwrap();
        let (fair, starved) = (
            verdicts([2.0, 0.5, 0.5, 0.5]),
            verdicts([3.0, 0.1, 0.1, 0.1]),
        );
        assert!(fair.len() == 1 && fair[0].holds, "{fair:?}");
        assert!(!starved[0].holds, "{starved:?}");
    }

    /// The table has what was measured, and a case without runs is an error, not an empty row.
    #[test]
    fn the_table_is_complete() {
        let text = report(false, vec![run([1.0, 2.0, 3.0, 4.0], 1.5)])
            .to_markdown()
            .unwrap();
        assert!(
            text.contains("| 1.00 2.00 3.00 4.00 | 10.00 | 0.40 | 0.50 | 1.50 | 9.00 | 1 |"),
            "{text}"
        );
        assert!(text.contains("MISSED") && text.contains("ok"), "{text}");
        assert!(report(false, Vec::new()).to_markdown().is_err());
    }
}
