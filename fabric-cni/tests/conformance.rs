//! The plugin binary as a runtime sees it: environment and stdin in, stdout, exit status and requests
//! to the daemon out. The tables in `rows` are ordered by the items of docs/cni.md, and the name of
//! each row begins with the item that it proves.

#![allow(clippy::unwrap_used)]

mod golden;
mod rows;
mod support;

use std::collections::BTreeSet;

/// Fewer rows cannot hold what the items ask for.
const ROWS_MIN: usize = 120;

/// There are at least 120 rows, no two of one name, and each is named after an item.
#[test]
fn there_are_many_rows() {
    let rows = rows::all();
    assert!(rows.len() >= ROWS_MIN, "only {} rows", rows.len());
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows.len(), "two rows have one name");
    for name in names {
        let (item, claim) = name.split_once(' ').unwrap();
        assert!(is_item(item) && !claim.is_empty(), "{name}");
    }
}

/// Each item that docs/cni.md calls proved by the plugin's tests has a row, and each row's item is
/// called so there.
#[test]
fn the_list_of_items_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cni.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut listed = BTreeSet::new();
    let mut claimed = BTreeSet::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", item, _, proved, ""] = cells[..]
            && is_item(item)
        {
            assert!(listed.insert(item), "docs/cni.md lists {item} twice");
            if proved.split(", ").any(|place| place == "plugin") {
                claimed.insert(item);
            }
        }
    }
    let wanted = (1..=36).map(|number| format!("C{number}"));
    let missing: Vec<String> = wanted.filter(|item| !listed.contains(&**item)).collect();
    assert!(missing.is_empty(), "docs/cni.md lacks {missing:?}");
    let rows = rows::all();
    let proved: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row.name.split(' ').next())
        .collect();
    assert_eq!(claimed, proved, "docs/cni.md (left) and the rows (right)");
}

/// `C7`, `G15c`.
fn is_item(word: &str) -> bool {
    let mut chars = word.chars();
    matches!(chars.next(), Some('C' | 'G'))
        && chars.next().is_some_and(|c| c.is_ascii_digit())
        && chars.all(|c| c.is_ascii_digit() || c.is_ascii_lowercase())
}
