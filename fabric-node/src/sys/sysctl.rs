//! Settings of the kernel's network below `/proc/sys`, of the calling thread's network namespace.
//!
//! Comes in: names and the values that they should have. Goes out: writes, only of what is not so
//! already. In a container `/proc/sys` is read-only as a rule, and the host's is mounted elsewhere: so
//! its place can be chosen. Never done here: deciding what should be.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel's settings are, unless configured otherwise.
pub const PROC_SYS: &str = "/proc/sys";

/// The settings of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    root: PathBuf,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self::at(PROC_SYS)
    }
}

impl Sysctl {
    /// The settings below `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes `name` (as in `net/ipv4/ip_forward`) have `value`; whether it had to be changed. A setting
    /// that the kernel does not have is none to be changed.
    ///
    /// # Errors
    ///
    /// What the kernel said, with the path, the value and what helps.
    pub fn set(&self, name: &str, value: &str) -> io::Result<bool> {
        match self.get(name)? {
            // Where the folder is read-only, a value that is right already must do.
            Some(present) if present == value => Ok(false),
            None => Ok(false),
            Some(_) => {
                let path = self.root.join(name);
                fs::write(&path, value).map_err(|error| refused(&path, value, &error))?;
                Ok(true)
            }
        }
    }

    /// The value of `name`; `None` where the kernel does not have it.
    ///
    /// # Errors
    ///
    /// What the kernel said, with the path.
    pub fn get(&self, name: &str) -> io::Result<Option<String>> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let text = format!("cannot read {}: {error}", path.display());
                Err(io::Error::new(error.kind(), text))
            }
        }
    }

    /// Lets `ifname` carry IPv6: some images and runtimes disable it by default. Address detection and
    /// router advertisements are turned off, which mean nothing on a point-to-point device. A kernel
    /// without IPv6 has none of these settings, which is no error.
    ///
    /// # Errors
    ///
    /// As [`Self::set`].
    pub fn enable_ipv6(&self, ifname: &str) -> io::Result<()> {
        for setting in ["disable_ipv6", "accept_dad", "accept_ra"] {
            self.set(&format!("net/ipv6/conf/{ifname}/{setting}"), "0")?;
        }
        Ok(())
    }
}

fn refused(path: &Path, value: &str, error: &io::Error) -> io::Error {
    let mut text = format!("cannot set {} to {value}: {error}", path.display());
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        text.push_str(
            "; set it on the host, or mount the host's /proc/sys/net writable and name its root in \
             [host] proc_sys",
        );
    }
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn kernel(settings: &[(&str, &str)]) -> (tempfile::TempDir, Sysctl) {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in settings {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let sysctl = Sysctl::at(folder.path());
        (folder, sysctl)
    }

    /// A value that is right is not written; another is; a setting that is not there is no error.
    #[test]
    fn only_what_differs_is_written() {
        let (folder, sysctl) = kernel(&[("net/a", "1"), ("net/b", "0")]);
        let right = folder.path().join("net/a");
        fs::set_permissions(&right, fs::Permissions::from_mode(0o444)).unwrap();
        let before = fs::metadata(&right).unwrap().modified().unwrap();
        assert!(!sysctl.set("net/a", "1").unwrap());
        assert_eq!(fs::metadata(&right).unwrap().modified().unwrap(), before);
        assert!(sysctl.set("net/b", "1").unwrap());
        assert_eq!(sysctl.get("net/b").unwrap().as_deref(), Some("1"));
        assert!(!sysctl.set("net/c", "1").unwrap());
        assert_eq!(sysctl.get("net/c").unwrap(), None);
        assert!(!folder.path().join("net/c").exists());
    }

    /// A refusal of a read-only folder names the setting, the value and the key that helps.
    #[test]
    fn a_read_only_folder_is_named_with_the_cure() {
        let error = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let text = refused(Path::new("/proc/sys/net/x"), "1", &error).to_string();
        assert!(text.contains("/proc/sys/net/x to 1"), "{text}");
        assert!(text.contains("[host] proc_sys"), "{text}");
    }
}
