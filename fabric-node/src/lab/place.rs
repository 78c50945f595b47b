//! Where labs live on this machine: for root below `/run`, for an ordinary user in a folder of
//! their own. Makes and checks that folder; never touches what is in a lab.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount},
};

use super::name::LabName;

/// Set for commands that run inside the user namespace of an ordinary user's labs: the folder
/// those labs live in.
pub const INSIDE_VARIABLE: &str = "FABRIC_LAB_INSIDE";

/// Labs of root.
const ROOT_BASE: &str = "/run/fabric-lab";
/// Where iproute2 looks for named namespaces (ip-netns(8)).
const NAMED_NETNS: &str = "/run/netns";

/// The folder that holds the labs of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    base: PathBuf,
    rights: Rights,
}

/// What this process may do in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// Root: namespaces are visible to `ip netns`.
    Root,
    /// Root of a user namespace made for the labs of an ordinary user.
    Inside,
    /// An ordinary user outside of that user namespace: can look, not build.
    Outside,
}

impl Place {
    /// The place of the user who runs this process.
    #[must_use]
    pub fn here() -> Self {
        if let Some(base) = env::var_os(INSIDE_VARIABLE).filter(|base| !base.is_empty()) {
            return Self {
                base: PathBuf::from(base),
                rights: Rights::Inside,
            };
        }
        let user = rustix::process::geteuid();
        if user.is_root() {
            return Self::root();
        }
        let base = match env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
            Some(dir) if Path::new(&dir).is_dir() => Path::new(&dir).join("fabric-lab"),
            _ => env::temp_dir().join(format!("fabric-lab-{}", user.as_raw())),
        };
        Self {
            base,
            rights: Rights::Outside,
        }
    }

    /// The place of root.
    #[must_use]
    pub fn root() -> Self {
        Self {
            base: PathBuf::from(ROOT_BASE),
            rights: Rights::Root,
        }
    }

    /// Folder of all labs of this user.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Folder of lab `name`.
    #[must_use]
    pub fn folder(&self, name: &LabName) -> PathBuf {
        self.base.join(name.as_str())
    }

    /// Folder of the namespace files of lab `name`.
    ///
    /// Below an ordinary user's lab, because only root may write to iproute2's folder.
    #[must_use]
    pub fn netns_dir(&self, name: &LabName) -> PathBuf {
        match self.rights {
            Rights::Root => PathBuf::from(NAMED_NETNS),
            Rights::Inside | Rights::Outside => self.folder(name).join("netns"),
        }
    }

    /// Whether labs here exist only inside a user namespace.
    #[must_use]
    pub fn is_rootless(&self) -> bool {
        self.rights != Rights::Root
    }

    /// Whether namespaces can be made and entered from this process.
    #[must_use]
    pub fn can_build(&self) -> bool {
        self.rights != Rights::Outside
    }

    /// Makes the folder of all labs, for this user only, and checks that it is this user's.
    ///
    /// # Errors
    ///
    /// It cannot be made, or what is there belongs to somebody else or is open to others: in a
    /// shared `/tmp` that is how one user would make another run their files.
    pub fn prepare(&self) -> anyhow::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.base) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(e).with_context(|| format!("cannot make {}", self.base.display()));
            }
        }
        let found = fs::symlink_metadata(&self.base)
            .with_context(|| format!("cannot look at {}", self.base.display()))?;
        let user = rustix::process::geteuid().as_raw();
        ensure!(
            found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0,
            "{} must be a folder of user {user} with mode 0700, but belongs to user {} with mode \
             {:04o}: remove it, or set XDG_RUNTIME_DIR to a folder of your own",
            self.base.display(),
            found.uid(),
            found.mode() & 0o7777
        );
        Ok(())
    }

    /// Makes the folder of the namespace files of lab `name`, as iproute2 makes its own: a shared
    /// mount. Without that, the first `ip netns add` on the machine would cover the lab's
    /// namespaces with a mount that keeps them from being removed. Answers whether the mount is new.
    ///
    /// # Errors
    ///
    /// It cannot be made or mounted.
    pub fn prepare_netns_dir(&self, name: &LabName) -> anyhow::Result<bool> {
        let dir = self.netns_dir(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        if self.rights != Rights::Root {
            return Ok(false);
        }
        let propagation = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        match mount_change(&dir, propagation) {
            Ok(()) => Ok(false),
            // INVAL: no mount yet.
            Err(Errno::INVAL) => mount_bind_recursive(&dir, &dir)
                .and_then(|()| mount_change(&dir, propagation))
                .map(|()| true),
            Err(errno) => Err(errno),
        }
        .with_context(|| format!("cannot make {} a shared mount", dir.display()))
    }

    /// Removes the mount that [`Place::prepare_netns_dir`] made, if no namespace is left in it.
    pub fn remove_netns_dir(&self) {
        let is_empty = |dir: &str| fs::read_dir(dir).is_ok_and(|mut files| files.next().is_none());
        if self.rights == Rights::Root && is_empty(NAMED_NETNS) {
            // iproute2 makes both again when it needs them.
            let _ = unmount(NAMED_NETNS, UnmountFlags::NOFOLLOW);
            let _ = fs::remove_dir(NAMED_NETNS);
        }
    }

    /// Removes the folder of all labs if no lab is left in it.
    pub fn tidy(&self) {
        // Not empty means another lab is up: that is no failure.
        let _ = fs::remove_dir(&self.base);
    }

    /// A place for tests: inside `base`, with the rights to build.
    #[cfg(test)]
    pub(crate) fn inside(base: PathBuf) -> Self {
        Self {
            base,
            rights: Rights::Inside,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn place(base: PathBuf) -> Place {
        Place {
            base,
            rights: Rights::Outside,
        }
    }

    /// A folder that others may write to, and a link in its place, are refused.
    #[test]
    fn an_open_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            place(open)
                .prepare()
                .unwrap_err()
                .to_string()
                .contains("0777")
        );
        let own = dir.path().join("own");
        place(own.clone()).prepare().unwrap();
        place(own.clone()).prepare().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(place(link).prepare().is_err());
    }

    /// Tidying leaves a folder that still holds a lab.
    #[test]
    fn tidying_spares_other_labs() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path().join("labs"));
        place.prepare().unwrap();
        fs::create_dir(place.folder(&"other".parse().unwrap())).unwrap();
        place.tidy();
        assert!(place.base().is_dir());
        fs::remove_dir(place.folder(&"other".parse().unwrap())).unwrap();
        place.tidy();
        assert!(!place.base().exists());
    }
}
