//! The folders in which container runtimes look for plugins and for networks.
//!
//! Comes in: the folder of networks. Goes out: the files that runtimes read in it, in the order in which they do,
//! each with the plugins that it names. Never done here: changes; `install-cni` makes those.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::lab::plugin::PLUGIN;

/// Where runtimes look for plugins unless told otherwise.
pub const BIN_DIR: &str = "/opt/cni/bin";
/// Where runtimes look for networks unless told otherwise.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Largest file that is looked at (bytes); what runtimes are given has a few hundred.
pub const NETWORK_BYTES_MAX: u64 = 1024 * 1024;
/// Ends of names that libcni reads; all other files are invisible to runtimes.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// A file that runtimes read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFile {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it, or why it cannot be read.
    pub content: Result<Network, String>,
}

/// A network, as far as it matters who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name; empty where it has none.
    pub name: String,
    /// `type` of each of its plugins, in their order.
    pub plugins: Vec<String>,
}

impl NetworkFile {
    /// Whether our plugin is one of those in it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.content.as_ref().is_ok_and(Network::is_ours)
    }
}

impl fmt::Display for NetworkFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.path.display())?;
        match &self.content {
            Ok(network) => write!(
                f,
                "(network {:?} of {})",
                network.name,
                network.plugins.join(", ")
            ),
            Err(reason) => write!(f, "({reason})"),
        }
    }
}

impl Network {
    /// Reads a list of plugins, or a single plugin as older runtimes have it.
    ///
    /// # Errors
    ///
    /// It is neither.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let text_of = |value: &Value, key: &str| {
            let text = value.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let plugins = match value.get("plugins").and_then(Value::as_array) {
            Some(plugins) => plugins.iter().map(|each| text_of(each, "type")).collect(),
            None if value.get("type").is_some() => vec![text_of(&value, "type")],
            None => return Err("it names no plugin".to_owned()),
        };
        Ok(Self {
            name: text_of(&value, "name"),
            plugins,
        })
    }

    /// Whether our plugin is one of its plugins.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin == PLUGIN)
    }
}

/// All files that runtimes read in `dir`, first the one that they take. A folder that is not there has
/// none.
///
/// # Errors
///
/// The folder cannot be read.
pub fn scan(dir: &Path) -> io::Result<Vec<NetworkFile>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if is_read(&path) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    let read = |path: PathBuf| NetworkFile {
        content: read(&path),
        path,
    };
    Ok(paths.into_iter().map(read).collect())
}

/// Whether runtimes look at a file of this name, hidden or not.
fn is_read(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

fn read(path: &Path) -> Result<Network, String> {
    // A FIFO would hold the reader up, and a link to nowhere is no network either.
    if !path.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(NETWORK_BYTES_MAX).read_to_end(&mut text))
        .map_err(|error| format!("it cannot be read: {error}"))?;
    Network::parse(&text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Files come in the order of their names, hidden ones first; others than a runtime reads do not
    /// come at all, and neither do folders.
    #[test]
    fn the_order_of_runtimes() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "20-b.conf",
            "10-a.conflist",
            ".z.json",
            "notes.txt",
            ".10-a.conflist.fabric-tmp",
            "9.conf.bak",
        ] {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        fs::create_dir(dir.path().join("00.conf")).unwrap();
        let found = scan(dir.path()).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|file| file.path.file_name().unwrap())
            .collect();
        assert_eq!(names, [".z.json", "10-a.conflist", "20-b.conf"]);
        assert_eq!(scan(&dir.path().join("nowhere")).unwrap(), []);
    }

    /// A file is ours when our plugin is in it, alone, in a chain, or as a single configuration.
    #[test]
    fn whose_it_is() {
        for (text, ours) in [
            (r#"{"type":"fabric-cni"}"#, true),
            (r#"{"plugins":[{"type":"fabric-cni"}]}"#, true),
            (
                r#"{"plugins":[{"type":"x"},{"type":"fabric-cni"},{"type":"y"}]}"#,
                true,
            ),
            (
                r#"{"name":"fabric-cni","plugins":[{"type":"bridge"}]}"#,
                false,
            ),
        ] {
            assert_eq!(
                Network::parse(text.as_bytes()).unwrap().is_ours(),
                ours,
                "{text}"
            );
        }
        for text in ["", "{", "[]", "{}", r#"{"name":"fabric-cni"}"#] {
            assert!(Network::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
