//! `fabric install-cni` and `uninstall-cni`, with the real plugin and a real daemon: what a container
//! runtime sees at any moment is whole, and nothing that is not ours is touched.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use fabric_node::lab::{Worker, command};
use fabric_tests::{
    installer::{Event, LIST, Machine, Watch, expect},
    stage::{Stage, workspace},
};
use serde_json::Value;

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often the plugin is exchanged while it is executed.
const UPGRADES: usize = 12;
/// Of a network that another package left.
const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"bridge"}]}"#;

/// With a daemon at its default paths, `fabric install-cni` alone makes both folders, the plugin,
/// `loopback` and a list that is the file of the repository, byte by byte. A second run changes nothing,
/// neither do rehearsals. After `uninstall-cni` only the folders are left, and it can be repeated.
#[test]
fn from_nothing_and_back() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("install-fresh", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let machine = Machine::bare()?;
    let fabric = |verb: &str, more: &[&str]| at_default_paths(&stage, worker, &machine, verb, more);
    let answer = fabric("install-cni", &["--dry-run"])?;
    expect(&answer, 0, &["10-fabric.conflist created (dry run)\n"])?;
    assert!(!machine.bin().exists() && !machine.conf().exists());

    let answer = fabric("install-cni", &[])?;
    expect(&answer, 0, &[])?;
    assert_eq!(
        answer.stdout.matches(" created\n").count(),
        3,
        "{}",
        answer.stdout
    );
    let first = machine.files()?;
    assert_eq!(machine.names()?, [LIST, "fabric-cni", "loopback"]);
    assert!(first["fabric-cni"].content == fs::read(stage.program("fabric-cni"))?);
    assert_eq!(first["loopback"].content, b"fabric-cni");
    let deployed = fs::read(workspace().join("deploy/cni").join(LIST))?;
    assert_eq!(first[LIST].content, deployed);
    assert_eq!(first["fabric-cni"].mode & 0o7777, 0o755);
    assert_eq!(first[LIST].mode & 0o7777, 0o644);

    let answer = fabric("install-cni", &[])?;
    expect(&answer, 0, &[])?;
    assert_eq!(
        answer.stdout.matches(" unchanged\n").count(),
        3,
        "{}",
        answer.stdout
    );
    assert_eq!(machine.files()?, first);
    expect(&fabric("uninstall-cni", &["--dry-run"])?, 0, &["(dry run)"])?;
    assert_eq!(machine.files()?, first);

    let answer = fabric("uninstall-cni", &[])?;
    expect(&answer, 0, &[])?;
    assert_eq!(
        answer.stdout.matches(" removed\n").count(),
        3,
        "{}",
        answer.stdout
    );
    assert!(machine.names()?.is_empty());
    expect(&fabric("uninstall-cni", &[])?, 0, &["is not there"])
}

/// While runtimes execute `fabric-cni` and `loopback` without a pause, upgrades exchange them: no call
/// finds the file missing, busy or short, and a look at any moment finds one release whole.
#[test]
fn an_upgrade_while_the_plugin_runs() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = with_list(BRIDGE.replace("bridge", "fabric-cni").as_bytes())?;
    let old = fs::read(stage.program("fabric-cni"))?;
    let new = [&old[..], b"another release"].concat();
    let sources = [("old", &old), ("new", &new)].map(|(name, content)| {
        let path = machine.beside(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let upgrade = |source: &str| machine.install(&stage, &["--binary", source]);
    expect(&upgrade(&sources[0])?, 0, &[])?;

    let ended = AtomicBool::new(false);
    let calls = |name: &'static str| {
        let (program, ended, old, new) = (machine.bin().join(name), &ended, &old, &new);
        move || -> anyhow::Result<usize> {
            let mut count = 0;
            while !ended.load(Ordering::Relaxed) {
                let mut version = Command::new(&program);
                version.env_clear().env("CNI_COMMAND", "VERSION");
                let called = version.stdin(Stdio::null()).output();
                let called = called.with_context(|| format!("call {count} of {name}"))?;
                ensure!(called.status.success(), "call {count}: {called:?}");
                let found = fs::read(&program)?;
                ensure!(found == *old || found == *new, "look {count}: half a file");
                count += 1;
            }
            Ok(count)
        }
    };
    thread::scope(|scope| -> anyhow::Result<()> {
        let runtimes = ["fabric-cni", "loopback"].map(|name| scope.spawn(calls(name)));
        let upgraded = (0..UPGRADES).try_for_each(|number| {
            expect(
                &upgrade(&sources[(number + 1) % 2])?,
                0,
                &["fabric-cni replaced"],
            )
        });
        ended.store(true, Ordering::Relaxed);
        for runtime in runtimes {
            let count = runtime.join().unwrap()?;
            ensure!(
                count >= UPGRADES,
                "only {count} calls in {UPGRADES} upgrades"
            );
        }
        upgraded
    })
}

/// In the folder of networks the list's name only ever comes by a rename out of the same folder, after
/// the plugin is in place, and under no other name that a runtime reads; that name goes first, then
/// `loopback`, then the plugin, then what was the list; and the folders stay.
#[test]
fn what_a_runtime_that_watches_sees() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("install-watch", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let machine = Machine::new()?;
    let watch = Watch::on(&machine)?;
    expect(&machine.install_for(&stage, worker, &[])?, 0, &[])?;
    let made = watch.events()?;
    expect_only_renames(&made)?;
    let place = |path: &str| made.iter().rposition(|event| event.path == path).unwrap();
    assert!(
        place("bin/fabric-cni") < place("net.d/10-fabric.conflist"),
        "{made:?}"
    );
    assert!(
        place("bin/loopback") < place("net.d/10-fabric.conflist"),
        "{made:?}"
    );

    // An upgrade of everything, the list included.
    fs::write(
        machine.list(),
        BRIDGE.replace("bridge", "fabric-cni").as_bytes(),
    )?;
    let source = machine.beside("another");
    let content = [&fs::read(stage.program("fabric-cni"))?[..], b"another"].concat();
    fs::write(&source, content)?;
    watch.events()?;
    let arguments = ["--force", "--binary", source.to_str().unwrap()];
    let answer = machine.install_for(&stage, worker, &arguments)?;
    expect(
        &answer,
        0,
        &["fabric-cni replaced", "10-fabric.conflist replaced"],
    )?;
    expect_only_renames(&watch.events()?)?;

    expect(
        &machine.uninstall(&stage, &worker.admin_socket(), &[])?,
        0,
        &[],
    )?;
    let gone: Vec<_> = watch
        .events()?
        .into_iter()
        .map(|event| (event.path, event.what))
        .collect();
    let expected = [
        ("net.d/10-fabric.conflist", "moved from"),
        ("net.d/.10-fabric.conflist.fabric-tmp", "moved to"),
        ("bin/loopback", "deleted"),
        ("bin/fabric-cni", "deleted"),
        ("net.d/.10-fabric.conflist.fabric-tmp", "deleted"),
    ];
    assert_eq!(gone, expected.map(|(path, what)| (path.to_owned(), what)));
    Ok(())
}

/// The list is not written while no daemon could attach a pod: the command waits, says for what, and ends
/// with 124. Repeated with the daemon there, it does what was left.
#[test]
fn the_list_waits_for_the_daemon() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let mut lab = stage.lab("install-wait", 1, 0)?;
    let machine = Machine::new()?;
    lab.stop_daemon("worker-a")?;
    let worker = lab.state().worker("worker-a")?.clone();
    let answer = machine.install_for(&stage, &worker, &["--wait-duration", "300ms"])?;
    expect(
        &answer,
        124,
        &["fabric-cni created", "cannot connect", "not written"],
    )?;
    assert_eq!(machine.names()?, ["fabric-cni", "loopback"]);

    let mut waiting = machine.command(&[], &stage, "install-cni");
    waiting.args(fabric_tests::installer::daemon_of(&worker));
    let waiting = thread::spawn(move || command::run(waiting, b"", LIMIT));
    lab.start_daemon("worker-a")?;
    let answer = waiting.join().map_err(|_| anyhow!("a panic"))??;
    expect(
        &answer,
        0,
        &["fabric-cni unchanged", "10-fabric.conflist created"],
    )
}

/// `uninstall-cni` refuses while a pod is attached and names it, and where no daemon can say; by force
/// it warns and goes on. What was edited by hand and is ours goes as well.
#[test]
fn pods_keep_the_plugin() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("install-pods", 1, 1)?;
    let worker = lab.state().worker("worker-a")?;
    let machine = Machine::new()?;
    expect(&machine.install_for(&stage, worker, &[])?, 0, &[])?;
    let before = machine.files()?;
    let socket = worker.admin_socket();
    let answer = machine.uninstall(&stage, &socket, &[])?;
    expect(&answer, 1, &["pod-a-1", "drain the node first"])?;
    let answer = machine.uninstall(&stage, Path::new("/nonexistent"), &[])?;
    expect(&answer, 4, &["no daemon answers", "Only the daemon knows"])?;
    assert_eq!(machine.files()?, before);
    let answer = machine.uninstall(&stage, &socket, &["--force"])?;
    expect(&answer, 0, &["warning: pods are attached (pod-a-1)"])?;
    assert!(machine.names()?.is_empty());
    Ok(())
}

/// Lists that runtimes read before ours are named with what they hold and what follows, and the exit
/// code is 3: in JSON, for people, and when nothing else is left to do.
#[test]
fn what_sorts_before_is_named() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let machine = with_list(&fs::read(workspace().join("deploy/cni").join(LIST))?)?;
    for (name, text) in [
        ("05-old.conflist", BRIDGE),
        ("09-broken.conf", "{"),
        ("10-a.json", r#"{"type":"fabric-cni","name":"mine"}"#),
        ("20-after.conflist", BRIDGE),
        ("00-notes.txt", BRIDGE),
    ] {
        fs::write(machine.conf().join(name), text)?;
    }
    let answer = machine.install(&stage, &[])?;
    let words = [
        "05-old.conflist (network \"old\" of bridge) before",
        "attached to that network and not to Fabric's",
        "09-broken.conf (it is not JSON",
        "10-a.json (network \"mine\" of fabric-cni) before",
        "one of the two is enough",
        "fabric-cni created",
    ];
    expect(&answer, 3, &words)?;
    assert!(!answer.stderr.contains("20-after") && !answer.stderr.contains("notes"));
    let answer = machine.install(&stage, &["-o", "json", "-q"])?;
    expect(&answer, 3, &[])?;
    assert!(answer.stderr.is_empty(), "{}", answer.stderr);
    let report: Value = serde_json::from_str(&answer.stdout)?;
    assert_eq!(report["kind"], "CniInstallation");
    assert_eq!(report["before"].as_array().unwrap().len(), 3);
    assert_eq!(report["items"][0]["action"], "unchanged");
    let answer = machine.install(&stage, &["--name", "02-fabric", "--dry-run"])?;
    expect(&answer, 0, &["02-fabric.conflist created (dry run)"])?;

    let answer = machine.uninstall(&stage, Path::new("/nonexistent"), &[])?;
    expect(&answer, 1, &["10-a.json", "needs the plugin"])
}

/// An operator's changes to the list outlive upgrades, which need neither the daemon nor an answer; what
/// contradicts an option is refused before anything is touched.
#[test]
fn an_operators_list_stays() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let edited = br#"{"cniVersion":"1.0.0","name":"mine","plugins":[
        {"type":"fabric-cni","socket":"/run/x.sock"},{"type":"tuning"}]}"#;
    let machine = with_list(edited)?;
    let answer = machine.install(&stage, &["--cni-socket", "/run/y.sock"])?;
    expect(&answer, 1, &["/run/x.sock", "/run/y.sock", "--force"])?;
    assert_eq!(machine.names()?, [LIST]);
    let before = machine.files()?.remove(LIST);
    for arguments in [&[][..], &["--cni-socket", "/run/x.sock"]] {
        let answer = machine.install(&stage, arguments)?;
        expect(&answer, 0, &["kept", "changed by hand"])?;
    }
    assert_eq!(machine.files()?.remove(LIST), before);
    Ok(())
}

/// The chain that docs/operations.md shows is a list of ours to the program, and stays.
#[test]
fn the_documented_chain_stays() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let document = fs::read_to_string(workspace().join("docs/operations.md"))?;
    let shown = document
        .split("```json\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let shown = shown.context("docs/operations.md shows no list")?;
    let list: Value = serde_json::from_str(shown)?;
    assert_eq!(list["plugins"][1]["type"], "tuning");
    let machine = with_list(shown.as_bytes())?;
    expect(
        &machine.install(&stage, &[])?,
        0,
        &["10-fabric.conflist kept"],
    )?;
    assert_eq!(fs::read_to_string(machine.list())?, shown);
    Ok(())
}

/// A `loopback` of another package is left alone and survives an uninstall, unless it is asked for; one
/// that leads nowhere is replaced; a copy of our plugin is ours.
#[test]
fn a_foreign_loopback() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let list = fs::read(workspace().join("deploy/cni").join(LIST))?;
    let uninstall = |machine: &Machine| machine.uninstall(&stage, Path::new("/x"), &["--force"]);

    let machine = with_list(&list)?;
    let loopback = machine.bin().join("loopback");
    fs::write(&loopback, "another's")?;
    expect(&machine.install(&stage, &[])?, 0, &["loopback kept"])?;
    assert_eq!(fs::read(&loopback)?, b"another's");
    expect(&uninstall(&machine)?, 0, &["loopback kept"])?;
    assert_eq!(machine.names()?, ["loopback"]);

    fs::write(machine.list(), &list)?;
    let answer = machine.install(&stage, &["--loopback", "never"])?;
    expect(&answer, 0, &[])?;
    assert!(!answer.stdout.contains("loopback"), "{}", answer.stdout);
    let answer = machine.install(&stage, &["--loopback", "always"])?;
    expect(&answer, 0, &["loopback replaced"])?;
    assert_eq!(fs::read_link(&loopback)?, Path::new("fabric-cni"));
    expect(&uninstall(&machine)?, 0, &["loopback removed"])?;
    assert!(machine.names()?.is_empty());

    fs::write(machine.list(), &list)?;
    symlink("/nowhere", &loopback)?;
    expect(&machine.install(&stage, &[])?, 0, &["loopback replaced"])?;
    fs::remove_file(&loopback)?;
    fs::copy(machine.bin().join("fabric-cni"), &loopback)?;
    expect(&uninstall(&machine)?, 0, &["loopback removed"])
}

/// Whatever is not safe, not ours or not a plugin is refused with what to do, and nothing is changed.
#[test]
fn refusals() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let list = fs::read(workspace().join("deploy/cni").join(LIST))?;
    let set = |path: &Path, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode));
    let refused = |machine: &Machine, arguments: &[&str], words: &[&str]| {
        let before = machine.files()?;
        expect(&machine.install(&stage, arguments)?, 1, words)?;
        ensure!(
            machine.files()? == before,
            "{arguments:?} changed something"
        );
        Ok(())
    };
    let machine = with_list(&list)?;
    for folder in [machine.bin(), machine.conf()] {
        set(&folder, 0o777)?;
        let words = [
            folder.to_str().unwrap(),
            "writable by everybody",
            "chmod go-w",
        ];
        refused(&machine, &[], &words)?;
        let answer = machine.uninstall(&stage, Path::new("/x"), &["--force"])?;
        expect(&answer, 1, &words)?;
        set(&folder, 0o755)?;
    }
    refused(
        &machine,
        &["--binary", "/nonexistent"],
        &["no plugin at", "--binary"],
    )?;
    let program = |text: &str| {
        let path = machine.beside("program");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (text, word) in [
        ("#!/bin/sh\necho hello\n", "no CNI plugin"),
        ("#!/bin/sh\nexit 1\n", "no CNI plugin"),
        ("half an ELF", "does not run here"),
    ] {
        let answer = machine.install(&stage, &["--binary", &program(text)])?;
        expect(&answer, 1, &[word, "is not installed"])?;
        assert!(!machine.bin().join("fabric-cni").exists(), "{text}");
    }
    for name in ["../x", ".x", "", "a/b"] {
        refused_name(&stage, &machine, name)?;
    }
    fs::write(machine.list(), BRIDGE)?;
    refused(&machine, &[], &["not a list of Fabric", "--force"])?;
    let answer = machine.uninstall(&stage, Path::new("/x"), &[])?;
    expect(&answer, 1, &["not a list of Fabric"])?;
    fs::write(machine.list(), BRIDGE.replace("bridge", "fabric-cni"))?;
    set(&machine.list(), 0o666)?;
    refused(&machine, &[], &["can be changed by others than root"])
}

fn refused_name(stage: &Stage, machine: &Machine, name: &str) -> anyhow::Result<()> {
    for verb in ["install-cni", "uninstall-cni"] {
        let mut command = machine.command(&[], stage, verb);
        command.args(["--name", name]);
        let answer = command::run(command, b"", LIMIT)?;
        expect(&answer, 1, &["is no name of a file that runtimes read"])?;
    }
    Ok(())
}

/// A machine with both folders and this list.
fn with_list(list: &[u8]) -> anyhow::Result<Machine> {
    let machine = Machine::new()?;
    fs::write(machine.list(), list)?;
    fs::set_permissions(machine.list(), Permissions::from_mode(0o644))?;
    Ok(machine)
}

/// `fabric VERB` on a machine whose daemon, that of `worker`, has its sockets where the defaults say. The
/// mounts that make it so are private to this one command.
fn at_default_paths(
    stage: &Stage,
    worker: &Worker,
    machine: &Machine,
    verb: &str,
    more: &[&str],
) -> anyhow::Result<command::Answer> {
    let script = "mount --bind \"$0\" /mnt; mount -t tmpfs none /run; mkdir /run/fabric; \
                  mount --move /mnt /run/fabric; exec \"$@\"";
    let run_dir = worker.cni_socket();
    let run_dir = run_dir.parent().and_then(Path::to_str);
    let wrapper = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        script,
        run_dir.context("no folder of sockets")?,
    ];
    let mut command = machine.command(&wrapper.map(str::to_owned), stage, verb);
    command.args(more);
    command::run(command, b"", LIMIT)
}

/// Checks that final names only ever appear by a rename in their folder, and that nothing else has a
/// name that a runtime reads or executes.
fn expect_only_renames(events: &[Event]) -> anyhow::Result<()> {
    for event in events {
        let name = event.path.rsplit('/').next().unwrap_or_default();
        let is_temporary = name.starts_with('.') && name.ends_with(".fabric-tmp");
        if is_temporary {
            continue;
        }
        ensure!(event.what == "moved to", "{event:?} of {events:?}");
        let folder = event.path.rsplit_once('/').context("no folder")?.0;
        let came_from = format!("{folder}/.{name}.fabric-tmp");
        let is_source = |other: &&Event| {
            other.what == "moved from" && other.cookie == event.cookie && other.path == came_from
        };
        ensure!(
            events.iter().any(|other| is_source(&other)),
            "{event:?} came from elsewhere: {events:?}"
        );
    }
    Ok(())
}
