//! `fabric install-cni` and `uninstall-cni` killed at every step: a container runtime finds the old files
//! or the new ones, never half of one, never a list without its plugin, and the next command cleans up.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use fabric_node::lab::{Worker, command};
use fabric_tests::{
    installer::{LIST, Machine, daemon_of, expect},
    stage::Stage,
};

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Every call by which the command changes a file or a folder, opens or closes one, or starts and awaits
/// the plugin. A question mark: not every architecture has it.
const CALLS: [&str; 17] = [
    "openat",
    "write",
    "fchmod",
    "fsync",
    "close",
    "?rename",
    "renameat",
    "renameat2",
    "symlinkat",
    "?unlink",
    "unlinkat",
    "?mkdir",
    "mkdirat",
    "flock",
    "clone3",
    "wait4",
    "getdents64",
];
const SIGKILL: i32 = 9;
/// A list of an older release.
const OLD_LIST: &str =
    r#"{"cniVersion":"0.4.0","name":"fabric","plugins":[{"type":"fabric-cni"}]}"#;

/// What is to be installed, and what is there before.
struct Case<'a> {
    stage: &'a Stage,
    worker: &'a Worker,
    /// The program to install.
    source: PathBuf,
    /// Plugin and list that are there already.
    before: Option<(Vec<u8>, Vec<u8>)>,
}

/// How far an install that was killed had come, by what a runtime finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nothing,
    Plugin,
    Loopback,
    List,
}

/// The first install on a machine: a runtime finds nothing, then the plugin, then the list.
#[test]
fn the_first_install() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("install-first", 1, 0)?;
    let case = Case {
        stage: &stage,
        worker: lab.state().worker("worker-a")?,
        source: stage.program("fabric-cni"),
        before: None,
    };
    case.kill_everywhere()
}

/// An upgrade that exchanges the plugin and the list: a runtime always finds one of each, and never the
/// new list with the old plugin.
#[test]
fn an_upgrade() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("install-next", 1, 0)?;
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("fabric-cni");
    let old = fs::read(stage.program("fabric-cni"))?;
    fs::write(&source, [&old[..], b"the next release"].concat())?;
    fs::set_permissions(
        &source,
        fs::metadata(stage.program("fabric-cni"))?.permissions(),
    )?;
    let case = Case {
        stage: &stage,
        worker: lab.state().worker("worker-a")?,
        source,
        before: Some((old, OLD_LIST.as_bytes().to_vec())),
    };
    case.kill_everywhere()
}

/// An uninstall: a runtime finds all, then no list, then nothing; never a list without its plugin.
#[test]
fn an_uninstall() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let lab = stage.lab("install-last", 1, 0)?;
    let worker = lab.state().worker("worker-a")?;
    let machine = Machine::new()?;
    let mut reached = Vec::new();
    for call in CALLS {
        for number in 1.. {
            let at = || format!("killed at {call} number {number}");
            expect(&machine.install_for(&stage, worker, &[])?, 0, &[])?;
            let mut command = machine.command(&killer(call, number), &stage, "uninstall-cni");
            command.arg("--socket").arg(worker.admin_socket());
            if !is_killed(command).with_context(at)? {
                break;
            }
            let names = machine.names()?;
            let left =
                [LIST, "fabric-cni", "loopback"].map(|name| names.iter().any(|it| it == name));
            let step = match left {
                [true, true, true] => 0,
                [false, true, true] => 1,
                [false, true, false] => 2,
                [false, false, false] => 3,
                other => bail!("{}: list, plugin, loopback: {other:?}", at()),
            };
            reached.push(step);
            expect(
                &machine.uninstall(&stage, &worker.admin_socket(), &[])?,
                0,
                &[],
            )?;
            ensure!(machine.names()?.is_empty(), "{}: not finished", at());
        }
    }
    println!("killed {} times: {reached:?}", reached.len());
    for step in 0..=3 {
        ensure!(reached.contains(&step), "none was killed after step {step}");
    }
    Ok(())
}

/// What runs a command and kills it when it makes a call for the `number`th time.
fn killer(call: &str, number: u32) -> Vec<String> {
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:signal=KILL:when={number}");
    let words = ["strace", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    words.map(str::to_owned).to_vec()
}

/// Whether a command under [`killer`] was killed; if not, it ended well.
fn is_killed(command: Command) -> anyhow::Result<bool> {
    let answer = command::run(command, b"", LIMIT)?;
    // strace ends as the program that it follows.
    if answer.status.signal() == Some(SIGKILL) {
        return Ok(true);
    }
    expect(&answer, 0, &[])?;
    Ok(false)
}

impl Case<'_> {
    fn kill_everywhere(&self) -> anyhow::Result<()> {
        let whole = self.machine()?;
        expect(&self.finish(&whole)?, 0, &[])?;
        let mut reached = Vec::new();
        for call in CALLS {
            for number in 1.. {
                let machine = self.machine()?;
                let at = || format!("killed at {call} number {number}");
                if !self.is_killed_at(&machine, call, number).with_context(at)? {
                    break;
                }
                reached.push(self.examine(&machine, &whole).with_context(at)?);
                expect(&self.finish(&machine)?, 0, &[]).with_context(at)?;
                ensure!(same(&machine, &whole)?, "{}: not mended", at());
            }
        }
        println!("killed {} times: {reached:?}", reached.len());
        ensure!(
            reached.len() > 40,
            "only {} steps were found",
            reached.len()
        );
        for step in [
            Reached::Nothing,
            Reached::Plugin,
            Reached::Loopback,
            Reached::List,
        ] {
            ensure!(reached.contains(&step), "none was killed after {step:?}");
        }
        Ok(())
    }

    fn machine(&self) -> anyhow::Result<Machine> {
        let Some((plugin, list)) = &self.before else {
            return Machine::bare();
        };
        let machine = Machine::new()?;
        let path = machine.bin().join("fabric-cni");
        fs::write(&path, plugin)?;
        fs::set_permissions(&path, fs::metadata(&self.source)?.permissions())?;
        fs::write(machine.list(), list)?;
        Ok(machine)
    }

    fn arguments(&self) -> Vec<PathBuf> {
        let mut arguments = daemon_of(self.worker).to_vec();
        let more = ["--force".into(), "--binary".into(), self.source.clone()];
        arguments.extend(more);
        arguments
    }

    /// Whether the command got that far; if not, it ended well.
    fn is_killed_at(&self, machine: &Machine, call: &str, number: u32) -> anyhow::Result<bool> {
        let mut command = machine.command(&killer(call, number), self.stage, "install-cni");
        command.args(self.arguments());
        is_killed(command)
    }

    fn finish(&self, machine: &Machine) -> anyhow::Result<command::Answer> {
        let mut command = machine.command(&[], self.stage, "install-cni");
        command.args(self.arguments());
        command::run(command, b"", LIMIT)
    }

    /// Checks what a runtime finds after the kill against what was there before and a whole install.
    fn examine(&self, machine: &Machine, whole: &Machine) -> anyhow::Result<Reached> {
        let look = |path: PathBuf| fs::read(path).ok();
        let plugin = look(machine.bin().join("fabric-cni"));
        let list = look(machine.list());
        let new = |name: &str| look(whole.bin().join(name)).context("nothing is installed");
        let old_plugin = self.before.as_ref().map(|(plugin, _)| plugin.clone());
        let old_list = self.before.as_ref().map(|(_, list)| list.clone());
        let has_new_plugin = plugin.as_ref() == Some(&new("fabric-cni")?);
        ensure!(has_new_plugin || plugin == old_plugin, "half a plugin");
        let has_new_list = list == look(whole.list());
        ensure!(has_new_list || list == old_list, "half a list: {list:?}");
        let loopback = machine.bin().join("loopback");
        let has_loopback = fs::read_link(&loopback).is_ok_and(|to| to == Path::new("fabric-cni"));
        ensure!(has_loopback || !loopback.exists(), "half a loopback");
        for folder in [machine.bin(), machine.conf()]
            .iter()
            .filter(|folder| folder.exists())
        {
            for entry in fs::read_dir(folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let is_ours = ["fabric-cni", "loopback", LIST].contains(&name.as_str());
                let is_invisible = name.starts_with('.') && name.ends_with(".fabric-tmp");
                ensure!(is_ours || is_invisible, "{name} is left behind");
            }
        }
        let reached = match (has_new_plugin, has_loopback, has_new_list) {
            (false, false, false) => Reached::Nothing,
            (true, false, false) => Reached::Plugin,
            (true, true, false) => Reached::Loopback,
            (true, true, true) => Reached::List,
            other => bail!("the order is wrong: plugin, loopback, list are {other:?}"),
        };
        Ok(reached)
    }
}

/// Whether both machines have the same names with the same content and mode.
fn same(one: &Machine, other: &Machine) -> anyhow::Result<bool> {
    let content = |machine: &Machine| -> anyhow::Result<Vec<_>> {
        let files = machine.files()?.into_iter();
        Ok(files
            .map(|(name, file)| (name, file.mode, file.content))
            .collect())
    };
    Ok(content(one)? == content(other)?)
}
