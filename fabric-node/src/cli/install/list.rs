//! The network list that runtimes read: what it must say, and whether one that is there may stay.
//!
//! Pure. Comes in: what was asked for and what is in the file. Goes out: what to do about it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::folder::Entry;
use crate::{
    cli::cni_dir::Network,
    config::{CNI_SOCKET, RUN_DIR, SOCKET_PATH_BYTES_MAX, STATE_DIR},
    lab::plugin::PLUGIN,
};

/// The list for a daemon with default paths, as it is in the repository.
pub(super) const DEFAULT: &str = include_str!("../../../../deploy/cni/10-fabric.conflist");
/// Everybody may read it, only root change it.
pub(super) const MODE: u32 = 0o644;
/// Write permission of group and others.
const WRITE_NOT_ROOT: u32 = 0o022;
/// STATUS is asked in this version, the first that has it.
const STATUS_VERSION: &str = "1.1.0";

/// What the list must say; none where the default, or what is there already, will do.
#[derive(Debug)]
pub(super) struct Wanted {
    socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

/// What to do about the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Write this.
    Write(Vec<u8>),
    /// It says what it must.
    Leave,
    /// It is one of ours that somebody changed: it stays.
    Keep,
}

impl Wanted {
    /// Checks the paths.
    ///
    /// # Errors
    ///
    /// They cannot be those of a daemon.
    pub(super) fn new(socket: Option<&Path>, state_dir: Option<&Path>) -> anyhow::Result<Self> {
        for (option, path) in [("--cni-socket", socket), ("--state-dir", state_dir)] {
            let Some(path) = path else { continue };
            let shown = path.display();
            ensure!(
                path.is_absolute(),
                "{option} {shown} is not an absolute path"
            );
            ensure!(path.to_str().is_some(), "{option} {shown} is not UTF-8");
        }
        if let Some(socket) = socket {
            ensure!(
                socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX,
                "--cni-socket {} is longer than {SOCKET_PATH_BYTES_MAX} bytes",
                socket.display()
            );
        }
        Ok(Self {
            socket: socket.map(Path::to_owned),
            state_dir: state_dir.map(Path::to_owned),
        })
    }

    /// The list: the one of the repository, with the paths that are not the daemon's defaults.
    ///
    /// # Errors
    ///
    /// None that a build which passed its tests can have.
    pub(super) fn list(&self) -> anyhow::Result<Vec<u8>> {
        let type_key = format!("\"type\": \"{PLUGIN}\"");
        let mut keys = type_key.clone();
        for (key, path, default) in self.paths() {
            if let Some(path) = path.filter(|path| **path != default) {
                keys.push_str(&format!(",\n      \"{key}\": {}", json!(path)));
            }
        }
        let list = DEFAULT.replacen(&type_key, &keys, 1);
        // As text, so that people find the file as it is in the documents.
        serde_json::from_str::<Value>(&list).context("the built-in list")?;
        Ok(list.into_bytes())
    }

    /// What to do about the file that has the list's name; `force`: whatever it is, replace it.
    ///
    /// # Errors
    ///
    /// It is not ours, others than root may change it, or it says something else than was asked for.
    pub(super) fn decide(
        &self,
        file: &Path,
        found: Option<&Entry>,
        force: bool,
    ) -> anyhow::Result<Decision> {
        let shown = file.display();
        let (content, mode, owner) = match found {
            None => return Ok(Decision::Write(self.list()?)),
            Some(Entry::Other) => bail!("{shown} is no file: move it away"),
            Some(_) if force => return Ok(Decision::Write(self.list()?)),
            Some(Entry::Link(_)) => bail!("{shown} is a link: --force replaces it"),
            Some(Entry::File {
                content,
                mode,
                owner,
            }) => (content, *mode, *owner),
        };
        let is_ours = Network::parse(content).is_ok_and(|network| network.is_ours());
        ensure!(
            is_ours,
            "{shown} is not a list of Fabric: move it away, choose another --name, or let --force replace it"
        );
        let mut there: Value = serde_json::from_slice(content)?;
        let is_safe = owner == 0 && mode & WRITE_NOT_ROOT == 0;
        let list = self.completed(&mut there, file)?.list()?;
        if there == serde_json::from_slice::<Value>(&list)? {
            return Ok(if is_safe {
                Decision::Leave
            } else {
                Decision::Write(list)
            });
        }
        ensure!(
            is_safe,
            "{shown} can be changed by others than root, and it differs from what would be written: look \
             at it, then `chown root:root {shown}` and `chmod 0644 {shown}`, or let --force replace it"
        );
        Ok(Decision::Keep)
    }

    /// This, with what was not asked for as it is in the list that is there: an upgrade need not say it
    /// again.
    fn completed(&self, there: &mut Value, file: &Path) -> anyhow::Result<Self> {
        let plugin = plugin_of(there).context("the list lacks the plugin")?;
        let named = |(key, asked, default): (&str, Option<&PathBuf>, PathBuf)| {
            let named = plugin.get(key).and_then(Value::as_str);
            let named = named.map_or(default, PathBuf::from);
            match asked {
                Some(asked) if *asked != named => bail!(
                    "{} names {key} {}, and {} is asked for: change it there, or let --force replace the \
                     list",
                    file.display(),
                    named.display(),
                    asked.display()
                ),
                Some(_) | None => Ok(Some(named)),
            }
        };
        let [socket, state_dir] = self.paths();
        Ok(Self {
            socket: named(socket)?,
            state_dir: named(state_dir)?,
        })
    }

    /// The key of each path in the list, with what was asked for and the daemon's default.
    fn paths(&self) -> [(&'static str, Option<&PathBuf>, PathBuf); 2] {
        [
            (
                "socket",
                self.socket.as_ref(),
                Path::new(RUN_DIR).join(CNI_SOCKET),
            ),
            (
                "stateDir",
                self.state_dir.as_ref(),
                PathBuf::from(STATE_DIR),
            ),
        ]
    }
}

/// Whether a list can have this name: one that is a file's, and that does not hide.
pub(super) fn is_file_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && !name.starts_with('.')
        && bytes.len() <= LIST_NAME_BYTES_MAX
        && !bytes.contains(&b'/')
        && !name.chars().any(char::is_control)
}

/// Longest name of a list (bytes): NAME_MAX of `linux/limits.h` is 255, and there must be room for the
/// rest of the name under which it is written.
const LIST_NAME_BYTES_MAX: usize = 200;

/// What a runtime gives our plugin on stdin when it asks for STATUS with this list.
///
/// # Errors
///
/// It is no list of ours.
pub(super) fn status_question(list: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut list: Value = serde_json::from_slice(list)?;
    let name = list.get("name").cloned().context("the list has no name")?;
    let mut plugin = plugin_of(&mut list).context("no plugin")?.clone();
    plugin.insert("name".to_owned(), name);
    plugin.insert("cniVersion".to_owned(), json!(STATUS_VERSION));
    Ok(serde_json::to_vec(&plugin)?)
}

/// Our plugin in a list, or the single plugin that a file holds.
fn plugin_of(list: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    let is_ours = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(PLUGIN);
    if is_ours(list) {
        return list.as_object_mut();
    }
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    plugins
        .iter_mut()
        .find(|plugin| is_ours(plugin))?
        .as_object_mut()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn wanted(socket: Option<&str>, state_dir: Option<&str>) -> Wanted {
        Wanted::new(socket.map(Path::new), state_dir.map(Path::new)).unwrap()
    }

    fn file(content: impl AsRef<[u8]>) -> Entry {
        Entry::File {
            content: content.as_ref().to_vec(),
            mode: 0o644,
            owner: 0,
        }
    }

    fn decide(wanted: &Wanted, entry: &Entry) -> Result<Decision, String> {
        wanted
            .decide(Path::new("/c/x.conflist"), Some(entry), false)
            .map_err(|error| error.to_string())
    }

    /// With the daemon's own paths the list is the file of the repository, byte by byte; other paths
    /// are the only difference otherwise.
    #[test]
    fn one_source() {
        let default = DEFAULT.as_bytes();
        assert_eq!(wanted(None, None).list().unwrap(), default);
        let same = wanted(Some("/run/fabric/cni.sock"), Some("/var/lib/fabric"));
        assert_eq!(same.list().unwrap(), default);
        let other = wanted(Some("/x/s"), Some("/x/d")).list().unwrap();
        let mut expected: Value = serde_json::from_str(DEFAULT).unwrap();
        expected["plugins"][0]["socket"] = json!("/x/s");
        expected["plugins"][0]["stateDir"] = json!("/x/d");
        assert_eq!(serde_json::from_slice::<Value>(&other).unwrap(), expected);
    }

    /// A list that says the same in other words is left; one that somebody changed is kept, as long as
    /// it does not contradict what is asked for.
    #[test]
    fn an_operators_list_stays() {
        let plain = wanted(None, None);
        assert_eq!(decide(&plain, &file(DEFAULT)), Ok(Decision::Leave));
        let other = wanted(Some("/x/s"), None).list().unwrap();
        assert_eq!(decide(&plain, &file(other)), Ok(Decision::Leave));
        let dense = DEFAULT.replace([' ', '\n'], "");
        assert_eq!(decide(&plain, &file(dense)), Ok(Decision::Leave));
        let chained = DEFAULT.replace(
            "\"fabric-cni\"\n    }",
            "\"fabric-cni\", \"socket\": \"/x/s\"\n    }, {\"type\": \"tuning\"}",
        );
        assert_ne!(chained, DEFAULT);
        assert_eq!(decide(&plain, &file(&chained)), Ok(Decision::Keep));
        let same = wanted(Some("/x/s"), Some("/var/lib/fabric"));
        assert_eq!(decide(&same, &file(&chained)), Ok(Decision::Keep));
        let told = decide(&wanted(Some("/y/s"), None), &file(&chained)).unwrap_err();
        assert!(told.contains("socket /x/s, and /y/s is asked"), "{told}");
        let told = decide(&wanted(None, Some("/y/d")), &file(&chained)).unwrap_err();
        assert!(told.contains("stateDir /var/lib/fabric, and"), "{told}");
    }

    /// What is not ours is not replaced, and neither is what others than root may have changed, unless
    /// by force.
    #[test]
    fn a_strangers_file_is_refused() {
        let plain = wanted(None, None);
        for text in ["", "{", r#"{"plugins":[{"type":"bridge"}]}"#] {
            let told = decide(&plain, &file(text)).unwrap_err();
            assert!(told.contains("not a list of Fabric"), "{told}");
        }
        for (mode, owner) in [(0o666, 0), (0o664, 0), (0o644, 1000)] {
            let entry = |content: &str| Entry::File {
                content: content.as_bytes().to_vec(),
                mode,
                owner,
            };
            let rewritten = Decision::Write(DEFAULT.as_bytes().to_vec());
            assert_eq!(decide(&plain, &entry(DEFAULT)), Ok(rewritten));
            let changed = DEFAULT.replace("\"fabric\"", "\"other\"");
            let told = decide(&plain, &entry(&changed)).unwrap_err();
            assert!(told.contains("chown root:root /c/x.conflist"), "{told}");
        }
        let file = Path::new("/c/x.conflist");
        let link = Entry::Link(b"/etc/passwd".to_vec());
        assert!(plain.decide(file, Some(&link), false).is_err());
        assert!(plain.decide(file, Some(&link), true).is_ok());
        assert!(plain.decide(file, Some(&Entry::Other), true).is_err());
    }

    /// STATUS is asked with the plugin's own keys, as a runtime does.
    #[test]
    fn the_question_for_status() {
        let list = wanted(Some("/x/s"), None).list().unwrap();
        let question: Value = serde_json::from_slice(&status_question(&list).unwrap()).unwrap();
        assert_eq!(
            question,
            json!({"cniVersion": "1.1.0", "name": "fabric", "type": "fabric-cni", "socket": "/x/s"})
        );
    }

    /// Paths that no daemon can have are refused.
    #[test]
    fn odd_paths() {
        let long = format!("/{}", "x".repeat(107));
        for socket in ["relative", &long] {
            assert!(Wanted::new(Some(Path::new(socket)), None).is_err());
        }
        assert!(Wanted::new(None, Some(Path::new("relative"))).is_err());
    }

    /// Names that lead elsewhere or hide are no names of lists.
    #[test]
    fn names() {
        for name in ["10-fabric", "a", "x.y"] {
            assert!(is_file_name(name), "{name:?}");
        }
        for name in ["", ".", "..", ".x", "a/b", "a\n", &"x".repeat(201)] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }
}
