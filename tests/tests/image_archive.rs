//! The container image is what `scripts/image` says it is: the static programs, nothing else, the same bytes each
//! time, every part under its own digest.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fabric_node::lab::command::{self, Answer};
use fabric_tests::stage::workspace;
use serde_json::Value;

const STEP_MAX: Duration = Duration::from_secs(60);
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A folder of programs that need no shared libraries, with the names of ours.
fn programs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let busybox = command::find("busybox").expect("busybox-static is installed");
    for name in ["fabric-node", "fabric-cni"] {
        fs::copy(&busybox, folder.path().join(name)).unwrap();
    }
    folder
}

fn image(programs: &Path, out: &Path, variables: &[(&str, &str)]) -> Answer {
    let mut script = Command::new(workspace().join("scripts/image"));
    script
        .args([programs, out])
        .env_remove("SOURCE_DATE_EPOCH")
        .envs(variables.iter().copied());
    command::run(script, b"", STEP_MAX).unwrap()
}

fn made(programs: &Path, out: &Path, variables: &[(&str, &str)]) -> Vec<u8> {
    let answer = image(programs, out, variables);
    assert!(answer.status.success(), "{}", answer.stderr);
    fs::read(out).unwrap()
}

fn run(program: &str, arguments: &[&str], stdin: &[u8]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("TZ", "UTC");
    let answer = command::run(command, stdin, STEP_MAX).unwrap();
    assert!(answer.status.success(), "{program}: {}", answer.stderr);
    answer.stdout
}

/// Two runs at different times, in different folders and under different settings make the same bytes; other
/// programs or another epoch make others.
#[test]
fn the_same_programs_make_the_same_image() {
    let (one, two) = (programs(), programs());
    let out = tempfile::tempdir().unwrap();
    let first = made(one.path(), &out.path().join("first.tar"), &[]);
    let settings = [
        ("GZIP", "-1"),
        ("TAR_OPTIONS", "--numeric-owner -v"),
        ("LC_ALL", "C.UTF-8"),
    ];
    let second = made(two.path(), &out.path().join("second.tar"), &settings);
    assert!(first == second, "the archives differ");
    let later = made(
        two.path(),
        &out.path().join("later.tar"),
        &[("SOURCE_DATE_EPOCH", "1700000000")],
    );
    assert!(first != later);
    fs::copy(
        command::find("busybox").unwrap(),
        two.path().join("fabric-cni"),
    )
    .unwrap();
    let mut longer = fs::read(two.path().join("fabric-cni")).unwrap();
    let text = longer
        .windows(7)
        .position(|bytes| bytes == b"BusyBox")
        .unwrap();
    longer[text] = b'X';
    fs::write(two.path().join("fabric-cni"), longer).unwrap();
    assert!(first != made(two.path(), &out.path().join("other.tar"), &[]));
}

/// From the index down each part has the digest and the size by which it is named, and no part is unnamed.
#[test]
fn every_part_is_named_by_its_digest() {
    let programs = programs();
    let layout = tempfile::tempdir().unwrap();
    let out = layout.path().join("image.tar");
    made(programs.path(), &out, &[]);
    let folder = layout.path().to_str().unwrap();
    run("tar", &["-xf", out.to_str().unwrap(), "-C", folder], b"");
    let layout = Layout {
        folder: layout.path().to_owned(),
    };

    let index: Value =
        serde_json::from_slice(&fs::read(layout.folder.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["mediaType"], INDEX);
    let named = &index["manifests"][0]["annotations"];
    let name = format!("localhost/fabric:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(named["io.containerd.image.name"], name);
    assert_eq!(named["org.opencontainers.image.ref.name"], name);
    let manifest = layout.document(&index["manifests"][0], MANIFEST);
    let config = layout.document(&manifest["config"], CONFIG);
    let layer = layout.part(&manifest["layers"][0], LAYER);
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let unpacked = run(
        "sh",
        &[
            "-c",
            "gzip -dc \"$1\" | sha256sum",
            "sh",
            layer.to_str().unwrap(),
        ],
        b"",
    );
    let diff_id = format!("sha256:{}", unpacked.split(' ').next().unwrap());
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([diff_id]));
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    assert_eq!(config["os"], "linux");
    assert_eq!(
        fs::read_dir(layout.folder.join("blobs/sha256"))
            .unwrap()
            .count(),
        3
    );
}

/// A layout of the Open Container Initiative.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// The file that a descriptor names; it is what the descriptor says.
    fn part(&self, descriptor: &Value, media_type: &str) -> PathBuf {
        assert_eq!(descriptor["mediaType"], media_type);
        let digest = descriptor["digest"].as_str().unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        let file = self.folder.join("blobs/sha256").join(hex);
        assert_eq!(descriptor["size"], fs::metadata(&file).unwrap().len());
        let found = run("sha256sum", &[file.to_str().unwrap()], b"");
        assert!(found.starts_with(hex), "{found}");
        file
    }

    fn document(&self, descriptor: &Value, media_type: &str) -> Value {
        let file = self.part(descriptor, media_type);
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }
}

/// The layer has two programs, the names that lead to them and the folders that runtimes need: all of root's, none
/// that others may write to, without a time.
#[test]
fn nothing_else_is_in_it() {
    let programs = programs();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("image.tar");
    made(programs.path(), &out, &[]);
    let script = "tar -xf \"$1\" -C \"$2\" && for blob in \"$2\"/blobs/sha256/*; do \
                  gzip -t \"$blob\" 2>/dev/null && tar -tvzf \"$blob\"; done; true";
    let listed = run(
        "sh",
        &[
            "-c",
            script,
            "sh",
            out.to_str().unwrap(),
            folder.path().to_str().unwrap(),
        ],
        b"",
    );
    let mut found = BTreeMap::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _, day, time, name @ ..] = &words[..] else {
            panic!("{line}");
        };
        assert_eq!(
            (*owner, *day, *time),
            ("0/0", "1970-01-01", "00:00"),
            "{line}"
        );
        found.insert(name.join(" "), (*mode).to_owned());
    }
    let expected = [
        ("bin/", "drwxr-xr-x"),
        ("bin/fabric -> fabric-node", "lrwxr-xr-x"),
        ("bin/fabric-cni", "-rwxr-xr-x"),
        ("bin/fabric-node", "-rwxr-xr-x"),
        ("bin/kubectl-fabric -> fabric-node", "lrwxr-xr-x"),
        ("run/", "drwxr-xr-x"),
        ("var/", "drwxr-xr-x"),
        ("var/run -> ../run", "lrwxr-xr-x"),
    ];
    let expected = expected.map(|(name, mode)| (name.to_owned(), mode.to_owned()));
    assert_eq!(found, BTreeMap::from(expected));
}

/// A program that needs shared libraries could not run there; it is refused, as is one that is missing, an epoch
/// that is none and a name that is none. Nothing is written then.
#[test]
fn what_would_not_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out/image.tar");
    let refused = |programs: &Path, variables: &[(&str, &str)], reason: &str| {
        let answer = image(programs, &out, variables);
        assert!(!answer.status.success());
        assert!(answer.stderr.contains(reason), "{}", answer.stderr);
        assert!(!out.exists());
    };
    let good = programs();
    for epoch in ["yesterday", "-1", "1e9", "99999999999"] {
        refused(
            good.path(),
            &[("SOURCE_DATE_EPOCH", epoch)],
            "seconds since 1970",
        );
    }
    for name in ["a b", "x\",\"y", "../x"] {
        refused(good.path(), &[("IMAGE_NAME", name)], "no name of an image");
    }
    let dynamic = programs();
    fs::copy(
        std::env::current_exe().unwrap(),
        dynamic.path().join("fabric-cni"),
    )
    .unwrap();
    refused(dynamic.path(), &[], "needs shared libraries");
    fs::remove_file(dynamic.path().join("fabric-cni")).unwrap();
    refused(dynamic.path(), &[], "there is no program");
}
