//! A network namespace with a process in it, as a container has one.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// Ends with this value, or with the test: the process inside waits for its stdin to close.
pub(crate) struct Pod {
    inside: Child,
}

impl Pod {
    /// Needs root.
    pub(crate) fn start() -> Self {
        let mut inside = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run unshare (util-linux): {error}"));
        let mut line = String::new();
        let mut stdout = BufReader::new(inside.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(
            line, "ready\n",
            "no network namespace was made: run the tests as root"
        );
        Self { inside }
    }

    /// Path of the namespace.
    pub(crate) fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.inside.id())
    }

    /// `lo` as iproute2 sees it.
    pub(crate) fn lo(&self) -> Value {
        let output = self.run("ip -json address show dev lo");
        let found: Value = serde_json::from_str(&output).unwrap();
        found[0].clone()
    }

    pub(crate) fn lo_is_up(&self) -> bool {
        let lo = self.lo();
        lo["flags"].as_array().unwrap().contains(&"UP".into())
    }

    /// What a command prints that a shell runs inside the namespace.
    pub(crate) fn run(&self, command: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.netns()))
            .args(["sh", "-c", command])
            .output()
            .unwrap_or_else(|error| panic!("cannot run nsenter (util-linux): {error}"));
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.inside.kill();
        let _ = self.inside.wait();
    }
}
