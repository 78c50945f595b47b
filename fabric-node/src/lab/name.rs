//! Names: text in, checked names out; which namespace belongs to which lab. Touches nothing.
//!
//! Workers are `worker-a` .. `worker-z`, `worker-aa` ..; the pods of `worker-b` are `pod-b-1` and so
//! on. A namespace is named `fabric-LAB-MEMBER`, so that a lab can be found by its name alone.

use std::{fmt, str::FromStr};

/// Longest name of a lab (bytes): leaves room for the socket paths below the lab's folder, which
/// the kernel limits to 107 bytes (unix(7)).
pub const LAB_NAME_BYTES_MAX: usize = 32;
/// Most letters of a worker: one more and `worker-underlay` could be either of two labs' namespace.
const LETTERS_MAX: usize = 2;
/// Workers that can be named (26 + 26 * 26).
pub const WORKER_NAMES_MAX: usize = 702;
/// Member that holds the bridge between the workers.
pub const UNDERLAY: &str = "underlay";

/// Name of a lab: `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most [`LAB_NAME_BYTES_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let edge =
            |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = name.as_bytes();
        let inner = bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if inner && edge(bytes.first()) && edge(bytes.last()) && bytes.len() <= LAB_NAME_BYTES_MAX {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!(
                "{name:?} is not a lab name: use lower-case letters, digits and inner '-', at most \
                 {LAB_NAME_BYTES_MAX} bytes"
            ))
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the namespace of `member` (a worker, a pod or [`UNDERLAY`]).
    #[must_use]
    pub fn netns(&self, member: &str) -> String {
        format!("fabric-{}-{member}", self.0)
    }

    /// The member a namespace file belongs to, if it is one of this lab's.
    #[must_use]
    pub fn member_of<'a>(&self, netns: &'a str) -> Option<&'a str> {
        let member = netns
            .strip_prefix("fabric-")?
            .strip_prefix(&self.0)?
            .strip_prefix('-')?;
        is_member(member).then_some(member)
    }
}

/// Name of worker number `index`, counted from 0.
#[must_use]
pub fn worker(index: usize) -> String {
    format!("worker-{}", letters(index))
}

/// Name of pod number `number`, counted from 1, of worker number `index`, counted from 0.
#[must_use]
pub fn pod(index: usize, number: usize) -> String {
    format!("pod-{}-{number}", letters(index))
}

/// `a` .. `z`, `aa` .., as spreadsheets name columns.
fn letters(index: usize) -> String {
    let mut rest = index + 1;
    let mut reversed = Vec::new();
    while rest > 0 {
        rest -= 1;
        let letter = u8::try_from(rest % 26).unwrap_or(0);
        reversed.push(char::from(b'a' + letter));
        rest /= 26;
    }
    reversed.iter().rev().collect()
}

fn is_member(member: &str) -> bool {
    let letters = |text: &str| {
        (1..=LETTERS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase())
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    member == UNDERLAY
        || member.strip_prefix("worker-").is_some_and(letters)
        || member
            .strip_prefix("pod-")
            .and_then(|rest| rest.split_once('-'))
            .is_some_and(|(worker, number)| letters(worker) && digits(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Workers are lettered like spreadsheet columns, without a gap after `z`.
    #[test]
    fn workers_are_lettered_without_end() {
        assert_eq!(worker(0), "worker-a");
        assert_eq!(worker(25), "worker-z");
        assert_eq!(worker(26), "worker-aa");
        assert_eq!(worker(51), "worker-az");
        assert_eq!(worker(52), "worker-ba");
        assert_eq!(worker(WORKER_NAMES_MAX - 1), "worker-zz");
        assert_eq!(pod(27, 3), "pod-ab-3");
    }

    /// A namespace belongs to exactly the lab whose name it carries, also where one lab's name
    /// begins with another's.
    #[test]
    fn namespaces_belong_to_one_lab() {
        let names = [
            "a",
            "a-worker",
            "a-worker-a",
            "a-pod",
            "a-pod-a",
            "a-underlay",
            "lab",
        ];
        let labs: Vec<LabName> = names.iter().map(|n| n.parse().unwrap()).collect();
        for owner in &labs {
            for member in [worker(0), pod(0, 1), UNDERLAY.to_owned()] {
                let netns = owner.netns(&member);
                for lab in &labs {
                    let found = lab.member_of(&netns);
                    assert_eq!(
                        found,
                        (lab == owner).then_some(member.as_str()),
                        "{lab} {netns}"
                    );
                }
            }
        }
    }

    /// Names that could leave the lab's folder or overflow a socket path are refused.
    #[test]
    fn bad_lab_names_are_refused() {
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a/b",
            "..",
            "a b",
            &"a".repeat(LAB_NAME_BYTES_MAX + 1),
        ] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(LAB_NAME_BYTES_MAX).parse::<LabName>().is_ok());
    }
}
