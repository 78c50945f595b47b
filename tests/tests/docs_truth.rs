//! The documents name what the program has: every reason for a drop, every limit. They name nothing
//! else, and nothing in them waits to be filled in.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use fabric_core::verdict::DropReason;
use fabric_tests::stage::workspace;

/// Crates of the product: an operator can meet the limits of each.
const CRATES: [&str; 4] = ["fabric-core", "fabric-node", "fabric-cni", "proto"];

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

/// Every limit of the product, public or private, has a row in docs/limits.md that names its file.
#[test]
fn every_limit_is_listed() {
    let mut limits = BTreeSet::new();
    for name in CRATES {
        let mut files = Vec::new();
        collect(&workspace().join(name).join("src"), "rs", &mut files);
        for file in files.iter().filter(|file| !is_test(file)) {
            let text = fs::read_to_string(file).unwrap();
            let place = relative(file);
            let lines = product_lines(&text).filter(|line| is_limit(line, &place));
            let names = lines.filter_map(constant);
            limits.extend(names.map(|name| (name.to_owned(), place.clone())));
        }
    }
    assert!(limits.len() > 80, "only {limits:?} are found");
    let listed: BTreeSet<(String, String)> = rows_of_limits()
        .into_iter()
        .flat_map(|(name, files)| files.into_iter().map(move |file| (name.clone(), file)))
        .collect();
    let missing: Vec<_> = limits.difference(&listed).collect();
    assert!(missing.is_empty(), "docs/limits.md lacks {missing:?}");
}

/// Every constant in docs/limits.md exists, in each file that its row names.
#[test]
fn no_limit_is_made_up() {
    for (name, files) in rows_of_limits() {
        assert!(!files.is_empty(), "docs/limits.md: {name} is nowhere");
        for file in files {
            let text = document(&file);
            assert!(
                product_lines(&text)
                    .filter_map(constant)
                    .any(|it| it == name),
                "docs/limits.md: there is no {name} in {file}"
            );
        }
    }
}

/// The check for limits finds constants of any visibility, and nothing else.
#[test]
fn constants_are_recognised() {
    for line in [
        "const A_MAX: usize = 1;",
        "    const A_MAX: usize = 1;",
        "pub const A_MAX: u32 = 1;",
        "pub(super) const A_MAX: u32 = 1;",
        "pub(in crate::x) const A_MAX: u32 = 1;",
    ] {
        assert_eq!(constant(line), Some("A_MAX"), "{line}");
    }
    for line in [
        "// const A_MAX: u8 = 1;",
        "let x = A_MAX;",
        "const fn f() {}",
    ] {
        assert_eq!(constant(line), None, "{line}");
    }
}

/// No document has a place that waits to be filled in: comments are for that, and readers do not see
/// them.
#[test]
fn no_document_has_placeholders() {
    let mut files = Vec::new();
    collect(workspace(), "md", &mut files);
    assert!(files.len() > 10, "only {files:?} are found");
    for file in files {
        let name = relative(&file);
        let found = document(&name)
            .lines()
            .position(|line| line.contains("<!--"));
        assert!(found.is_none(), "{name} has <!-- after line {found:?}");
    }
}

/// The rows of docs/limits.md: a constant, and the files said to have it, by their paths in the
/// workspace. A path without a crate is one in the first crate of the heading that has such a file.
fn rows_of_limits() -> Vec<(String, Vec<String>)> {
    let text = document("docs/limits.md");
    let mut crates = Vec::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            crates = CRATES
                .into_iter()
                .filter(|name| has_crate(heading, name))
                .collect();
            if crates.is_empty() {
                crates.push("fabric-node");
            }
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, _, _, places, ..] = cells[..] else {
            continue;
        };
        let Some(name) = quoted(name) else {
            continue;
        };
        let file = |place: &str| {
            let place = quoted(place).unwrap_or_else(|| panic!("{line}: where is {place}?"));
            let inside = crates.iter().map(|name| format!("{name}/src/{place}"));
            [place.to_owned()]
                .into_iter()
                .chain(inside)
                .find(|path| workspace().join(path).is_file())
                .unwrap_or_else(|| panic!("docs/limits.md: {name}: there is no {place}"))
        };
        rows.push((name.to_owned(), places.split(", ").map(file).collect()));
    }
    assert!(rows.len() > 100, "only {} rows are found", rows.len());
    rows
}

fn has_crate(heading: &str, name: &str) -> bool {
    heading
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .any(|word| word == name)
}

fn quoted(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

fn document(name: &str) -> String {
    fs::read_to_string(workspace().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|found| found == word)
}

/// All files beneath `folder` whose names end on `extension`, but for those that a build made.
fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, extension, files);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
}

/// A file's path in the workspace.
fn relative(file: &Path) -> String {
    let path = file.strip_prefix(workspace()).unwrap();
    path.to_string_lossy().into_owned()
}

/// Whether a file holds nothing but tests.
fn is_test(file: &Path) -> bool {
    let name = relative(file);
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("_tests.rs")
}

/// All lines but those of the module of tests at the end.
fn product_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("mod tests {"))
}

/// Whether a line of the file `place` declares a limit: by its name, and on the way of a packet or of a
/// runtime's call also by its unit. What waits there or fills up does so by some time or size.
fn is_limit(line: &str, place: &str) -> bool {
    let Some(name) = constant(line) else {
        return false;
    };
    let on_the_way = ["dataplane/", "tunnel/", "sys/", "cni/"]
        .iter()
        .any(|folder| place.starts_with(&format!("fabric-node/src/{folder}")));
    let has_unit = name.ends_with("_BYTES") || name.ends_with("_NS") || line.contains(": Duration");
    name.ends_with("_MAX")
        || name.contains("_MAX_")
        || name.ends_with("_BYTES_MIN")
        || on_the_way && has_unit
}

/// The name of the constant that a line declares.
fn constant(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let (name, _) = line.strip_prefix("const ")?.split_once(':')?;
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(is_name).then_some(name)
}
