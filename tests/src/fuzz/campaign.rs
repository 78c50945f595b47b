//! Many inputs through one target, on all processors.
//!
//! Comes in: a target, its corpus, a seed. Goes out: counts by outcome, and findings, each as a file.
//! Input number `i` depends on seed, target, corpus and `i` alone, whatever thread makes it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fabric_core::testing::packets::Generator;

use super::{Outcome, Target, corpus};

/// Inputs that a thread takes at a time.
const BLOCK: u64 = 256;
/// Findings after which a campaign ends: the first few tell enough.
const FINDINGS_MAX: usize = 8;
/// Longest time for one input, on a machine that is busy with other things.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);
/// Runs spent on making one finding smaller.
const SHRINK_RUNS_MAX: usize = 4_000;

/// How to look.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// What the inputs are drawn from.
    pub seed: u64,
    /// Number of the first input.
    pub first: u64,
    /// Inputs beside the corpus.
    pub inputs: u64,
    /// Threads.
    pub threads: usize,
    /// Where findings go.
    pub findings: PathBuf,
}

/// An input that a target or its oracle did not bear.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How to name it: file of the corpus, or seed and number.
    pub origin: String,
    /// What is wrong.
    pub reason: String,
    /// The input, as small as it could be made with little effort.
    pub file: PathBuf,
}

/// What a campaign saw.
#[derive(Clone, Debug)]
pub struct Report {
    /// The target.
    pub target: &'static str,
    /// Inputs run.
    pub inputs: u64,
    /// Time they took.
    pub time: Duration,
    /// Inputs by outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// What went wrong.
    pub findings: Vec<Finding>,
    /// Outcomes that had to be reached and were not.
    pub missed: Vec<&'static str>,
}

impl Report {
    /// Whether nothing went wrong and nothing was missed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.missed.is_empty()
    }
}

impl Campaign {
    /// Runs the corpus, then new inputs.
    ///
    /// # Errors
    ///
    /// There is no corpus, or a finding cannot be written.
    pub fn run(&self, target: &dyn Target) -> anyhow::Result<Report> {
        watch_panics();
        // What a target keeps per thread goes away with a thread, but not with the main one.
        let run = || self.run_here(target);
        thread::scope(|scope| scope.spawn(run).join())
            .unwrap_or_else(|_| anyhow::bail!("the campaign panicked"))
    }

    fn run_here(&self, target: &dyn Target) -> anyhow::Result<Report> {
        let named = corpus::read(target.name())?;
        let begin = Instant::now();
        let tally = Tally::default();
        for (name, input) in &named {
            tally.count(attempt(target, input), || (name.clone(), input.clone()));
        }
        let corpus: Vec<Vec<u8>> = named.into_iter().map(|(_, input)| input).collect();
        let next = AtomicU64::new(self.first);
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| self.work(target, &corpus, &next, &tally));
            }
        });
        self.report(target, tally, begin.elapsed())
    }

    /// The input with this number.
    #[must_use]
    pub fn input(&self, target: &dyn Target, corpus: &[Vec<u8>], number: u64) -> Vec<u8> {
        let name = target.name().bytes().fold(0_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        // One step of the generator spreads seed and number over all its bits.
        let mut spread = Generator::new(self.seed ^ name.rotate_left(32));
        let mut random = Generator::new(spread.bits() ^ Generator::new(number).bits());
        target.make(corpus, &mut random)
    }

    fn work(&self, target: &dyn Target, corpus: &[Vec<u8>], next: &AtomicU64, tally: &Tally) {
        let end = self.first.saturating_add(self.inputs);
        loop {
            let begin = next.fetch_add(BLOCK, Ordering::Relaxed);
            if begin >= end || tally.is_full() {
                return;
            }
            // Threads meet once a block, not once an input.
            let mut seen: BTreeMap<Outcome, u64> = BTreeMap::new();
            for number in begin..end.min(begin + BLOCK) {
                let input = self.input(target, corpus, number);
                match attempt(target, &input) {
                    Ok(outcome) => *seen.entry(outcome).or_default() += 1,
                    Err(reason) => tally.count(Err(reason), || {
                        (format!("seed {} number {number}", self.seed), input)
                    }),
                }
            }
            tally.add(seen);
        }
    }

    fn report(&self, target: &dyn Target, tally: Tally, time: Duration) -> anyhow::Result<Report> {
        let outcomes = into_inner(tally.outcomes);
        let found = into_inner(tally.findings);
        let mut findings = Vec::new();
        for (at, (origin, input, reason)) in found.into_iter().enumerate() {
            let input = shrunk(target, input);
            fs::create_dir_all(&self.findings)?;
            let name = format!("{}-{}-{at}", target.name(), self.seed);
            let file = self.findings.join(name);
            fs::write(&file, &input).with_context(|| format!("cannot write {file:?}"))?;
            findings.push(Finding {
                origin,
                reason,
                file,
            });
        }
        let missed = target.expected().iter().copied();
        Ok(Report {
            target: target.name(),
            inputs: outcomes.values().sum::<u64>() + findings.len() as u64,
            time,
            missed: missed
                .filter(|outcome| !outcomes.contains_key(*outcome))
                .collect(),
            outcomes,
            findings,
        })
    }
}

/// Runs one input; a panic and too long a time are findings too.
///
/// # Errors
///
/// What is wrong.
pub fn attempt(target: &dyn Target, input: &[u8]) -> Result<Outcome, String> {
    let begin = Instant::now();
    QUIET.set(true);
    let ran = panic::catch_unwind(AssertUnwindSafe(|| target.run(input)));
    QUIET.set(false);
    let outcome = ran.unwrap_or_else(|_| Err(format!("panic: {}", LAST_PANIC.take())))?;
    let took = begin.elapsed();
    if took > INPUT_TIME_MAX {
        return Err(format!("it took {} ms", took.as_millis()));
    }
    Ok(outcome)
}

type Found = (String, Vec<u8>, String);

#[derive(Default)]
struct Tally {
    outcomes: Mutex<BTreeMap<Outcome, u64>>,
    findings: Mutex<Vec<Found>>,
}

impl Tally {
    fn count(&self, ran: Result<Outcome, String>, input: impl FnOnce() -> (String, Vec<u8>)) {
        match ran {
            Ok(outcome) => self.add(BTreeMap::from([(outcome, 1)])),
            Err(reason) => {
                let (origin, input) = input();
                let mut findings = lock(&self.findings);
                // One fault shows in many inputs; each text of one is enough.
                if findings.len() < FINDINGS_MAX {
                    findings.push((origin, input, reason));
                }
            }
        }
    }

    fn add(&self, seen: BTreeMap<Outcome, u64>) {
        let mut outcomes = lock(&self.outcomes);
        for (outcome, count) in seen {
            *outcomes.entry(outcome).or_default() += count;
        }
    }

    fn is_full(&self) -> bool {
        lock(&self.findings).len() >= FINDINGS_MAX
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Takes pieces away for as long as something is wrong, large ones first.
fn shrunk(target: &dyn Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut runs = 0;
    let mut piece = input.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < input.len() && runs < SHRINK_RUNS_MAX {
            runs += 1;
            let mut smaller = input.clone();
            smaller.drain(at..(at + piece).min(input.len()));
            if attempt(target, &smaller).is_err() {
                input = smaller;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    input
}

thread_local! {
    /// A panic of this thread is a finding, and need not be printed.
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what panics say; those of other threads are printed as ever.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                LAST_PANIC.set(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
}
