//! C8 to C12: stdin, stdout, versions and error codes.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use fabric_proto::cni::{Failure, Response};
use serde_json::{Value, json};

use crate::support::{
    Call, Daemon, Outcome, attached,
    table::{Expected, Row, asked, check, refused, rows},
};

/// Set in the child of [`c12_a_panic_has_words`].
const CHILD: &str = "FABRIC_CNI_TEST_PANICS";

pub(super) fn rows() -> Vec<Row> {
    [
        stdin(),
        versions(),
        version_verb(),
        output(),
        codes(),
        trouble(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What is no network configuration gets code 6, one that is incomplete or contradictory code 7.
#[test]
fn c8_stdin() {
    check(stdin());
}

/// Versions that are not spoken get code 1 with both sides; what is no version at all gets code 6.
#[test]
fn c8_versions() {
    check(versions());
}

/// VERSION needs neither configuration nor container nor daemon.
#[test]
fn c9_version() {
    check(version_verb());
}

/// stdout holds one line of JSON or nothing, stderr nothing, and errors speak the configuration's
/// version.
#[test]
fn c10_c11_output() {
    check(output());
}

/// The code of a failure says what kind it is; what the daemon says passes through.
#[test]
fn c12_codes() {
    check(codes());
}

/// A daemon that is not there, not answering or not understood is "try again" with the socket's path
/// and the cure for ADD, CHECK and GC, and "not available" for STATUS.
#[test]
fn c12_daemon_trouble() {
    check(trouble());
}

/// Not a claim of its own: the child of the row "C12 code 999".
#[test]
fn c12_a_panic_has_words() {
    if std::env::var_os(CHILD).is_some() {
        fabric_cni::report_panics();
        panic!("an invariant does not hold");
    }
}

fn add() -> Call {
    Call::new("ADD")
}

fn stdin() -> Vec<Row> {
    let nested = [b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
    let runtime = |config: Value| add().set("runtimeConfig", config);
    rows! {
        "C8 empty stdin": add().stdin(b"") => refused(6, &["no network configuration"]);
        "C8 blank stdin": add().stdin(b" \n") => refused(6, &["no network configuration"]);
        "C8 half an object": add().stdin(b"{") => refused(6, &["JSON"]);
        "C8 a list": add().stdin(b"[]") => refused(6, &["JSON"]);
        "C8 a word": add().stdin(b"null") => refused(6, &["JSON"]);
        "C8 two objects": add().stdin(b"{}{}") => refused(6, &["JSON"]);
        "C8 not UTF-8": add().stdin(b"{\"name\":\"\xff\"}") => refused(6, &["JSON"]);
        "C8 endless stdin": add().stdin(&vec![b' '; 5 << 20]) => refused(6, &["larger than"]);
        "C8 deep nesting": add().stdin(&nested) => refused(6, &["JSON"]);
        "C8 empty stdin of a DEL": Call::new("DEL").stdin(b"") => refused(6, &["no network configuration"]);
        "C8 no name": add().without("name") => refused(7, &["name"]);
        "C8 no name in a STATUS": Call::new("STATUS").without("name") => refused(7, &["name"]);
        "C8 relative socket": add().set("socket", json!("cni.sock")) => refused(7, &["socket", "absolute"]);
        "C8 socket that is a number": add().set("socket", json!(1)) => refused(7, &["socket"]);
        "C8 relative stateDir": add().set("stateDir", json!("state")) => refused(7, &["stateDir"]);
        "C8 stateDir with a zero byte": add().set("stateDir", json!("/a\0b")) => refused(7, &["stateDir"]);
        "C8 runtimeConfig that is a list": runtime(json!([])) => refused(7, &["runtimeConfig"]);
        "C8 requested address that is none": runtime(json!({"ips": ["x"]}))
            => refused(7, &["runtimeConfig.ips", "x"]);
        "C8 requested prefix that is too long": runtime(json!({"ips": ["10.0.0.1/33"]}))
            => refused(7, &["10.0.0.1/33"]);
        "C8 requested addresses that are no list": add().set("args", json!({"cni": {"ips": "10.0.0.1"}}))
            => refused(7, &["args.cni.ips"]);
    }
}

fn versions() -> Vec<Row> {
    let with = |verb: &str, version: Value| Call::new(verb).set("cniVersion", version);
    rows! {
        "C8 version 0.1.0": with("ADD", json!("0.1.0")) => refused(1, &["0.1.0", "0.3.1, 0.4.0, 1.0.0, 1.1.0"]);
        "C8 version 0.2.0": with("ADD", json!("0.2.0")) => refused(1, &["0.2.0", "0.3.1, 0.4.0, 1.0.0, 1.1.0"]);
        "C8 version 0.3.0": with("ADD", json!("0.3.0")) => refused(1, &["0.3.0"]);
        "C8 version 1.2.0": with("ADD", json!("1.2.0")) => refused(1, &["1.2.0", "0.3.1, 0.4.0, 1.0.0, 1.1.0"]);
        "C8 version 2.0.0 of a DEL": with("DEL", json!("2.0.0")) => refused(1, &["2.0.0"]);
        "C8 version missing": add().without("cniVersion") => refused(1, &["0.1.0"]);
        "C8 version empty": with("ADD", json!("")) => refused(1, &["0.1.0"]);
        "C8 version that is a word": with("ADD", json!("newest")) => refused(6, &["newest"]);
        "C8 version of four numbers": with("ADD", json!("1.0.0.0")) => refused(6, &["1.0.0.0"]);
        "C8 version that is a number": with("ADD", json!(1.1)) => refused(6, &["1.1"]);
    }
}

fn version_verb() -> Vec<Row> {
    let bare = Call::new("VERSION")
        .unset("CNI_CONTAINERID")
        .unset("CNI_NETNS")
        .unset("CNI_IFNAME")
        .unset("CNI_PATH")
        .daemon(Daemon::Absent);
    fn listed(outcome: &Outcome) {
        let versions = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(outcome.json()["supportedVersions"], versions);
        assert_eq!(outcome.stdout.lines().count(), 1);
        assert!(outcome.requests.is_empty());
    }
    // Ends although nobody closes its stdin.
    fn unread(call: Call) {
        let (mut child, _) = call.start();
        let mut stdout = String::new();
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_to_string(&mut stdout).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(stdout.contains("supportedVersions"), "{stdout}");
    }
    rows! {
        "C9 VERSION with empty stdin": bare.clone().stdin(b"") => Expected::Prints(listed);
        "C9 VERSION with broken stdin": bare.clone().stdin(b"{") => Expected::Prints(listed);
        "C9 VERSION with a version that is not spoken": bare.clone().stdin(br#"{"cniVersion":"9.9.9"}"#)
            => Expected::Prints(listed);
        "C9 VERSION with stdin open": bare.clone() => Expected::By(unread);
        "C9 VERSION as libcni calls it": bare.env("CNI_NETNS", "dummy").env("CNI_IFNAME", "dummy").env("CNI_PATH", "dummy")
            => Expected::Prints(listed);
    }
}

fn output() -> Vec<Row> {
    let broken = |version: &str| add().set("cniVersion", json!(version)).without("name");
    fn one_line(outcome: &Outcome) {
        assert_eq!((outcome.stdout.lines().count(), &*outcome.stderr), (1, ""));
        assert!(outcome.stdout.ends_with('\n'));
        assert!(outcome.json().is_object());
    }
    rows! {
        "C10 a result is one line": add() => Expected::Prints(one_line);
        "C10 a result that cannot be written is a failure": add() => Expected::By(closed_stdout);
        "C11 error in 0.3.1": broken("0.3.1") => refused(7, &["name"]);
        "C11 error in 0.4.0": broken("0.4.0") => refused(7, &["name"]);
        "C11 error in 1.0.0": broken("1.0.0") => refused(7, &["name"]);
        "C11 error in 1.1.0": broken("1.1.0") => refused(7, &["name"]);
        "C11 error of the environment in 0.4.0": add().set("cniVersion", json!("0.4.0")).unset("CNI_NETNS")
            => refused(4, &["CNI_NETNS"]);
        "C11 error of the daemon in 0.3.1": add().set("cniVersion", json!("0.3.1")).daemon(failed(5))
            => asked(5, &["exhausted", "wait"]);
    }
}

/// The runtime has gone: nobody reads the result, which then must not count as one.
fn closed_stdout(call: Call) {
    let (mut child, _) = call.start();
    drop(child.stdout.take());
    let config = serde_json::to_vec(&call.config).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &config).unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

fn failed(code: u32) -> Daemon {
    Daemon::Answers(Response::Failed(Failure {
        code,
        msg: "address range exhausted".into(),
        details: "wait".into(),
    }))
}

fn codes() -> Vec<Row> {
    let from_daemon = |verb, code| Call::new(verb).daemon(failed(code));
    let check = Call::new("CHECK").set("prevResult", json!({}));
    let ports = json!({"portMappings": [{"hostPort": 80}]});
    rows! {
        "C12 code 1": add().set("cniVersion", json!("0.2.0")) => refused(1, &["0.2.0"]);
        "C12 code 2 names key and value": add().set("runtimeConfig", ports) => refused(2, &["portMappings", "80"]);
        "C12 code 4": add().unset("CNI_NETNS") => refused(4, &["CNI_NETNS"]);
        "C12 code 5 of the daemon": from_daemon("DEL", 5) => asked(5, &["exhausted"]);
        "C12 code 5 where a DEL cannot be kept": Call::new("DEL").set("stateDir", json!("/proc/nowhere")).daemon(Daemon::Absent)
            => refused(5, &["cni.sock", "/proc/nowhere"]);
        "C12 code 6": add().stdin(b"{") => refused(6, &["JSON"]);
        "C12 code 7 of the daemon": from_daemon("ADD", 7) => asked(7, &["exhausted"]);
        "C12 code 8 of the daemon": from_daemon("ADD", 8) => asked(8, &["exhausted"]);
        "C12 code 11 of the daemon": from_daemon("ADD", 11) => asked(11, &["exhausted", "wait"]);
        "C12 code 50 of the daemon": from_daemon("STATUS", 50) => asked(50, &["exhausted"]);
        "C12 code 51 of the daemon": from_daemon("STATUS", 51) => asked(51, &["exhausted"]);
        "C12 code 100 of the daemon": from_daemon("ADD", 100) => asked(100, &["exhausted"]);
        "C12 code 101 of the daemon": check.daemon(failed(101)) => asked(101, &["exhausted"]);
        "C12 code 999": add() => Expected::By(panics);
    }
}

/// The reporter of panics is the program's own; the panic is this test's, which is executed again.
fn panics(_: Call) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["c12_a_panic_has_words", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    // Behind what the test's own frame prints.
    let begin = stdout.find('{').unwrap();
    let error: Value = serde_json::from_str(&stdout[begin..]).unwrap();
    assert_eq!(
        (&error["code"], &error["cniVersion"]),
        (&json!(999), &json!("1.1.0"))
    );
    let said = error["msg"].as_str().unwrap();
    assert!(said.contains("an invariant does not hold"), "{said}");
    assert!(said.contains("c08_c12_words.rs"), "{said}");
}

fn trouble() -> Vec<Row> {
    let sends = |bytes: &[u8]| add().daemon(Daemon::Sends(bytes.to_vec()));
    let absent = |call: Call| call.daemon(Daemon::Absent);
    let gc = Call::new("GC").set("cni.dev/valid-attachments", json!([]));
    let check = Call::new("CHECK").set("prevResult", json!({}));
    let wrong = |verb, answer| Call::new(verb).daemon(Daemon::Answers(answer));
    rows! {
        "C12 ADD without a socket": absent(add()) => refused(11, &["cni.sock", "start the fabric-node daemon"]);
        "C12 ADD with a stale socket": add().daemon(Daemon::Stale) => refused(11, &["cni.sock", "refused"]);
        "C12 CHECK without a socket": absent(check) => refused(11, &["cni.sock"]);
        "C12 GC without a socket": absent(gc) => refused(11, &["cni.sock"]);
        "C12 STATUS without a socket": absent(Call::new("STATUS")) => refused(50, &["cni.sock"]);
        "C12 STATUS with a stale socket": Call::new("STATUS").daemon(Daemon::Stale) => refused(50, &["cni.sock"]);
        "C12 daemon that hangs up": sends(b"") => asked(11, &["closed"]);
        "C12 daemon that sends half a header": sends(&[0, 0]) => asked(11, &["closed"]);
        "C12 daemon that announces too much": sends(&[0xff; 4]) => asked(11, &["frame"]);
        "C12 daemon that sends an empty frame": sends(&[0; 4]) => asked(11, &["frame"]);
        "C12 daemon that sends garbage": sends(b"\0\0\0\x02xx") => asked(11, &["frame"]);
        "C12 daemon that answers an ADD as a DEL": wrong("ADD", Response::Done) => asked(6, &["same release"]);
        "C12 daemon that answers a STATUS as an ADD": wrong("STATUS", attached()) => asked(6, &["same release"]);
    }
}
