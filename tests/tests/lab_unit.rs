//! The systemd unit: systemd understands it, and what it forbids the daemon does not need. The daemon is
//! run with the unit's own arguments and capabilities, under mounts like those that systemd makes for it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;
use fabric_tests::stage::{Stage, workspace};

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(60);
const UNIT: &str = "deploy/systemd/fabric-node.service";
/// Where the unit expects the programs.
const INSTALLED: &str = "/usr/local/bin/";
const SCRIPT: &str = "tests/tests/lab_unit.sh";
/// CAP_NET_ADMIN (12) and CAP_SYS_ADMIN (21) of `linux/capability.h`, as `/proc/PID/status` writes them.
const CAPABILITIES: &str = "0000000000201000";

/// systemd finds nothing to complain about in the unit, and does complain about one with a misspelt key.
#[test]
fn systemd_understands_it() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let folder = tempfile::tempdir()?;
    let programs = stage.program("");
    let installed = unit()?.replace(
        INSTALLED,
        programs.to_str().context("a path that is no text")?,
    );
    let said = |text: &str| -> anyhow::Result<String> {
        let file = folder.path().join("fabric-node.service");
        fs::write(&file, text)?;
        let mut verify = Command::new("systemd-analyze");
        verify.arg("verify").arg(&file);
        let answer = command::run(verify, b"", LIMIT).context("install the package systemd")?;
        Ok(format!(
            "{}{}{}",
            answer.stdout, answer.stderr, answer.status
        ))
    };
    assert_eq!(said(&installed)?, "exit status: 0");
    let wrong = said(&installed.replace("ProtectSystem", "ProtectSytem"))?;
    assert!(wrong.contains("Unknown key"), "{wrong}");
    Ok(())
}

/// Under the unit's mounts and capabilities the daemon attaches pods whose namespaces were made and
/// mounted after its start, in both ways that runtimes have; keeps neither the mount nor the namespace
/// from going; and detaches them afterwards.
#[test]
fn namespaces_made_after_the_start() -> anyhow::Result<()> {
    let said = run("slave", "")?;
    println!("{said}");
    for line in [
        format!("bounding {CAPABILITIES}"),
        format!("effective {CAPABILITIES}"),
        "no-new-privs 1".to_owned(),
        "No pods.".to_owned(),
        "the unit ended well".to_owned(),
    ] {
        ensure!(
            said.lines().any(|said| said == line),
            "{line:?} is missing: {said}"
        );
    }
    for name in ["by-ip", "by-bind"] {
        for fact in [
            "ADD ok",
            "addresses 2",
            "held open 0",
            "unmounted and removed",
            "mounts left in the unit 0",
            "DEL ok",
        ] {
            let line = format!("{name} {fact}");
            ensure!(
                said.lines().any(|said| said == line),
                "{line:?} is missing: {said}"
            );
        }
        ensure!(
            !said.contains(&format!("{name} mounts seen by the unit 0")),
            "{said}"
        );
    }
    ensure!(!said.contains("the unit wrote"), "{said}");
    Ok(())
}

/// Where mounts do not reach the daemon, ADD fails with the code for a namespace that is none: so the
/// unit must not ask for private mounts, and it does not.
#[test]
fn private_mounts_would_not_do() -> anyhow::Result<()> {
    let said = run("private", "")?;
    for name in ["by-ip", "by-bind"] {
        let failed = said
            .lines()
            .find(|line| line.starts_with(&format!("{name} ADD")));
        let failed = failed.with_context(|| said.clone())?;
        ensure!(failed.contains("\"code\":8"), "{failed}");
    }
    let unit = unit()?;
    let asks = unit.lines().find(|line| line.starts_with("MountFlags"));
    assert_eq!(asks, None);
    Ok(())
}

/// A runtime that names namespaces by a process of the pod needs CAP_SYS_PTRACE in the unit, as
/// docs/operations.md says: without it ADD fails with the code for namespaces, with it it succeeds.
#[test]
fn namespaces_named_by_a_process() -> anyhow::Result<()> {
    for (more, expected) in [("", "\"code\":8"), (",+sys_ptrace", "by-process ADD ok")] {
        let said = run("slave", more)?;
        let added = said.lines().find(|line| line.starts_with("by-process ADD"));
        let added = added.with_context(|| said.clone())?;
        ensure!(added.contains(expected), "{more:?}: {added}");
        ensure!(said.contains("by-process DEL ok"), "{said}");
    }
    let document = fs::read_to_string(workspace().join("docs/operations.md"))?;
    assert!(document.contains("add `CAP_SYS_PTRACE`"));
    Ok(())
}

/// What the script says when mounts of the host reach the unit by `propagation` and it has the
/// capabilities that it asks for and `more`.
fn run(propagation: &str, more: &str) -> anyhow::Result<String> {
    let stage = Stage::enter()?;
    let folder = tempfile::tempdir()?;
    let unit = unit()?;
    let setting = |key: &str| {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.with_context(|| format!("{UNIT} has no {key}"))
    };
    // What the script does by hand.
    assert_eq!(setting("ProtectSystem")?, "strict");
    assert_eq!(setting("NoNewPrivileges")?, "yes");
    assert_eq!(setting("UMask")?, "0077");
    let capabilities: Vec<String> = setting("CapabilityBoundingSet")?
        .split_whitespace()
        .map(|name| name.to_lowercase().replace("cap_", "+"))
        .collect();
    let start = setting("ExecStart")?
        .strip_prefix(&format!("{INSTALLED}fabric-node "))
        .context("another program")?;
    let mut sandbox = Command::new("unshare");
    sandbox
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["--propagation", "private", "bash"])
        .arg(workspace().join(SCRIPT))
        .arg(stage.program(""))
        .arg(folder.path())
        .args([propagation, &(capabilities.join(",") + more)])
        .args(start.split_whitespace());
    let answer = command::run(sandbox, b"", LIMIT)?;
    let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    ensure!(
        answer.status.success(),
        "{}: {}{}{log}",
        answer.status,
        answer.stdout,
        answer.stderr
    );
    Ok(answer.stdout + &answer.stderr)
}

fn unit() -> anyhow::Result<String> {
    let path = workspace().join(Path::new(UNIT));
    fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))
}
