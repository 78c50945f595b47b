//! A whole daemon whose state source is an API server, in a network namespace of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::ensure;
use fabric_node::{
    admin::client::Client as Admin,
    pki,
    sys::{netlink::Netlink, netns::Netns},
};
use fabric_proto::{
    admin::Status,
    cni::{FRAME_HEADER_LEN, Request, Response, decode_frame, encode_frame, frame_length},
};
use fabric_tests::stage::bin_dir;
use tempfile::TempDir;

use super::node::{eventually, id};

/// A daemon for node "a"; it ends with this.
pub(crate) struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    /// Starts it in the calling thread's namespace.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = pki::init("test", 1)?;
        let credentials = pki::issue(&authority, &id("a"), 1)?;
        for (name, pem) in [
            ("ca.pem", &credentials.ca_pem),
            ("node.pem", &credentials.chain_pem),
            ("key.pem", &credentials.key_pem),
        ] {
            fs::write(dir.path().join(name), pem)?;
        }
        let at = |name: &str| dir.path().join(name);
        let config = format!(
            "state_dir = {:?}\nrun_dir = {:?}\n[source]\nkind = \"kubernetes\"\nkubeconfig = {:?}\n[identity]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n[dataplane]\nworkers = 1\n",
            at("state"),
            at("run"),
            at("kubeconfig"),
            at("ca.pem"),
            at("node.pem"),
            at("key.pem"),
        );
        fs::write(at("node.toml"), config)?;
        super::apiserver::write_kubeconfig(&at("kubeconfig"), "http://127.0.0.1:9", None)?;
        let child = run(dir.path())?;
        Ok(Self { dir, child })
    }

    /// Where the daemon reads how to reach the API server.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Kills it, and starts it again.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = run(self.dir.path())?;
        Ok(())
    }

    /// What `fabric status` says.
    pub(crate) async fn status(&self) -> anyhow::Result<Status> {
        let admin = Admin::new(
            &self.dir.path().join("run/admin.sock"),
            Duration::from_secs(5),
        );
        Ok(admin.status().await?.content)
    }

    /// Waits until the status has this state, and its reasons these words.
    pub(crate) async fn is(&self, state: &str, words: &str) -> anyhow::Result<()> {
        eventually(&format!("{state}: {words}"), async || {
            let status = self.status().await?;
            let reasons = status.reasons.join("; ");
            ensure!(
                status.state == state && reasons.contains(words),
                "{}: {reasons}",
                status.state
            );
            Ok(())
        })
        .await
        .inspect_err(|_| println!("{}", self.log()))
    }

    /// What the plugin's STATUS is answered: nothing, or code and words.
    pub(crate) fn cni_status(&self) -> anyhow::Result<Option<(u32, String)>> {
        let mut stream = UnixStream::connect(self.dir.path().join("run/cni.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&encode_frame(&Request::Status)?)?;
        let mut header = [0; FRAME_HEADER_LEN];
        stream.read_exact(&mut header)?;
        let mut json = vec![0; frame_length(header)?];
        stream.read_exact(&mut json)?;
        match decode_frame(&json)? {
            Response::Done => Ok(None),
            Response::Failed(failure) => Ok(Some((failure.code, failure.msg))),
            Response::Attached(other) => anyhow::bail!("{other:?}"),
        }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(dir: &Path) -> anyhow::Result<Child> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    let child = Command::new(bin_dir()?.join("fabric-node"))
        .arg("run")
        .arg("--config")
        .arg(dir.join("node.toml"))
        .env("FABRIC_NODE", "a")
        .env_remove("FABRIC_LOG")
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// Runs `test` in a namespace of its own, which has the addresses of node 1.
pub(crate) fn in_a_namespace(
    test: impl AsyncFnOnce() -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    Netns::create()?.run(|| {
        let netlink = Netlink::connect()?;
        netlink.set_loopback_up()?;
        for address in ["192.0.2.1/32", "2001:db8::1/128"] {
            netlink.add_address(1, address.parse()?)?;
        }
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(test())
    })?
}
