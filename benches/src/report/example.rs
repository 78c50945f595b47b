//! A small report for the tests of this folder.

use super::{Circumstances, Part, Report, Sample, Samples};
use crate::{
    bed::Missing,
    machine::Machine,
    plan::{Case, Figure, Measure, System, UNDERLAY_MTU_BYTES},
};

/// Adds a sample with one figure.
pub(super) fn put(
    samples: &mut Samples,
    measure: Measure,
    system: System,
    figure: Figure,
    value: f64,
) {
    let sample = Sample::default()
        .with(figure, value)
        .with_congestion("cubic".to_owned());
    samples.add(Case { measure, system }, sample);
}

/// Over one underlay of 1500 bytes, nothing missing.
pub(super) fn report(samples: Samples) -> Report {
    Report {
        circumstances: Circumstances {
            repetitions: 3,
            seconds: 1,
            machine: Machine {
                kernel: "6".to_owned(),
                processor: "cpu".to_owned(),
                processors: 2,
            },
        },
        parts: vec![Part {
            samples,
            ..Part::new(UNDERLAY_MTU_BYTES)
        }],
    }
}

/// One stream 3 Gbit/s against 1.5, a version, a case that failed and a system that is missing.
pub(super) fn incomplete() -> Report {
    let mut samples = Samples::default();
    for (system, value) in [(System::Fabric, 3.0), (System::WireguardGo, 1.5)] {
        put(
            &mut samples,
            Measure::TcpAcross,
            system,
            Figure::GbitPerSecond,
            value,
        );
    }
    let failed = Case {
        measure: Measure::TcpAcross4,
        system: System::Fabric,
    };
    samples.fail(failed, "timed out".to_owned());
    let mut report = report(samples);
    for part in &mut report.parts {
        let version = "v1.2.3".to_owned();
        part.versions.insert(System::WireguardGo, version);
        part.missing.push(Missing {
            system: System::Veth,
            reason: "no driver".to_owned(),
        });
    }
    report
}
