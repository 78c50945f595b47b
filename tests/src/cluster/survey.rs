//! What a cluster may leave on the machine: listed before, and compared afterwards.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::runtime::place::below;

/// Settings of the whole machine that Kubernetes' programs change elsewhere.
const SETTINGS: [&str; 7] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/netfilter/nf_conntrack_max",
];

/// Beginnings of lines for what others on the machine may end meanwhile.
const MORTAL: [&str; 4] = ["control group", "mount", "network namespace", "process"];

/// Interfaces, addresses, routes, rules, mounts, control groups, processes, namespaces and settings, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey(BTreeSet<String>);

impl Survey {
    /// What there is at this moment, as this process sees it. Processes are told by their numbers.
    ///
    /// # Errors
    ///
    /// `/proc` or `/sys` cannot be read.
    pub fn take() -> anyhow::Result<Self> {
        let mut lines = BTreeSet::new();
        for interface in names(Path::new("/sys/class/net"))? {
            lines.insert(format!("interface {interface}"));
        }
        for table in ["route", "ipv6_route", "if_inet6", "fib_trie"] {
            let text = fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
            // The columns that count uses change by themselves.
            let words = |line: &str| {
                line.split_whitespace()
                    .take(4)
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            lines.extend(text.lines().map(|line| format!("{table} {}", words(line))));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").context("no /proc")?;
        lines.extend(mounts.lines().map(|line| format!("mount {line}")));
        for group in below(Path::new("/sys/fs/cgroup")) {
            lines.insert(format!("control group {}", group.display()));
        }
        for name in names(Path::new("/proc"))? {
            let file = PathBuf::from("/proc").join(&name).join("comm");
            if let (true, Ok(program)) = (is_number(&name), fs::read_to_string(file)) {
                lines.insert(format!("process {name} {}", program.trim()));
            }
        }
        for name in names(Path::new("/run/netns")).unwrap_or_default() {
            lines.insert(format!("network namespace {name}"));
        }
        for setting in SETTINGS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(setting));
            lines.insert(format!("{setting} {}", value.unwrap_or_default().trim()));
        }
        Ok(Self(lines))
    }

    /// What is more than in `before`, and what is missing of that which does not end by itself, a line each; empty if
    /// nothing was left and nothing was taken.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let ends = |line: &&String| MORTAL.iter().any(|kind| line.starts_with(kind));
        let more = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        let less = before.0.difference(&self.0).filter(|line| !ends(line));
        more.chain(less.map(|line| format!("- {line}"))).collect()
    }
}

fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is more is told, whatever it is; what is missing only if it cannot have ended by itself.
    #[test]
    fn changes_are_told() {
        let survey = |lines: &[&str]| Survey(lines.iter().map(|line| (*line).to_owned()).collect());
        let before = survey(&["interface lo", "mount a", "kernel/panic 1", "process 1 sh"]);
        let after = survey(&["mount b", "kernel/panic 10"]);
        assert_eq!(
            after.changes_since(&before),
            [
                "+ kernel/panic 10",
                "+ mount b",
                "- interface lo",
                "- kernel/panic 1"
            ]
        );
        assert!(before.changes_since(&before).is_empty());
    }
}
