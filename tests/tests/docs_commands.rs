//! Commands of `fabric` in the documents are understood by the program, and the options that a document
//! lists are those that there are, with their defaults.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs};

use clap::{CommandFactory as _, Parser as _};
use fabric_node::cli::Cli;
use fabric_tests::stage::workspace;

/// Every command line of `fabric` that the README or docs/operations.md shows is one that it takes.
#[test]
fn shown_commands_are_understood() {
    let mut count = 0;
    for name in ["README.md", "docs/operations.md"] {
        for line in document(name).lines() {
            let line = line.trim_start();
            let Some(command) = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")) else {
                continue;
            };
            if !command.starts_with("fabric ") {
                continue;
            }
            // What follows a wide gap is a remark, and pipes and the like are the shell's.
            let command = command.split("  #").next().unwrap();
            let words = command
                .split_whitespace()
                .take_while(|word| !["|", "&", ">"].contains(word))
                // A variable at the beginning of a word stands for a path.
                .map(|word| word.replacen('$', "/", 1));
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{name}: {line}: {}", parsed.unwrap_err());
            count += 1;
        }
    }
    assert!(count > 20, "only {count} commands are found");
}

/// The table of options of `install-cni` in docs/operations.md has each of them, and no other, with its
/// default.
#[test]
fn options_of_the_installer() {
    let text = document("docs/operations.md");
    let section = text.split("### Install\n").nth(1).unwrap();
    let section = section.split("\n### ").next().unwrap();
    let rows: BTreeMap<String, String> = section
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, option, default, ..] = cells[..] else {
                return None;
            };
            let option = option.strip_prefix("`--")?.strip_suffix('`')?;
            Some((option.to_owned(), default.trim_matches('`').to_owned()))
        })
        .collect();
    let command = Cli::command();
    let install = command.find_subcommand("install-cni").unwrap();
    let there: BTreeMap<String, String> = install
        .get_arguments()
        .filter_map(|argument| {
            let defaults = argument.get_default_values();
            let default = defaults.first().map(|default| default.to_string_lossy());
            // A flag has one as well, for the case that it is not said.
            let default = default.filter(|_| argument.get_action().takes_values());
            let long = argument.get_long()?;
            Some((long.to_owned(), default.unwrap_or_default().into_owned()))
        })
        .collect();
    assert_eq!(
        rows.keys().collect::<Vec<_>>(),
        there.keys().collect::<Vec<_>>()
    );
    for (option, default) in there.iter().filter(|(_, default)| !default.is_empty()) {
        assert_eq!(&rows[option], default, "--{option}");
    }
}

fn document(name: &str) -> String {
    fs::read_to_string(workspace().join(name)).unwrap()
}
