//! Where in a TOML file something is wrong: file, line, column and key.
//!
//! Comes in: a file's text, and a byte offset or key in it. Goes out: a [`Misplaced`] that an
//! operator can act on. Never done here: reading files.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// One thing wrong in one TOML file; prints as `file:line:column: key: problem`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Dotted key, without positions in arrays; none where the file is no TOML at all.
    pub key: Option<String>,
    /// What is wrong and what is expected.
    pub problem: String,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            column,
            key,
            problem,
        } = self;
        write!(f, "{}:{line}:{column}: ", path.display())?;
        if let Some(key) = key {
            write!(f, "{key}: ")?;
        }
        f.write_str(problem)
    }
}

impl std::error::Error for Misplaced {}

/// A TOML file that was read.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
}

impl Source<'_> {
    /// Reads `T` from the text.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Misplaced> {
        toml::from_str(self.text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let problem = error.message().trim().replace('\n', ", ");
            self.at(offset, problem)
        })
    }

    /// `problem` at a byte offset, as spans of values have it.
    pub(crate) fn at(&self, offset: usize, problem: String) -> Misplaced {
        let key = DeTable::parse(self.text).ok().and_then(|document| {
            let mut path = Vec::new();
            key_in_table(document.get_ref(), offset, &mut path).then(|| path.join("."))
        });
        let (line, column) = line_and_column(self.text, offset);
        Misplaced {
            path: self.path.to_owned(),
            line,
            column,
            key,
            problem,
        }
    }

    /// Whether the file gives a dotted key.
    pub(crate) fn has(&self, key: &str) -> bool {
        DeTable::parse(self.text).is_ok_and(|document| offset_of(document.get_ref(), key).is_some())
    }

    /// `problem` with the value of a dotted key; if the key is not there, at the top of the file.
    pub(crate) fn at_key(&self, key: &str, problem: String) -> Misplaced {
        let offset = DeTable::parse(self.text)
            .ok()
            .and_then(|document| offset_of(document.get_ref(), key));
        let (line, column) = line_and_column(self.text, offset.unwrap_or(0));
        Misplaced {
            path: self.path.to_owned(),
            line,
            column,
            key: Some(key.to_owned()),
            problem,
        }
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before
        .get(line_start..)
        .map_or(0, |line| line.chars().count())
        + 1;
    (line, column)
}

/// Leaves in `path` the keys down to the innermost key or value at `offset`. A table's own span may
/// be its header alone, so its content is looked at in any case.
fn key_in_table(table: &DeTable<'_>, offset: usize, path: &mut Vec<String>) -> bool {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        if holds(&key.span(), offset)
            || key_in_value(value.get_ref(), offset, path)
            || holds(&value.span(), offset)
        {
            return true;
        }
        path.pop();
    }
    false
}

fn key_in_value(value: &DeValue<'_>, offset: usize, path: &mut Vec<String>) -> bool {
    if let Some(table) = value.as_table() {
        return key_in_table(table, offset, path);
    }
    value.as_array().is_some_and(|array| {
        array
            .iter()
            .any(|item| key_in_value(item.get_ref(), offset, path) || holds(&item.span(), offset))
    })
}

fn holds(span: &Range<usize>, offset: usize) -> bool {
    span.contains(&offset)
}

fn offset_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (first, rest) = key
        .split_once('.')
        .map_or((key, None), |(first, rest)| (first, Some(rest)));
    let (_, value) = table.iter().find(|(name, _)| name.get_ref() == first)?;
    match rest {
        None => Some(value.span().start),
        Some(rest) => offset_of(value.get_ref().as_table()?, rest),
    }
}
