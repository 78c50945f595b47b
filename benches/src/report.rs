//! Sums samples up: medians, spread, ratios; as JSON for programs, as a Markdown table for people.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use crate::{
    bed::Missing,
    plan::{CASES, Case, Measure, System},
};

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// In the unit of the measure.
    pub value: f64,
    /// CPU time of the system's processes, both ends together, per 1e9 bytes; `None` for what has no
    /// processes.
    pub cpu_seconds_per_gb: Option<f64>,
    /// TCP congestion control that was used.
    pub congestion: Option<String>,
}

/// All samples of a run.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    taken: BTreeMap<Case, Vec<Sample>>,
    failed: BTreeMap<Case, String>,
    rss_mib: BTreeMap<System, f64>,
}

impl Samples {
    /// Adds a sample.
    pub fn add(&mut self, case: Case, sample: Sample) {
        self.taken.entry(case).or_default().push(sample);
    }

    /// Notes that a measurement failed; the last reason is kept.
    pub fn fail(&mut self, case: Case, reason: String) {
        self.failed.insert(case, reason);
    }

    /// Notes the resident memory of a system's largest process (MiB).
    pub fn set_rss(&mut self, system: System, mib: f64) {
        self.rss_mib.insert(system, mib);
    }

    /// Median and spread of a case; `None` without a sample.
    #[must_use]
    pub fn spread(&self, measure: Measure, system: System) -> Option<Spread> {
        let values = self.values(measure, system, |sample| Some(sample.value));
        Spread::of(&values)
    }

    /// Median of `measure` on `one` divided by that on `other`.
    #[must_use]
    pub fn ratio(&self, measure: Measure, one: System, other: System) -> Option<f64> {
        let divisor = self.spread(measure, other)?.median;
        (divisor > 0.0).then_some(self.spread(measure, one)?.median / divisor)
    }

    fn cpu(&self, measure: Measure, system: System) -> Option<f64> {
        median(&self.values(measure, system, |sample| sample.cpu_seconds_per_gb))
    }

    fn values(
        &self,
        measure: Measure,
        system: System,
        value: impl Fn(&Sample) -> Option<f64>,
    ) -> Vec<f64> {
        let samples = self.taken.get(&Case { measure, system });
        samples.into_iter().flatten().filter_map(value).collect()
    }

    fn congestion(&self) -> Vec<&str> {
        let samples = self.taken.values().flatten();
        let mut names: Vec<&str> = samples
            .filter_map(|sample| sample.congestion.as_deref())
            .filter(|name| !name.is_empty())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Middle and ends of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(values)?,
            min: values.iter().copied().reduce(f64::min)?,
            max: values.iter().copied().reduce(f64::max)?,
        })
    }
}

/// The middle value, or the mean of the two in the middle; `None` without values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some((lower + upper) / 2.0)
}

/// Under which circumstances was measured.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Passes over all cases.
    pub repetitions: u32,
    /// Length of one TCP measurement (seconds).
    pub seconds: u32,
    /// MTU of the underlay (bytes).
    pub underlay_mtu: u32,
    /// Kernel release.
    pub kernel: String,
    /// Name of the processor.
    pub processor: String,
    /// Processors.
    pub processors: usize,
    /// Version of wireguard-go that is pinned.
    pub wireguard_go: String,
}

/// The report as a document.
#[must_use]
pub fn to_json(samples: &Samples, missing: &[Missing], circumstances: &Circumstances) -> Value {
    let results: Vec<Value> = samples
        .taken
        .iter()
        .filter_map(|(case, taken)| {
            let spread = samples.spread(case.measure, case.system)?;
            Some(json!({
                "measure": case.measure,
                "system": case.system,
                "unit": case.measure.unit(),
                "median": spread.median,
                "min": spread.min,
                "max": spread.max,
                "values": taken.iter().map(|sample| sample.value).collect::<Vec<_>>(),
                "cpuSecondsPerGb": samples.cpu(case.measure, case.system),
            }))
        })
        .collect();
    let failed: Vec<Value> = samples
        .failed
        .iter()
        .map(|(case, reason)| {
            json!({"measure": case.measure, "system": case.system, "reason": reason})
        })
        .collect();
    let missing: Vec<Value> = missing
        .iter()
        .map(|missing| json!({"system": missing.system, "reason": missing.reason}))
        .collect();
    let rss: Vec<Value> = samples
        .rss_mib
        .iter()
        .map(|(system, mib)| json!({"system": system, "rssMib": mib}))
        .collect();
    json!({
        "kind": "PeerBenchmark",
        "repetitions": circumstances.repetitions,
        "seconds": circumstances.seconds,
        "underlayMtu": circumstances.underlay_mtu,
        "kernel": circumstances.kernel,
        "processor": circumstances.processor,
        "processors": circumstances.processors,
        "wireguardGo": circumstances.wireguard_go,
        "congestion": samples.congestion(),
        "results": results,
        "memory": rss,
        "failed": failed,
        "missing": missing,
    })
}

/// The report as Markdown.
#[must_use]
pub fn to_markdown(
    samples: &Samples,
    missing: &[Missing],
    circumstances: &Circumstances,
) -> String {
    let mut rows = vec![
        [
            "measure",
            "system",
            "unit",
            "median",
            "min..max",
            "vs wireguard-go",
            "vs veth",
            "cpu-s/GB",
        ]
        .map(str::to_owned),
    ];
    rows.extend(CASES.iter().filter_map(|case| row(samples, *case)));
    let mut text = aligned(&rows);
    for (system, mib) in &samples.rss_mib {
        let _ = write!(
            text,
            "\n{}: {mib:.0} MiB resident in the larger process after the run.",
            system.title()
        );
    }
    for (case, reason) in &samples.failed {
        let _ = write!(
            text,
            "\n{}, {}: failed: {reason}",
            case.measure.title(),
            case.system.title()
        );
    }
    for Missing { system, reason } in missing {
        let _ = write!(text, "\n{}: missing: {reason}", system.title());
    }
    let Circumstances {
        repetitions,
        seconds,
        underlay_mtu,
        kernel,
        processor,
        processors,
        wireguard_go,
    } = circumstances;
    let _ = writeln!(
        text,
        "\n{repetitions} repetitions in turns, {seconds} s each; underlay MTU {underlay_mtu}; TCP \
         congestion control {}; Linux {kernel}; {processors} x {processor}; wireguard-go \
         {wireguard_go}.\nfabric is measured between pods, wireguard-go and veth between workers \
         (same node: between two namespaces).",
        samples.congestion().join(", ")
    );
    text
}

fn row(samples: &Samples, case: Case) -> Option<[String; 8]> {
    let Case { measure, system } = case;
    let spread = samples.spread(measure, system)?;
    let digits = if measure == Measure::RttIdle { 3 } else { 2 };
    let against = |other: System| {
        let ratio = samples.ratio(measure, system, other);
        ratio
            .filter(|_| other != system)
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"))
    };
    Some([
        measure.title().to_owned(),
        system.title().to_owned(),
        measure.unit().to_owned(),
        format!("{:.digits$}", spread.median),
        format!("{:.digits$}..{:.digits$}", spread.min, spread.max),
        against(System::WireguardGo),
        against(System::Veth),
        samples
            .cpu(measure, system)
            .map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.2}")),
    ])
}

/// A Markdown table that is a table without being rendered, too. The first row is the header.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn samples(fabric: &[f64], peer: &[f64]) -> Samples {
        let mut samples = Samples::default();
        for (system, values) in [(System::Fabric, fabric), (System::WireguardGo, peer)] {
            for &value in values {
                let case = Case {
                    measure: Measure::TcpAcross,
                    system,
                };
                samples.add(
                    case,
                    Sample {
                        value,
                        cpu_seconds_per_gb: Some(value * 2.0),
                        congestion: Some("cubic".to_owned()),
                    },
                );
            }
        }
        samples
    }

    fn circumstances() -> Circumstances {
        Circumstances {
            repetitions: 3,
            seconds: 1,
            underlay_mtu: 1500,
            kernel: "6".to_owned(),
            processor: "cpu".to_owned(),
            processors: 2,
            wireguard_go: "v1".to_owned(),
        }
    }

    /// The median is the middle of the sorted values, whatever their order and number.
    #[test]
    fn medians_are_middles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    /// A ratio is one of medians, and there is none without both.
    #[test]
    fn ratios_are_of_medians() {
        let (measure, one, other) = (Measure::TcpAcross, System::Fabric, System::WireguardGo);
        let both = samples(&[3.0, 100.0, 2.0], &[1.5]);
        assert_eq!(both.ratio(measure, one, other), Some(2.0));
        assert_eq!(samples(&[3.0], &[]).ratio(measure, one, other), None);
        assert_eq!(samples(&[3.0], &[0.0]).ratio(measure, one, other), None);
    }

    /// Both forms have every median, every failure and every missing system.
    #[test]
    fn nothing_is_left_out() {
        let mut samples = samples(&[3.0], &[1.5]);
        let failed = Case {
            measure: Measure::TcpAcross4,
            system: System::Fabric,
        };
        samples.fail(failed, "timed out".to_owned());
        samples.set_rss(System::Fabric, 12.0);
        let missing = [Missing {
            system: System::Veth,
            reason: "no driver".to_owned(),
        }];
        let text = to_markdown(&samples, &missing, &circumstances());
        for words in [
            "| 3.00",
            "2.00x",
            "failed: timed out",
            "veth: missing: no driver",
            "12 MiB",
            "cubic",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
        let json = to_json(&samples, &missing, &circumstances());
        assert_eq!(json["results"].as_array().unwrap().len(), 2);
        assert_eq!(json["results"][0]["system"], "fabric");
        assert_eq!(json["results"][0]["median"], 3.0);
        assert_eq!(json["missing"][0]["reason"], "no driver");
        assert_eq!(json["failed"][0]["measure"], "tcpAcross4");
    }
}
