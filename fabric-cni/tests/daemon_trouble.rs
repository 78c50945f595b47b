//! The plugin binary as a runtime sees it, where the daemon is not there, does not answer, answers
//! something else or refuses.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use fabric_proto::cni::{Failure, PendingDelete, Response};
use serde_json::json;

use support::{
    Call, Daemon, attached, check_silent, key_of,
    refusals::{asked, check_refused, refused},
};

/// A daemon that is not there, not answering or not understood: "try again" with the socket's path
/// and the cure for ADD, CHECK and GC; "not available" for STATUS.
#[test]
fn daemon_trouble() {
    let gc = || Call::new("GC").set("cni.dev/valid-attachments", json!([]));
    let check = || Call::new("CHECK").set("prevResult", json!({}));
    let sends = |bytes: &[u8]| Daemon::Sends(bytes.to_vec());
    check_refused(vec![
        refused(
            "ADD, no socket",
            Call::new("ADD").daemon(Daemon::Absent),
            11,
            &["cni.sock", "start the fabric-node daemon"],
        ),
        refused(
            "ADD, stale socket",
            Call::new("ADD").daemon(Daemon::Stale),
            11,
            &["cni.sock", "refused"],
        ),
        refused(
            "CHECK, no socket",
            check().daemon(Daemon::Absent),
            11,
            &["cni.sock"],
        ),
        refused(
            "GC, no socket",
            gc().daemon(Daemon::Absent),
            11,
            &["cni.sock"],
        ),
        refused(
            "STATUS, no socket",
            Call::new("STATUS").daemon(Daemon::Absent),
            50,
            &["cni.sock"],
        ),
        refused(
            "STATUS, stale socket",
            Call::new("STATUS").daemon(Daemon::Stale),
            50,
            &["cni.sock"],
        ),
        asked(
            "ADD, hang-up",
            Call::new("ADD").daemon(sends(b"")),
            11,
            &["closed"],
        ),
        asked(
            "ADD, half a header",
            Call::new("ADD").daemon(sends(&[0, 0])),
            11,
            &["closed"],
        ),
        asked(
            "ADD, endless frame",
            Call::new("ADD").daemon(sends(&[0xff; 4])),
            11,
            &["frame"],
        ),
        asked(
            "ADD, empty frame",
            Call::new("ADD").daemon(sends(&[0; 4])),
            11,
            &["frame"],
        ),
        asked(
            "ADD, garbage",
            Call::new("ADD").daemon(sends(b"\0\0\0\x02xx")),
            11,
            &["frame"],
        ),
        asked(
            "ADD, answer to another question",
            Call::new("ADD").daemon(Daemon::Answers(Response::Done)),
            6,
            &["same release"],
        ),
        asked(
            "STATUS, answer to another question",
            Call::new("STATUS").daemon(Daemon::Answers(attached())),
            6,
            &["same release"],
        ),
        asked(
            "ADD, refused by the daemon",
            Call::new("ADD").daemon(failed(11)),
            11,
            &["exhausted", "wait"],
        ),
        asked(
            "CHECK, refused by the daemon",
            check().daemon(failed(101)),
            101,
            &["exhausted"],
        ),
        asked(
            "DEL, refused by the daemon",
            Call::new("DEL").daemon(failed(5)),
            5,
            &["exhausted"],
        ),
        asked(
            "STATUS, refused by the daemon",
            Call::new("STATUS").daemon(failed(51)),
            51,
            &["exhausted"],
        ),
    ]);
}

/// STATUS gives its answer within 2 s of a daemon that takes the connection and says nothing.
#[test]
fn status_does_not_hang() {
    let started = Instant::now();
    let outcome = Call::new("STATUS").daemon(Daemon::Silent).run();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(outcome.json()["code"], 50);
}

/// A DEL that no daemon takes succeeds and leaves its key on disk, once however often it comes.
#[test]
fn del_without_a_daemon() {
    for daemon in [Daemon::Absent, Daemon::Stale, Daemon::Sends(Vec::new())] {
        let call = Call::new("DEL").unset("CNI_NETNS").daemon(daemon);
        check_silent(&call.run());
        check_silent(&call.run());
        let files: Vec<_> = fs::read_dir(call.state_dir().join("pending-deletes"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let kept: PendingDelete = serde_json::from_slice(&fs::read(&files[0]).unwrap()).unwrap();
        assert_eq!(kept, PendingDelete::new(key_of("c1")));
    }
}

/// A DEL that can be kept nowhere fails and says both reasons.
#[test]
fn del_without_daemon_and_disk() {
    let call = Call::new("DEL")
        .set("stateDir", json!("/proc/nowhere"))
        .daemon(Daemon::Absent);
    check_refused(vec![refused(
        "no state directory",
        call,
        5,
        &["cni.sock", "/proc/nowhere"],
    )]);
}

fn failed(code: u32) -> Daemon {
    Daemon::Answers(Response::Failed(Failure {
        code,
        msg: "address range exhausted".into(),
        details: "wait".into(),
    }))
}
