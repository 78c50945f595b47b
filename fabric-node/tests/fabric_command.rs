//! The real `fabric` binary: files, exit codes, which stream says what.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn fabric(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fabric"))
        .args(arguments)
        .env_remove("FABRIC_SOCKET")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// `pki init` and `pki issue` write keys of mode 0600, say what they did, and overwrite nothing.
#[test]
fn pki_from_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    let dir_text = dir.to_str().unwrap();
    let out = home.path().join("worker-a");
    let out_text = out.to_str().unwrap();
    let init = ["pki", "init", "--dir", dir_text, "--name", "lab"];
    let issue = [
        "pki", "issue", "worker-a", "--dir", dir_text, "--out", out_text, "--days", "30",
    ];

    let early = fabric(&issue);
    assert_eq!(early.status.code(), Some(1));
    assert!(
        stderr(&early).contains("fabric pki init --dir"),
        "{}",
        stderr(&early)
    );

    let rehearsal = fabric(&[&init[..], &["--dry-run"]].concat());
    assert_eq!(stdout(&rehearsal), "ca/lab created (dry run)\n");
    assert!(!dir.exists());

    let made = fabric(&init);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert_eq!(stdout(&made), "ca/lab created\n");
    assert_eq!(mode(&dir.join("ca-key.pem")), 0o600);
    let key = fs::read(dir.join("ca-key.pem")).unwrap();

    let again = fabric(&init);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists") && stderr(&again).contains("--force"));
    assert!(stdout(&again).is_empty());
    assert_eq!(fs::read(dir.join("ca-key.pem")).unwrap(), key);

    let rehearsal = fabric(&[&issue[..], &["--dry-run"]].concat());
    assert_eq!(
        stdout(&rehearsal),
        "certificate/worker-a issued (dry run)\n"
    );
    assert!(!out.exists());
    let issued = fabric(&[&issue[..], &["-o", "json"]].concat());
    let document: serde_json::Value = serde_json::from_slice(&issued.stdout).unwrap();
    assert_eq!(document["apiVersion"], "fabric/v1");
    assert_eq!(document["kind"], "NodeCertificate");
    assert_eq!(document["name"], "certificate/worker-a");
    assert_eq!(mode(&out.join("worker-a-key.pem")), 0o600);
    fabric_node::pki::NodeIdentity::load(
        &out.join("ca.pem"),
        &out.join("worker-a.pem"),
        &out.join("worker-a-key.pem"),
    )
    .unwrap();

    assert_eq!(fabric(&issue).status.code(), Some(1));
    assert_eq!(
        fabric(&[&issue[..], &["--force"]].concat()).status.code(),
        Some(0)
    );
    let silent = fabric(&[&issue[..], &["--force", "-q"]].concat());
    assert!(silent.stdout.is_empty() && silent.stderr.is_empty());
}

/// A node name that cannot be one is refused with the rule.
#[test]
fn pki_refuses_bad_names() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().to_str().unwrap();
    assert_eq!(
        fabric(&["pki", "init", "--dir", dir]).status.code(),
        Some(0)
    );
    for name in ["../evil", "UPPER", "a/b", ""] {
        let output = fabric(&["pki", "issue", name, "--dir", dir]);
        assert_eq!(output.status.code(), Some(1), "{name:?}");
        assert!(
            stderr(&output).contains("is not a node name"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(
        fabric(&["pki", "issue", "ca", "--dir", dir]).status.code(),
        Some(1)
    );
    assert_eq!(
        fabric(&["pki", "init", "--dir", dir, "--days", "0"])
            .status
            .code(),
        Some(2)
    );
}

/// Without a daemon every question ends with exit code 4, and says on stderr what to look at.
#[test]
fn no_daemon() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("admin.sock");
    let socket = socket.to_str().unwrap();
    for question in ["status", "peers", "pods", "routes", "drops"] {
        let output = fabric(&[question, "--socket", socket]);
        assert_eq!(output.status.code(), Some(4), "{question}");
        assert!(output.stdout.is_empty());
        let text = stderr(&output);
        assert!(text.starts_with("error: no daemon answers on "), "{text}");
        assert!(text.contains("not running or --socket is wrong"), "{text}");
    }
}

/// Waiting for a daemon that never comes ends with exit code 124.
#[test]
fn waiting_in_vain() {
    let output = fabric(&[
        "status",
        "--socket",
        "/nonexistent",
        "--wait",
        "--wait-duration",
        "100ms",
    ]);
    assert_eq!(output.status.code(), Some(124));
    assert!(
        stderr(&output).contains("not ready after 100ms"),
        "{}",
        stderr(&output)
    );
}

/// Each shell gets a completion script; no other argument is understood.
#[test]
fn completion() {
    for shell in ["bash", "zsh", "fish"] {
        let output = fabric(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("fabric"), "{shell}");
    }
    assert_eq!(fabric(&["completion", "cmd"]).status.code(), Some(2));
}

/// Help and version go to stdout with 0, wrong usage to stderr with 2.
#[test]
fn usage() {
    let help = fabric(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("Exit codes:") && help.stderr.is_empty());
    let version = fabric(&["--version"]);
    assert_eq!(
        stdout(&version),
        format!("fabric {}\n", env!("CARGO_PKG_VERSION"))
    );
    let wrong = fabric(&["frobnicate"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stdout.is_empty() && !wrong.stderr.is_empty());
}

/// Called by kubectl, the command shows the name that a person typed.
#[test]
fn kubectl_plugin() {
    let home = tempfile::tempdir().unwrap();
    let plugin = home.path().join("kubectl-fabric");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_fabric"), &plugin).unwrap();
    let output = Command::new(&plugin).arg("--help").output().unwrap();
    assert!(
        stdout(&output).contains("Usage: kubectl fabric "),
        "{}",
        stdout(&output)
    );
}

/// The doctor's report is a document, its exit code follows from it, and no colour is in a pipe.
#[test]
fn doctor() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().to_str().unwrap();
    let common = [
        "doctor",
        "--socket",
        "/nonexistent",
        "--pki-dir",
        dir,
        "--cni-conf-dir",
        dir,
        "--cni-bin-dir",
        dir,
        "--containerd-config",
        "/nonexistent",
    ];
    let output = fabric(&[&common[..], &["-o", "json"]].concat());
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["kind"], "DoctorReport");
    let items = document["items"].as_array().unwrap();
    let missing = items.iter().any(|item| item["status"] == "MISSING");
    assert_eq!(document["healthy"], !missing);
    assert_eq!(
        output.status.code(),
        Some(i32::from(missing)),
        "{}",
        stderr(&output)
    );
    for item in items {
        let well = item["status"] == "OK";
        assert_eq!(
            item["fix"] == "",
            well,
            "a fix where one is needed, only there: {item}"
        );
    }
    let text = stdout(&fabric(&common));
    assert!(
        text.starts_with("CHECK ") && !text.contains('\u{1b}'),
        "{text}"
    );
    assert_eq!(text.lines().count(), items.len() + 1);
}

/// However long a row of the doctor's table is, it is whole in a pipe, whatever width the shell tells.
#[test]
fn the_doctors_table_is_not_cut() {
    let home = tempfile::tempdir().unwrap();
    let mut long = home.path().to_owned();
    long.extend(["x"; 3].map(|letter| letter.repeat(200)));
    let dir = long.to_str().unwrap();
    let arguments = [
        "doctor",
        "--socket",
        "/nonexistent",
        "--pki-dir",
        dir,
        "--cni-conf-dir",
        dir,
        "--cni-bin-dir",
        dir,
        "--containerd-config",
        dir,
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_fabric"))
        .args(arguments)
        .env_remove("FABRIC_SOCKET")
        .env("COLUMNS", "40")
        .output()
        .unwrap();
    let text = stdout(&output);
    for (name, detail) in [
        ("certificates", format!("{dir} does not exist")),
        ("cni-config", format!("{dir} has no network list")),
        ("cni-plugin", format!("{dir}/fabric-cni is not there")),
        ("containerd-config", format!("there is no {dir}")),
    ] {
        let mut rows = text.lines().filter(|row| row.starts_with(name));
        let row = rows.next().unwrap();
        assert!(row.contains(&detail) && rows.next().is_none(), "{row}");
    }
}

/// The help of the commands that install fits into 80 columns, and has the defaults.
#[test]
fn help_of_the_installer() {
    let help = |command: &str| {
        let mut fabric = Command::new(env!("CARGO_BIN_EXE_fabric"));
        fabric.args([command, "--help"]).env("COLUMNS", "80");
        let text = stdout(&fabric.output().unwrap());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{command}: {line}");
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let install = help("install-cni");
    for default in [
        "else /run/fabric/cni.sock]",
        "else /var/lib/fabric]",
        "[default: /opt/cni/bin]",
        "[default: /etc/containerd/config.toml]",
        "[default: fabric-cni beside this one]",
    ] {
        assert!(install.contains(default), "{default:?} is not in {install}");
    }
    for command in ["uninstall-cni", "doctor"] {
        assert!(help(command).contains("[default: /opt/cni/bin]"));
    }
}

/// A folder or path that is not absolute is wrong usage in each command that takes it.
#[test]
fn relative_folders_are_wrong_usage() {
    for arguments in [
        ["install-cni", "--bin-dir", "relative"],
        ["install-cni", "--conf-dir", "./relative"],
        ["install-cni", "--cni-socket", "relative"],
        ["install-cni", "--state-dir", "relative"],
        ["uninstall-cni", "--bin-dir", "relative"],
        ["uninstall-cni", "--conf-dir", "./relative"],
    ] {
        let output = fabric(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = stderr(&output);
        assert!(text.contains("not an absolute path"), "{text}");
        assert!(text.contains(arguments[1]) && output.stdout.is_empty());
    }
}

/// Where no daemon answers, `uninstall-cni` says that first and what to do next, and nothing on stdout.
#[test]
fn uninstalling_without_a_daemon() {
    for more in [&[][..], &["-o", "json"], &["--dry-run"]] {
        let arguments = [
            "uninstall-cni",
            "--socket",
            "/nonexistent",
            "--bin-dir",
            "/nonexistent/bin",
            "--conf-dir",
            "/nonexistent/net.d",
        ];
        let output = fabric(&[&arguments, more].concat());
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        assert!(output.stdout.is_empty(), "{}", stdout(&output));
        let text = stderr(&output);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("error: no daemon answers"), "{text}");
        assert!(lines[1].starts_with("Only the daemon knows"), "{text}");
        assert_eq!(lines.len(), 2, "{text}");
    }
}

/// What is said of a lab that is not there has its name in quotes: `lab` can be one.
#[test]
fn a_lab_that_is_not_there() {
    let output = fabric(&["lab", "status", "--name", "not-there"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("no lab \"not-there\" is up"), "{text}");
}
