//! `make demo` as people type it: as root in a checkout that is built, as a user who cannot build,
//! and on a machine that lacks a program.

use std::{ffi::OsStr, fs, path::Path};

use anyhow::{Context as _, ensure};
use fabric_node::lab::command::Answer;
use fabric_tests::{
    machine::{copy_programs, run_script},
    stage::{Stage, workspace},
};

/// What cargo and make tell the programs they run is not for a build of its own: it would compile
/// everything again. Colours that are asked for prove nothing about those that are not.
const AS_TYPED: &str = r#"
for name in $(env | sed -n 's/^\(CARGO_[A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in CARGO_HOME | CARGO_TARGET_DIR) ;; *) unset "$name" ;; esac
done
unset CARGO LD_LIBRARY_PATH MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CLICOLOR_FORCE
"#;

const AS_USER: &str = r#"
as_user() {
    setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \
        env -i PATH="$PATH" HOME="$home" TMPDIR="$home" "$@"
}
checkout=$1 home=$2
chown 65534:65534 "$home"
"#;

/// As root in a checkout, `make demo` ends with 0, one line with a tick for each proof, the table
/// and no colours, and leaves the machine as it was.
#[test]
fn make_demo_in_a_checkout() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let script = format!(
        r#"{AS_TYPED}
        before=$(inventory)
        cd "$1"
        FABRIC_BIN_DIR=$2 make demo
        after=$(inventory)
        [ "$before" = "$after" ] || {{ printf "%s\n" "before: $before" "after: $after" >&2; exit 9; }}
        "#
    );
    let bin_dir = stage.program("");
    let answer = run_script(&script, &[workspace().as_ref(), bin_dir.as_ref()])?;
    check_output(&answer)?;
    ensure!(
        answer.stderr.contains("== build: done") || answer.stderr.contains("== build: skipped"),
        "{}",
        answer.stderr
    );
    Ok(())
}

/// In the checkout of another user, `make demo` shows what is built there and says so.
#[test]
fn make_demo_for_a_user_who_cannot_build() -> anyhow::Result<()> {
    let answer = in_a_copy(r#"open_tun; cd "$checkout"; as_user make demo"#)?;
    check_output(&answer)?;
    ensure!(
        answer.stderr.contains("== build: skipped ("),
        "{}",
        answer.stderr
    );
    Ok(())
}

/// Without iperf3, and without the right to install it, exit status 1 and the package to install.
#[test]
fn a_missing_program_is_named() -> anyhow::Result<()> {
    let answer = in_a_copy(
        r#"
        # A device is no program: what is there is hidden, in this machine alone.
        while found=$(command -v iperf3); do
            mount --bind /dev/null "$found"
            hash -r
        done
        as_user "$checkout/scripts/install-deps" demo
        "#,
    )?;
    ensure!(
        answer.status.code() == Some(1),
        "{}: {}",
        answer.status,
        answer.stderr
    );
    let sentence = "as root run: apt-get install --no-install-recommends iperf3\n";
    ensure!(answer.stderr.contains(sentence), "{}", answer.stderr);
    Ok(())
}

/// Runs `script` in a machine with a copy of what `make demo` needs, which every user may read.
fn in_a_copy(script: &str) -> anyhow::Result<Answer> {
    let stage = Stage::enter()?;
    let checkout = tempfile::tempdir()?;
    let home = tempfile::tempdir()?;
    let programs = checkout.path().join("target/release");
    fs::create_dir_all(&programs)?;
    copy_programs(&stage.program(""), &programs)?;
    fs::create_dir(checkout.path().join("scripts"))?;
    for file in ["Makefile", "scripts/install-deps", "scripts/build-for-demo"] {
        fs::copy(workspace().join(file), checkout.path().join(file))
            .with_context(|| format!("cannot copy {file}"))?;
    }
    open_to_all(checkout.path())?;
    let arguments: [&OsStr; 2] = [checkout.path().as_ref(), home.path().as_ref()];
    run_script(&format!("{AS_USER}\n{script}"), &arguments)
}

fn open_to_all(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Everything holds, in lines for people without a terminal.
fn check_output(answer: &Answer) -> anyhow::Result<()> {
    let Answer {
        status,
        stdout,
        stderr,
    } = answer;
    ensure!(status.success(), "{status}: {stdout}\n{stderr}");
    for text in [stdout, stderr] {
        ensure!(!text.contains('\u{1b}'), "escape codes in {text:?}");
    }
    let last = stdout.lines().next_back().unwrap_or_default();
    let ticks = stdout.lines().filter(|line| line.starts_with("✓ ")).count();
    ensure!(
        last.starts_with(&format!("{ticks} of {ticks} proofs hold, in ")) && ticks > 1,
        "{ticks} lines with a tick, but it ends with {last:?}: {stdout}"
    );
    ensure!(
        !stdout.contains('✗')
            && stdout
                .lines()
                .any(|line| line.starts_with("MEASURED") && line.contains("VALUE")),
        "{stdout}"
    );
    Ok(())
}
