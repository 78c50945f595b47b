//! One call of the plugin as bytes that people can read: variables, network configuration, answer.
//!
//! ```text
//! CNI_COMMAND=ADD
//! CNI_IFNAME=eth0
//!
//! {"cniVersion":"1.1.0", ...}
//! %answer
//! {"outcome":"attached", ...}
//! ```
//!
//! In a variable's value `\n` is a line feed and `\\` a backslash. Any bytes are some call.

use fabric_core::testing::packets::Generator;
use fabric_proto::cni::{Response, decode_frame};

use super::{
    json::{self, Words},
    mutate,
};

/// Stands between configuration and answer.
const ANSWER_MARK: &[u8] = b"\n%answer\n";
/// No variable of a process: with this one stdin cannot be read.
const STDIN_BROKEN: &str = "STDIN_BROKEN";
/// One in so many calls has a configuration that is larger than the plugin reads.
const HUGE_ONE_IN: usize = 20_000;

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Variables in the order of their lines.
    pub environment: Vec<(String, Vec<u8>)>,
    /// The network configuration.
    pub stdin: Vec<u8>,
    /// JSON of the daemon's answer; what is no answer stands for a daemon that breaks off.
    pub answer: Vec<u8>,
}

impl Call {
    /// Reads a call.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut call = Self::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = position(rest, b"\n").unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            if line.is_empty() {
                break;
            }
            let equals = position(line, b"=").unwrap_or(line.len());
            let name = String::from_utf8_lossy(&line[..equals]).into_owned();
            let value = unescaped(line.get(equals + 1..).unwrap_or_default());
            call.environment.push((name, value));
        }
        match position(rest, ANSWER_MARK) {
            Some(end) => {
                call.stdin = rest[..end].to_vec();
                call.answer = rest[end + ANSWER_MARK.len()..].to_vec();
            }
            None => call.stdin = rest.to_vec(),
        }
        call
    }

    /// Writes a call.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, value) in &self.environment {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b'=');
            for &byte in value {
                match byte {
                    b'\n' => bytes.extend_from_slice(b"\\n"),
                    b'\\' => bytes.extend_from_slice(b"\\\\"),
                    _ => bytes.push(byte),
                }
            }
            bytes.push(b'\n');
        }
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.stdin);
        bytes.extend_from_slice(ANSWER_MARK);
        bytes.extend_from_slice(&self.answer);
        bytes
    }

    /// A variable's value; of two lines with one name the last counts.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        let mut found = self.environment.iter().rev();
        found
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_slice())
    }

    /// Whether stdin cannot be read.
    #[must_use]
    pub fn stdin_is_broken(&self) -> bool {
        self.variable(STDIN_BROKEN).is_some()
    }

    /// The daemon's answer, where it is one.
    #[must_use]
    pub fn response(&self) -> Option<Response> {
        decode_frame(&self.answer).ok()
    }

    /// A call like one of `corpus`, changed in up to eight places.
    #[must_use]
    pub fn make(corpus: &[Vec<u8>], random: &mut Generator) -> Self {
        let pick = |random: &mut Generator| Self::decode(&corpus[random.below(corpus.len())]);
        let mut call = pick(random);
        if random.one_in(4) {
            let other = pick(random);
            match random.below(3) {
                0 => call.environment = other.environment,
                1 => call.stdin = other.stdin,
                _ => call.answer = other.answer,
            }
        }
        let changes = [0, 1, 1, 1, 2, 2, 3, 4, 8][random.below(9)];
        for _ in 0..changes {
            match random.below(5) {
                0 => call.change_environment(random),
                1..=3 => json::once(random, &mut call.stdin, CONFIG_WORDS),
                _ => json::once(random, &mut call.answer, ANSWER_WORDS),
            }
        }
        if random.one_in(HUGE_ONE_IN) {
            let at = random.below(call.stdin.len() + 1);
            let blanks = vec![b' '; fabric_cni::STDIN_BYTES_MAX + 1];
            call.stdin.splice(at..at, blanks);
        }
        call
    }

    fn change_environment(&mut self, random: &mut Generator) {
        let at = random.below(self.environment.len() + 1);
        let Some((name, value)) = self.environment.get_mut(at) else {
            let name = NAMES[random.below(NAMES.len())].to_owned();
            let value = VALUES[random.below(VALUES.len())].as_bytes().to_vec();
            return self.environment.push((name, value));
        };
        match random.below(6) {
            0 => drop(self.environment.remove(at)),
            1 | 2 => *value = VALUES[random.below(VALUES.len())].as_bytes().to_vec(),
            3 => mutate::once(random, value),
            4 if name == "CNI_ARGS" => change_arguments(random, value),
            4 => *value = COMMANDS[random.below(COMMANDS.len())].as_bytes().to_vec(),
            _ => *name = NAMES[random.below(NAMES.len())].to_owned(),
        }
    }
}

/// Changes a list of `NAME=VALUE` pairs in one place.
fn change_arguments(random: &mut Generator, value: &mut Vec<u8>) {
    let mut pairs: Vec<Vec<u8>> = value
        .split(|byte| *byte == b';')
        .map(<[u8]>::to_vec)
        .collect();
    let at = random.below(pairs.len());
    match random.below(4) {
        0 => drop(pairs.remove(at)),
        1 => pairs.insert(at, pairs[at].clone()),
        2 => mutate::once(random, &mut pairs[at]),
        _ => {
            let pair = ARGUMENTS[random.below(ARGUMENTS.len())];
            pairs.insert(at, pair.as_bytes().to_vec());
        }
    }
    *value = pairs.join(&b';');
}

fn unescaped(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'\\' if rest.as_slice().first() == Some(&b'n') => {
                rest.next();
                b'\n'
            }
            b'\\' if rest.as_slice().first() == Some(&b'\\') => {
                rest.next();
                b'\\'
            }
            byte => byte,
        });
    }
    bytes
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

const COMMANDS: [&str; 10] = [
    "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add", "ADD ", "UPDATE", "",
];

const NAMES: [&str; 9] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
    "CNI_NETNS_OVERRIDE",
    "HOME",
    STDIN_BROKEN,
];

const VALUES: [&str; 26] = [
    "",
    "c1",
    "eth0",
    "eth0123456789012",
    "..",
    "a/b",
    "a:b",
    "a b",
    "lo",
    "all",
    "default",
    "eth%d",
    "-c1",
    "c1\u{e9}",
    "\n",
    "\0",
    "/run/netns/no-such-namespace",
    "/proc/self/ns/net",
    "/dev/null",
    "relative/path",
    "1",
    "true",
    "IgnoreUnknown=1;K8S_POD_NAME=p",
    "K8S_POD_NAME=p=q",
    "IP=10.244.1.5,fd00::5/64",
    ";;;=;",
];

const ARGUMENTS: [&str; 10] = [
    "IgnoreUnknown=1",
    "IgnoreUnknown=false",
    "UNKNOWN=x",
    "IP=10.244.1.9/24",
    "IP=10.244.1.9/33",
    "IP=no address",
    "K8S_POD_NAMESPACE=default",
    "K8S_POD_UID=",
    "=",
    "A=B=C",
];

/// What a network configuration is made of.
const CONFIG_WORDS: Words = Words {
    keys: &[
        "cniVersion",
        "name",
        "type",
        "socket",
        "stateDir",
        "prevResult",
        "runtimeConfig",
        "args",
        "cni",
        "ips",
        "portMappings",
        "bandwidth",
        "cni.dev/valid-attachments",
        "cni.dev/attachments",
        "containerID",
        "ifname",
        "interfaces",
        "interface",
        "sandbox",
        "mac",
        "mtu",
        "address",
        "gateway",
        "version",
        "routes",
        "dst",
        "gw",
        "dns",
        "code",
    ],
    values: &[
        "\"0.2.0\"",
        "\"0.3.1\"",
        "\"0.4.0\"",
        "\"1.0.0\"",
        "\"1.1.0\"",
        "\"1.2.0\"",
        "\"1.1\"",
        "\"fabric\"",
        "\"eth0\"",
        "\"../x\"",
        "\"relative\"",
        "\"10.244.1.5/32\"",
        "\"10.244.1.5/33\"",
        "\"fd00::5/128\"",
        "\"fd00::5\"",
        "\"0.0.0.0/0\"",
        "\"4\"",
        "\"/run/netns/p\"",
        "[{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\"}]",
        "[{\"hostPort\":0}]",
        "{\"ingressRate\":0}",
        "{\"ingressRate\":1000}",
        "[\"10.244.1.5\",\"fd00::5\"]",
        "[{\"containerID\":\"c1\",\"ifname\":\"eth0\"}]",
        "[{\"name\":\"eth0\",\"sandbox\":\"/run/netns/p\"}]",
        "{\"interfaces\":[{\"name\":\"lo\"}],\"ips\":[{\"address\":\"127.0.0.1/8\",\"interface\":0}]}",
        "{\"ips\":[{\"address\":\"10.244.1.5/32\",\"interface\":7}]}",
    ],
};

/// What the daemon's answer is made of.
const ANSWER_WORDS: Words = Words {
    keys: &[
        "outcome",
        "mtu",
        "addresses",
        "code",
        "msg",
        "details",
        "extra",
    ],
    values: &[
        "\"attached\"",
        "\"done\"",
        "\"failed\"",
        "\"other\"",
        "1500",
        "0",
        "4294967295",
        "5",
        "7",
        "8",
        "11",
        "50",
        "51",
        "100",
        "101",
        "[\"10.244.1.5\"]",
        "[\"10.244.1.5\",\"fd00::5\"]",
        "[\"::ffff:10.0.0.1\",\"255.255.255.255\",\"::\"]",
        "\"line\\nline\"",
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A call comes out as it went in, line feeds and bytes that are no text included.
    #[test]
    fn round_trip() {
        let call = Call {
            environment: vec![
                ("CNI_COMMAND".into(), b"ADD".to_vec()),
                ("CNI_ARGS".into(), b"a\nb\\n\xff".to_vec()),
            ],
            stdin: b"{\n\n}".to_vec(),
            answer: b"{}".to_vec(),
        };
        assert_eq!(Call::decode(&call.encode()), call);
    }
}
