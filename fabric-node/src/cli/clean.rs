//! `fabric clean-node`: takes away what an uninstalled fabric has left on a node.
//!
//! Comes in: a node on which no daemon runs any more. Goes out: the same node without the network list and the
//! plugin, `fabric0` with its routes, the state directory and the sockets' directory, or the reason why not.
//! Everything is repeatable, in an order in which a command that is cut short leaves nothing that runtimes would
//! stumble over. Never done here: anything while a daemon answers, or while a pod still has its interface, which
//! no runtime could detach afterwards.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use fabric_proto::cni::PENDING_DELETES_DIR;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    daemon::block_on,
    install::{
        self, Places,
        report::{Action, Report},
    },
};
use crate::{
    admin::client::{Client, ClientError, TIMEOUT},
    cni::{
        clock::Moment,
        store::{ATTACHMENTS_DIR, Record, State, Store},
    },
    config::{RUN_DIR, STATE_DIR},
    control::host::{self, HOST_DEVICE},
    sys::{netlink::Netlink, netns::NetnsId},
    terminal::{
        exit::{FAILED, Failure},
        output::Output,
    },
};

/// Most pods that are named in a refusal (pods).
const PODS_NAMED_MAX: usize = 3;
/// With `--stay`, between two tries: what is in the way is the end of pods.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

const CLEAN_HELP: &str = "\
Examples:
  fabric clean-node --dry-run     what it would do
  fabric clean-node

Removes the network list and the plugin, fabric0 and its routes, the state and the sockets. Drain the node and \
stop the daemon first. Repeat it after a crash.

Exit codes:
  0  done
  1  refused or failed: a daemon answers, or pods are attached; with --check: something is left
  2  wrong usage";

/// Arguments of `fabric clean-node`.
#[derive(Debug, clap::Args)]
#[command(after_help = CLEAN_HELP)]
pub struct CleanArgs {
    /// Where the runtime's files are.
    #[command(flatten)]
    pub places: Places,
    /// The daemon's state directory, as in node.toml.
    #[arg(long, default_value = STATE_DIR, value_name = "DIR", value_parser = install::absolute())]
    pub state_dir: PathBuf,
    /// The daemon's directory of sockets, as in node.toml.
    #[arg(long, default_value = RUN_DIR, value_name = "DIR", value_parser = install::absolute())]
    pub run_dir: PathBuf,
    /// Also while pods have interfaces, which no runtime can detach then, and whatever else needs the plugin.
    #[arg(long)]
    pub force: bool,
    /// Change nothing; fail if anything is left.
    #[arg(long, conflicts_with = "stay")]
    pub check: bool,
    /// Try until it is done, then wait for the signal to end: for a DaemonSet.
    #[arg(long, conflicts_with = "dry_run")]
    pub stay: bool,
}

/// Runs `fabric clean-node`.
///
/// # Errors
///
/// A daemon answers, pods are attached, or something cannot be removed. What was done until then is printed.
pub fn clean_node(args: &CleanArgs, socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    if args.stay {
        return block_on(stay(args, socket, output));
    }
    let (report, done) = attempt(args, socket, output);
    let is_left = report.has_removed();
    report.print_as(KIND, output)?;
    done?;
    Ok(if args.check && is_left {
        ExitCode::from(FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

/// `kind` of the report.
const KIND: &str = "NodeCleanup";

/// Tries until nothing is in the way, then waits for the end.
async fn stay(args: &CleanArgs, socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut told = String::new();
    let mut is_clean = false;
    loop {
        if !is_clean {
            // Netlink and the client each have a runtime of their own.
            let (report, done) = std::thread::scope(|scope| {
                let attempt = scope.spawn(|| attempt(args, socket, output));
                attempt
                    .join()
                    .map_err(|_| anyhow!("the attempt has panicked"))
            })?;
            is_clean = done.is_ok();
            let reason = done.err().map(|failure| failure.to_string());
            let reason = reason.unwrap_or_else(|| "this node is clean".to_owned());
            if is_clean || report.has_removed() {
                report.print_as(KIND, output)?;
            }
            if reason != told {
                output.say(&reason);
                told = reason;
            }
        }
        tokio::select! {
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(RETRY_INTERVAL), if !is_clean => {}
        }
    }
}

fn attempt(args: &CleanArgs, socket: &Path, output: Output) -> (Report, Result<(), Failure>) {
    let is_rehearsal = args.places.dry_run || args.check;
    let mut report = Report::new(is_rehearsal);
    let done = clean(args, socket, is_rehearsal, output, &mut report);
    (report, done)
}

fn clean(
    args: &CleanArgs,
    socket: &Path,
    is_rehearsal: bool,
    output: Output,
    report: &mut Report,
) -> Result<(), Failure> {
    refuse_daemon(socket)?;
    let attached = attached(&args.state_dir, is_rehearsal)?;
    if !attached.is_empty() {
        let obstacle = anyhow!(
            "pods are attached ({}), and without the plugin no runtime can detach them: drain the node first, or \
             say --force",
            named(&attached)
        );
        if !args.force {
            return Err(obstacle.into());
        }
        output.say(&format!("warning: {obstacle}"));
    }
    let places = Places {
        dry_run: is_rehearsal,
        ..args.places.clone()
    };
    install::clean(&places, args.force, output, report)?;
    remove_host_device(is_rehearsal, report)?;
    remove_folder(&args.state_dir, is_state, is_rehearsal, report)?;
    remove_folder(&args.run_dir, is_of_run, is_rehearsal, report)?;
    Ok(())
}

/// A daemon would miss what is taken from it, and make it anew.
fn refuse_daemon(socket: &Path) -> Result<(), Failure> {
    let client = Client::new(socket, TIMEOUT);
    match block_on(async { Ok(client.status().await) })? {
        Err(ClientError::NotRunning { .. }) => Ok(()),
        Ok(_) | Err(ClientError::Answer { .. } | ClientError::Document { .. }) => Err(anyhow!(
            "a daemon answers on {}: stop it first, or uninstall the fabric from the cluster",
            socket.display()
        )
        .into()),
        Err(error) => Err(error.into()),
    }
}

/// Attachments on record whose pods still have their namespaces. A runtime that has deleted a pod meanwhile has
/// removed its namespace, whether or not anybody took its DEL.
fn attached(state_dir: &Path, is_rehearsal: bool) -> anyhow::Result<Vec<Record>> {
    if !state_dir.join(ATTACHMENTS_DIR).is_dir() {
        return Ok(Vec::new());
    }
    let now = Moment::now().context("cannot tell the time")?;
    let records = if is_rehearsal {
        Store::look(state_dir)
    } else {
        Store::open(state_dir, &now).map(|(_, loaded)| loaded.records)
    };
    let in_use = |record: &Record| {
        let is_released = matches!(record.state, State::Released { .. });
        let there = NetnsId::of_file(&record.netns).ok();
        !is_released
            && record.attached_at.boot == now.boot
            && there == Some(NetnsId::from(record.netns_id))
    };
    Ok(records?.into_iter().filter(in_use).collect())
}

fn named(attached: &[Record]) -> String {
    let name = |record: &Record| {
        let pod = record.pod.name.clone();
        pod.unwrap_or_else(|| record.key.container_id.clone())
    };
    let names: Vec<String> = attached.iter().take(PODS_NAMED_MAX).map(name).collect();
    match attached.len() - names.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// `fabric0`, and with it its addresses, routes and settings, and whatever else the daemon tells the kernel. Netlink has
/// a runtime of its own, so this is not to be called inside one.
fn remove_host_device(is_rehearsal: bool, report: &mut Report) -> anyhow::Result<()> {
    let is_there = Netlink::connect()?.link(HOST_DEVICE)?;
    if let Some(link) = &is_there {
        ensure!(
            link.kind.as_deref() == Some("tun"),
            "{HOST_DEVICE} is no TUN device, and none of the fabric's: it is left alone"
        );
    }
    if !is_rehearsal {
        // Also without the device: it may have been deleted by hand, and the rest not.
        host::remove()?;
    }
    let action = is_there.map_or(Action::Absent, |_| Action::Removed);
    report.add(PathBuf::from(HOST_DEVICE), action, "");
    Ok(())
}

/// Removes a folder with all that is in it, if what is in it is the daemon's.
fn remove_folder(
    folder: &Path,
    is_ours: fn(&[fs::DirEntry]) -> io::Result<bool>,
    is_rehearsal: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let shown = folder.display();
    let metadata = match fs::symlink_metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            report.add(folder.to_owned(), Action::Absent, "");
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot examine {shown}")),
    };
    ensure!(metadata.is_dir(), "{shown} is no folder: it is left alone");
    refuse_mounted(folder, metadata.dev())?;
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.with_context(|| format!("cannot read {shown}"))?;
    let ours = is_ours(&entries).with_context(|| format!("cannot examine {shown}"))?;
    ensure!(
        ours,
        "{shown} has files that are no daemon's: look at it, and remove it by hand"
    );
    if !is_rehearsal {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {shown}"))?;
    }
    report.add(folder.to_owned(), Action::Removed, "");
    Ok(())
}

/// What is mounted cannot be removed, only emptied, and belongs to whoever mounted it.
fn refuse_mounted(folder: &Path, device: u64) -> anyhow::Result<()> {
    let above = folder.parent().unwrap_or(folder);
    let metadata = fs::metadata(above).with_context(|| format!("no folder {}", above.display()))?;
    ensure!(
        metadata.dev() == device && above != folder,
        "{} is a mount point: unmount it first",
        folder.display()
    );
    Ok(())
}

/// A state directory has the folder of attachments, or of DELs that nobody took, or nothing.
fn is_state(entries: &[fs::DirEntry]) -> io::Result<bool> {
    let is_known = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name == ATTACHMENTS_DIR || name == PENDING_DELETES_DIR
    };
    Ok(entries.is_empty() || entries.iter().any(is_known))
}

/// A directory of sockets has sockets and nothing else.
fn is_of_run(entries: &[fs::DirEntry]) -> io::Result<bool> {
    for entry in entries {
        if !entry.file_type()?.is_socket() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;

    use super::*;

    /// A state directory goes with all that is in it; one that has only a stranger's files stays, and so does a
    /// link to one.
    #[test]
    fn only_a_state_directory_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join("state"), dir.path().join("other"));
        fs::create_dir_all(state.join(ATTACHMENTS_DIR)).unwrap();
        fs::create_dir_all(state.join("identity")).unwrap();
        fs::write(state.join("identity/key.pem"), "key").unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("letter"), "dear").unwrap();
        std::os::unix::fs::symlink(&state, dir.path().join("link")).unwrap();
        let mut report = Report::new(true);
        remove_folder(&state, is_state, true, &mut report).unwrap();
        assert!(report.has_removed() && state.is_dir());
        let mut report = Report::new(false);
        assert!(remove_folder(&other, is_state, false, &mut report).is_err());
        assert!(remove_folder(&dir.path().join("link"), is_state, false, &mut report).is_err());
        assert!(remove_folder(&other.join("letter"), is_state, false, &mut report).is_err());
        assert!(remove_folder(Path::new("/proc"), |_| Ok(true), false, &mut report).is_err());
        assert!(!report.has_removed() && other.join("letter").is_file());
        remove_folder(&state, is_state, false, &mut report).unwrap();
        assert!(!state.exists());
        // A second time there is nothing to do.
        remove_folder(&state, is_state, false, &mut report).unwrap();
    }

    /// A directory of sockets goes with its sockets, and stays if anything else is in it.
    #[test]
    fn only_sockets_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        drop(UnixListener::bind(run.join("admin.sock")).unwrap());
        fs::write(run.join("note"), "").unwrap();
        let mut report = Report::new(false);
        assert!(remove_folder(&run, is_of_run, false, &mut report).is_err());
        fs::remove_file(run.join("note")).unwrap();
        remove_folder(&run, is_of_run, false, &mut report).unwrap();
        assert!(!run.exists());
    }

    /// Whoever answers on the socket is a daemon, and whoever left it is none.
    #[test]
    fn a_daemon_that_answers_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        refuse_daemon(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let answering = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .unwrap();
        });
        let told = refuse_daemon(&socket).unwrap_err().to_string();
        assert!(told.contains("a daemon answers"), "{told}");
        answering.join().unwrap();
        // Its socket is left; nobody listens.
        refuse_daemon(&socket).unwrap();
    }
}
