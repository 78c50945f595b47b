//! What was done, for people and for programs.

use std::path::PathBuf;

use fabric_proto::admin::{API_VERSION, Document};
use serde::Serialize;

use crate::terminal::{
    exit::Failure,
    output::{Format, Output, Show},
};

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Action {
    /// It was not there before.
    Created,
    /// It was there, with other content.
    Replaced,
    /// It is as it was and as it should be.
    Unchanged,
    /// It is not as this command would make it, and was left alone.
    Kept,
    /// It is gone.
    Removed,
    /// It was not there.
    Absent,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Kept => "kept",
            Self::Removed => "removed",
            Self::Absent => "is not there",
        }
    }
}

/// A file and what happened to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Item {
    path: PathBuf,
    action: Action,
    /// More about it; mostly empty.
    detail: String,
}

/// `kind: CniInstallation`
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Report {
    dry_run: bool,
    /// In the order in which it was done.
    items: Vec<Item>,
    /// Files that runtimes read before ours.
    before: Vec<PathBuf>,
    /// The file that runtimes read once ours is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<PathBuf>,
}

impl Report {
    pub(in crate::cli) fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            items: Vec::new(),
            before: Vec::new(),
            next: None,
        }
    }

    /// Whether anything was removed, or would be.
    pub(in crate::cli) fn has_removed(&self) -> bool {
        self.items.iter().any(|item| item.action == Action::Removed)
    }

    /// Something was done, or would be.
    pub(in crate::cli) fn add(&mut self, path: PathBuf, action: Action, detail: &str) {
        self.items.push(Item {
            path,
            action,
            detail: detail.to_owned(),
        });
    }

    /// A runtime reads this file before ours.
    pub(super) fn add_before(&mut self, path: PathBuf) {
        self.before.push(path);
    }

    /// Runtimes read this file once ours is gone.
    pub(super) fn set_next(&mut self, path: PathBuf) {
        self.next = Some(path);
    }

    /// Prints it. For people it is talk that may be silenced; programs asked for the document.
    ///
    /// # Errors
    ///
    /// stdout cannot be written.
    pub(in crate::cli) fn print(self, output: Output) -> Result<(), Failure> {
        self.print_as("CniInstallation", output)
    }

    /// Prints it as a document of another `kind`.
    ///
    /// # Errors
    ///
    /// stdout cannot be written.
    pub(in crate::cli) fn print_as(self, kind: &str, output: Output) -> Result<(), Failure> {
        let is_talk = matches!(output.format, Format::Table | Format::Wide);
        if is_talk && (output.quiet || self.items.is_empty()) {
            return Ok(());
        }
        output.document(&Document {
            api_version: API_VERSION.to_owned(),
            kind: kind.to_owned(),
            content: self,
        })
    }
}

impl Show for Report {
    fn show(&self, _wide: bool) -> String {
        let dry_run = if self.dry_run { " (dry run)" } else { "" };
        let line = |item: &Item| {
            let (path, word) = (item.path.display(), item.action.word());
            if item.detail.is_empty() {
                format!("{path} {word}{dry_run}\n")
            } else {
                format!("{path} {word}{dry_run}: {}\n", item.detail)
            }
        };
        self.items.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// People read one line for each file, with what happened and why where that is not plain.
    #[test]
    fn for_people() {
        let mut report = Report::new(true);
        report.add("/opt/cni/bin/fabric-cni".into(), Action::Created, "");
        report.add("/opt/cni/bin/loopback".into(), Action::Kept, "another's");
        assert_eq!(
            report.show(false),
            "/opt/cni/bin/fabric-cni created (dry run)\n\
             /opt/cni/bin/loopback kept (dry run): another's\n"
        );
    }
}
