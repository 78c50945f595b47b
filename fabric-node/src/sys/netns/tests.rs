#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    RenameFlags,
    inotify::{self, CreateFlags, WatchFlags},
};

use super::*;

const NEEDS_ROOT: &str = "this test makes network namespaces: run it as root";

/// Code runs inside the namespace and the calling thread never leaves its own.
#[test]
fn run_leaves_the_caller_where_it_is() {
    let home = Netns::current().unwrap().identity();
    let other = Netns::create().expect(NEEDS_ROOT);
    assert_ne!(home, other.identity());
    let inside = other.run(|| Netns::current().unwrap().identity()).unwrap();
    assert_eq!(inside, other.identity());
    assert_eq!(Netns::current().unwrap().identity(), home);
}

/// A panic inside reaches the caller with its own message.
#[test]
fn run_hands_a_panic_on() {
    let netns = Netns::create().expect(NEEDS_ROOT);
    let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        netns.run(|| panic::panic_any("told you"))
    }));
    assert_eq!(
        *caught.unwrap_err().downcast_ref::<&str>().unwrap(),
        "told you"
    );
}

/// A long-running thread is inside before `spawn` returns, and its result can be had.
#[test]
fn spawn_enters_before_it_returns() {
    let netns = Netns::create().expect(NEEDS_ROOT);
    let thread = netns
        .spawn("test", || Netns::current().unwrap().identity())
        .unwrap();
    assert_eq!(thread.join().unwrap(), netns.identity());
}

/// A named namespace can be opened by its name, refuses a second taker, and is gone afterwards.
#[test]
fn names_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blue");
    let made = Netns::create_named(&path).expect(NEEDS_ROOT);
    assert_eq!(Netns::open(&path).unwrap().identity(), made.identity());
    let again = Netns::create_named(&path).unwrap_err().to_string();
    assert!(
        again.contains("cannot create") && again.contains("blue"),
        "{again}"
    );
    assert_eq!(Netns::open(&path).unwrap().identity(), made.identity());
    Netns::remove_named(&path).unwrap();
    assert!(!path.exists());
    Netns::remove_named(&path).unwrap();
}

/// Files, other namespaces, FIFOs and missing paths are refused with the path and the cure.
#[test]
fn open_refuses_what_is_no_network_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let fifo = dir.path().join("fifo");
    self::fifo(&fifo);
    for (path, wanted) in [
        (file.as_path(), "is a file of another kind"),
        (&fifo, "is a file of another kind"),
        (
            Path::new("/proc/self/ns/mnt"),
            "is a namespace of another type",
        ),
        (Path::new("/nonexistent/ns"), "No such file or directory"),
    ] {
        let error = Netns::open(path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR, 0).unwrap();
}

/// How often one of the files was opened since the last question; `O_PATH` opens nothing.
fn opens(witness: &OwnedFd) -> usize {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4_096];
    let mut events = inotify::Reader::new(witness, &mut buffer);
    std::iter::from_fn(|| events.next().ok().map(drop)).count()
}

/// While a link is changed 100,000 times between two namespaces, a FIFO, a file and nothing, whoever
/// opens it gets one of the two namespaces, whole, or an error; neither FIFO nor file is ever opened.
#[test]
fn a_link_that_changes_all_the_time() {
    const SWAPS: usize = 100_000;
    // In memory, so that the disk does not set the pace.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = |name: &str| dir.path().join(name);
    let names = ["one", "two"].map(at);
    let made = names
        .each_ref()
        .map(|path| Netns::create_named(path).expect(NEEDS_ROOT));
    let allowed = made.each_ref().map(Netns::identity);
    fs::write(at("file"), b"").unwrap();
    fifo(&at("fifo"));
    let witness = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    for name in ["file", "fifo"] {
        inotify::add_watch(&witness, at(name), WatchFlags::OPEN).unwrap();
    }
    fs::File::open(at("file")).unwrap();
    assert_eq!(opens(&witness), 1, "the witness sees opens");
    let targets = ["one", "fifo", "two", "file", "missing"];
    for (index, target) in targets.iter().enumerate() {
        std::os::unix::fs::symlink(at(target), at(&format!("link-{index}"))).unwrap();
    }
    std::os::unix::fs::symlink(at("one"), at("link")).unwrap();
    let done = AtomicBool::new(false);
    let (opened, refused) = thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..SWAPS {
                let other = at(&format!("link-{}", turn % targets.len()));
                let (cwd, exchange) = (rustix::fs::CWD, RenameFlags::EXCHANGE);
                rustix::fs::renameat_with(cwd, &other, cwd, at("link"), exchange).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        let (mut opened, mut refused) = (0_usize, 0_usize);
        while !done.load(Ordering::SeqCst) {
            match Netns::open(at("link")) {
                Ok(netns) => {
                    assert!(allowed.contains(&netns.identity()));
                    opened += 1;
                }
                Err(NetnsError::Open { .. } | NetnsError::NotANamespace { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (opened, refused)
    });
    assert!(
        opened > 0 && refused > 0,
        "{opened} opened, {refused} refused"
    );
    names
        .iter()
        .for_each(|path| Netns::remove_named(path).unwrap());
}
