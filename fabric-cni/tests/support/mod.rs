//! One execution of the real plugin binary against a daemon of a few lines.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "support that fails fails its test"
)]

pub(crate) mod pod;
pub(crate) mod table;

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    os::unix::{fs::symlink, net::UnixListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
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
    /// File name under which the program is executed.
    pub program: &'static str,
    /// Of this call alone; checked after it, while it still exists.
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
            program: "fabric-cni",
            folder,
        }
    }

    /// A call of the program under the name `loopback`, as containerd makes it: there is no daemon.
    pub(crate) fn loopback(verb: &str, netns: &str) -> Self {
        let mut call = Self::new(verb)
            .env("CNI_IFNAME", "lo")
            .env("CNI_NETNS", netns)
            .daemon(Daemon::Absent);
        call.config = json!({"cniVersion": "1.1.0", "name": "cni-loopback", "type": "loopback"});
        call.program = "loopback";
        call
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

    /// Files of DELs that are kept for the daemon.
    pub(crate) fn kept_deletes(&self) -> Vec<PathBuf> {
        fs::read_dir(self.state_dir().join("pending-deletes"))
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default()
    }

    /// Begins the call; stdin is still open. What the daemon is asked is in the list.
    pub(crate) fn start(&self) -> (Child, Arc<Mutex<Vec<Request>>>) {
        let requests = Arc::new(Mutex::new(Vec::new()));
        self.start_daemon(&requests);
        let child = Command::new(self.executable())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        (child, requests)
    }

    pub(crate) fn run(&self) -> Outcome {
        let (mut child, requests) = self.start();
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

    /// The program, by another name where the call wants one.
    fn executable(&self) -> PathBuf {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_fabric-cni"));
        if program.file_name() == Some(OsStr::new(self.program)) {
            return program;
        }
        let link = self.folder.path().join(self.program);
        if !link.exists() {
            symlink(&program, &link).unwrap();
        }
        link
    }

    fn start_daemon(&self, requests: &Arc<Mutex<Vec<Request>>>) {
        let socket = self.folder.path().join("cni.sock");
        let _ = fs::remove_file(&socket);
        match self.daemon.clone() {
            Daemon::Absent => {}
            Daemon::Stale => drop(UnixListener::bind(&socket).unwrap()),
            daemon => {
                let listener = UnixListener::bind(&socket).unwrap();
                let requests = Arc::clone(requests);
                // Ends with the process where the plugin never comes.
                thread::spawn(move || serve(&listener, &daemon, &requests));
            }
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
