//! What `fabric install-cni`, `uninstall-cni` and `doctor` tell of what is around them: other lists, containerd's own
//! folders, a program that is no plugin, a plugin that is not there.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command::{self, Answer};
use fabric_tests::{
    installer::{LIST, Machine, expect},
    stage::{Stage, workspace},
};
use serde_json::Value;

/// How long `fabric doctor` may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Nobody listens there.
const NO_DAEMON: &str = "/nonexistent";

/// Once our list is gone, runtimes read the next: it is named with what it holds, in a rehearsal too, and for
/// programs. Where there is none, nothing is said.
#[test]
fn the_next_list_is_named() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = installed(&stage)?;
    let podman = machine.conf().join("87-podman-bridge.conflist");
    fs::write(
        &podman,
        r#"{"name":"podman","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
    )?;
    fs::write(machine.conf().join("99-last.conf"), "{")?;
    let uninstall = |more: &[&str]| {
        machine.uninstall(&stage, Path::new(NO_DAEMON), &[&["--force"], more].concat())
    };
    let warning = format!(
        "warning: without {} runtimes read {} (network \"podman\" of bridge, portmap): new pods are attached to \
         that network; move it away",
        machine.list().display(),
        podman.display()
    );
    expect(&uninstall(&["--dry-run"])?, 0, &[&warning, "(dry run)"])?;
    assert!(machine.list().exists());
    expect(&uninstall(&[])?, 0, &[&warning, "fabric-cni removed"])?;

    let machine = installed(&stage)?;
    let other = machine.conf().join("20-other.conf");
    fs::write(&other, r#"{"name":"other","type":"bridge"}"#)?;
    let answer = machine.uninstall(
        &stage,
        Path::new(NO_DAEMON),
        &["--force", "--dry-run", "-q", "-o", "json"],
    )?;
    expect(&answer, 0, &[])?;
    let report: Value = serde_json::from_str(&answer.stdout)?;
    assert_eq!(report["next"], other.to_str().unwrap());
    fs::remove_file(&other)?;
    let answer = machine.uninstall(&stage, Path::new(NO_DAEMON), &["--force"])?;
    expect(&answer, 0, &[])?;
    assert!(
        !answer.stderr.contains("runtimes read"),
        "{}",
        answer.stderr
    );
    Ok(())
}

/// A plugin without a list beside it may belong to one elsewhere: it stays, until that folder is named, or by
/// force.
#[test]
fn a_plugin_without_its_list_stays() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = installed(&stage)?;
    let elsewhere = machine.beside("elsewhere");
    fs::create_dir(&elsewhere)?;
    let before = machine.files()?;
    let fabric = |conf: &Path, more: &[&str]| -> anyhow::Result<Answer> {
        let mut command = Command::new(stage.program("fabric"));
        command
            .args(["uninstall-cni", "--socket", NO_DAEMON, "--bin-dir"])
            .arg(machine.bin())
            .arg("--conf-dir")
            .arg(conf)
            .args(more);
        command::run(command, b"", LIMIT)
    };
    for conf in [&elsewhere, &machine.beside("nowhere")] {
        for more in [&[][..], &["--dry-run"]] {
            let words = [
                conf.to_str().unwrap(),
                "has no list of this name",
                "bin/fabric-cni: name the folder with --conf-dir",
            ];
            expect(&fabric(conf, more)?, 1, &words)?;
            assert_eq!(machine.files()?, before);
        }
    }
    let answer = fabric(&elsewhere, &["--force"])?;
    expect(&answer, 0, &["warning:", "has no list of this name"])?;
    assert_eq!(machine.names()?, [LIST]);
    Ok(())
}

/// Where containerd is told to look elsewhere, `install-cni` and `doctor` name its file, both folders and both
/// cures; the exit code stays. A file that is not there, or not to be understood, keeps nobody from installing.
#[test]
fn containerds_folders() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = installed(&stage)?;
    let file = machine.beside("config.toml");
    let named = file.to_str().unwrap();
    let (bin, conf) = (machine.bin(), machine.conf());
    let (bin, conf) = (bin.to_str().unwrap(), conf.to_str().unwrap());
    let write = |bin: &str, conf: &str| {
        let text = format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {bin:?}\nconf_dir = {conf:?}\n"
        );
        fs::write(&file, text)
    };
    let install =
        |more: &[&str]| machine.install(&stage, &[&["--containerd-config", named], more].concat());
    let finding = || {
        doctor(&stage, &machine, &file)?
            .remove("containerd-config")
            .context("no finding")
    };

    write("/usr/lib/cni", conf)?;
    let words = [
        named,
        "look for plugins in /usr/lib/cni (bin_dir), and not in",
        &format!("name {bin} there and restart containerd"),
        "`fabric install-cni --bin-dir /usr/lib/cni`",
    ];
    for more in [&[][..], &["--dry-run"]] {
        let answer = install(more)?;
        expect(&answer, 0, &[])?;
        let line = answer
            .stderr
            .lines()
            .find(|line| line.starts_with("warning: "));
        let line = line.context("no warning on stderr")?;
        ensure!(words.iter().all(|word| line.contains(word)), "{line}");
    }
    assert!(install(&["-q"])?.stderr.is_empty());
    let found = finding()?;
    assert_eq!(found["status"], "WARNING");
    let told = format!("{}: {}", found["detail"], found["fix"]);
    ensure!(words.iter().all(|word| told.contains(word)), "{told}");

    write(bin, "/etc/elsewhere")?;
    let words = [
        "look for networks in /etc/elsewhere",
        "--conf-dir /etc/elsewhere",
    ];
    expect(&install(&[])?, 0, &words)?;
    write(bin, conf)?;
    assert_eq!(install(&[])?.stderr, "");
    assert_eq!(finding()?["status"], "OK");
    fs::write(&file, "version = [")?;
    expect(&install(&[])?, 0, &["note: ", named, "not TOML"])?;
    assert_eq!(finding()?["status"], "UNKNOWN");
    fs::remove_file(&file)?;
    assert_eq!(install(&[])?.stderr, "");
    assert_eq!(finding()?["status"], "OK");
    Ok(())
}

/// The doctor asks the plugin itself: installed it is OK; a list whose plugin is gone, or is none, is something
/// missing, and before the installation both are to be installed.
#[test]
fn the_doctor_asks_the_plugin() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = Machine::new()?;
    let none = machine.beside("no-config.toml");
    let check = |status: [&str; 2], fix: [&str; 2]| -> anyhow::Result<()> {
        let findings = doctor(&stage, &machine, &none)?;
        for (number, name) in ["cni-config", "cni-plugin"].into_iter().enumerate() {
            let found = &findings[name];
            ensure!(found["status"] == status[number], "{found}");
            ensure!(found["fix"] == fix[number], "{found}");
        }
        Ok(())
    };
    let install = "fabric install-cni";
    check(["WARNING"; 2], [install; 2])?;
    let list = fs::read(workspace().join("deploy/cni").join(LIST))?;
    fs::write(machine.list(), list)?;
    check(["OK", "MISSING"], ["", install])?;
    expect(&machine.install(&stage, &[])?, 0, &[])?;
    check(["OK"; 2], [""; 2])?;
    let plugin = machine.bin().join("fabric-cni");
    fs::set_permissions(&plugin, Permissions::from_mode(0o644))?;
    check(["OK", "MISSING"], ["", install])?;
    fs::remove_file(&plugin)?;
    fs::write(&plugin, "#!/bin/sh\nexit 1\n")?;
    fs::set_permissions(&plugin, Permissions::from_mode(0o755))?;
    check(["OK", "MISSING"], ["", install])
}

/// A program that is no plugin is named as it was given, with the first line of what it said.
#[test]
fn a_refused_program_is_named() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = Machine::new()?;
    let program = machine.beside("my-program");
    let named = program.to_str().unwrap();
    for (text, words) in [
        (
            "#!/bin/sh\necho 'what is this' >&2\necho 'Usage: help' >&2\nexit 2\n",
            "exit status: 2, what is this\n",
        ),
        ("half an ELF", "does not run here"),
    ] {
        fs::write(&program, text)?;
        let answer = machine.install(&stage, &["--binary", named])?;
        let start = format!("error: {named} is not installed: ");
        expect(&answer, 1, &[&start, words])?;
        for word in ["Usage", "fabric-tmp"] {
            ensure!(!answer.stderr.contains(word), "{}", answer.stderr);
        }
        assert!(machine.names()?.is_empty());
    }
    Ok(())
}

/// A rehearsal says that it would wait for a daemon that does not answer, for what, and how long.
#[test]
fn a_rehearsal_tells_of_the_wait() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = Machine::bare()?;
    let arguments = [
        "--dry-run",
        "--cni-socket",
        NO_DAEMON,
        "--wait-duration",
        "7s",
    ];
    let answer = machine.install(&stage, &arguments)?;
    let words = "10-fabric.conflist created (dry run): after a wait for the daemon, 7s at most: cannot connect";
    expect(&answer, 0, &[words])?;
    let answer = machine.install(&stage, &["--dry-run", "--binary", "/bin/true"])?;
    let words = "could not be asked with /bin/true: it is no CNI plugin";
    expect(&answer, 0, &[words])?;
    assert!(!machine.bin().exists() && !machine.conf().exists());
    Ok(())
}

/// A machine with a list, so that no daemon is waited for, and the plugin.
fn installed(stage: &Stage) -> anyhow::Result<Machine> {
    let machine = Machine::new()?;
    fs::copy(workspace().join("deploy/cni").join(LIST), machine.list())?;
    fs::set_permissions(machine.list(), Permissions::from_mode(0o644))?;
    expect(&machine.install(stage, &[])?, 0, &[])?;
    Ok(machine)
}

/// What `fabric doctor` finds, by the names of its checks. Its exit code follows.
fn doctor(
    stage: &Stage,
    machine: &Machine,
    containerd_config: &Path,
) -> anyhow::Result<serde_json::Map<String, Value>> {
    let mut command = Command::new(stage.program("fabric"));
    command
        .args([
            "doctor",
            "-o",
            "json",
            "--socket",
            NO_DAEMON,
            "--pki-dir",
            NO_DAEMON,
        ])
        .arg("--cni-conf-dir")
        .arg(machine.conf())
        .arg("--cni-bin-dir")
        .arg(machine.bin())
        .arg("--containerd-config")
        .arg(containerd_config);
    let answer = command::run(command, b"", LIMIT)?;
    let mut report: Value = serde_json::from_str(&answer.stdout)?;
    let items = report["items"].as_array_mut().context("no findings")?;
    let is_missing = items.iter().any(|item| item["status"] == "MISSING");
    ensure!(
        answer.status.code() == Some(i32::from(is_missing)),
        "{}",
        answer.status
    );
    let named = items.drain(..).map(|item| {
        let name = item["name"].as_str().unwrap_or_default().to_owned();
        (name, item)
    });
    Ok(named.collect())
}
