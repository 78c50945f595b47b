//! `fabric uninstall-cni`: the list goes first, and only when no pod needs it; the plugin goes last.
//!
//! Comes in: the runtime's two folders and the daemon, which knows the pods. Goes out: the same folders
//! without our files, or the reason why not. Never done here: a folder removed, another package's file
//! removed.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, anyhow, bail};

use super::{
    Places, clear,
    folder::{Entry, Folder},
    programs,
    report::{Action, Report},
};
use crate::{
    admin::client::{Client, TIMEOUT},
    cli::{
        cni_dir::{self, NetworkFile},
        daemon::block_on,
    },
    lab::plugin::PLUGIN,
    terminal::{exit::Failure, output::Output},
};

/// Most pods that are named in a refusal (pods).
const PODS_NAMED_MAX: usize = 3;

const UNINSTALL_HELP: &str = "\
Examples:
  fabric pods                 none may be left: drain the node first
  fabric uninstall-cni

Removes the list, then the plugin, and nothing else, and says which list runtimes read next. Stop the \
daemon afterwards. Repeat it after a crash.

Exit codes:
  0  done
  1  refused or failed: pods are attached, or another list may need the plugin
  2  wrong usage
  4  the daemon cannot be reached, so nobody knows whether pods are attached";

/// Arguments of `fabric uninstall-cni`.
#[derive(Debug, clap::Args)]
#[command(after_help = UNINSTALL_HELP)]
pub struct UninstallArgs {
    /// Where the files are.
    #[command(flatten)]
    pub places: Places,
    /// Remove them although pods are attached, or nobody knows whether; runtimes cannot detach those.
    #[arg(long)]
    pub force: bool,
}

/// Runs `fabric uninstall-cni`.
///
/// # Errors
///
/// Pods are attached, another list needs the plugin or may need it, a folder or file is not safe or not ours.
/// What was done until then is printed. That the daemon cannot say whether pods are attached is said here.
pub fn uninstall(args: &UninstallArgs, socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    let mut report = Report::new(args.places.dry_run);
    match take_away(args, socket, output, &mut report) {
        // Nothing was done. What went wrong comes before what to do about it.
        Err(failure @ Failure::Daemon(_)) => {
            output.error(&failure);
            output.say(
                "Only the daemon knows whether pods are attached: start it, or say --force if none are.",
            );
            Ok(failure.code())
        }
        done => {
            report.print(output)?;
            done.map(|()| ExitCode::SUCCESS)
        }
    }
}

fn take_away(
    args: &UninstallArgs,
    socket: &Path,
    output: Output,
    report: &mut Report,
) -> Result<(), Failure> {
    let (places, name) = (&args.places, args.places.list()?);
    let bin = Folder::open(&places.bin_dir, places.changes())?;
    let conf = Folder::open(&places.conf_dir, places.changes())?;
    let list = places.conf_dir.join(&name);
    let files = cni_dir::scan(&places.conf_dir).context("cannot read the networks")?;
    let obstacles = [
        refuse_foreign(&files, &list),
        refuse_needed(&files, &list),
        refuse_elsewhere(places, bin.as_ref(), conf.as_ref(), &name),
        refuse_attached(socket),
    ];
    for obstacle in obstacles.into_iter().filter_map(Result::err) {
        if args.force {
            output.say(&format!("warning: {obstacle}"));
            continue;
        }
        return Err(obstacle);
    }
    remove(places, bin.as_ref(), conf.as_ref(), &name, report)?;
    name_the_next(&files, &list, output, report);
    Ok(())
}

/// Removes list and plugin for `fabric clean-node`, which knows by itself that no pod needs them; `force`: also
/// a list of this name that is not ours, and a plugin that another list names.
///
/// # Errors
///
/// Another list needs the plugin, a folder or file is not safe or not ours.
pub(in crate::cli) fn clean(
    places: &Places,
    force: bool,
    output: Output,
    report: &mut Report,
) -> Result<(), Failure> {
    let name = places.list()?;
    let bin = Folder::open(&places.bin_dir, places.changes())?;
    let conf = Folder::open(&places.conf_dir, places.changes())?;
    let list = places.conf_dir.join(&name);
    let files = cni_dir::scan(&places.conf_dir).context("cannot read the networks")?;
    for obstacle in [refuse_foreign(&files, &list), refuse_needed(&files, &list)] {
        match obstacle {
            Err(obstacle) if force => output.say(&format!("warning: {obstacle}")),
            other => other?,
        }
    }
    remove(places, bin.as_ref(), conf.as_ref(), &name, report)?;
    name_the_next(&files, &list, output, report);
    Ok(())
}

/// Removes the list, then the plugin. Until the plugin is gone the list stays under a name that nobody reads: so
/// a command after a crash knows that this is the folder whose list needed the plugin.
fn remove(
    places: &Places,
    bin: Option<&Folder>,
    conf: Option<&Folder>,
    name: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let list = places.conf_dir.join(name);
    let there = conf.map(|conf| conf.look(name, 0)).transpose()?.flatten();
    match (conf, there) {
        (_, Some(Entry::Other)) => bail!("{} is no file: it is left alone", list.display()),
        (Some(conf), Some(Entry::File { .. } | Entry::Link(_))) => {
            conf.set_aside(name)?;
            report.add(list, Action::Removed, "");
        }
        (Some(_) | None, None) | (None, Some(_)) => report.add(list, Action::Absent, ""),
    }
    match bin {
        Some(bin) => {
            clear(&[bin], report)?;
            programs::uninstall(bin, report)?;
        }
        None => report.add(places.bin_dir.join(PLUGIN), Action::Absent, ""),
    }
    let Some(conf) = conf else { return Ok(()) };
    if conf.is_set_aside(name)? {
        conf.remove_set_aside(name)?;
    }
    clear(&[conf], report)
}

/// Says which network runtimes take once ours is gone.
fn name_the_next(files: &[NetworkFile], list: &Path, output: Output, report: &mut Report) {
    let Some(next) = files.iter().find(|file| file.path != list) else {
        return;
    };
    let meaning = if next.is_ours() {
        "it is Fabric's as well, and its pods fail without the plugin"
    } else {
        "new pods are attached to that network; move it away if none should be"
    };
    output.say(&format!(
        "warning: without {} runtimes read {next}: {meaning}",
        list.display()
    ));
    report.set_next(next.path.clone());
}

/// A file that has the list's name and is not ours is another's.
fn refuse_foreign(files: &[NetworkFile], list: &Path) -> Result<(), Failure> {
    match files.iter().find(|file| file.path == list) {
        Some(file) if !file.is_ours() => Err(anyhow!(
            "{file} is not a list of Fabric: give ours with --name, or let --force remove it"
        )
        .into()),
        Some(_) | None => Ok(()),
    }
}

/// Lists of other names in which our plugin is need it.
fn refuse_needed(files: &[NetworkFile], list: &Path) -> Result<(), Failure> {
    match files
        .iter()
        .find(|file| file.path != list && file.is_ours())
    {
        Some(file) => Err(anyhow!(
            "{file} needs the plugin, too: remove it first, or let --force leave it without"
        )
        .into()),
        None => Ok(()),
    }
}

/// A plugin without a list beside it belongs to a list in another folder, unless this folder's was being removed.
fn refuse_elsewhere(
    places: &Places,
    bin: Option<&Folder>,
    conf: Option<&Folder>,
    name: &str,
) -> Result<(), Failure> {
    let has_plugin = match bin {
        Some(bin) => bin.look(PLUGIN, 0)?.is_some(),
        None => false,
    };
    let has_list = match conf {
        Some(conf) => conf.look(name, 0)?.is_some() || conf.is_set_aside(name)?,
        None => false,
    };
    if has_list || !has_plugin {
        return Ok(());
    }
    Err(anyhow!(
        "{} has no list of this name, and one elsewhere may need {}: name the folder with --conf-dir, the list \
         with --name, or let --force remove the plugin",
        places.conf_dir.display(),
        places.bin_dir.join(PLUGIN).display()
    )
    .into())
}

/// Without list or plugin a runtime cannot detach a pod: it would be stuck.
fn refuse_attached(socket: &Path) -> Result<(), Failure> {
    let pods = block_on(async { Ok(Client::new(socket, TIMEOUT).pods().await?) })?;
    let pods = pods.content.items;
    if pods.is_empty() {
        return Ok(());
    }
    let named: Vec<&str> = pods
        .iter()
        .take(PODS_NAMED_MAX)
        .map(|pod| match pod.name.as_str() {
            "" => pod.container_id.as_str(),
            name => name,
        })
        .collect();
    let more = match pods.len().saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(anyhow!(
        "pods are attached ({}{more}), and without the list and the plugin no runtime can detach them: \
         drain the node first (`fabric pods` lists them), or say --force",
        named.join(", ")
    )
    .into())
}
