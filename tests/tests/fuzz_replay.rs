//! The corpus of every fuzz target and a fixed run of new inputs; `make fuzz` is the long form.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use fabric_core::testing::packets::Generator;
use fabric_tests::{
    fuzz::{
        Outcome, Target,
        campaign::{Campaign, Report},
        corpus, targets,
    },
    stage,
};

/// Inputs for the plugin; other targets get fewer, the slower they are.
const INPUTS: u64 = 200_000;
/// Calls of the real plugin: each kind of daemon that it may meet is among them.
const EXECS: u64 = 1_500;
const SEED: u64 = 5;

fn campaign(findings: &Path, inputs: u64) -> Campaign {
    Campaign {
        seed: SEED,
        first: 0,
        inputs,
        threads: std::thread::available_parallelism().unwrap().get(),
        findings: findings.to_owned(),
    }
}

fn run(target: &dyn Target, findings: &Path) -> Report {
    let inputs = INPUTS * target.per_mille() / 1_000;
    campaign(findings, inputs).run(target).unwrap()
}

/// Every input of the corpus and hundreds of thousands of new ones end in a valid answer, none in a
/// panic, and every outcome that there is to reach is reached.
#[test]
fn parsers_bear_everything() {
    // Kept where something is found, so that it can be looked at.
    let findings = tempfile::tempdir().unwrap().keep();
    let mut inputs = 0;
    let mut bad = Vec::new();
    for target in targets::all() {
        let report = run(target.as_ref(), &findings);
        inputs += report.inputs;
        if !report.is_clean() {
            bad.push(report);
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(inputs > INPUTS, "{inputs}");
    std::fs::remove_dir_all(findings).unwrap();
}

/// An input can be made again from seed and number.
#[test]
fn inputs_are_reproducible() {
    for target in targets::all() {
        let named = corpus::read(target.name()).unwrap();
        let corpus: Vec<Vec<u8>> = named.into_iter().map(|(_, input)| input).collect();
        let make = |number| campaign(Path::new(""), 0).input(target.as_ref(), &corpus, number);
        let mut different = 0;
        for number in 0..100 {
            assert_eq!(make(number), make(number), "{} {number}", target.name());
            different += usize::from(make(number) != make(number + 1));
        }
        assert!(different > 50, "{} {different}", target.name());
    }
}

/// Takes packets, and panics at a byte that only few of them have.
struct Brittle;

impl Target for Brittle {
    fn name(&self) -> &'static str {
        "packets"
    }

    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        let mut input = corpus[random.below(corpus.len())].clone();
        input.push(random.bits() as u8);
        input
    }

    fn run(&self, input: &[u8]) -> Result<Outcome, String> {
        assert!(!input.contains(&0xee), "a planted fault");
        Ok("borne".into())
    }

    fn expected(&self) -> &'static [&'static str] {
        &["borne", "never"]
    }
}

/// A panic is found, named, made as small as it can be and kept; an outcome that was not reached is
/// named.
#[test]
fn faults_are_found() {
    let findings = tempfile::tempdir().unwrap();
    let report = campaign(findings.path(), 5_000).run(&Brittle).unwrap();
    assert_eq!(report.missed, ["never"]);
    let found = report.findings.first().unwrap();
    assert!(found.reason.contains("a planted fault"), "{found:?}");
    assert!(found.origin.starts_with("seed 5 number"), "{found:?}");
    assert_eq!(std::fs::read(&found.file).unwrap(), [0xee]);
}

/// The real plugin ends every made-up call with valid words and in time, whatever the daemon does.
#[test]
fn the_plugin_bears_everything() {
    let findings = tempfile::tempdir().unwrap().keep();
    let plugin: PathBuf = stage::bin_dir().unwrap().join("fabric-cni");
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(["--target", "exec", "--execs", &EXECS.to_string()])
        .args(["--seed", &SEED.to_string(), "--plugin"])
        .arg(plugin)
        .arg("--findings")
        .arg(&findings)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains(&format!("exec: {EXECS} inputs")), "{text}");
    std::fs::remove_dir_all(findings).unwrap();
}
