//! The lab of an ordinary user: the same demo, inside a user namespace; a clear message where the
//! system forbids that. The device node that everybody may open exists only in the test's own mount
//! namespace.

use std::ffi::OsStr;

use anyhow::ensure;
use fabric_tests::{
    machine::{check_proofs, copy_programs, run_script},
    stage::Stage,
};

/// Runs its arguments as a user without any right, who has a home of their own.
const AS_USER: &str = r#"
as_user() {
    setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \
        env -i PATH="$PATH" HOME="$home" TMPDIR="$home" "$@"
}
programs=$1 home=$2
chown 65534:65534 "$home"
"#;

fn run(script: &str) -> anyhow::Result<fabric_node::lab::command::Answer> {
    let stage = Stage::enter()?;
    let programs = tempfile::tempdir()?;
    let home = tempfile::tempdir()?;
    let bin_dir = stage.program("");
    copy_programs(&bin_dir, programs.path())?;
    let arguments: [&OsStr; 2] = [programs.path().as_ref(), home.path().as_ref()];
    let answer = run_script(&format!("{AS_USER}\n{script}"), &arguments)?;
    let left: Vec<_> = std::fs::read_dir(home.path())?.flatten().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(answer)
}

/// An ordinary user gets the same proofs as root, and nothing is left: no process, no file.
#[test]
fn an_ordinary_user_runs_the_demo() -> anyhow::Result<()> {
    let answer = run(r#"
        open_tun
        before=$(inventory)
        as_user "$programs/fabric" lab demo -o json
        after=$(inventory)
        [ "$before" = "$after" ] || { printf "%s\n" "before: $before" "after: $after" >&2; exit 9; }
    "#)?;
    ensure!(
        answer.status.success(),
        "{}: {}",
        answer.status,
        answer.stderr
    );
    check_proofs(&answer.stdout)
}

/// Where user namespaces are forbidden, the message names the setting and how to change it.
#[test]
fn a_system_without_user_namespaces_is_explained() -> anyhow::Result<()> {
    // The setting belongs to a user namespace: in one of the test's own, it binds nobody else.
    let answer = run(r#"
        open_tun
        export programs home
        mkfifo /run/mapped
        unshare --user /bin/sh -c 'read _ </run/mapped; exec /bin/sh -euc "$0"' '
            echo 0 >/proc/sys/user/max_user_namespaces
            setpriv --reuid 65534 --regid 65534 --clear-groups \
                env -i PATH="$PATH" HOME="$home" TMPDIR="$home" "$programs/fabric" lab demo
        ' &
        # Opens once the other end does, which is inside the new namespace.
        exec 3>/run/mapped
        for map in uid_map gid_map; do echo "0 0 4294967295" >/proc/$!/$map; done
        echo >&3
        wait $!
    "#)?;
    ensure!(!answer.status.success(), "it ran: {}", answer.stdout);
    for part in [
        "user namespaces",
        "user.max_user_namespaces is 0",
        "sysctl -w user.max_user_namespaces=",
    ] {
        assert!(
            answer.stderr.contains(part),
            "{part} is not in: {}",
            answer.stderr
        );
    }
    Ok(())
}

/// Where the device is closed to the user, the message says how it is opened.
#[test]
fn a_closed_device_is_explained() -> anyhow::Result<()> {
    let answer = run(r#"
        open_tun
        chmod 0600 /dev/net/tun
        as_user "$programs/fabric" lab demo
    "#)?;
    ensure!(!answer.status.success(), "it ran: {}", answer.stdout);
    let said = &answer.stderr;
    assert!(said.contains("chmod 0666 /dev/net/tun"), "{said}");
    Ok(())
}
