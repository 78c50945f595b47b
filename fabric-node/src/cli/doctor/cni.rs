//! Checks of what the container runtime finds: its list, the plugin, containerd's own idea of the folders.

use std::path::Path;

use super::{DoctorArgs, Finding};
use crate::{
    cli::{
        cni_dir::{self, NetworkFile},
        cni_version, containerd,
        install::trust::require_trusted,
    },
    lab::{command::is_program, plugin::PLUGIN},
};

/// What mends most of it.
const INSTALL: &str = "fabric install-cni";

/// All checks of what the runtime finds.
pub(super) fn examine(args: &DoctorArgs) -> Vec<Finding> {
    let files = cni_dir::scan(&args.cni_conf_dir);
    let is_needed = files
        .as_ref()
        .is_ok_and(|files| files.iter().any(NetworkFile::is_ours));
    let list = match files {
        Ok(files) => config(&args.cni_conf_dir, &files),
        Err(error) => Finding::unknown(
            "cni-config",
            format!("{} cannot be read: {error}", args.cni_conf_dir.display()),
            "run as root, or give it with --cni-conf-dir",
        ),
    };
    vec![list, plugin(&args.cni_bin_dir, is_needed), containerd(args)]
}

/// Container runtimes take the configuration whose file name sorts first.
fn config(dir: &Path, files: &[NetworkFile]) -> Finding {
    let name = "cni-config";
    let Some(first) = files.first() else {
        let detail = format!("{} has no network list", dir.display());
        return Finding::warning(name, detail, INSTALL);
    };
    if first.is_ours() {
        let first = first.path.display();
        return Finding::ok(name, format!("{first} is the first and ours"));
    }
    if files.iter().any(NetworkFile::is_ours) {
        let fix = "move it away, or give ours a name that sorts before it";
        Finding::warning(name, format!("{first} sorts before ours"), fix)
    } else {
        Finding::warning(name, format!("{first} is in force"), INSTALL)
    }
}

/// A list of ours without the plugin fails every pod; without a list nobody misses the plugin yet.
fn plugin(bin_dir: &Path, is_needed: bool) -> Finding {
    let name = "cni-plugin";
    let path = bin_dir.join(PLUGIN);
    let shown = path.display();
    let lacking = |detail: String, fix: &str| {
        if is_needed {
            Finding::missing(name, detail, fix)
        } else {
            Finding::warning(name, detail, fix)
        }
    };
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return lacking(format!("{shown} is not there"), INSTALL),
        Err(error) => {
            let fix = "run as root, or give its folder with --cni-bin-dir";
            return Finding::unknown(name, format!("{shown} cannot be looked at: {error}"), fix);
        }
    }
    // Like install-cni, this executes nothing that others than root may have put there.
    if let Err(error) = require_trusted(bin_dir, bin_dir, true) {
        return lacking(
            format!("{error:#}"),
            "as DETAIL says, then fabric install-cni",
        );
    }
    if !is_program(&path) {
        return lacking(format!("{shown} cannot be executed"), INSTALL);
    }
    match cni_version::ask(&path) {
        Ok(versions) => {
            let versions = versions.join(", ");
            Finding::ok(name, format!("{shown} speaks CNI {versions}"))
        }
        Err(refused) => lacking(format!("{shown}: {refused}"), INSTALL),
    }
}

/// containerd may be told to look into other folders than those that were just examined.
fn containerd(args: &DoctorArgs) -> Finding {
    let name = "containerd-config";
    let file = &args.containerd_config;
    let shown = file.display();
    match containerd::differences(file, &args.cni_bin_dir, &args.cni_conf_dir) {
        Ok(None) => Finding::ok(name, format!("there is no {shown}")),
        Ok(Some(differences)) if differences.is_empty() => {
            Finding::ok(name, format!("{shown} names no other folders of CNI"))
        }
        Ok(Some(differences)) => {
            let details: Vec<String> = differences.iter().map(|it| it.detail.clone()).collect();
            let cures: Vec<String> = differences.iter().map(|it| it.cure.clone()).collect();
            Finding::warning(name, details.join("; "), cures.join("; "))
        }
        Err(reason) => Finding::unknown(
            name,
            format!("{shown}: {reason}"),
            "compare with containerd config dump",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;
    use crate::cli::doctor::Verdict;

    /// The first CNI configuration wins, and it should be ours; where none is ours it is to be installed.
    #[test]
    fn cni_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, plugin: &str| {
            fs::write(dir.path().join(name), format!("{{\"type\": \"{plugin}\"}}")).unwrap();
        };
        let look = || config(dir.path(), &cni_dir::scan(dir.path()).unwrap());
        assert_eq!(
            (look().status, look().fix.as_str()),
            (Verdict::Warning, INSTALL)
        );
        write("notes.txt", "anything");
        assert!(look().detail.contains("has no network list"));
        write("10-bridge.conflist", "bridge");
        assert!(look().detail.contains("is in force"));
        assert_eq!(look().fix, INSTALL);
        write("20-fabric.conflist", PLUGIN);
        assert!(look().detail.contains("sorts before ours"));
        assert!(look().fix.contains("move it away"));
        write("05-fabric.conflist", PLUGIN);
        assert_eq!(look().status, Verdict::Ok);
    }

    /// A plugin that is absent, not to be executed, in a folder of others or no plugin is a warning until a list
    /// names it; then it is missing. Needs root, to whom the folder must belong.
    #[test]
    fn what_is_wrong_with_the_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PLUGIN);
        let look = |words: &str, fix: &str| {
            let (needed, not_yet) = (plugin(dir.path(), true), plugin(dir.path(), false));
            assert_eq!(needed.status, Verdict::Missing, "{needed:?}");
            assert_eq!(not_yet.status, Verdict::Warning, "{not_yet:?}");
            assert!(needed.detail.contains(words), "{needed:?}");
            assert_eq!(needed.fix, fix);
        };
        look("is not there", INSTALL);
        fs::write(&path, "#!/bin/sh").unwrap();
        look("cannot be executed", INSTALL);
        fs::remove_file(&path).unwrap();
        symlink("/bin/false", &path).unwrap();
        look("no CNI plugin", INSTALL);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o757)).unwrap();
        look(
            "writable by everybody",
            "as DETAIL says, then fabric install-cni",
        );
    }
}
