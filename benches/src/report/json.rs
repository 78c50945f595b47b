//! The report as a document for programs.

use serde_json::{Value, json};

use super::{Part, Report, targets};
use crate::plan::{Case, System};

/// Everything that was found, every value included.
#[must_use]
pub fn document(report: &Report) -> Value {
    let circumstances = &report.circumstances;
    let machine = &circumstances.machine;
    let parts: Vec<Value> = report.parts.iter().map(part).collect();
    json!({
        "kind": "PeerBenchmark",
        "repetitions": circumstances.repetitions,
        "seconds": circumstances.seconds,
        "kernel": machine.kernel,
        "processor": machine.processor,
        "processors": machine.processors,
        "congestion": report.congestion(),
        "targets": targets::judge(report),
        "underlays": parts,
    })
}

fn part(part: &Part) -> Value {
    let results: Vec<Value> = part
        .samples
        .cases()
        .flat_map(|case| results(part, case))
        .collect();
    let failed: Vec<Value> = part
        .samples
        .failed()
        .map(|(case, failure)| {
            json!({
                "measure": case.measure,
                "system": case.system,
                "times": failure.times,
                "reason": failure.reason,
            })
        })
        .collect();
    let missing: Vec<Value> = part
        .missing
        .iter()
        .map(|missing| json!({"system": missing.system, "reason": missing.reason}))
        .collect();
    let memory: Vec<Value> = System::ALL
        .into_iter()
        .filter_map(|system| {
            let mib = part.samples.peak_rss_mib(system)?;
            Some(json!({"system": system, "peakRssMib": mib}))
        })
        .collect();
    json!({
        "underlayMtu": part.underlay_mtu,
        "unbuilt": part.unbuilt,
        "rounds": part.rounds,
        "versions": part.versions,
        "results": results,
        "memory": memory,
        "failed": failed,
        "missing": missing,
    })
}

fn results(part: &Part, case: Case) -> Vec<Value> {
    let samples = &part.samples;
    let figures = samples.figures(case).into_iter();
    figures
        .filter_map(|figure| {
            let spread = samples.spread(case.measure, figure, case.system)?;
            Some(json!({
                "measure": case.measure,
                "system": case.system,
                "figure": figure,
                "unit": figure.unit(),
                "median": spread.median,
                "min": spread.min,
                "max": spread.max,
                "values": samples.values(case, figure),
            }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::report::example;

    /// The document has every median, every failure, every missing system and every verdict.
    #[test]
    fn nothing_is_left_out() {
        let json = document(&example::incomplete());
        let part = &json["underlays"][0];
        assert_eq!(part["underlayMtu"], 1500);
        assert_eq!(part["results"].as_array().unwrap().len(), 2);
        assert_eq!(part["results"][0]["system"], "fabric");
        assert_eq!(part["results"][0]["figure"], "gbitPerSecond");
        assert_eq!(part["results"][0]["median"], 3.0);
        assert_eq!(part["versions"]["wireguard-go"], "v1.2.3");
        assert_eq!(part["missing"][0]["reason"], "no driver");
        assert_eq!(part["failed"][0]["measure"], "tcpAcross4");
        assert_eq!(json["targets"][0]["id"], "P1");
        assert_eq!(json["targets"][0]["verdict"], "must");
        assert_eq!(json["congestion"][0], "cubic");
    }
}
