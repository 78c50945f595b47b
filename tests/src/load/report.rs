//! The report of a long run: Markdown for people, JSON for programs. What did not run is shown so.

use std::{fmt::Write as _, fs};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    corruption,
    endurance::{self, GROWTH_MIB_MAX, GROWTH_SECONDS_MIN, RSS_MIB_MAX},
};

/// What the figures depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Circumstances {
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the processor.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// TCP congestion control of the machine.
    pub congestion: String,
}

impl Circumstances {
    /// Those of this machine.
    ///
    /// # Errors
    ///
    /// It does not tell.
    pub fn here() -> anyhow::Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown processor", |(_, name)| name.trim());
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?,
            processor: processor.to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            congestion: read("/proc/sys/net/ipv4/tcp_congestion_control")?,
        })
    }
}

/// Both parts of a run: `None` for what was left out, else what was seen or what went wrong.
#[derive(Clone, Debug)]
pub struct Soak {
    /// Where.
    pub circumstances: Circumstances,
    /// Bytes over a bad cable.
    pub corruption: Option<Result<corruption::Outcome, String>>,
    /// Memory under full load.
    pub endurance: Option<Result<endurance::Outcome, String>>,
}

impl Soak {
    /// Nothing has run yet.
    #[must_use]
    pub fn new(circumstances: Circumstances) -> Self {
        Self {
            circumstances,
            corruption: None,
            endurance: None,
        }
    }

    /// What went wrong or is too much.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Some(Err(error)) = &self.corruption {
            failures.push(error.clone());
        }
        match &self.endurance {
            Some(Err(error)) => failures.push(error.clone()),
            Some(Ok(outcome)) => failures.extend(outcome.failures()),
            None => {}
        }
        failures
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "circumstances": self.circumstances,
            "corruption": part(self.corruption.as_ref()),
            "endurance": part(self.endurance.as_ref()),
            "failures": self.failures(),
        })
    }

    /// For people.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let Circumstances {
            kernel,
            processor,
            processors,
            congestion,
        } = &self.circumstances;
        let mut text = format!(
            "# Soak\n\n{processors} x {processor}, Linux {kernel}, TCP congestion control \
             {congestion}; load, cable and both daemons on one machine.\n\n## Bytes over a bad \
             cable\n\n"
        );
        text += &match &self.corruption {
            None => "Left out.\n".to_owned(),
            Some(Err(error)) => format!("Failed: {error}\n"),
            Some(Ok(outcome)) => corruption::describe(outcome),
        };
        text += "\n## Memory under full load\n\n";
        text += &match &self.endurance {
            None => "Left out.\n".to_owned(),
            Some(Err(error)) => format!("Failed: {error}\n"),
            Some(Ok(outcome)) => memory(outcome),
        };
        for failure in self.failures() {
            let _ = writeln!(text, "\nFAILED: {failure}");
        }
        text
    }
}

fn part<T: Serialize>(part: Option<&Result<T, String>>) -> Value {
    match part {
        None => json!({"ran": false}),
        Some(Err(error)) => json!({"ran": true, "error": error}),
        Some(Ok(outcome)) => json!({"ran": true, "outcome": outcome}),
    }
}

fn memory(outcome: &endurance::Outcome) -> String {
    let mut text = format!(
        "{:.0} s, {} streams, {:.1} GB, {:.2} Gbit/s; at most {RSS_MIB_MAX} MiB each, growth in the \
         second half at most {GROWTH_MIB_MAX} MiB in 5 minutes{}.\n\n\
         | daemon | idle MiB | most MiB | last MiB | growth, MiB in 5 min |\n|---|---|---|---|---|\n",
        outcome.seconds,
        outcome.streams,
        outcome.bytes as f64 / 1e9,
        outcome.gbit_per_second,
        if outcome.seconds < GROWTH_SECONDS_MIN as f64 {
            " (too short a time to judge growth)"
        } else {
            ""
        },
    );
    for daemon in &outcome.daemons {
        let growth = daemon
            .growth_mib
            .map_or_else(|| "-".to_owned(), |it| format!("{it:+.2}"));
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.1} | {growth} |",
            daemon.worker, daemon.rss_mib_idle, daemon.rss_mib_max, daemon.rss_mib_last
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak() -> Soak {
        Soak::new(Circumstances {
            kernel: "6.18".to_owned(),
            processor: "a processor".to_owned(),
            processors: 2,
            congestion: "cubic".to_owned(),
        })
    }

    fn outcome(seconds: f64, rss_mib_max: f64, growth: f64) -> endurance::Outcome {
        endurance::Outcome {
            seconds,
            streams: 64,
            bytes: 1_000_000_000,
            gbit_per_second: 1.0,
            daemons: vec![endurance::Daemon {
                worker: "worker-a".to_owned(),
                rss_mib_idle: 10.0,
                rss_mib_max,
                rss_mib_last: 20.0,
                growth_mib: Some(growth),
            }],
        }
    }

    /// What was left out is said to be, and is neither a failure nor a success; an error is one.
    #[test]
    fn what_did_not_run_is_shown() {
        let mut soak = soak();
        assert_eq!(soak.to_markdown().matches("Left out.").count(), 2);
        assert_eq!(soak.to_json()["endurance"], json!({"ran": false}));
        assert!(soak.failures().is_empty());
        soak.corruption = Some(Err("the byte at offset 7".to_owned()));
        assert_eq!(soak.failures(), ["the byte at offset 7"]);
        assert!(soak.to_markdown().contains("FAILED: the byte at offset 7"));
    }

    /// Too much memory fails, and growth where the time was long enough to judge it.
    #[test]
    fn memory_is_judged() {
        let failures = |outcome: endurance::Outcome| outcome.failures().len();
        assert_eq!(failures(outcome(600.0, 63.0, 0.9)), 0);
        assert_eq!(failures(outcome(600.0, 65.0, 0.9)), 1);
        assert_eq!(failures(outcome(600.0, 65.0, 1.1)), 2);
        assert_eq!(failures(outcome(60.0, 63.0, 9.0)), 0);
        let mut soak = soak();
        soak.endurance = Some(Ok(outcome(60.0, 63.0, 9.0)));
        let text = soak.to_markdown();
        assert!(
            text.contains("too short") && text.contains("| +9.00 |"),
            "{text}"
        );
    }
}
