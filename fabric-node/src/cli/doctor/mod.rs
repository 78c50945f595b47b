//! `fabric doctor`: what the kernel gives, what is used, what is missing and how to mend it.
//!
//! Comes in: this machine, read and probed but not changed (probes that need a device make it in a
//! scratch network namespace). Goes out: one finding per check. Works without the daemon.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anstyle::AnsiColor;
use fabric_proto::admin::{API_VERSION, Document};
use serde::Serialize;

use crate::terminal::{
    exit::{FAILED, Failure},
    output::{Format, Output, Show, render, style, table},
};

mod cni;
mod devices;
mod in_use;
mod kernel;
mod surroundings;

/// Arguments of `fabric doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fabric doctor
  sudo fabric doctor -o json

Exit code 1 means that something required is MISSING; a WARNING costs speed or comfort only.")]
pub struct DoctorArgs {
    /// Directory whose certificates are looked at.
    #[arg(long, default_value = super::pki::PKI_DIR, value_name = "DIR")]
    pub pki_dir: PathBuf,
    /// Directory where the container runtime reads its CNI configuration.
    #[arg(long, default_value = super::cni_dir::CONF_DIR, value_name = "DIR")]
    pub cni_conf_dir: PathBuf,
    /// Directory where the container runtime looks for plugins.
    #[arg(long, default_value = super::cni_dir::BIN_DIR, value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// containerd's own file.
    #[arg(long, default_value = super::containerd::CONFIG, value_name = "FILE")]
    pub containerd_config: PathBuf,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but slower or with less comfort.
    Warning,
    /// Required and not there.
    Missing,
    /// Could not be examined.
    Unknown,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Missing => "MISSING",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn color(self) -> AnsiColor {
        match self {
            Self::Ok => AnsiColor::Green,
            Self::Warning | Self::Unknown => AnsiColor::Yellow,
            Self::Missing => AnsiColor::Red,
        }
    }
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    status: Verdict,
    detail: String,
    /// What to do; empty when nothing is to be done.
    fix: String,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Verdict::Ok,
            detail: detail.into(),
            fix: String::new(),
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status: Verdict::Warning,
            detail: detail.into(),
            fix: fix.into(),
        }
    }

    fn missing(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status: Verdict::Missing,
            detail: detail.into(),
            fix: fix.into(),
        }
    }

    fn unknown(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status: Verdict::Unknown,
            detail: detail.into(),
            fix: fix.into(),
        }
    }
}

/// `kind: DoctorReport`
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    /// Whether nothing required is missing.
    healthy: bool,
    items: Vec<Finding>,
}

impl Report {
    fn new(items: Vec<Finding>) -> Self {
        Self {
            healthy: items
                .iter()
                .all(|finding| finding.status != Verdict::Missing),
            items,
        }
    }
}

impl Show for Report {
    fn show(&self, _wide: bool) -> String {
        let rows = self.items.iter().map(|finding| {
            let status = finding.status.word().to_owned();
            let fix = if finding.fix.is_empty() {
                "-"
            } else {
                &finding.fix
            };
            vec![
                finding.name.to_owned(),
                status,
                finding.detail.clone(),
                fix.to_owned(),
            ]
        });
        table(&["CHECK", "STATUS", "DETAIL", "FIX"], rows)
    }
}

/// Runs `fabric doctor`.
///
/// # Errors
///
/// The report cannot be printed.
pub fn run(socket: &Path, output: Output, args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let mut findings = kernel::examine(Path::new("/proc"));
    findings.extend(devices::examine());
    findings.extend(surroundings::examine(socket, args));
    findings.extend(cni::examine(args));
    findings.extend(in_use::examine(socket));
    let document = Document {
        api_version: API_VERSION.to_owned(),
        kind: "DoctorReport".to_owned(),
        content: Report::new(findings),
    };
    let text = render(&document, output.format)?;
    match output.format {
        Format::Table | Format::Wide => output.data(&colored(&text, &document.content))?,
        Format::Json | Format::Yaml => output.data(&text)?,
    }
    if document.content.healthy {
        return Ok(ExitCode::SUCCESS);
    }
    output.say("Something required is missing: see FIX.");
    Ok(ExitCode::from(FAILED))
}

/// Paints the status of each row. Done after the layout, which counts characters.
fn colored(text: &str, report: &Report) -> String {
    let mut painted = String::with_capacity(text.len());
    for (index, line) in text.lines().enumerate() {
        let finding = index.checked_sub(1).and_then(|row| report.items.get(row));
        match finding {
            Some(finding) => {
                let (word, style) = (finding.status.word(), style(finding.status.color()));
                painted.push_str(&line.replacen(word, &format!("{style}{word}{style:#}"), 1));
            }
            None => painted.push_str(line),
        }
        painted.push('\n');
    }
    painted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Finding::ok("kernel", "6.18"),
            Finding::warning("rmem-max", "212992", "sysctl -w net.core.rmem_max=8388608"),
            Finding::missing("tun-device", "/dev/net/tun does not exist", "modprobe tun"),
        ])
    }

    /// The table for people has one row per check with what to do.
    #[test]
    fn for_people() {
        assert_eq!(
            report().show(false),
            "\
CHECK        STATUS    DETAIL                        FIX
kernel       OK        6.18                          -
rmem-max     WARNING   212992                        sysctl -w net.core.rmem_max=8388608
tun-device   MISSING   /dev/net/tun does not exist   modprobe tun
"
        );
    }

    /// Colours change nothing but the status words.
    #[test]
    fn colors_are_only_added() {
        let report = report();
        let text = report.show(false);
        let painted = colored(&text, &report);
        assert_ne!(painted, text);
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), text);
    }

    /// A warning leaves the machine healthy, a missing requirement does not; programs see both.
    #[test]
    fn for_programs() {
        let warned = Report::new(vec![
            Finding::warning("a", "b", "c"),
            Finding::unknown("d", "e", "f"),
        ]);
        assert!(warned.healthy);
        let document = Document {
            api_version: API_VERSION.to_owned(),
            kind: "DoctorReport".to_owned(),
            content: report(),
        };
        let json: serde_json::Value =
            serde_json::from_str(&render(&document, Format::Json).unwrap()).unwrap();
        assert_eq!(json["kind"], "DoctorReport");
        assert_eq!(json["healthy"], false);
        assert_eq!(json["items"][2]["status"], "MISSING");
        assert_eq!(json["items"][2]["fix"], "modprobe tun");
    }
}
