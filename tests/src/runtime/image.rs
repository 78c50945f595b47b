//! Container images made on the spot, without a registry, out of the static busybox of the distribution.
//!
//! Comes in: which [`Image`], and a containerd. Goes out: the image in its store, under the name that
//! [`Image::name`] says. Never done here: anything over a network.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command;
use serde_json::{Value, json};

use super::{containerd::Containerd, cri::Cri};

/// Namespace in which containerd keeps what is asked for over CRI.
pub const CRI_NAMESPACE: &str = "k8s.io";

/// How long one step of making an image may take.
const STEP_MAX: Duration = Duration::from_secs(60);
/// What `pause` runs: keeps a sandbox alive, collects what its containers leave behind, ends when asked to.
const PAUSE: &str = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";
/// The page that [`Image::Web`] serves.
const PAGE: &str = "fabric\n";
/// `/cgi-bin/who`: tells who asks.
const WHO: &str = "#!/bin/sh\necho 'Content-type: text/plain'\necho\necho client=$REMOTE_ADDR\n";

/// An image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Busybox with links for all its programs; runs a shell unless told otherwise.
    Busybox,
    /// What holds a sandbox.
    Pause,
    /// Busybox that serves a page on port 80 unless told otherwise, and at `/cgi-bin/who` the client's address.
    Web,
}

impl Image {
    /// Its full name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "localhost/busybox:1",
            Self::Pause => "localhost/pause:1",
            Self::Web => "localhost/web:1",
        }
    }

    fn command(self) -> Vec<&'static str> {
        match self {
            Self::Busybox => vec!["/bin/sh"],
            Self::Pause => vec!["/bin/sh", "-c", PAUSE],
            Self::Web => vec!["/bin/httpd", "-f", "-p", "80", "-h", "/www"],
        }
    }
}

/// Makes `image` and gives it to `containerd`, for use over CRI.
///
/// # Errors
///
/// A program is missing or fails, or containerd does not list the image afterwards.
pub fn import(containerd: &Containerd<'_>, image: Image) -> anyhow::Result<()> {
    import_into(containerd, CRI_NAMESPACE, image)?;
    // containerd's CRI part hears of it a moment later.
    Cri::connect(containerd)?.await_image(image.name())
}

/// As [`import`], into a namespace of containerd; `ctr run` uses `default`.
///
/// # Errors
///
/// A program is missing or fails.
pub fn import_into(
    containerd: &Containerd<'_>,
    namespace: &str,
    image: Image,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(containerd.place().folder())?;
    let archive = archive(image, folder.path())?;
    let archive = archive.to_str().context("the archive's path is no text")?;
    containerd.ctr(&["-n", namespace, "images", "import", archive], STEP_MAX)?;
    Ok(())
}

/// Makes `image` in `folder`, which is empty: an archive in the layout of the Open Container Initiative, as
/// `ctr images import` and `podman load` take it.
///
/// # Errors
///
/// A program is missing or fails.
pub fn archive(image: Image, folder: &Path) -> anyhow::Result<PathBuf> {
    let layout = folder.join("layout");
    let bundle = folder.join("bundle");
    let tagged = format!("{}:1", layout.display());
    step(
        "umoci",
        &["init".as_ref(), "--layout".as_ref(), layout.as_ref()],
    )?;
    umoci(&["new", "--image", &tagged], None)?;
    umoci(&["unpack", "--image", &tagged], Some(&bundle))?;
    fill(image, &bundle.join("rootfs"))?;
    umoci(&["repack", "--image", &tagged], Some(&bundle))?;
    // It sets the entry point and the arguments word by word.
    let mut configure = vec!["config", "--image", &tagged, "--config.env", "PATH=/bin"];
    let command = image.command();
    for word in &command {
        configure.extend(["--config.cmd", word]);
    }
    umoci(&configure, None)?;
    name(&layout.join("index.json"), image)?;
    let archive = folder.join("image.tar");
    step(
        "tar",
        &[
            "-C".as_ref(),
            layout.as_ref(),
            "-cf".as_ref(),
            archive.as_ref(),
            ".".as_ref(),
        ],
    )?;
    Ok(archive)
}

/// Writes the files of `image` below `root`.
fn fill(image: Image, root: &Path) -> anyhow::Result<()> {
    fill_busybox(root)?;
    if image == Image::Web {
        let programs = root.join("www/cgi-bin");
        fs::create_dir_all(&programs)?;
        fs::write(root.join("www/index.html"), PAGE)?;
        let who = programs.join("who");
        fs::write(&who, WHO)?;
        fs::set_permissions(&who, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Puts the distribution's static busybox below `root`, with links for all its programs.
///
/// # Errors
///
/// It is not installed, or `root` cannot be written.
pub(crate) fn fill_busybox(root: &Path) -> anyhow::Result<()> {
    let busybox =
        command::find("busybox").context("there is no busybox: install busybox-static")?;
    let bin = root.join("bin");
    for folder in [&bin, &root.join("tmp"), &root.join("etc")] {
        fs::create_dir_all(folder)?;
    }
    fs::copy(&busybox, bin.join("busybox")).context("cannot copy busybox")?;
    for name in step(&busybox.to_string_lossy(), &["--list".as_ref()])?.lines() {
        if name != "busybox" {
            symlink("busybox", bin.join(name))?;
        }
    }
    Ok(())
}

/// Writes into the index of a layout what its only image is called.
fn name(index: &Path, image: Image) -> anyhow::Result<()> {
    let mut content: Value = serde_json::from_slice(&fs::read(index)?)?;
    let annotations = content
        .pointer_mut("/manifests/0")
        .and_then(Value::as_object_mut)
        .context("umoci has written no manifest")?
        .entry("annotations")
        .or_insert_with(|| json!({}));
    // `ctr` reads this one, `podman` the reference that umoci has written.
    annotations["io.containerd.image.name"] = json!(image.name());
    annotations["org.opencontainers.image.ref.name"] = json!(image.name());
    fs::write(index, serde_json::to_vec(&content)?)?;
    Ok(())
}

fn umoci(arguments: &[&str], bundle: Option<&Path>) -> anyhow::Result<String> {
    let words = arguments.iter().map(|word| word.as_ref());
    let words: Vec<&Path> = words.chain(bundle).collect();
    step("umoci", &words)
}

/// Runs a program to its end; its output.
fn step(program: &str, arguments: &[&Path]) -> anyhow::Result<String> {
    let found = command::find(program).with_context(|| {
        format!("there is no program {program}: `scripts/install-deps test` installs it")
    })?;
    let mut run = Command::new(found);
    run.args(arguments);
    let answer = command::run(run, b"", STEP_MAX)?;
    ensure!(
        answer.status.success(),
        "{program} {arguments:?} ended with {}: {}",
        answer.status,
        answer.stderr
    );
    Ok(answer.stdout)
}
