//! How everything is printed: data on stdout, talk on stderr.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use fabric_proto::admin::Document;
use serde::Serialize;

use super::exit::Failure;

/// What a missing value looks like.
pub const NONE: &str = "<none>";
/// Spaces between two columns.
const COLUMN_GAP: u16 = 3;

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For people with wide screens.
    Wide,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// What can be shown to people.
pub trait Show {
    /// As a table or another text, with a line end; `wide` shows more columns.
    fn show(&self, wide: bool) -> String;
}

/// Where a command's words go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// How data is printed.
    pub format: Format,
    /// Whether talk is left out.
    pub quiet: bool,
}

impl Output {
    /// Prints a document.
    ///
    /// # Errors
    ///
    /// stdout cannot be written, other than because its reader has gone.
    pub fn document<T: Serialize + Show>(self, document: &Document<T>) -> Result<(), Failure> {
        self.data(&render(document, self.format)?)
    }

    /// Prints data.
    ///
    /// # Errors
    ///
    /// stdout cannot be written, other than because its reader has gone.
    pub fn data(self, text: &str) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            // `fabric routes | head` has seen enough; that is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }

    /// Says something on stderr, unless quiet.
    pub fn say(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// Says what went wrong on stderr, quiet or not.
    pub fn error(self, failure: &Failure) {
        let red = style(AnsiColor::Red);
        // A failure may quote the end of a log: its lines stay lines.
        let text = failure.to_string();
        let lines: Vec<String> = text.lines().map(printable).collect();
        let _ = writeln!(
            anstream::stderr(),
            "{red}error:{red:#} {}",
            lines.join("\n")
        );
    }
}

/// Turns a document into text.
///
/// # Errors
///
/// It cannot be expressed in JSON or YAML.
pub fn render<T: Serialize + Show>(
    document: &Document<T>,
    format: Format,
) -> Result<String, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Other(anyhow::anyhow!("cannot print: {e}"));
    match format {
        Format::Table => Ok(document.content.show(false)),
        Format::Wide => Ok(document.content.show(true)),
        Format::Json => serde_json::to_string_pretty(document)
            .map(|s| s + "\n")
            .map_err(|e| failed(&e)),
        Format::Yaml => serde_saphyr::to_string(document).map_err(|e| failed(&e)),
    }
}

/// A table as kubectl prints them: no lines, upper-case headers, columns padded by spaces.
#[must_use]
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, COLUMN_GAP));
    }
    table.trim_fmt() + "\n"
}

/// A bold style of one colour; printed as nothing where colours are not wanted.
#[must_use]
pub fn style(color: AnsiColor) -> Style {
    color.on_default().bold()
}

/// A value, or `<none>`.
#[must_use]
pub fn or_none(text: &str) -> String {
    if text.is_empty() {
        NONE.to_owned()
    } else {
        text.to_owned()
    }
}

/// Several values in one cell, or `<none>`.
#[must_use]
pub fn list(values: &[String]) -> String {
    or_none(&values.join(","))
}

/// A duration as kubectl writes it: `5s`, `2m30s`, `45m`, `3h20m`, `26h`, `3d4h`, `60d`.
#[must_use]
pub fn age(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| {
        let (whole, rest) = (seconds / big, seconds % big / small);
        if rest == 0 {
            format!("{whole}{big_unit}")
        } else {
            format!("{whole}{big_unit}{rest}{small_unit}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(MINUTE, "m", 1, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => pair(HOUR, "h", MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => pair(DAY, "d", HOUR, "h"),
        _ => format!("{}d", seconds / DAY),
    }
}

/// Text without control characters: some of it was written by peers, and a terminal obeys it.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ages are short and lose precision as they grow.
    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (2700, "45m"),
            (12_000, "3h20m"),
            (93_600, "26h"),
            (273_600, "3d4h"),
            (5_184_000, "60d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    /// A table has no lines and no trailing spaces, and cannot command the terminal.
    #[test]
    fn tables_are_plain() {
        let rows = [
            vec!["a".to_owned(), "\u{1b}[31mx\n".to_owned()],
            vec!["long".to_owned(), or_none("")],
        ];
        assert_eq!(
            table(&["NAME", "VALUE"], rows),
            "NAME   VALUE\na      \u{fffd}[31mx\u{fffd}\nlong   <none>\n"
        );
    }
}
