//! Container images made on the spot out of programs of this machine, in the layout of the Open Container Initiative.
//!
//! Comes in: which [`Source`]. Goes out: an [`Image`] with one layer, which the [`super::registry`] hands out under the
//! name that everybody knows it by. Never done here: anything over a network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;
use serde_json::{Value, json};

use super::{programs::Programs, realm::found};
use crate::runtime::image::fill_busybox;

/// What holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// Busybox, as `--image=busybox` means it.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// The program of many servers and clients that Kubernetes' own tests use.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The cluster's DNS server.
pub const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1.14.1";

/// How long one step of making an image may take.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Types of the parts of an image (OCI Image Format Specification 1.1).
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// [`PAUSE`]: a small program of ours.
    Pause,
    /// [`BUSYBOX`]: the distribution's static busybox.
    Busybox,
    /// [`AGNHOST`]: the program, beside a busybox, since its image has a shell.
    Agnhost,
    /// [`COREDNS`].
    Coredns,
}

/// An image of one layer.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full name: registry, repository and tag.
    pub name: &'static str,
    /// The layer, a file.
    pub layer: Blob<PathBuf>,
    /// The configuration.
    pub config: Blob<Vec<u8>>,
    /// The manifest.
    pub manifest: Blob<Vec<u8>>,
}

/// A part of an image.
#[derive(Clone, Debug)]
pub struct Blob<T> {
    /// Its digest, as `sha256:HEX`.
    pub digest: String,
    /// What has that digest.
    pub content: T,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pause, Self::Busybox, Self::Agnhost, Self::Coredns];

    /// The full name of the image.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => PAUSE,
            Self::Busybox => BUSYBOX,
            Self::Agnhost => AGNHOST,
            Self::Coredns => COREDNS,
        }
    }

    /// Makes the image below `folder`, which is made.
    ///
    /// # Errors
    ///
    /// A program is missing or fails.
    pub fn make(self, programs: &Programs, folder: &Path) -> anyhow::Result<Image> {
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        self.fill(programs, &root)?;
        let layer = folder.join("layer.tar");
        let mut tar = Command::new(found("tar")?);
        tar.args(["--numeric-owner", "--owner=0", "--group=0", "--sort=name"])
            .args(["--mtime=@0", "-C"])
            .arg(&root)
            .arg("-cf")
            .arg(&layer)
            .arg(".");
        step(tar)?;
        fs::remove_dir_all(&root)?;
        self.describe(layer, folder)
    }

    fn fill(self, programs: &Programs, root: &Path) -> anyhow::Result<()> {
        match self {
            Self::Pause => {
                let source = root.with_file_name("pause.c");
                fs::write(&source, include_str!("pause.c"))?;
                let mut cc = Command::new(found("cc")?);
                cc.args(["-Os", "-static", "-s", "-o"])
                    .args([&root.join("pause"), &source]);
                step(cc).map(drop)
            }
            Self::Busybox => fill_busybox(root),
            Self::Agnhost => {
                fill_busybox(root)?;
                copy(&programs.agnhost(), &root.join("agnhost"))
            }
            Self::Coredns => copy(&programs.coredns(), &root.join("coredns")),
        }
    }

    const fn entry(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Pause => (&["/pause"], &[]),
            Self::Busybox => (&[], &["sh"]),
            Self::Agnhost => (&["/agnhost"], &["pause"]),
            Self::Coredns => (&["/coredns"], &[]),
        }
    }

    fn describe(self, layer: PathBuf, folder: &Path) -> anyhow::Result<Image> {
        let size = fs::metadata(&layer)?.len();
        let layer = Blob {
            digest: digest(&layer)?,
            content: layer,
        };
        let (entry, command) = self.entry();
        let config = blob(
            &json!({
                "architecture": architecture()?,
                "os": "linux",
                "config": {"Entrypoint": entry, "Cmd": command, "Env": ["PATH=/bin:/"]},
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
            }),
            &folder.join("config.json"),
        )?;
        let manifest = blob(
            &json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {"mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.content.len()},
                "layers": [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": size}],
            }),
            &folder.join("manifest.json"),
        )?;
        Ok(Image {
            name: self.name(),
            layer,
            config,
            manifest,
        })
    }
}

fn blob(content: &Value, file: &Path) -> anyhow::Result<Blob<Vec<u8>>> {
    let content = serde_json::to_vec(content)?;
    fs::write(file, &content)?;
    Ok(Blob {
        digest: digest(file)?,
        content,
    })
}

/// The digest of a file, as images name it.
fn digest(file: &Path) -> anyhow::Result<String> {
    let mut sum = Command::new(found("sha256sum")?);
    sum.arg(file);
    let said = step(sum)?;
    let digits = said.split_whitespace().next().context("no digest")?;
    Ok(format!("sha256:{digits}"))
}

/// What images call this processor.
fn architecture() -> anyhow::Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("images for {other} are not made here"),
    }
}

fn copy(program: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(program, to)
        .map(drop)
        .with_context(|| format!("cannot copy {}", program.display()))
}

/// Runs a program to its end; its output.
fn step(command: Command) -> anyhow::Result<String> {
    let words = format!("{command:?}");
    let answer = command::run(command, b"", STEP_MAX)?;
    ensure!(
        answer.status.success(),
        "{words} ended with {}: {}",
        answer.status,
        answer.stderr
    );
    Ok(answer.stdout)
}
