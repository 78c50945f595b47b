//! What the project has promised itself, judged by the medians of one run. [`list`] has the promises.
//!
//! Only what was measured is judged: where a system to compare with has no samples, the verdict is
//! "n/a", and says who is missing.

mod list;

use serde::Serialize;

use super::{Report, Samples};
use crate::plan::{Figure, Measure, System};

/// One promise, and what a run says about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// Short name, which several promises about the same thing share.
    pub id: &'static str,
    /// What is measured.
    pub what: String,
    /// What was found, for a person.
    pub measured: String,
    /// What must be kept, for a person.
    pub must: String,
    /// What is hoped for, for a person; empty where nothing more is.
    pub aim: String,
    /// What follows.
    pub verdict: Verdict,
}

/// How a promise is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// What must be kept is, and what is hoped for is reached.
    Aim,
    /// What must be kept is; what is hoped for is not, or there is nothing more to hope for.
    Must,
    /// What must be kept is; what is hoped for could not be judged.
    MustAimUnknown,
    /// What must be kept is not.
    Missed,
    /// It could not be judged.
    Unknown,
}

impl Verdict {
    /// For a person.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Aim => "aim",
            Self::Must => "must",
            Self::MustAimUnknown => "must (aim n/a)",
            Self::Missed => "MISSED",
            Self::Unknown => "n/a",
        }
    }
}

/// Judges every promise.
#[must_use]
pub fn judge(report: &Report) -> Vec<Judged> {
    list::targets()
        .iter()
        .map(|target| target.judge(report))
        .collect()
}

/// A promise.
struct Target {
    id: &'static str,
    quantity: Quantity,
    must: Vec<Claim>,
    aim: Vec<Claim>,
}

/// What a promise is about.
#[derive(Clone, Copy)]
enum Quantity {
    /// The median of a figure, over the underlay with this MTU (bytes).
    Median(u32, Measure, Figure),
    /// Peak of resident memory, over the underlay with this MTU (bytes).
    Memory(u32),
}

/// How large something may be or must be, compared with what.
#[derive(Clone, Copy)]
struct Claim {
    than: Than,
    bound: Bound,
}

/// What this project's figure is compared with.
#[derive(Clone, Copy)]
enum Than {
    /// Nothing: the figure in its own unit.
    Nothing,
    /// A quotient with the figure of this system.
    TimesOf(System),
    /// A quotient with the figure of the best of all encrypted networks that somebody could pick.
    TimesOfBest,
    /// A difference to the figure of this system.
    Above(System),
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A figure compared as a claim asks.
struct Reading {
    value: f64,
    /// Who it was compared with.
    other: Option<System>,
    /// Who else should have been.
    unmeasured: Vec<System>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Yes,
    No,
    Unknown,
}

impl Target {
    fn judge(&self, report: &Report) -> Judged {
        let unit = self.quantity.figure().unit();
        let words = |claims: &[Claim]| {
            let words: Vec<String> = claims.iter().map(|claim| claim.words(unit)).collect();
            words.join(", ")
        };
        let held = |claims: &[Claim]| -> Vec<Held> {
            let readings = claims
                .iter()
                .map(|claim| (claim, self.read(*claim, report)));
            readings
                .map(|(claim, reading)| claim.bound.held(reading.ok().as_ref()))
                .collect()
        };
        let (must, aim) = (held(&self.must), held(&self.aim));
        let verdict = if must.contains(&Held::No) {
            Verdict::Missed
        } else if must.contains(&Held::Unknown) {
            Verdict::Unknown
        } else if aim.is_empty() || aim.contains(&Held::No) {
            Verdict::Must
        } else if aim.contains(&Held::Unknown) {
            Verdict::MustAimUnknown
        } else {
            Verdict::Aim
        };
        Judged {
            id: self.id,
            what: self.quantity.title(),
            measured: self.measured(report),
            must: words(&self.must),
            aim: words(&self.aim),
            verdict,
        }
    }

    /// What all claims found, each finding once.
    fn measured(&self, report: &Report) -> String {
        let mut findings: Vec<String> = Vec::new();
        for claim in self.must.iter().chain(&self.aim) {
            let finding = match self.read(*claim, report) {
                Ok(reading) => reading.words(claim.than, self.quantity.figure()),
                Err(unmeasured) => format!("{unmeasured} not measured"),
            };
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        findings.join(", ")
    }

    /// The title of whom there is no sample of, as an error.
    fn read(&self, claim: Claim, report: &Report) -> Result<Reading, &'static str> {
        let value_of = |system: System| self.quantity.value(report, system);
        let own = value_of(System::Fabric).ok_or_else(|| System::Fabric.title())?;
        let compared = |other: System, compare: fn(f64, f64) -> f64| {
            let value = value_of(other).ok_or_else(|| other.title())?;
            Ok(Reading {
                value: compare(own, value),
                other: Some(other),
                unmeasured: Vec::new(),
            })
        };
        match claim.than {
            Than::Nothing => Ok(Reading {
                value: own,
                other: None,
                unmeasured: Vec::new(),
            }),
            Than::TimesOf(other) => compared(other, |own, other| own / other),
            Than::Above(other) => compared(other, |own, other| own - other),
            Than::TimesOfBest => {
                let (measured, unmeasured): (Vec<System>, Vec<System>) = System::ALL
                    .into_iter()
                    .filter(|system| system.encrypted() && *system != System::Fabric)
                    .partition(|system| value_of(*system).is_some());
                let less_is_better = self.quantity.figure().less_is_better();
                let values = measured
                    .into_iter()
                    .filter_map(|one| Some((one, value_of(one)?)));
                let (other, best) = values
                    .reduce(|best, next| {
                        let is_better = if less_is_better {
                            next.1 < best.1
                        } else {
                            next.1 > best.1
                        };
                        if is_better { next } else { best }
                    })
                    .ok_or("encrypted peers")?;
                Ok(Reading {
                    value: own / best,
                    other: Some(other),
                    unmeasured,
                })
            }
        }
    }
}

impl Quantity {
    fn figure(self) -> Figure {
        match self {
            Self::Median(_, _, figure) => figure,
            Self::Memory(_) => Figure::PeakRssMib,
        }
    }

    fn value(self, report: &Report, system: System) -> Option<f64> {
        let (Self::Median(mtu, ..) | Self::Memory(mtu)) = self;
        let samples: &Samples = report.samples(mtu)?;
        let value = match self {
            Self::Median(_, measure, figure) => samples.spread(measure, figure, system)?.median,
            Self::Memory(_) => samples.peak_rss_mib(system)?,
        };
        // A quotient with nothing says nothing.
        (value > 0.0).then_some(value)
    }

    fn title(self) -> String {
        match self {
            Self::Median(mtu, measure, figure) => {
                let over = match mtu {
                    crate::plan::UNDERLAY_MTU_BYTES => String::new(),
                    other => format!(", MTU {other}"),
                };
                format!("{}{}{over}", measure.title(), figure.suffix())
            }
            Self::Memory(_) => "resident memory under load, larger process".to_owned(),
        }
    }
}

impl Claim {
    fn words(self, unit: &str) -> String {
        let (sign, bound) = match self.bound {
            Bound::AtLeast(bound) => (">=", bound),
            Bound::AtMost(bound) => ("<=", bound),
        };
        match self.than {
            Than::Nothing => format!("{sign} {bound} {unit}"),
            Than::TimesOf(other) => format!("{sign} {bound}x {}", other.title()),
            Than::TimesOfBest => format!("{sign} {bound}x best encrypted peer"),
            Than::Above(other) => format!("{sign} {bound} {unit} above {}", other.title()),
        }
    }
}

impl Bound {
    /// A bound that is broken beside some is broken; one that is kept beside some may be broken
    /// beside those who were not measured.
    fn held(self, reading: Option<&Reading>) -> Held {
        let Some(reading) = reading else {
            return Held::Unknown;
        };
        let holds = match self {
            Self::AtLeast(bound) => reading.value >= bound,
            Self::AtMost(bound) => reading.value <= bound,
        };
        match (holds, reading.unmeasured.is_empty()) {
            (false, _) => Held::No,
            (true, true) => Held::Yes,
            (true, false) => Held::Unknown,
        }
    }
}

impl Reading {
    fn words(&self, than: Than, figure: Figure) -> String {
        let other = self.other.map_or("", System::title);
        let (digits, unit) = (figure.digits(), figure.unit());
        let mut words = match than {
            Than::Nothing => format!("{:.digits$} {unit}", self.value),
            Than::TimesOf(_) | Than::TimesOfBest => format!("{:.2}x {other}", self.value),
            Than::Above(_) => format!("{:.digits$} {unit} above {other}", self.value),
        };
        if !self.unmeasured.is_empty() {
            let titles: Vec<&str> = self.unmeasured.iter().map(|one| one.title()).collect();
            words.push_str(&format!(" ({} not measured)", titles.join(", ")));
        }
        words
    }
}

#[cfg(test)]
mod tests;
