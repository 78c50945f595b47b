//! Calls of the real plugin, one process each, against daemons that lie, stall and break off.
//!
//! Comes in: the program, a seed. Goes out: a [`Report`] as for any target. The calls run in a
//! [`sandbox`]: namespaces and a file system of their own, so that whatever a made-up call says, it
//! reaches no daemon, no state and no interface of the host. Under the name `loopback` the program is
//! called too, and sets `lo` of the sandbox.

mod daemon;
pub mod sandbox;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fabric_core::testing::packets::Generator;
use fabric_proto::cni::{PENDING_DELETES_DIR, PendingDelete, Response};

use super::{
    Outcome,
    call::Call,
    campaign::{Finding, Report},
    corpus,
    oracle::{Words, check_accepted, check_attached, words},
};
use daemon::{Behaviour, Daemon};

/// Name on the command line.
pub const NAME: &str = "exec";
/// The corpus that calls are made from.
const CORPUS: &str = "plugin";
/// Findings after which it ends.
const FINDINGS_MAX: usize = 8;
/// Longest call: STATUS may wait 1.5 s for a silent daemon, the rest is for a busy machine.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// One call in so many is one of `loopback`.
const LOOPBACK_ONE_IN: usize = 4;

/// What is to be called, and how often. To be run inside of a [`sandbox`].
#[derive(Clone, Debug)]
pub struct Execs {
    /// What the calls are drawn from.
    pub seed: u64,
    /// How many.
    pub calls: u64,
    /// Side by side.
    pub threads: usize,
    /// The program.
    pub plugin: PathBuf,
    /// Where findings go.
    pub findings: PathBuf,
}

/// One call as it is made.
struct Made {
    call: Call,
    is_loopback: bool,
    behaviour: Behaviour,
}

#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<Outcome, u64>,
    findings: Vec<(String, Made, String)>,
    longest: Duration,
}

impl Execs {
    /// Makes all calls.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or a finding cannot be written.
    pub fn run(&self) -> anyhow::Result<Report> {
        ensure!(self.plugin.exists(), "there is no {:?}", self.plugin);
        let named = corpus::read(CORPUS)?;
        let corpus: Vec<Vec<u8>> = named.into_iter().map(|(_, input)| input).collect();
        let tally = Mutex::new(Tally::default());
        let next = AtomicU64::new(0);
        let begin = Instant::now();
        let worked: Vec<anyhow::Result<()>> = thread::scope(|scope| {
            let work = |number| {
                let (corpus, next, tally) = (&corpus, &next, &tally);
                scope.spawn(move || self.work(number, corpus, next, tally))
            };
            let workers: Vec<_> = (0..self.threads.max(1)).map(work).collect();
            let joined = workers.into_iter().map(|worker| worker.join());
            joined
                .map(|done| done.unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
                .collect()
        });
        worked.into_iter().collect::<anyhow::Result<()>>()?;
        let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.report(tally, begin.elapsed())
    }

    fn work(
        &self,
        number: usize,
        corpus: &[Vec<u8>],
        next: &AtomicU64,
        tally: &Mutex<Tally>,
    ) -> anyhow::Result<()> {
        let folder = sandbox::folder().join(number.to_string());
        fs::create_dir_all(&folder)?;
        let daemon = Daemon::start(&folder.join(daemon::SOCKET))?;
        let watchdog = Watchdog::start();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= self.calls || lock(tally).findings.len() >= FINDINGS_MAX {
                break;
            }
            let made = self.make(corpus, at, &folder);
            daemon.behave(made.behaviour.clone());
            let begin = Instant::now();
            let output = self.call(&made, &watchdog)?;
            let took = begin.elapsed();
            let judged = judge(&made, &output, took);
            let mut tally = lock(tally);
            tally.longest = tally.longest.max(took);
            match judged {
                Ok(outcome) => *tally.outcomes.entry(outcome).or_default() += 1,
                Err(reason) => {
                    let origin = format!("seed {} call {at}", self.seed);
                    tally.findings.push((origin, made, reason));
                }
            }
        }
        check_kept(&folder)
    }

    /// The call with this number, with paths that lead into `folder` in most.
    fn make(&self, corpus: &[Vec<u8>], number: u64, folder: &Path) -> Made {
        let mut spread = Generator::new(self.seed);
        let mut random = Generator::new(spread.bits() ^ Generator::new(number).bits());
        let mut call = Call::make(corpus, &mut random);
        // What no process can be given.
        call.environment.retain(|(name, value)| {
            !name.is_empty() && !name.contains(['\0', '=']) && !value.contains(&0)
        });
        let behaviour = Behaviour::choose(&call, &mut random);
        let place = call.stdin.iter().position(|byte| *byte == b'{');
        if let Some(place) = place.filter(|_| !random.one_in(10)) {
            let folder = folder.display();
            let socket = behaviour.socket();
            let paths = format!("\"socket\":\"{folder}/{socket}\",\"stateDir\":\"{folder}\",");
            call.stdin.splice(place + 1..place + 1, paths.into_bytes());
        }
        let is_loopback = random.one_in(LOOPBACK_ONE_IN);
        if is_loopback && random.one_in(2) {
            let netns = sandbox::netns().as_os_str().as_bytes().to_vec();
            call.environment.push(("CNI_NETNS".into(), netns));
        }
        Made {
            call,
            is_loopback,
            behaviour,
        }
    }

    fn call(&self, made: &Made, watchdog: &Watchdog) -> anyhow::Result<Output> {
        let program = if made.is_loopback {
            sandbox::loopback(&self.plugin)
        } else {
            self.plugin.clone()
        };
        let mut command = Command::new(&program);
        command.env_clear();
        for (name, value) in &made.call.environment {
            command.env(name, OsStr::from_bytes(value));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program:?}"))?;
        watchdog.watch(&child);
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that has heard enough closes its end.
            let _ = stdin.write_all(&made.call.stdin);
        }
        let output = child.wait_with_output();
        watchdog.rest();
        Ok(output?)
    }

    fn report(&self, tally: Tally, time: Duration) -> anyhow::Result<Report> {
        let mut findings = Vec::new();
        for (at, (origin, made, reason)) in tally.findings.into_iter().enumerate() {
            fs::create_dir_all(&self.findings)?;
            let file = self.findings.join(format!("{NAME}-{}-{at}", self.seed));
            fs::write(&file, made.call.encode())?;
            let name = if made.is_loopback {
                "loopback"
            } else {
                "plugin"
            };
            findings.push(Finding {
                origin,
                reason: format!("{name}, {}: {reason}", made.behaviour),
                file,
            });
        }
        let mut expected = EXPECTED.to_vec();
        if sandbox::has_loopback(&self.plugin)? {
            expected.extend(EXPECTED_OF_LOOPBACK);
        }
        expected.retain(|outcome| !tally.outcomes.contains_key(*outcome));
        let mut outcomes = tally.outcomes;
        let inputs = outcomes.values().sum::<u64>() + findings.len() as u64;
        let longest = u64::try_from(tally.longest.as_millis()).unwrap_or(u64::MAX);
        outcomes.insert("milliseconds took the longest call".into(), longest);
        Ok(Report {
            target: NAME,
            inputs,
            time,
            outcomes,
            findings,
            missed: expected,
        })
    }
}

const EXPECTED: [&str; 12] = [
    "plugin, answers: result",
    "plugin, answers: silence",
    "plugin, answers: error 11",
    "plugin, answers: error 4",
    "plugin, answers: error 101",
    "plugin, absent: silence",
    "plugin, absent: error 11",
    "plugin, garbage: error 11",
    "plugin, half a frame: error 11",
    "plugin, huge length: error 11",
    "plugin, slow: result",
    "plugin, hangs up: error 11",
];

const EXPECTED_OF_LOOPBACK: [&str; 3] =
    ["loopback: result", "loopback: silence", "loopback: error 4"];

/// What became of a call.
fn judge(made: &Made, output: &Output, took: Duration) -> Result<Outcome, String> {
    let Some(status) = output.status.code() else {
        return Err(format!("it ended by a signal: {}", output.status));
    };
    if took > CALL_TIME_MAX {
        return Err(format!("it took {} ms", took.as_millis()));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("panicked") {
        return Err(stderr.into_owned());
    }
    let words = words(&output.stdout, status)?;
    if words == Words::Error(999) {
        return Err("it reports a mistake of its own".into());
    }
    if !made.is_loopback {
        check(made, &words)?;
    }
    let said = match &words {
        Words::Silence => "silence".to_owned(),
        Words::Versions => "versions".to_owned(),
        Words::Result(..) => "result".to_owned(),
        Words::Error(code @ (0..=11 | 50 | 51 | 100 | 101)) => format!("error {code}"),
        Words::Error(_) => "another error".to_owned(),
    };
    Ok(if made.is_loopback {
        format!("loopback: {said}").into()
    } else {
        format!("plugin, {}: {said}", made.behaviour).into()
    })
}

/// Success needs an allowed call and a daemon that answered it, or a verb that does without.
fn check(made: &Made, words: &Words) -> Result<(), String> {
    let call = &made.call;
    let verb = call.variable("CNI_COMMAND").unwrap_or_default();
    let response = made.behaviour.response(call);
    match words {
        Words::Error(_) => Ok(()),
        Words::Versions if verb == b"VERSION" => Ok(()),
        Words::Silence if verb.is_empty() => Ok(()),
        Words::Result(version, result) if verb == b"ADD" => {
            check_accepted(call)?;
            match response {
                Some(Response::Attached(attached)) => {
                    check_attached(call, &attached, version, result)
                }
                other => Err(format!("a result, and the daemon said {other:?}")),
            }
        }
        // Carried out or kept.
        Words::Silence if verb == b"DEL" => check_accepted(call),
        Words::Silence if [b"GC".as_slice(), b"CHECK", b"STATUS"].contains(&verb) => {
            check_accepted(call)?;
            if response == Some(Response::Done) || verb == b"GC" {
                Ok(())
            } else {
                Err(format!("success, and the daemon said {response:?}"))
            }
        }
        Words::Versions | Words::Silence | Words::Result(..) => Err(format!(
            "it said {words:?} to {:?}",
            String::from_utf8_lossy(verb)
        )),
    }
}

/// Every DEL that was kept can be read by the daemon, and nothing unfinished lies about.
fn check_kept(state: &Path) -> anyhow::Result<()> {
    let folder = state.join(PENDING_DELETES_DIR);
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        let kept: PendingDelete =
            serde_json::from_slice(&bytes).with_context(|| format!("{path:?} is no kept DEL"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ensure!(
            name == PendingDelete::file_name(&kept.key),
            "{path:?} has the name of another DEL"
        );
    }
    Ok(())
}

/// Ends a call that takes too long.
struct Watchdog {
    watched: Arc<Mutex<Option<(rustix::process::Pid, Instant)>>>,
}

impl Watchdog {
    fn start() -> Self {
        let watched: Arc<Mutex<Option<(rustix::process::Pid, Instant)>>> = Arc::default();
        let seen = Arc::downgrade(&watched);
        thread::spawn(move || {
            while let Some(watched) = seen.upgrade() {
                let late = lock(&watched).filter(|(_, since)| since.elapsed() > CALL_TIME_MAX);
                if let Some((pid, _)) = late {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
                drop(watched);
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { watched }
    }

    fn watch(&self, child: &Child) {
        *lock(&self.watched) = Some((rustix::process::Pid::from_child(child), Instant::now()));
    }

    fn rest(&self) {
        *lock(&self.watched) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
