//! Changes to JSON that mostly leave it JSON: members come, go, double and change their kind.
//!
//! Works on the text, because duplicate keys, numbers out of range and wrong escapes have no place in
//! a tree.

use std::ops::Range;

use fabric_core::testing::packets::Generator;

use super::mutate;

/// Keys and values that mean something to the parser at hand; the values are JSON.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Keys, without quotes.
    pub keys: &'static [&'static str],
    /// Whole values.
    pub values: &'static [&'static str],
}

/// Values that are hard for any parser.
const HARD_VALUES: [&str; 22] = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e400",
    "-0",
    "4294967296",
    "18446744073709551616",
    "99999999999999999999999999999999999999",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"a\\nb\"",
    "\"\u{1f600}\u{202e}\"",
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "{\"\":{}}",
    "[\"\",0,{}]",
];

/// Depths around the 128 that serde_json allows, and far beyond.
const DEPTHS: [usize; 8] = [1, 2, 60, 126, 127, 128, 129, 10_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    Comma,
    Colon,
    Text,
    Other,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
}

/// Changes `text` in one place.
pub fn once(random: &mut Generator, text: &mut Vec<u8>, words: Words) {
    let tokens = tokens(text);
    if tokens.is_empty() || random.one_in(16) {
        return mutate::once(random, text);
    }
    let at = random.below(tokens.len());
    match random.below(9) {
        0 | 1 => {
            if let Some(range) = value_near(&tokens, at) {
                let value = value(random, words);
                text.splice(range, value);
            }
        }
        2 => {
            if let Some(range) = key_near(&tokens, at) {
                text.splice(range, quoted(words.keys[random.below(words.keys.len())]));
            }
        }
        3 => drop(member_near(&tokens, at).map(|range| text.drain(range))),
        4 => {
            if let Some(range) = member_near(&tokens, at) {
                let copy = text[range.clone()].to_vec();
                let comma = if copy.ends_with(b",") { &b""[..] } else { b"," };
                text.splice(range.start..range.start, [copy.as_slice(), comma].concat());
            }
        }
        5 => insert_member(random, text, &tokens, at, words),
        6 => {
            if let Some(range) = value_near(&tokens, at) {
                nest(random, text, range);
            }
        }
        7 => {
            let (one, other) = (
                value_near(&tokens, at),
                value_near(&tokens, random.below(tokens.len())),
            );
            if let (Some(one), Some(other)) = (one, other) {
                let copy = text[other].to_vec();
                text.splice(one, copy);
            }
        }
        _ => {
            if let Some(token) = tokens[at..].iter().find(|token| token.kind == Kind::Text) {
                inside(random, text, token.range.clone());
            }
        }
    }
}

fn value(random: &mut Generator, words: Words) -> Vec<u8> {
    let values = if random.one_in(3) {
        &HARD_VALUES
    } else {
        words.values
    };
    values[random.below(values.len())].as_bytes().to_vec()
}

fn quoted(key: &str) -> Vec<u8> {
    format!("\"{key}\"").into_bytes()
}

fn insert_member(
    random: &mut Generator,
    text: &mut Vec<u8>,
    tokens: &[Token],
    at: usize,
    words: Words,
) {
    let Some(place) = tokens[at..]
        .iter()
        .chain(tokens)
        .position(|token| token.kind == Kind::Open)
    else {
        return;
    };
    let opening = if at + place < tokens.len() {
        &tokens[at + place]
    } else {
        &tokens[at + place - tokens.len()]
    };
    let mut member = Vec::new();
    if text[opening.range.start] == b'{' {
        member = quoted(words.keys[random.below(words.keys.len())]);
        member.push(b':');
    }
    member.extend(value(random, words));
    let next = text[opening.range.end..]
        .iter()
        .find(|byte| !byte.is_ascii_whitespace());
    if !matches!(next, Some(b'}' | b']')) {
        member.push(b',');
    }
    text.splice(opening.range.end..opening.range.end, member);
}

/// Puts a value inside of many lists or objects, closed or, now and then, left open.
fn nest(random: &mut Generator, text: &mut Vec<u8>, range: Range<usize>) {
    let mut depth = DEPTHS[random.below(DEPTHS.len())];
    // Long inputs cost time and say no more than short ones.
    if depth > 1_000 && !random.one_in(50) {
        depth = 128;
    }
    let (opening, closing) = if random.one_in(2) {
        ("[", "]")
    } else {
        ("{\"a\":", "}")
    };
    let closings = if random.one_in(10) { 0 } else { depth };
    let inner = text[range.clone()].to_vec();
    let nested = [
        opening.repeat(depth).as_bytes(),
        &inner,
        closing.repeat(closings).as_bytes(),
    ]
    .concat();
    text.splice(range, nested);
}

/// Changes the inside of a text: broken escapes, broken UTF-8, great length, any byte.
fn inside(random: &mut Generator, text: &mut Vec<u8>, range: Range<usize>) {
    let begin = range.start + 1;
    let end = range.end.saturating_sub(1).max(begin).min(text.len());
    let begin = begin.min(end);
    let at = begin + random.below(end - begin + 1);
    let piece: Vec<u8> = match random.below(8) {
        0 => b"\xff\xfe".to_vec(),
        1 => b"\xc0\xaf".to_vec(),
        2 => b"\\u12".to_vec(),
        3 => b"\\udfff".to_vec(),
        4 => b"\x01".to_vec(),
        5 => vec![b'a'; [15, 16, 255, 1_024, 1_025, 5_000][random.below(6)]],
        6 => b"/../".to_vec(),
        _ => {
            let mut inner = text[begin..end].to_vec();
            mutate::once(random, &mut inner);
            text.splice(begin..end, inner);
            return;
        }
    };
    text.splice(at..at, piece);
}

fn tokens(text: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let begin = at;
        at += 1;
        let kind = match byte {
            b'{' | b'[' => Kind::Open,
            b'}' | b']' => Kind::Close,
            b',' => Kind::Comma,
            b':' => Kind::Colon,
            b'"' => {
                while let Some(&inner) = text.get(at) {
                    at += if inner == b'\\' { 2 } else { 1 };
                    if inner == b'"' {
                        break;
                    }
                }
                at = at.min(text.len());
                Kind::Text
            }
            byte if byte.is_ascii_whitespace() => continue,
            _ => {
                let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                while text.get(at).is_some_and(is_part) {
                    at += 1;
                }
                Kind::Other
            }
        };
        tokens.push(Token {
            kind,
            range: begin..at,
        });
    }
    tokens
}

/// The bytes of the value that begins at a token, with all that it holds.
fn whole(tokens: &[Token], at: usize) -> Range<usize> {
    let begin = tokens[at].range.start;
    let mut depth = 0_usize;
    for token in &tokens[at..] {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Comma | Kind::Colon | Kind::Text | Kind::Other => {}
        }
        if depth == 0 {
            return begin..token.range.end;
        }
    }
    begin..tokens.last().map_or(begin, |last| last.range.end)
}

fn is_key(tokens: &[Token], at: usize) -> bool {
    tokens[at].kind == Kind::Text
        && tokens
            .get(at + 1)
            .is_some_and(|next| next.kind == Kind::Colon)
}

fn value_near(tokens: &[Token], at: usize) -> Option<Range<usize>> {
    (at..tokens.len())
        .find(|&at| {
            matches!(tokens[at].kind, Kind::Open | Kind::Text | Kind::Other) && !is_key(tokens, at)
        })
        .map(|at| whole(tokens, at))
}

fn key_near(tokens: &[Token], at: usize) -> Option<Range<usize>> {
    (at..tokens.len())
        .find(|&at| is_key(tokens, at))
        .map(|at| tokens[at].range.clone())
}

/// A key with its value and the comma behind it.
fn member_near(tokens: &[Token], at: usize) -> Option<Range<usize>> {
    let at = (at..tokens.len()).find(|&at| is_key(tokens, at))?;
    let begin = tokens[at].range.start;
    let end = match tokens.get(at + 2) {
        Some(_) => whole(tokens, at + 2).end,
        None => tokens[at].range.end,
    };
    let comma = tokens
        .iter()
        .find(|token| token.range.start >= end)
        .filter(|token| token.kind == Kind::Comma);
    Some(begin..comma.map_or(end, |comma| comma.range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words = Words {
        keys: &["a", "b"],
        values: &["1", "\"x\""],
    };

    /// Half of what one change makes of JSON is JSON again, and the other half is not all of it.
    #[test]
    fn mostly_json() {
        let mut random = Generator::new(1);
        let mut good = 0;
        for _ in 0..4_000 {
            let mut text = br#"{"a":{"b":[1,"x",{}]},"c":true,"d":"text"}"#.to_vec();
            once(&mut random, &mut text, WORDS);
            good += usize::from(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
        }
        assert!((2_000..3_900).contains(&good), "{good} of 4000");
    }
}
