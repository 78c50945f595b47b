//! What the architecture forbids is forbidden here: dependencies one way, unsafe code in one place,
//! small files, nothing left undone.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use fabric_tests::stage::workspace;

/// Lines of code beyond which a file must say why it is that long.
const CODE_LINES_MAX: usize = 600;
/// How near the top it must say so (lines).
const REASON_LINES_MAX: usize = 40;
/// The only folder with unsafe code.
const UNSAFE_FOLDER: &str = "fabric-node/src/sys/";
/// What fabric-core must be able to do without: I/O, clocks, threads.
const NOT_IN_CORE: [&str; 10] = [
    "tokio",
    "quinn",
    "quinn-proto",
    "quinn-udp",
    "rustix",
    "libc",
    "nix",
    "mio",
    "rtnetlink",
    "tun",
];

/// What fabric-core may use of the standard library, and the modules out of which it may use only a
/// part. All others have I/O, clocks, threads or the process in them, or have not been looked at.
const STD_IN_CORE: [&str; 18] = [
    "std::array::",
    "std::borrow::",
    "std::cmp::",
    "std::collections::",
    "std::error::Error",
    "std::fmt::",
    "std::hash::",
    "std::iter::",
    "std::mem::",
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::num::",
    "std::ops::",
    "std::sync::Arc",
    // Numbers that threads share without waiting for each other.
    "std::sync::atomic::",
    "std::time::Duration",
    // Those who call say what time it is: there is a type for it here, but no clock.
    "std::time::Instant",
];
/// Words that mean I/O or a clock, however they came into scope.
const WORDS_NOT_IN_CORE: [&str; 10] = [
    "now",
    "elapsed",
    "SystemTime",
    "print",
    "println",
    "eprint",
    "eprintln",
    "dbg",
    "asm",
    "extern",
];

/// Dependencies between our crates go one way: the plugin knows only the protocol, the node knows the
/// core, the core knows nobody, and only tests and benches know the node.
#[test]
fn dependencies_go_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("fabric-core", &[][..]),
        ("fabric-proto", &[]),
        ("fabric-cni", &["fabric-proto"]),
        ("fabric-node", &["fabric-core", "fabric-proto"]),
        (
            "fabric-benches",
            &["fabric-core", "fabric-node", "fabric-proto"],
        ),
        (
            "fabric-tests",
            &["fabric-cni", "fabric-core", "fabric-node", "fabric-proto"],
        ),
    ]);
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    assert!(ours.contains("fabric-node") && ours.contains("fabric-core"));
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let allowed = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} has no place in the layering: give it one here"));
        for dependency in &package.dependencies {
            // Tests of a crate may use the crate itself with other features.
            let is_own = dependency.name == name && dependency.kind == DependencyKind::Development;
            assert!(
                !ours.contains(&dependency.name)
                    || allowed.contains(&dependency.name.as_str())
                    || is_own,
                "{name} depends on {}",
                dependency.name
            );
        }
    }
}

/// The core has no I/O, runtime or operating system beneath it, not even through others.
#[test]
fn the_core_stands_alone() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().unwrap();
    let name_of: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package.name.as_str()))
        .collect();
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let core = metadata
        .packages
        .iter()
        .find(|package| package.name.as_str() == "fabric-core")
        .unwrap();
    // What only the feature for tests of others needs is not part of the product.
    let testing: BTreeSet<&str> = core
        .dependencies
        .iter()
        .filter(|dependency| dependency.optional)
        .map(|dependency| dependency.name.as_str())
        .collect();
    let mut waiting = vec![&core.id];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in &nodes[id].deps {
            let is_normal = dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal);
            let is_for_tests = id == &core.id && testing.contains(name_of[&dependency.pkg]);
            if is_normal && !is_for_tests {
                waiting.push(&dependency.pkg);
            }
        }
    }
    let beneath: BTreeSet<&str> = seen.iter().map(|id| name_of[*id]).collect();
    for forbidden in NOT_IN_CORE {
        assert!(
            !beneath.contains(forbidden),
            "fabric-core stands on {beneath:?}"
        );
    }
}

/// The core's own code has no I/O and asks no clock either, not even what only tests of others use.
#[test]
fn the_core_has_no_io_and_no_clock() {
    let mut used = BTreeSet::new();
    for (name, text) in sources() {
        if !name.starts_with("fabric-core/src/") || is_test(&name) {
            continue;
        }
        let found = impure(&text);
        assert!(found.is_empty(), "{name} uses {found:?}");
        used.extend(std_paths(&code_of(&text)));
    }
    for known in ["std::net::IpAddr", "std::time::Instant", "std::fmt"] {
        assert!(used.contains(known), "{known} is not found among {used:?}");
    }
}

/// The check for I/O and clocks finds them in paths, groups, nested groups and behind other names, and
/// is not led astray by comments, texts and tests.
#[test]
fn io_and_clocks_are_recognised() {
    for text in [
        "use std::fs;",
        "use std::fs::File;",
        "use ::std::env;",
        "use std::{cmp::Reverse, io::{self, Read}};",
        "use std::{\n    fmt,\n    net::{IpAddr, TcpStream},\n};",
        "use std::net::UdpSocket as Pipe;",
        "use std::net::*;",
        "use std::*;",
        "use std as s;",
        "use std::{self as s};",
        "use std::{net as n};",
        "use std::time;",
        "fn f() { std::process::exit(1) }",
        "fn f() { std::thread::spawn(g); }",
        "let t = Instant::now();",
        "let t = Clock :: now();",
        "let t = SystemTime::UNIX_EPOCH;",
        "let t = start.elapsed();",
        "println!(\"x\");",
    ] {
        assert!(!impure(text).is_empty(), "{text}");
    }
    for text in [
        "use std::{\n    fmt::{self, Debug},\n    net::{IpAddr, Ipv4Addr},\n    time::{Duration, Instant},\n};",
        "fn f(now: Instant) -> std::time::Duration {}",
        "/// As Instant::now() or std::fs.",
        "let text = \"std::fs::read, Instant::now()\";",
        "use std::mem;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}",
        "let x = std::mem::take(&mut y);",
    ] {
        assert_eq!(impure(text), Vec::<String>::new(), "{text}");
    }
}

/// Unsafe code is in one folder.
#[test]
fn unsafe_code_is_in_one_place() {
    let mut inside = 0;
    for (name, text) in sources() {
        let found: Vec<usize> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| is_unsafe(line))
            .map(|(number, _)| number + 1)
            .collect();
        if name.starts_with(UNSAFE_FOLDER) {
            inside += found.len();
        } else {
            assert!(
                found.is_empty(),
                "{name} has unsafe code in lines {found:?}"
            );
        }
    }
    assert!(
        inside > 0,
        "no unsafe code is found where it is known to be"
    );
}

/// The check for unsafe code finds blocks, functions, impls, traits and extern blocks, and is not led
/// astray by comments, texts and lints.
#[test]
fn unsafe_code_is_recognised() {
    for line in [
        "    let x = unsafe { f() };",
        "pub unsafe fn f() {}",
        "unsafe impl Send for X {}",
        "unsafe extern {",
        "#[unsafe(no_mangle)]",
    ] {
        assert!(is_unsafe(line), "{line}");
    }
    for line in [
        "// unsafe { }",
        "/// unsafe fn",
        "#![forbid(unsafe_code)]",
        "    \"unsafe { \"",
        "unshare_unsafe(flags)",
    ] {
        assert!(!is_unsafe(line), "{line}");
    }
}

/// No file has more code than one can hold in mind, or it says near its top why it does.
#[test]
fn files_are_small() {
    for (name, text) in sources() {
        if is_test(&name) {
            continue;
        }
        let lines = code_lines(&text);
        let explained = text
            .lines()
            .take(REASON_LINES_MAX)
            .any(|line| line.trim_start().starts_with("// Length: "));
        assert!(
            lines <= CODE_LINES_MAX || explained,
            "{name} has {lines} lines of code: split it, or say why not in a line `// Length: REASON` \
             near the top"
        );
    }
}

/// No test is left out and nothing is left undone.
#[test]
fn nothing_is_left_undone() {
    // In pieces, or this file would find itself.
    let forbidden = [
        concat!("#[", "ignore"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    for (name, text) in sources() {
        for word in forbidden {
            let found = text.lines().position(|line| line.contains(word));
            assert!(found.is_none(), "{name} has {word} after line {found:?}");
        }
    }
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .current_dir(workspace())
        .other_options(["--offline".to_owned(), "--locked".to_owned()])
        .exec()
        .unwrap()
}

/// All Rust sources of the workspace, by their paths in it.
fn sources() -> Vec<(String, String)> {
    let root = workspace();
    let mut files = Vec::new();
    for package in metadata().workspace_packages() {
        let folder = package.manifest_path.parent().unwrap();
        collect(folder.as_std_path(), &mut files);
    }
    assert!(files.len() > 50, "only {} sources are found", files.len());
    let named = |path: PathBuf| {
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    files.into_iter().map(named).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Whether a file holds nothing but tests.
fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("_tests.rs")
}

/// Lines that are neither empty nor comments, without the module of tests at the end.
fn code_lines(text: &str) -> usize {
    text.lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
        .count()
}

/// What in a source, without its tests, is I/O or a clock.
fn impure(text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut found = std_paths(&code);
    found.retain(|path| {
        let is_part = |allowed: &str| match allowed.strip_suffix("::") {
            Some(module) => path == module || path.starts_with(allowed),
            None => path == allowed || path.starts_with(&format!("{allowed}::")),
        };
        !STD_IN_CORE.iter().any(|allowed| is_part(allowed))
    });
    let words = words(&code);
    let calls = |at: usize| {
        let before = at.checked_sub(1).and_then(|at| words.get(at));
        before.is_some_and(|word| word == "::" || word == ".")
    };
    let is_forbidden = |at: usize, word: &str| {
        // A parameter may be called so.
        WORDS_NOT_IN_CORE.contains(&word) && (word != "now" || calls(at))
    };
    let forbidden = words.iter().enumerate();
    found.extend(
        forbidden
            .filter(|(at, word)| is_forbidden(*at, word))
            .map(|(_, word)| word.clone()),
    );
    found
}

/// A source without comments, texts and the module of tests at the end.
fn code_of(text: &str) -> String {
    text.lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .flat_map(|line| {
            let code = line.replace("\\\"", "");
            let code = code.split("//").next().unwrap_or_default().to_owned();
            let outside: Vec<String> = code.split('"').step_by(2).map(str::to_owned).collect();
            outside.into_iter().chain(["\n".to_owned()])
        })
        .collect()
}

/// Names, `::`, and all other characters one by one.
fn words(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut last = ' ';
    for c in code.chars() {
        let goes_on = (is_name(c) && is_name(last)) || (c == ':' && last == ':');
        match words.last_mut() {
            Some(word) if goes_on => word.push(c),
            _ if c.is_whitespace() => {}
            _ => words.push(c.to_string()),
        }
        last = c;
    }
    words
}

/// All paths into the standard library, those of groups one by one.
fn std_paths(code: &str) -> Vec<String> {
    let words = words(code);
    let mut paths = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if word == "std" {
            expand(&words[at..], "", &mut paths);
        }
    }
    paths
}

/// Adds the paths that begin at the first of `words`; how many words they take.
fn expand(words: &[String], prefix: &str, paths: &mut Vec<String>) -> usize {
    let mut path = prefix.to_owned();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if word == "{" {
            at += 1;
            while words.get(at).is_some_and(|word| word != "}") {
                at += match words[at].as_str() {
                    "," => 1,
                    // The new name of what was before.
                    "as" => 2,
                    _ => expand(&words[at..], &path, paths),
                };
            }
            return at + 1;
        }
        // A group names its own module so.
        if word != "self" {
            path = if path.is_empty() {
                word.clone()
            } else {
                format!("{path}::{word}")
            };
        }
        at += 1;
        if words.get(at).is_none_or(|word| word != "::") {
            break;
        }
        at += 1;
    }
    paths.push(path);
    at
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    // Every second piece is inside of quotes, but for those that are part of a text.
    let code = code.replace("\\\"", "");
    code.split('"').step_by(2).any(|piece| {
        piece
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "unsafe")
    })
}
