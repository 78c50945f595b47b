//! Namespaces as runtimes name them. Needs root, and unshare(1).

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    super::*,
    add, add_answered,
    kernel::{Devices, Pods, inspect, kernel},
    key, used,
};
use crate::{
    cni::roots::NetnsRoots,
    sys::{
        netns::Netns,
        tun::{TunError, TunOffloads},
    },
};

/// A process in a user namespace and a network namespace of its own; it ends with this value.
struct Sandbox(Child);

impl Sandbox {
    fn start() -> Self {
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sleep", "60"])
            .stdin(Stdio::null())
            .spawn()
            .expect("this test needs unshare(1)");
        let sandbox = Self(child);
        let own = Netns::current().unwrap().identity();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Netns::open(sandbox.netns()).unwrap().identity() == own {
            assert!(Instant::now() < deadline, "no new namespace");
            std::thread::yield_now();
        }
        sandbox
    }

    fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs a program as the sandbox's root.
    fn run(&self, arguments: &str) -> String {
        let target = self.0.id().to_string();
        let output = Command::new("nsenter")
            .args([
                "--user",
                "--net",
                "--preserve-credentials",
                "--target",
                &target,
            ])
            .args(arguments.split(' '))
            .output()
            .expect("this test needs nsenter(1)");
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod with a user namespace of its own (`hostUsers: false`) is attached like any other, keeps its
/// interface over a restart, sees its addresses from inside, cannot get at the device that the daemon
/// holds, and is detached.
#[test]
fn user_namespaces_of_their_own() {
    let state = tempfile::tempdir().unwrap();
    let pod = Sandbox::start();
    let netns = pod.netns();
    let links = || KernelLinks::new(TunOffloads::ALL, NetnsRoots::new(&[])).unwrap();
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), links()).unwrap();
    let attached = add_answered(&attacher, "c1", &netns);
    let before = inspect(&netns);
    let seen = pod.run("ip -o addr show dev eth0");
    for address in &attached.addresses {
        assert!(seen.contains(&address.to_string()), "{seen}");
    }
    drop(attacher);
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), links());
    let attacher = Arc::new(attacher.unwrap());
    assert_eq!(attacher.restore().restored, 1);
    assert_eq!(inspect(&netns), before);
    attacher
        .check(&key("c1"), Path::new(&netns), &attached.addresses)
        .unwrap();
    let inside = Netns::open(&netns).unwrap();
    let refused = inside.run(|| Tun::open("eth0", TunOffloads::ALL).unwrap_err());
    let refused = refused.unwrap();
    assert!(matches!(refused, TunError::Busy { .. }), "{refused}");
    attacher.del(&key("c1")).unwrap();
    assert_eq!(inspect(&netns), None);
    assert_eq!(used(&attacher), [(0, 1), (0, 1)]);
}

/// A path outside the folders of namespaces is refused by ADD and CHECK, whatever is there, with the
/// folders and the key that adds one; nothing is allocated.
#[test]
fn paths_elsewhere() {
    let (state, pods, elsewhere) = (tempfile::tempdir().unwrap(), Pods::new(), Pods::new());
    let attacher = Attacher::open(state.path(), Arc::<Devices>::default(), kernel(&pods)).unwrap();
    let real = elsewhere.make("pod");
    let detour = pods.make("pod").replace("/pod", "/../pod");
    for path in [&real, &detour, "/proc/self/ns/net", "/dev/null"] {
        for error in [
            add(&attacher, "c1", path).unwrap_err(),
            attacher
                .check(&key("c1"), Path::new(path), &[])
                .unwrap_err(),
        ] {
            let failure = fabric_proto::cni::Failure::from(error);
            let is_unknown = failure.msg.contains("no such attachment");
            assert!(is_unknown || failure.code == 8, "{failure:?}");
            assert!(
                is_unknown || failure.msg.contains("cni.netns_roots"),
                "{failure:?}"
            );
        }
    }
    assert_eq!(used(&attacher), [(0, 0), (0, 0)]);
}
