//! A page of the documentation as something to do: the files it shows are written, the commands are run.
//!
//! Comes in: Markdown. Goes out: [`Section`]s with [`Step`]s in their order. A block of `console` has commands, which
//! begin with `# `, and beneath each what it prints; a line that ends in a backslash goes on. A block of another kind
//! is a file if the words before it end with its name in backticks and a colon. Never done here: running anything.

use anyhow::{Context as _, ensure};

/// A part of the page, with what is done in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// In their order.
    pub steps: Vec<Step>,
}

/// What a reader does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes a file.
    Write {
        /// Its name.
        file: String,
        /// All of it.
        content: String,
    },
    /// Runs a command.
    Run {
        /// As it is typed.
        command: String,
        /// Lines that it prints, among others.
        prints: Vec<String>,
    },
}

/// The sections of a page that have steps, by its headings of the second level.
///
/// # Errors
///
/// A block has no end, or one of `console` begins with something that is no command.
pub fn sections(text: &str) -> anyhow::Result<Vec<Section>> {
    let mut found = vec![Section {
        title: String::new(),
        steps: Vec::new(),
    }];
    // The last line with words: it may name a file.
    let mut before = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim_end();
        if let Some(title) = line.strip_prefix("## ") {
            found.push(Section {
                title: title.to_owned(),
                steps: Vec::new(),
            });
        } else if let Some(kind) = line.trim_start().strip_prefix("```") {
            let block = block(&mut lines).with_context(|| format!("after {before:?}"))?;
            let section = found.last_mut().context("there is a first section")?;
            if kind == "console" {
                section.steps.extend(commands(&block)?);
            } else if let Some(file) = file_name(before) {
                section.steps.push(Step::Write {
                    file: file.to_owned(),
                    content: block.join("\n") + "\n",
                });
            }
        } else if !line.is_empty() {
            before = line;
        }
    }
    found.retain(|section| !section.steps.is_empty());
    Ok(found)
}

/// The lines until the end of a block.
fn block<'a>(lines: &mut impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<&'a str>> {
    let mut found = Vec::new();
    for line in lines {
        if line.trim() == "```" {
            return Ok(found);
        }
        found.push(line);
    }
    anyhow::bail!("a block does not end")
}

fn commands(block: &[&str]) -> anyhow::Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for line in block {
        if let Some(command) = line.strip_prefix("# ") {
            steps.push(Step::Run {
                command: command.to_owned(),
                prints: Vec::new(),
            });
            continue;
        }
        let last = steps.last_mut();
        ensure!(
            last.is_some(),
            "a block begins with {line:?}, not with a command"
        );
        if let Some(Step::Run { command, prints }) = last {
            if command.ends_with('\\') && prints.is_empty() {
                command.push('\n');
                command.push_str(line);
            } else {
                prints.push((*line).to_owned());
            }
        }
    }
    Ok(steps)
}

/// The file that a line ending in "`NAME`:" names.
fn file_name(line: &str) -> Option<&str> {
    let (rest, name) = line.strip_suffix("`:")?.rsplit_once('`')?;
    let is_open = rest.matches('`').count() % 2 == 0;
    (is_open && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Files, commands and what these print are told apart; other blocks are none of them.
    #[test]
    fn a_page_is_taken_apart() {
        let page = "# Page\n## One\nIn `x`, `/a/b.toml`:\n\n```toml\nx = 1\n\ny = 2\n```\n\n\
                    ```console\n# one \\\n  more\nout\n# two\n```\nSo:\n```json\n{}\n```\n## Empty\n";
        let run = |command: &str, prints: &[&str]| Step::Run {
            command: command.into(),
            prints: prints.iter().map(|&line| line.into()).collect(),
        };
        let expected = Section {
            title: "One".into(),
            steps: vec![
                Step::Write {
                    file: "/a/b.toml".into(),
                    content: "x = 1\n\ny = 2\n".into(),
                },
                run("one \\\n  more", &["out"]),
                run("two", &[]),
            ],
        };
        assert_eq!(sections(page).unwrap(), [expected]);
    }

    /// What cannot be done is no page: output without a command, a block without an end.
    #[test]
    fn broken_pages_are_refused() {
        assert!(sections("```console\nout\n```\n").is_err());
        assert!(sections("```console\n# one\n").is_err());
    }
}
