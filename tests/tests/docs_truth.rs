//! The documents name what the program has: every reason for a drop, every limit.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use fabric_core::verdict::DropReason;
use fabric_tests::stage::workspace;

/// Crates whose limits an operator can meet.
const CRATES_WITH_LIMITS: [&str; 2] = ["fabric-core", "fabric-node"];

/// Every reason for which a packet can be dropped is explained in docs/operations.md.
#[test]
fn every_drop_reason_is_explained() {
    let text = document("docs/operations.md");
    let missing: Vec<&str> = DropReason::ALL
        .iter()
        .map(|reason| reason.name())
        .filter(|name| !has_word(&text, name))
        .collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
}

/// No document names a reason that the program does not have.
#[test]
fn no_drop_reason_is_made_up() {
    let text = document("docs/operations.md");
    let known: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    let rows = text.lines().filter_map(|line| {
        let cell = line.strip_prefix('|')?.split('|').next()?.trim();
        cell.strip_prefix('`')?.strip_suffix('`')
    });
    let is_reason =
        |cell: &str| cell.contains('_') && cell.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let made_up: Vec<&str> = rows
        .filter(|cell| is_reason(cell) && !cell.starts_with("FABRIC_") && !known.contains(cell))
        .collect();
    assert!(
        made_up.is_empty(),
        "docs/operations.md has {made_up:?}, the program does not"
    );
}

/// Every public limit is in docs/limits.md.
#[test]
fn every_limit_is_listed() {
    let text = document("docs/limits.md");
    let mut limits = Vec::new();
    for name in CRATES_WITH_LIMITS {
        collect(&workspace().join(name).join("src"), &mut limits);
    }
    assert!(limits.len() > 5, "only {limits:?} are found");
    limits.sort();
    limits.dedup();
    limits.retain(|limit| !has_word(&text, limit));
    assert!(limits.is_empty(), "docs/limits.md lacks {limits:?}");
}

fn document(name: &str) -> String {
    fs::read_to_string(workspace().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|found| found == word)
}

/// Names of constants `pub const ..._MAX` in all sources beneath `folder`.
fn collect(folder: &Path, limits: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, limits);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            limits.extend(text.lines().filter_map(|line| {
                let rest = line.trim_start().strip_prefix("pub const ")?;
                let name = rest.split(':').next()?;
                name.ends_with("_MAX").then(|| name.to_owned())
            }));
        }
    }
}
