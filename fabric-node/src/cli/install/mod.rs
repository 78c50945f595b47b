//! `fabric install-cni` and `fabric uninstall-cni`: the plugin and the list of a container runtime, put
//! in place and taken away.
//!
//! Comes in: the runtime's two folders. Goes out: the same folders with our files in them, or without.
//! The order is what matters: a runtime that sees the list executes the plugin, and the plugin asks the
//! daemon. So the list comes last and only when the daemon serves, and it goes first and only when no pod
//! needs it any more. Never done here: a folder removed, another package's file changed, anything that
//! a second run or a run after a crash could not repeat.

use std::{
    ffi::OsStr,
    fmt::Display,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::builder::{PathBufValueParser, TypedValueParser};
use serde_json::Value;

use self::{
    folder::{Changes, Folder},
    list::{Decision, Wanted, is_file_name},
    programs::{PLUGIN_BYTES_MAX, Program},
    report::{Action, Report},
};
use super::{
    cni_dir::{self, BIN_DIR, CONF_DIR, NETWORK_BYTES_MAX, NetworkFile},
    cni_version, containerd,
    daemon::parse_duration,
};
use crate::{
    causes::with_causes,
    lab::{command, plugin::PLUGIN},
    terminal::{
        exit::{Failure, NOT_IN_FORCE},
        output::Output,
    },
};

mod folder;
mod list;
mod programs;
pub(super) mod report;
pub(super) mod trust;
mod unattended;
mod uninstall;

pub(super) use self::uninstall::clean;
pub use self::{
    programs::Loopback,
    unattended::{Outcome, WrittenList, write_list},
    uninstall::{UninstallArgs, uninstall},
};

/// Name of the list without its end. Runtimes take the first name.
const LIST_NAME: &str = "10-fabric";
/// Time between two questions for STATUS.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// How long one answer to STATUS may take; the plugin itself gives up earlier.
const STATUS_MAX: Duration = Duration::from_secs(5);

const INSTALL_HELP: &str = "\
Examples:
  fabric install-cni
  fabric install-cni --dry-run
  fabric install-cni --plugin-only
  fabric install-cni --bin-dir /usr/lib/cni --cni-socket /run/fabric-b/cni.sock

Puts the plugin in place, waits until the daemon can attach pods, then writes the list. What is as it \
should be is left alone; a list that somebody changed is kept. Repeat it to upgrade, or after a crash. \
Where containerd is told to look into other folders there is a warning.

Exit codes:
  0    done
  1    refused or failed; nothing that runtimes read is half written
  2    wrong usage
  3    done, but runtimes read another network's file first
  124  the daemon was not ready in time; the plugin is in place, not the list";

/// Where the files are.
#[derive(Clone, Debug, clap::Args)]
pub struct Places {
    /// Directory where the container runtime looks for plugins.
    #[arg(long, default_value = BIN_DIR, value_name = "DIR", value_parser = absolute())]
    pub bin_dir: PathBuf,
    /// Directory where the container runtime looks for networks.
    #[arg(long, default_value = CONF_DIR, value_name = "DIR", value_parser = absolute())]
    pub conf_dir: PathBuf,
    /// Name of the list, without `.conflist`; runtimes take the first.
    #[arg(long, default_value = LIST_NAME)]
    pub name: String,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `fabric install-cni`.
#[derive(Debug, clap::Args)]
#[command(after_help = INSTALL_HELP)]
pub struct InstallArgs {
    /// Where the files go.
    #[command(flatten)]
    pub places: Places,
    /// The plugin's program [default: fabric-cni beside this one].
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// The daemon's CNI socket, as in node.toml [default: the one in the list that is there, else
    /// /run/fabric/cni.sock].
    #[arg(long, value_name = "PATH", value_parser = absolute())]
    pub cni_socket: Option<PathBuf>,
    /// The daemon's state directory, as in node.toml [default: the one in the list that is there, else
    /// /var/lib/fabric].
    #[arg(long, value_name = "DIR", value_parser = absolute())]
    pub state_dir: Option<PathBuf>,
    /// containerd's own file, to warn if it names other folders than these.
    #[arg(long, default_value = containerd::CONFIG, value_name = "FILE")]
    pub containerd_config: PathBuf,
    /// The plugin `loopback`, which containerd calls for each pod.
    #[arg(long, value_enum, default_value_t = Loopback::Missing)]
    pub loopback: Loopback,
    /// How long to wait for the daemon: a number with ms, s, m or h.
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub wait_duration: Duration,
    /// Replace a list that differs, whoever wrote it.
    #[arg(long)]
    pub force: bool,
    /// Only the programs, without waiting for the daemon, which writes the list itself (`cni.conflist_dir`).
    #[arg(long, conflicts_with_all = ["conf_dir", "name", "cni_socket", "state_dir", "wait_duration", "force"])]
    pub plugin_only: bool,
}

/// Takes absolute paths only: a runtime has another working directory.
pub(super) fn absolute() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if path.is_absolute() {
            Ok(path)
        } else {
            Err("not an absolute path")
        }
    })
}

impl Places {
    fn changes(&self) -> Changes {
        if self.dry_run {
            Changes::Rehearsed
        } else {
            Changes::Made
        }
    }

    /// Name of the list's file.
    fn list(&self) -> anyhow::Result<String> {
        let name = self.name.strip_suffix(".conflist").unwrap_or(&self.name);
        ensure!(
            is_file_name(name),
            "--name {name:?} is no name of a file that runtimes read"
        );
        Ok(format!("{name}.conflist"))
    }
}

/// Runs `fabric install-cni`.
///
/// # Errors
///
/// A folder or file is not safe or not ours, the plugin does not run here, or the daemon is not ready in
/// time. What was done until then is printed.
pub fn install(args: &InstallArgs, output: Output) -> Result<ExitCode, Failure> {
    let mut report = Report::new(args.places.dry_run);
    let done = put_in_place(args, output, &mut report);
    report.print(output)?;
    let others = done?;
    Ok(if others == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_IN_FORCE)
    })
}

/// Puts everything in place; how many files runtimes read before the list.
fn put_in_place(args: &InstallArgs, output: Output, report: &mut Report) -> Result<usize, Failure> {
    if args.plugin_only {
        return Ok(put_plugin_in_place(args, report).map(|()| 0)?);
    }
    let (places, name) = (&args.places, args.places.list()?);
    // Everything that can be refused is refused before anything is changed.
    let wanted = Wanted::new(args.cni_socket.as_deref(), args.state_dir.as_deref())?;
    let program = Program::read(args.binary.as_deref())?;
    let bin = Folder::make(&places.bin_dir, places.changes())?;
    let conf = Folder::make(&places.conf_dir, places.changes())?;
    let list = conf.file(&name);
    let there = conf.look(&name, NETWORK_BYTES_MAX)?;
    let decision = wanted.decide(&list, there.as_ref(), args.force)?;
    clear(&[&bin, &conf], report)?;
    warn_of_containerd(args, output);

    let before = bin.look(PLUGIN, PLUGIN_BYTES_MAX)?;
    program.install(&bin, report)?;
    program.install_loopback(&bin, args.loopback, before.as_ref(), report)?;
    match decision {
        Decision::Leave => report.add(list.clone(), Action::Unchanged, ""),
        Decision::Keep => {
            let detail = "it was changed by hand; --force replaces it";
            report.add(list.clone(), Action::Kept, detail);
        }
        Decision::Write(content) => {
            let question = list::status_question(&content)?;
            let detail = if places.dry_run {
                // The plugin is not in its place.
                rehearse_wait(program.path(), &question, args.wait_duration)
            } else {
                wait_until_ready(&bin.file(PLUGIN), &question, args.wait_duration, output)?;
                String::new()
            };
            conf.stage(&name, &content, list::MODE)?.place()?;
            let action = there.map_or(Action::Created, |_| Action::Replaced);
            report.add(list.clone(), action, &detail);
        }
    }
    name_those_before(&places.conf_dir, &list, output, report)
}

/// Puts the programs in place. What containerd is told of folders is on the host, and this may run in a
/// container.
fn put_plugin_in_place(args: &InstallArgs, report: &mut Report) -> anyhow::Result<()> {
    let program = Program::read(args.binary.as_deref())?;
    let bin = Folder::make(&args.places.bin_dir, args.places.changes())?;
    clear(&[&bin], report)?;
    let before = bin.look(PLUGIN, PLUGIN_BYTES_MAX)?;
    program.install(&bin, report)?;
    program.install_loopback(&bin, args.loopback, before.as_ref(), report)
}

fn clear(folders: &[&Folder], report: &mut Report) -> anyhow::Result<()> {
    for folder in folders {
        for name in folder.clear()? {
            let detail = "left by a command that was cut short";
            report.add(folder.file(&name), Action::Removed, detail);
        }
    }
    Ok(())
}

/// Warns where containerd looks into other folders. It is no failure: the runtime may be another one.
fn warn_of_containerd(args: &InstallArgs, output: Output) {
    let (file, places) = (&args.containerd_config, &args.places);
    match containerd::differences(file, &places.bin_dir, &places.conf_dir) {
        Ok(differences) => {
            for difference in differences.into_iter().flatten() {
                output.say(&format!("warning: {difference}"));
            }
        }
        Err(reason) => output.say(&format!(
            "note: into which folders containerd looks is not known: {}: {reason}",
            file.display()
        )),
    }
}

/// Asks for STATUS as a runtime does; the reason why no ADD could succeed, where there is one.
fn ask_status(plugin: &Path, question: &[u8]) -> anyhow::Result<Option<String>> {
    let mut status = Command::new(plugin);
    status.env_clear().env("CNI_COMMAND", "STATUS").env(
        "CNI_PATH",
        plugin.parent().unwrap_or_else(|| Path::new("/")),
    );
    let answer = command::run(status, question, STATUS_MAX)?;
    if answer.status.success() {
        return Ok(None);
    }
    let reason = serde_json::from_str::<Value>(&answer.stdout)
        .ok()
        .and_then(|error| Some(error.get("msg")?.as_str()?.to_owned()));
    Ok(Some(
        reason.unwrap_or_else(|| answer.last_line().to_owned()),
    ))
}

/// What a rehearsal says of the wait for the daemon; nothing where there would be none.
fn rehearse_wait(plugin: &Path, question: &[u8], duration: Duration) -> String {
    let cannot_ask = |reason: &dyn Display| {
        let plugin = plugin.display();
        format!("whether the daemon is ready could not be asked with {plugin}: {reason}")
    };
    if let Err(refused) = cni_version::ask(plugin) {
        return cannot_ask(&refused);
    }
    match ask_status(plugin, question) {
        Ok(None) => String::new(),
        Ok(Some(reason)) => {
            format!("after a wait for the daemon, {duration:?} at most: {reason}")
        }
        Err(error) => cannot_ask(&with_causes(&error)),
    }
}

/// Asks for STATUS, by the plugin in its place and with the list that is to be written, until an ADD could
/// succeed.
fn wait_until_ready(
    plugin: &Path,
    question: &[u8],
    duration: Duration,
    output: Output,
) -> Result<(), Failure> {
    let deadline = Instant::now() + duration;
    let mut is_first = true;
    loop {
        let Some(reason) = ask_status(plugin, question)? else {
            return Ok(());
        };
        if Instant::now() + STATUS_INTERVAL >= deadline {
            return Err(Failure::TimedOut(format!(
                "the daemon was not ready to attach pods after {duration:?}; {reason}; the plugin is in \
                 place, the list is not written: start the daemon and repeat the command"
            )));
        }
        if is_first {
            output.say(&format!("waiting for the daemon: {reason}"));
            is_first = false;
        }
        thread::sleep(STATUS_INTERVAL);
    }
}

/// The files that runtimes read before `list`.
///
/// # Errors
///
/// The folder cannot be read.
fn files_before(dir: &Path, list: &Path) -> anyhow::Result<Vec<NetworkFile>> {
    let files = cni_dir::scan(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let name = |path: &Path| path.file_name().map(OsStr::to_owned);
    let before = files.into_iter();
    Ok(before
        .filter(|file| name(&file.path) < name(list))
        .collect())
}

/// Names the files that runtimes read before `list`, and says what that means; how many there are.
fn name_those_before(
    dir: &Path,
    list: &Path,
    output: Output,
    report: &mut Report,
) -> Result<usize, Failure> {
    let before = files_before(dir, list)?;
    for file in &before {
        let meaning = if file.is_ours() {
            "it is Fabric's as well: one of the two is enough"
        } else {
            "pods are attached to that network and not to Fabric's; move it away when nothing needs it, \
             or give ours a name that sorts before it with --name"
        };
        output.say(&format!(
            "warning: runtimes read {file} before {}: {meaning}",
            list.display()
        ));
        report.add_before(file.path.clone());
    }
    Ok(before.len())
}
