//! Labs of an ordinary user: everything happens inside a user namespace, in which the user is root.
//!
//! Commands that build run themselves again through `unshare`; a small process stays behind and
//! holds the namespaces; commands that come later join it through `nsenter`. The environment
//! variable [`INSIDE_VARIABLE`] tells the second run where it is.

use std::{
    env, fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    command,
    place::{INSIDE_VARIABLE, Place},
    process::Process,
    state::LabState,
};

/// Verb of the process that holds the namespaces.
pub const HOLD_VERB: &str = "hold";
/// Where TUN devices come from.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// Working folder of a command that runs again inside.
const FOLDER_VARIABLE: &str = "FABRIC_LAB_FOLDER";
const UNSHARE: [&str; 6] = [
    "--user",
    "--map-root-user",
    "--mount",
    "--net",
    "--propagation",
    "private",
];
/// How long the trial of a user namespace may take.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// Settings that forbid user namespaces: file, the value that forbids, what to write in its place.
const SETTINGS: [(&str, &str, &str); 4] = [
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "kernel.unprivileged_userns_clone=1",
    ),
    (
        "user/max_user_namespaces",
        "0",
        "user.max_user_namespaces=10000",
    ),
    (
        "user/max_net_namespaces",
        "0",
        "user.max_net_namespaces=10000",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// Checks that TUN devices can be made.
///
/// # Errors
///
/// The device is not there or not accessible; the message says how to mend that.
pub fn check_tun() -> anyhow::Result<()> {
    let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN_DEVICE)
    else {
        return Ok(());
    };
    if error.kind() == io::ErrorKind::PermissionDenied {
        bail!(
            "{TUN_DEVICE} is not accessible: {error}; as root run `chmod 0666 {TUN_DEVICE}` (every \
             user may then make devices, but only in network namespaces of their own), or give the \
             device to a group that you are in"
        );
    }
    if error.kind() == io::ErrorKind::NotFound {
        bail!(
            "there is no {TUN_DEVICE}: as root run `modprobe tun`, or in a container start it with \
             `--device {TUN_DEVICE}`"
        );
    }
    Err(error).context(format!("cannot open {TUN_DEVICE}"))
}

/// Runs this very command again as root of new user, mount and network namespaces. Returns only if
/// that fails.
///
/// # Errors
///
/// The system forbids it; the message names the setting.
pub fn run_again_in_new(place: &Place) -> anyhow::Error {
    match again_in_new(place) {
        Ok(error) | Err(error) => error,
    }
}

fn again_in_new(place: &Place) -> anyhow::Result<anyhow::Error> {
    let unshare = tool("unshare")?;
    let mut trial = Command::new(&unshare);
    trial.args(UNSHARE).args(["--", "true"]);
    let answer = command::run(trial, b"", TRIAL_MAX)?;
    if !answer.status.success() {
        bail!(
            "this system does not let an ordinary user make user namespaces ({}): {}; or run the \
             lab as root",
            answer.last_line(),
            forbidding(Path::new("/proc/sys"))
        );
    }
    let mut again = Command::new(unshare);
    again
        .args(UNSHARE)
        .arg("--")
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1));
    Ok(exec(again, place))
}

/// Runs this very command again inside the namespaces that `state`'s lab lives in. Returns only if
/// that fails.
///
/// # Errors
///
/// The lab's namespaces are gone, or cannot be joined.
pub fn run_again_in(place: &Place, state: &LabState) -> anyhow::Error {
    match again_in(place, state) {
        Ok(error) | Err(error) => error,
    }
}

fn again_in(place: &Place, state: &LabState) -> anyhow::Result<anyhow::Error> {
    let Some(pid) = state
        .holder
        .filter(|pid| holder(*pid, &state.folder).is_some())
    else {
        bail!(
            "the namespaces of lab {} are gone, as after a restart of the machine: `fabric lab down \
             --name {}` removes the rest",
            state.name,
            state.name
        );
    };
    let mut again = Command::new(tool("nsenter")?);
    again
        .args([
            "--preserve-credentials",
            "--user",
            "--mount",
            "--net",
            "--target",
        ])
        .arg(pid.to_string())
        .arg("--")
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1));
    if let Ok(folder) = env::current_dir() {
        again.env(FOLDER_VARIABLE, folder);
    }
    Ok(exec(again, place))
}

/// Goes back to the folder the command was called in: joining a mount namespace leaves it.
pub fn restore_folder() {
    if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
        // A folder that is not there inside is no reason to fail.
        let _ = env::set_current_dir(folder);
    }
}

fn exec(mut command: Command, place: &Place) -> anyhow::Error {
    let error = command.env(INSIDE_VARIABLE, place.base()).exec();
    anyhow::Error::new(error).context(format!(
        "cannot run {}",
        command.get_program().to_string_lossy()
    ))
}

/// Starts the process that holds the namespaces of the calling one; its process id.
///
/// # Errors
///
/// It cannot be started.
pub fn start_holder(folder: &Path) -> anyhow::Result<u32> {
    let child = Command::new(env::current_exe()?)
        .args(["lab", HOLD_VERB, "--folder"])
        .arg(folder)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start the process that holds the namespaces")?;
    Ok(child.id())
}

/// The process that holds the namespaces of the lab in `folder`, if it lives.
#[must_use]
pub fn holder(pid: u32, folder: &Path) -> Option<Process> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Process::open_checked(pid, &program, folder)
}

/// Holds the namespaces of the calling process until a signal ends it.
pub fn hold() -> ! {
    loop {
        std::thread::park();
    }
}

fn tool(name: &str) -> anyhow::Result<PathBuf> {
    command::find(name).with_context(|| {
        format!(
            "there is no program {name}: install the package util-linux, or run the lab as root"
        )
    })
}

/// Which setting below `root` (`/proc/sys`) forbids user namespaces, and what to do.
fn forbidding(root: &Path) -> String {
    let found: Vec<String> = SETTINGS
        .iter()
        .filter(|(file, bad, _)| {
            fs::read_to_string(root.join(file)).is_ok_and(|value| value.trim() == *bad)
        })
        .map(|(file, bad, good)| {
            format!(
                "{} is {bad}; as root run `sysctl -w {good}`",
                file.replace('/', ".")
            )
        })
        .collect();
    if found.is_empty() {
        "no setting of the kernel says so, so a security module or a container's seccomp profile \
         does (for Docker: `--security-opt seccomp=unconfined`); see \
         kernel.unprivileged_userns_clone, user.max_user_namespaces and \
         kernel.apparmor_restrict_unprivileged_userns"
            .to_owned()
    } else {
        found.join("; ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The setting that forbids user namespaces is named with its cure; where none does, all are
    /// named.
    #[test]
    fn the_forbidding_setting_is_named() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["kernel", "user"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        let all = forbidding(root.path());
        for (file, bad, good) in SETTINGS {
            let name = file.replace('/', ".");
            if name != "user.max_net_namespaces" {
                assert!(all.contains(&name), "{all}");
            }
            fs::write(root.path().join(file), format!("{bad}\n")).unwrap();
            let told = forbidding(root.path());
            assert!(
                told.contains(&format!("{name} is {bad}")) && told.contains(good),
                "{told}"
            );
            fs::write(root.path().join(file), "2\n").unwrap();
        }
    }
}
