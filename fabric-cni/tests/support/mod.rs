//! One execution of the real plugin binary against a daemon of a few lines.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "each test file uses its part, and support that fails fails its test"
)]

pub(crate) mod refusals;

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use fabric_proto::cni::{
    Attached, AttachmentKey, FRAME_HEADER_LEN, Request, Response, decode_frame, encode_frame,
    frame_length,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the plugin left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    /// What it asked the daemon.
    pub requests: Vec<Request>,
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not JSON ({error}): {self:?}"))
    }
}

/// How the daemon behaves.
#[derive(Clone, Debug)]
pub(crate) enum Daemon {
    /// No socket at all.
    Absent,
    /// A socket file that nobody answers on.
    Stale,
    /// Answers with this.
    Answers(Response),
    /// Sends these bytes and closes.
    Sends(Vec<u8>),
    /// Takes the connection and never answers.
    Silent,
}

/// One call: a valid ADD unless changed.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub environment: Vec<(&'static str, String)>,
    pub config: Value,
    /// Stands for `config` where given.
    pub stdin: Option<Vec<u8>>,
    pub daemon: Daemon,
    /// Checked after the call, while the folder still exists.
    pub folder: Arc<TempDir>,
}

pub(crate) fn attached() -> Response {
    Response::Attached(Attached {
        mtu: 1500,
        addresses: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
    })
}

/// Of the container with this id in the network and on the interface that a [`Call`] names.
pub(crate) fn key_of(container_id: &str) -> AttachmentKey {
    AttachmentKey {
        network: "fabric".into(),
        container_id: container_id.into(),
        ifname: "eth0".into(),
    }
}

/// The call succeeded and printed nothing at all.
pub(crate) fn check_silent(outcome: &Outcome) {
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(
        outcome.stdout.is_empty() && outcome.stderr.is_empty(),
        "{outcome:?}"
    );
}

impl Call {
    pub(crate) fn new(verb: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "fabric",
            "type": "fabric-cni",
            "socket": folder.path().join("cni.sock"),
            "stateDir": folder.path().join("state"),
        });
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/absent"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec();
        let answer = if verb == "ADD" {
            attached()
        } else {
            Response::Done
        };
        Self {
            environment,
            config,
            stdin: None,
            daemon: Daemon::Answers(answer),
            folder,
        }
    }

    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self = self.unset(name);
        self.environment.push((name, value.to_owned()));
        self
    }

    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| *known != name);
        self
    }

    pub(crate) fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(key);
        self
    }

    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = Some(bytes.to_vec());
        self
    }

    pub(crate) fn daemon(mut self, daemon: Daemon) -> Self {
        self.daemon = daemon;
        self
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn run(&self) -> Outcome {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let socket = self.folder.path().join("cni.sock");
        let _ = std::fs::remove_file(&socket);
        match self.daemon.clone() {
            Daemon::Absent => {}
            Daemon::Stale => drop(UnixListener::bind(&socket).unwrap()),
            daemon => {
                let listener = UnixListener::bind(&socket).unwrap();
                let requests = Arc::clone(&requests);
                // Ends with the process where the plugin never comes.
                thread::spawn(move || serve(&listener, &daemon, &requests));
            }
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_fabric-cni"))
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = self
            .stdin
            .clone()
            .unwrap_or_else(|| serde_json::to_vec(&self.config).unwrap());
        // A plugin that refuses its environment does not read stdin.
        let _ = child.stdin.take().unwrap().write_all(&stdin);
        let output = child.wait_with_output().unwrap();
        let requests = requests.lock().unwrap().clone();
        Outcome {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            requests,
        }
    }
}

fn serve(listener: &UnixListener, daemon: &Daemon, requests: &Mutex<Vec<Request>>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut header = [0; FRAME_HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let mut json = vec![0; frame_length(header).unwrap()];
    stream.read_exact(&mut json).unwrap();
    requests.lock().unwrap().push(decode_frame(&json).unwrap());
    match daemon {
        Daemon::Answers(response) => stream.write_all(&encode_frame(response).unwrap()).unwrap(),
        Daemon::Sends(bytes) => stream.write_all(bytes).unwrap(),
        // Returns when the plugin has given up.
        Daemon::Silent => drop(stream.read(&mut header)),
        Daemon::Absent | Daemon::Stale => {}
    }
}
