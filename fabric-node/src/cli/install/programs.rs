//! The plugin's program, and `loopback`, which is the same program by another name.
//!
//! Comes in: the program that is to be installed. Goes out: both in the runtime's folder, or the reason
//! why not. A program that does not run on this machine never gets a name that a runtime executes.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail, ensure};

use super::{
    folder::{Changes, Entry, Folder},
    report::{Action, Report},
};
use crate::{cli::cni_version, lab::plugin::PLUGIN};

/// Name of the plugin that brings `lo` up: containerd calls it for each pod.
pub(super) const LOOPBACK: &str = "loopback";
/// Largest program that is installed (bytes): many times what it has.
pub(super) const PLUGIN_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Everybody may execute it, only root change it.
const PROGRAM_MODE: u32 = 0o755;

/// What to do about `loopback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Loopback {
    /// Provide it where it is missing; one of another package does as well and stays.
    Missing,
    /// Provide it, in place of one of another package too.
    Always,
    /// Leave it alone.
    Never,
}

/// The program to install.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    content: Vec<u8>,
}

impl Program {
    /// Reads the program at `path`, or the one beside this process's own.
    ///
    /// # Errors
    ///
    /// It is missing, no file, or too large.
    pub(super) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => std::env::current_exe()
                .context("cannot find out where this program is: name the plugin with --binary")?
                .with_file_name(PLUGIN),
        };
        let shown = path.display();
        let cure = || format!("there is no plugin at {shown}: name it with --binary");
        ensure!(path.is_file(), cure());
        let mut content = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(PLUGIN_BYTES_MAX + 1).read_to_end(&mut content))
            .with_context(|| format!("cannot read {shown}"))?;
        ensure!(
            u64::try_from(content.len()).is_ok_and(|length| length <= PLUGIN_BYTES_MAX),
            "{shown} is larger than {PLUGIN_BYTES_MAX} bytes, which no plugin is"
        );
        Ok(Self { path, content })
    }

    /// Where it was read.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it into `folder`, unless it is there already.
    ///
    /// # Errors
    ///
    /// It does not run here, or the system refuses; nothing of it is left in `folder` then.
    pub(super) fn install(&self, folder: &Folder, report: &mut Report) -> anyhow::Result<()> {
        let path = folder.file(PLUGIN);
        let action = match folder.look(PLUGIN, PLUGIN_BYTES_MAX)? {
            Some(entry) if entry.is(&self.content, PROGRAM_MODE) => {
                report.add(path, Action::Unchanged, "");
                return Ok(());
            }
            Some(Entry::Other) => bail!("{} is no file: move it away", path.display()),
            Some(Entry::File { .. } | Entry::Link(_)) => Action::Replaced,
            None => Action::Created,
        };
        self.place(folder)?;
        report.add(path, action, "");
        Ok(())
    }

    fn place(&self, folder: &Folder) -> anyhow::Result<()> {
        let staged = folder.stage(PLUGIN, &self.content, PROGRAM_MODE)?;
        // Run from where it will be: that folder may forbid programs, or this file be another's.
        if folder.changes() == Changes::Made {
            cni_version::ask(&staged.path()).map_err(|refused| {
                anyhow!("{} is not installed: {refused}", self.path.display())
            })?;
        }
        staged.place()
    }

    /// Provides `loopback` in `folder` beside the plugin, as a link to it: so it is always of the same
    /// release, and can be told from one of another package. `before` is the plugin that was there.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn install_loopback(
        &self,
        folder: &Folder,
        wanted: Loopback,
        before: Option<&Entry>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        if wanted == Loopback::Never {
            return Ok(());
        }
        let path = folder.file(LOOPBACK);
        let found = folder.look(LOOPBACK, PLUGIN_BYTES_MAX)?;
        let is_copy = is_copy(found.as_ref(), before)
            || matches!(&found, Some(Entry::File { content, .. }) if *content == self.content);
        let action = match found {
            Some(Entry::Link(target)) if target == PLUGIN.as_bytes() => {
                report.add(path, Action::Unchanged, "");
                return Ok(());
            }
            None => Action::Created,
            // A link to nowhere is no plugin.
            Some(Entry::Link(_)) if !path.exists() => Action::Replaced,
            Some(_) if is_copy || wanted == Loopback::Always => Action::Replaced,
            Some(_) => {
                let detail =
                    "of another package, which does as well; --loopback always replaces it";
                report.add(path, Action::Kept, detail);
                return Ok(());
            }
        };
        folder.link(LOOPBACK, PLUGIN)?;
        report.add(path, action, "");
        Ok(())
    }
}

/// Takes `loopback` out of `folder` if it is this plugin, and then the plugin.
///
/// # Errors
///
/// The system refuses.
pub(super) fn uninstall(folder: &Folder, report: &mut Report) -> anyhow::Result<()> {
    let plugin = folder.look(PLUGIN, PLUGIN_BYTES_MAX)?;
    let loopback = folder.look(LOOPBACK, PLUGIN_BYTES_MAX)?;
    let path = folder.file(LOOPBACK);
    match &loopback {
        None => {}
        Some(Entry::Link(target)) if target == PLUGIN.as_bytes() => {
            folder.remove(LOOPBACK)?;
            report.add(path, Action::Removed, "");
        }
        found @ Some(_) if is_copy(found.as_ref(), plugin.as_ref()) => {
            folder.remove(LOOPBACK)?;
            report.add(path, Action::Removed, "");
        }
        Some(_) => report.add(path, Action::Kept, "of another package"),
    }
    let path = folder.file(PLUGIN);
    match plugin {
        None => report.add(path, Action::Absent, ""),
        Some(Entry::Other) => bail!("{} is no file: it is left alone", path.display()),
        Some(Entry::File { .. } | Entry::Link(_)) => {
            folder.remove(PLUGIN)?;
            report.add(path, Action::Removed, "");
        }
    }
    Ok(())
}

/// Whether `loopback` is a file with the content of `plugin`.
fn is_copy(loopback: Option<&Entry>, plugin: Option<&Entry>) -> bool {
    match (loopback, plugin) {
        (Some(Entry::File { content: ours, .. }), Some(Entry::File { content, .. })) => {
            ours == content
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A program that is refused leaves nothing, and the plugin that was there stays.
    #[test]
    fn a_refused_program_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path(), Changes::Made).unwrap();
        let program = Program {
            path: "no-plugin".into(),
            content: b"#!/bin/sh\nexit 1\n".to_vec(),
        };
        let mut report = Report::new(false);
        assert!(program.install(&folder, &mut report).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(dir.path().join(PLUGIN), "before").unwrap();
        assert!(program.install(&folder, &mut report).is_err());
        assert_eq!(std::fs::read(dir.path().join(PLUGIN)).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
