//! Namespaces and a file system in memory for calls that may say anything.
//!
//! Comes in: this program and the plugin. Goes out: this program started again inside, with nothing
//! around it but copies of the two, their libraries and the corpus. All of it dies with its first
//! process. Never done here: a mount that others see.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::fuzz::corpus;

/// Builds the inside and enters it. Arguments: an empty folder, this program, the plugin, the folder of
/// the corpus, the folder for findings; then those of this program.
const SCRIPT: &str = r#"
set -euo pipefail
root=$1 fuzz=$2 plugin=$3 corpus=$4 findings=$5
shift 5
# First of all: without it a process here would find others by its number, of the machine itself.
mount -t proc proc /proc
mount -t tmpfs -o size=512m,mode=755 fuzz "$root"
mkdir -p "$root"/{bin,proc,tmp,dev,calls,findings,netns,run,var/lib} "$root$corpus"
cp "$fuzz" "$root/bin/fuzz"
cp "$plugin" "$root/bin/fabric-cni"
ln -s fabric-cni "$root/bin/loopback"
ldd "$fuzz" "$plugin" | grep -o '/[^ ]*\.so[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp -r "$corpus/." "$root$corpus"
mount -t proc proc "$root/proc"
mknod "$root/dev/null" c 1 3
touch "$root/netns/lo"
unshare --net="$root/netns/lo" true
[[ $(nsenter --net="$root/netns/lo" ip -o link | wc -l) == 1 ]] || { echo "no namespace of its own was made" >&2; exit 1; }
mount --bind "$findings" "$root/findings"
exec chroot "$root" /bin/fuzz "$@"
"#;

/// Where each worker has its folder, inside.
#[must_use]
pub(super) fn folder() -> PathBuf {
    PathBuf::from("/calls")
}

/// A network namespace with nothing but `lo`, inside.
#[must_use]
pub(super) fn netns() -> PathBuf {
    PathBuf::from("/netns/lo")
}

/// The plugin's second name, beside it.
#[must_use]
pub(super) fn loopback(plugin: &Path) -> PathBuf {
    plugin.with_file_name("loopback")
}

/// Whether the program is another plugin under that name: it then says so to people.
pub(super) fn has_loopback(plugin: &Path) -> anyhow::Result<bool> {
    let output = Command::new(loopback(plugin)).env_clear().output()?;
    Ok(output.stderr.starts_with(b"loopback "))
}

/// Where the plugin and findings are, inside.
#[must_use]
pub fn inside() -> (PathBuf, PathBuf) {
    ("/bin/fabric-cni".into(), "/findings".into())
}

/// Runs this program with `arguments` inside; how it ended.
///
/// # Errors
///
/// There is no root, no `unshare`, or no room.
pub fn enter(plugin: &Path, findings: &Path, arguments: &[String]) -> anyhow::Result<ExitStatus> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "calls of the real plugin need namespaces of their own: run this as root"
    );
    let root = tempfile::tempdir()?;
    std::fs::create_dir_all(findings)?;
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["--propagation", "private", "bash", "-c", SCRIPT, "sandbox"])
        .arg(root.path())
        .arg(std::env::current_exe()?)
        .arg(plugin)
        .arg(corpus::root())
        .arg(findings)
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .context("cannot start unshare (util-linux)")?;
    Ok(status)
}
