//! `fabric lab demo` as root: all proofs, and a machine as it was.

use std::ffi::OsStr;

use anyhow::{Context as _, ensure};
use fabric_tests::{
    machine::{check_proofs, run_script},
    stage::Stage,
};

const SCRIPT: &str = r#"
fabric=$1 folder=$2
inventory >"$folder/before"
for run in 1 2; do
    "$fabric" lab demo -o json >"$folder/proofs-$run"
    inventory >"$folder/after-$run"
done
# The comparison must be able to find something.
"$fabric" lab up --workers 1 --pods 1 >&2
inventory >"$folder/up"
"$fabric" lab down >&2
inventory >"$folder/down"
"#;

/// The demo runs twice with all proofs; namespaces, interfaces, mounts, files and processes are
/// afterwards as before.
#[test]
fn the_demo_runs_twice_and_leaves_nothing() -> anyhow::Result<()> {
    let stage = Stage::enter()?;
    let folder = tempfile::tempdir()?;
    let fabric = stage.program("fabric");
    let arguments: [&OsStr; 2] = [fabric.as_ref(), folder.path().as_ref()];
    let answer = run_script(SCRIPT, &arguments)?;
    let said = format!("{}\n{}", answer.stdout, answer.stderr);
    ensure!(answer.status.success(), "{}: {said}", answer.status);
    let read = |name: &str| {
        std::fs::read_to_string(folder.path().join(name)).with_context(|| format!("{name}: {said}"))
    };
    let before = read("before")?;
    for run in ["1", "2"] {
        check_proofs(&read(&format!("proofs-{run}"))?)?;
        assert_eq!(read(&format!("after-{run}"))?, before, "after run {run}");
    }
    assert_eq!(read("down")?, before, "after a lab");
    let up = read("up")?;
    for part in ["fabric-lab-worker-a", "/run/fabric-lab", "fabric-node"] {
        assert!(
            up.contains(part),
            "{part} is not in the inventory of a lab:\n{up}"
        );
        assert!(!before.contains(part), "{part} was there before:\n{before}");
    }
    Ok(())
}
