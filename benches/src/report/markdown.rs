//! The report as Markdown: tables that are tables without being rendered, too.

use std::fmt::Write as _;

use super::{Circumstances, Part, Report, Samples, charts::Chart, targets};
use crate::{
    bed::Missing,
    machine::Machine,
    plan::{Case, Figure, Measure, System},
};

/// Stands where there is no sample.
const NOTHING: &str = "-";

/// The whole report: systems side by side, the verdicts, every measure, and the circumstances.
#[must_use]
pub fn whole(report: &Report) -> String {
    let mut text = String::new();
    if let Some(part) = report.parts.first() {
        let table = side_by_side(&part.samples);
        let _ = write!(text, "## Side by side\n\n{table}\n## Targets\n\n");
        text.push_str(&verdicts(report));
        text.push('\n');
    }
    text + &details(report)
}

/// Every measure, and the circumstances.
#[must_use]
pub fn details(report: &Report) -> String {
    let mut text = String::new();
    for part in &report.parts {
        let _ = writeln!(text, "## Every measure, MTU {}\n", part.underlay_mtu);
        text.push_str(&measures(&part.samples));
        text.push_str(&notices(part));
        text.push('\n');
    }
    text + &circumstances(report)
}

/// References to charts in `folder`.
#[must_use]
pub fn pictures(charts: &[Chart], folder: &str) -> String {
    let mut text = String::from("## Charts\n");
    for Chart { file, title, .. } in charts {
        let _ = writeln!(text, "\n![{title}]({folder}/{file})");
    }
    text
}

/// One row for each system, with the figures that a user would choose by.
fn side_by_side(samples: &Samples) -> String {
    let mut rows = vec![
        [
            "system",
            "TCP 1 stream Gbit/s",
            "vs wireguard-go",
            "UDP 64 B kpps",
            "UDP 1200 B kpps",
            "idle RTT ms",
            "RTT beside TCP ms, p50 / p99",
            "cpu-s/GB, both ends",
            "RSS MiB",
        ]
        .map(str::to_owned),
    ];
    for system in System::ALL {
        let median = |measure: Measure, figure: Figure| {
            let spread = samples.spread(measure, figure, system);
            spread.map_or_else(
                || NOTHING.to_owned(),
                |spread| number(spread.median, figure),
            )
        };
        let beside = |figure| median(Measure::RttBesideTcp, figure);
        let row = [
            system.title().to_owned(),
            median(Measure::TcpAcross, Figure::GbitPerSecond),
            times(samples.ratio(
                Measure::TcpAcross,
                Figure::GbitPerSecond,
                system,
                System::WireguardGo,
            )),
            median(Measure::Udp64, Figure::DeliveredKpps),
            median(Measure::Udp1200, Figure::DeliveredKpps),
            median(Measure::RttIdle, Figure::RttP50Ms),
            format!(
                "{} / {}",
                beside(Figure::RttP50Ms),
                beside(Figure::RttP99Ms)
            ),
            median(Measure::TcpAcross, Figure::CpuSecondsPerGb),
            samples
                .peak_rss_mib(system)
                .map_or_else(|| NOTHING.to_owned(), |mib| format!("{mib:.0}")),
        ];
        if samples.cases().any(|case| case.system == system) {
            rows.push(row);
        }
    }
    aligned(&rows)
}

fn verdicts(report: &Report) -> String {
    let mut rows = vec![["#", "measure", "measured", "must", "aim", "verdict"].map(str::to_owned)];
    rows.extend(targets::judge(report).into_iter().map(|judged| {
        [
            judged.id.to_owned(),
            judged.what,
            judged.measured,
            judged.must,
            judged.aim,
            judged.verdict.words().to_owned(),
        ]
    }));
    aligned(&rows)
}

fn measures(samples: &Samples) -> String {
    let mut rows = vec![
        [
            "measure",
            "system",
            "unit",
            "median",
            "min..max",
            "vs wireguard-go",
            "vs veth",
            "also",
        ]
        .map(str::to_owned),
    ];
    let cases: Vec<Case> = samples.cases().collect();
    for of_one_measure in cases.chunk_by(|one, next| one.measure == next.measure) {
        let figures = of_one_measure.first().map(|case| case.measure.figures());
        for figure in figures.into_iter().flatten() {
            let cases = of_one_measure.iter();
            rows.extend(cases.filter_map(|case| row(samples, *case, *figure)));
        }
    }
    aligned(&rows)
}

fn row(samples: &Samples, case: Case, figure: Figure) -> Option<[String; 8]> {
    let Case { measure, system } = case;
    let spread = samples.spread(measure, figure, system)?;
    let against = |other: System| {
        let ratio = samples.ratio(measure, figure, system, other);
        times(ratio.filter(|_| other != system))
    };
    let ends = [spread.min, spread.max].map(|end| number(end, figure));
    Some([
        format!("{}{}", measure.title(), figure.suffix()),
        system.title().to_owned(),
        figure.unit().to_owned(),
        number(spread.median, figure),
        ends.join(".."),
        against(System::WireguardGo),
        against(System::Veth),
        notes(samples, case, figure),
    ])
}

/// Medians that belong to a figure and are not compared.
fn notes(samples: &Samples, Case { measure, system }: Case, figure: Figure) -> String {
    if figure != measure.main_figure() {
        return String::new();
    }
    let notes = [
        (Figure::OfferedKpps, "offered"),
        (Figure::LostPercent, "lost"),
        (Figure::BesideGbitPerSecond, "streams"),
        (Figure::PeakRssMib, "resident"),
    ];
    let notes: Vec<String> = notes
        .into_iter()
        .filter_map(|(figure, name)| {
            let median = samples.spread(measure, figure, system)?.median;
            Some(format!(
                "{name} {} {}",
                number(median, figure),
                figure.unit()
            ))
        })
        .collect();
    notes.join(", ")
}

/// Versions, and what there are no samples of.
fn notices(part: &Part) -> String {
    let mut text = String::new();
    if let Some(reason) = &part.unbuilt {
        let _ = writeln!(text, "\nNothing was measured: {reason}");
    }
    if !part.versions.is_empty() {
        let versions = part.versions.iter();
        let versions: Vec<String> = versions
            .map(|(system, version)| format!("{} {version}", system.title()))
            .collect();
        let _ = writeln!(text, "\n{}.", versions.join(", "));
    }
    for (case, failure) in part.samples.failed() {
        let _ = writeln!(
            text,
            "\n{}, {}: failed {}x: {}",
            case.measure.title(),
            case.system.title(),
            failure.times,
            failure.reason
        );
    }
    for Missing { system, reason } in &part.missing {
        let _ = writeln!(text, "\n{}: missing: {reason}", system.title());
    }
    text
}

fn circumstances(report: &Report) -> String {
    let Circumstances {
        repetitions,
        seconds,
        machine,
    } = &report.circumstances;
    let Machine {
        kernel,
        processor,
        processors,
    } = machine;
    format!(
        "Repetitions in turns: {repetitions}, {seconds} s each; TCP congestion control {}; Linux \
         {kernel}; {processors} x {processor}.\nfabric is measured \
         between pods, which is the longer way; all others between the workers' namespaces (same \
         node: between two namespaces).\nUDP is offered as fast as one sender can; it and the \
         receiver share the processors with the tunnel.\n",
        report.congestion().join(", ")
    )
}

fn number(value: f64, figure: Figure) -> String {
    let digits = figure.digits();
    format!("{value:.digits$}")
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NOTHING.to_owned(), |ratio| format!("{ratio:.2}x"))
}

/// The first row is the header.
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
    use super::*;
    use crate::report::example;

    /// Every median, every failure and every missing system is told, and so is a bed that could not
    /// be built.
    #[test]
    fn nothing_is_left_out() {
        let mut report = example::incomplete();
        report.parts.push(Part::unbuilt(9000, "no room".to_owned()));
        let text = whole(&report);
        for words in [
            "| 3.00",
            "2.00x",
            "failed 1x: timed out",
            "veth: missing: no driver",
            "MTU 9000\n",
            "Nothing was measured: no room",
            "cubic",
            "wireguard-go v1.2.3.",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    /// A system has a row when it has samples, and "-" where one figure has none.
    #[test]
    fn rows_are_of_those_measured() {
        let report = example::incomplete();
        let table = side_by_side(&report.parts[0].samples);
        let row = |title: &str| table.lines().find(|line| line.contains(title));
        let fabric = row("| fabric").map(|row| row.split_whitespace().collect::<Vec<_>>());
        let expected = "| fabric | 3.00 | 2.00x | - | - | - | - / - | - | - |";
        assert_eq!(
            fabric.map(|words| words.join(" ")).as_deref(),
            Some(expected)
        );
        assert!(row("| wireguard-go").is_some() && row("| veth").is_none());
    }

    /// The details alone have no verdicts: a run of the floors measures too little for them.
    #[test]
    fn details_have_no_verdicts() {
        let report = example::incomplete();
        assert!(whole(&report).contains("## Targets"));
        assert!(!details(&report).contains("## Targets"));
    }
}
