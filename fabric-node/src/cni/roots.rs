//! Where a runtime may say that a pod's network namespace is: pure.
//!
//! Comes in: a path. Goes out: yes or no. Never done here: looking at the file system. The rule keeps
//! a caller of the socket from making the daemon open files all over the machine; what is at the path
//! is examined by [`crate::sys::netns::Netns::open`].

use std::path::{Component, Path, PathBuf};

/// Folders in which runtimes and iproute2 name namespaces (ip-netns(8)); the second is the first on
/// most machines.
pub const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// The places of namespaces: folders, and `/proc/PID/ns/net` of any process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsRoots {
    folders: Vec<PathBuf>,
    processes: bool,
}

impl NetnsRoots {
    /// [`NAMED`], `further` folders, and those of processes.
    #[must_use]
    pub fn new(further: &[PathBuf]) -> Self {
        let folders = NAMED.iter().map(PathBuf::from);
        Self {
            folders: folders.chain(further.iter().cloned()).collect(),
            processes: true,
        }
    }

    /// One folder and nothing else, so that a test sees its own namespaces only.
    #[cfg(test)]
    pub(crate) fn only(folder: &Path) -> Self {
        Self {
            folders: vec![folder.to_owned()],
            processes: false,
        }
    }

    /// Whether a namespace may be at `path`, as it is written: links are not followed, and a path
    /// with `..` is none.
    #[must_use]
    pub fn allow(&self, path: &Path) -> bool {
        let plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let below = |folder: &PathBuf| path.starts_with(folder) && path != folder;
        plain && path.is_absolute() && (self.folders.iter().any(below) || is_of_a_process(path))
    }

    /// The folders, for a message and for looking into them.
    #[must_use]
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Whether namespaces of processes are looked for too.
    #[must_use]
    pub fn processes(&self) -> bool {
        self.processes
    }
}

/// `/proc/PID/ns/net` or `/proc/PID/task/TID/ns/net`. Not `/proc/self`: that is whoever looks.
fn is_of_a_process(path: &Path) -> bool {
    let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match parts.as_deref() {
        Some(["/", "proc", pid, "ns", "net"]) => number(pid),
        Some(["/", "proc", pid, "task", tid, "ns", "net"]) => number(pid) && number(tid),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names below the folders and namespaces of processes are allowed, everything else is not:
    /// neither a folder itself, nor a way out of it, nor a folder whose name only begins alike.
    #[test]
    fn places() {
        let roots = NetnsRoots::new(&["/run/user/1000/netns".into()]);
        for path in [
            "/run/netns/pod",
            "/var/run/netns/cni-1234",
            "/run/user/1000/netns/pod",
            "/proc/4711/ns/net",
            "/proc/1/task/2/ns/net",
        ] {
            assert!(roots.allow(Path::new(path)), "{path}");
        }
        for path in [
            "",
            "run/netns/pod",
            "/run/netns",
            "/run/netns/",
            "/run/netns/../../dev/sda",
            "/run/netns-other/pod",
            "/run/user/1001/netns/pod",
            "/proc/self/ns/net",
            "/proc/thread-self/ns/net",
            "/proc/12/ns/mnt",
            "/proc/12/ns/net/x",
            "/proc/12/../3/ns/net",
            "/proc/12/fd/3",
            "/dev/watchdog",
        ] {
            assert!(!roots.allow(Path::new(path)), "{path}");
        }
    }
}
