//! Where a program runs: in the namespaces of a machine of the cluster.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use fabric_node::lab::command;

/// The namespaces of a machine.
#[derive(Clone, Debug)]
pub struct Realm {
    netns: PathBuf,
    /// Process that holds its other namespaces, if it has others.
    holder: Option<u32>,
}

impl Realm {
    /// A machine that has a network of its own only.
    #[must_use]
    pub fn of_network(netns: &Path) -> Self {
        Self {
            netns: netns.to_owned(),
            holder: None,
        }
    }

    /// A machine whose mounts and name are those of the process `holder`.
    #[must_use]
    pub fn of_machine(netns: &Path, holder: u32) -> Self {
        Self {
            netns: netns.to_owned(),
            holder: Some(holder),
        }
    }

    /// The network namespace.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// `program` in these namespaces, with `folder` as its working folder. Whoever starts a kubelet gives it a folder
    /// of its own: it deletes all files of its working folder whenever a container has no path for its log.
    ///
    /// # Errors
    ///
    /// `nsenter` or `env` is missing.
    pub fn command(&self, program: &Path, folder: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(found("nsenter")?);
        command.arg(with("--net=", &self.netns));
        if let Some(holder) = self.holder {
            for kind in ["mnt", "uts"] {
                let word = if kind == "mnt" { "--mount=" } else { "--uts=" };
                command.arg(with(word, Path::new(&format!("/proc/{holder}/ns/{kind}"))));
            }
        }
        command
            .arg(found("env")?)
            .args([OsString::from("-C"), folder.into(), program.into()])
            // Where programs of the system are looked for, such as runc and iptables.
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            );
        Ok(command)
    }
}

fn with(word: &str, path: &Path) -> OsString {
    let mut text = OsString::from(word);
    text.push(path);
    text
}

/// A program of the system.
///
/// # Errors
///
/// It is not installed.
pub(super) fn found(program: &str) -> anyhow::Result<PathBuf> {
    command::find(program).with_context(|| {
        format!("there is no program {program}: `scripts/install-deps test` installs it")
    })
}
