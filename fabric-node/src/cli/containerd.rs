//! containerd's own file, as far as it says where its CRI part looks for plugins and networks.
//!
//! Comes in: the file, and the folders that are used. Goes out: what containerd would not find there, and how
//! to mend it. Never done here: changes. Other files that this one imports are not read.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value};

/// Where containerd looks for it unless told otherwise.
pub const CONFIG: &str = "/etc/containerd/config.toml";
/// Largest file that is read (bytes); what `containerd config default` prints has some 10 Ki.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Names of the part that calls CNI plugins, any of which `disabled_plugins` may have.
const CRI: [&str; 3] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
];

/// The folders that the file names; where it names none, containerd has defaults, which are ours as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Folders {
    #[serde(default)]
    bin_dir: PathBuf,
    /// Of containerd 2.1 and later, which looks into each.
    #[serde(default)]
    bin_dirs: Vec<PathBuf>,
    #[serde(default)]
    conf_dir: PathBuf,
}

/// A folder that is used, and that containerd does not look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What the file says.
    pub detail: String,
    /// Both ways to mend it.
    pub cure: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.detail, self.cure)
    }
}

/// Where containerd, told by `file`, looks elsewhere than into `bin_dir` and `conf_dir`; none where there is
/// no such file.
///
/// # Errors
///
/// The file cannot be read or understood; the text has no path.
pub fn differences(
    file: &Path,
    bin_dir: &Path,
    conf_dir: &Path,
) -> Result<Option<Vec<Difference>>, String> {
    let Some(text) = read(file)? else {
        return Ok(None);
    };
    let named = Folders::parse(&text)?;
    let plugins = if named.bin_dirs.is_empty() {
        Named::one("bin_dir", &named.bin_dir)
    } else {
        Named {
            key: "bin_dirs",
            folders: named.bin_dirs.iter().map(PathBuf::as_path).collect(),
        }
    };
    let networks = Named::one("conf_dir", &named.conf_dir);
    let compared = [
        plugins.compare(file, "plugins", bin_dir, "--bin-dir"),
        networks.compare(file, "networks", conf_dir, "--conf-dir"),
    ];
    Ok(Some(compared.into_iter().flatten().collect()))
}

impl Folders {
    /// Takes them out of a configuration of version 1, 2, or 3 and later.
    ///
    /// # Errors
    ///
    /// It is not one.
    fn parse(text: &str) -> Result<Self, String> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| format!("it is not TOML: {}", error.message()))?;
        let disabled = table.get("disabled_plugins").and_then(Value::as_array);
        let is_cri = |name: &Value| name.as_str().is_some_and(|name| CRI.contains(&name));
        if disabled.is_some_and(|names| names.iter().any(is_cri)) {
            return Ok(Self::default());
        }
        // A file without a version is one of version 1.
        let version = table.get("version").map_or(Some(1), Value::as_integer);
        let name = match version {
            Some(..=1) => CRI[0],
            Some(2) => CRI[1],
            Some(_) => CRI[2],
            None => return Err("its version is no number".to_owned()),
        };
        let part = |value: &Value, key: &str| value.get(key).cloned();
        let cni = table
            .get("plugins")
            .and_then(|plugins| part(plugins, name))
            .and_then(|cri| part(&cri, "cni"));
        cni.map_or_else(
            || Ok(Self::default()),
            |cni| {
                cni.try_into().map_err(|error: toml::de::Error| {
                    format!("its plugins.{name:?}.cni: {}", error.message())
                })
            },
        )
    }
}

/// What a key names; no folder where the key is missing or empty.
struct Named<'a> {
    key: &'static str,
    folders: Vec<&'a Path>,
}

impl<'a> Named<'a> {
    fn one(key: &'static str, folder: &'a Path) -> Self {
        let is_named = !folder.as_os_str().is_empty();
        Self {
            key,
            folders: is_named.then_some(folder).into_iter().collect(),
        }
    }

    fn compare(&self, file: &Path, what: &str, used: &Path, option: &str) -> Option<Difference> {
        let first = self.folders.first()?;
        if self.folders.iter().any(|folder| is_same(folder, used)) {
            return None;
        }
        let (file, key, used) = (file.display(), self.key, used.display());
        let named: Vec<_> = self
            .folders
            .iter()
            .map(|it| it.display().to_string())
            .collect();
        Some(Difference {
            detail: format!(
                "{file} has containerd look for {what} in {} ({key}), and not in {used}",
                named.join(", ")
            ),
            cure: format!(
                "name {used} there and restart containerd, or `fabric install-cni {option} {}`",
                first.display()
            ),
        })
    }
}

/// Whether both lead to the same folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    one == other || real(one).is_some_and(|one| Some(one) == real(other))
}

/// What is in the file; none where there is none.
fn read(file: &Path) -> Result<Option<String>, String> {
    let opened = match file.metadata() {
        // A FIFO would hold the reader up.
        Ok(metadata) if !metadata.is_file() => return Err("it is no file".to_owned()),
        Ok(_) => File::open(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    };
    let mut text = String::new();
    opened
        .and_then(|opened| opened.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= CONFIG_BYTES_MAX) {
        Ok(Some(text))
    } else {
        Err(format!("it is larger than {CONFIG_BYTES_MAX} bytes"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn folders(bin_dir: &str, bin_dirs: &[&str], conf_dir: &str) -> Folders {
        Folders {
            bin_dir: bin_dir.into(),
            bin_dirs: bin_dirs.iter().map(PathBuf::from).collect(),
            conf_dir: conf_dir.into(),
        }
    }

    /// The folders are those of the part that the file's version calls CRI, and of no other.
    #[test]
    fn each_version_of_the_file() {
        let keys = "bin_dir = \"/b\"\nconf_dir = \"/c\"\n";
        let section = |name: &str| format!("[plugins.{name}.cni]\n{keys}");
        let v2 = section("\"io.containerd.grpc.v1.cri\"");
        let v3 = section("'io.containerd.cri.v1.runtime'");
        let both = folders("/b", &[], "/c");
        let none = Folders::default();
        for (text, expected) in [
            (section("cri"), &both),
            (format!("version = 1\n{v2}"), &none),
            (format!("version = 2\n{v2}"), &both),
            (format!("version = 2\n{v3}"), &none),
            (format!("version = 3\n{v3}"), &both),
            (format!("version = 4\n{v3}"), &both),
            (format!("version = 3\n{v2}"), &none),
            (
                format!("version = 2\ndisabled_plugins = [\"cri\"]\n{v2}"),
                &none,
            ),
            ("version = 2".to_owned(), &none),
            (String::new(), &none),
        ] {
            assert_eq!(Folders::parse(&text).as_ref(), Ok(expected), "{text}");
        }
        let list = format!("version = 3\n{v3}bin_dirs = [\"/x\", \"/y\"]\n");
        assert_eq!(
            Folders::parse(&list),
            Ok(folders("/b", &["/x", "/y"], "/c"))
        );
        for text in [
            "half a",
            "version = 'two'",
            "[plugins.cri.cni]\nbin_dir = 7",
        ] {
            assert!(Folders::parse(text).is_err(), "{text}");
        }
    }

    /// The file that Debian packages names other plugins than we use, and the same networks: it is told
    /// what is where, and both cures.
    #[test]
    fn debians_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let text = "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
                    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n      \
                    conf_dir = \"/etc/cni/net.d\"\n";
        fs::write(&file, text).unwrap();
        let differences = |bin: &str, conf: &str| {
            let found = differences(&file, Path::new(bin), Path::new(conf));
            let found = found.unwrap().unwrap().into_iter();
            found.map(|it| it.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            differences("/opt/cni/bin", "/etc/cni/net.d"),
            [format!(
                "{} has containerd look for plugins in /usr/lib/cni (bin_dir), and not in /opt/cni/bin: name \
                 /opt/cni/bin there and restart containerd, or `fabric install-cni --bin-dir /usr/lib/cni`",
                file.display()
            )]
        );
        assert!(differences("/usr/lib/cni/", "/etc/cni/net.d").is_empty());
        let networks = differences("/usr/lib/cni", "/x");
        assert!(
            networks[0].contains("--conf-dir /etc/cni/net.d"),
            "{networks:?}"
        );
    }

    /// One of several folders is enough, and so is a link to it.
    #[test]
    fn other_names_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("real")).unwrap();
        symlink("real", path("link")).unwrap();
        let text = format!(
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [\"/x\", {:?}]\n",
            path("link")
        );
        fs::write(path("config.toml"), text).unwrap();
        let found = |bin: &Path| {
            let found = differences(&path("config.toml"), bin, Path::new("/anything"));
            found.unwrap().unwrap()
        };
        assert_eq!(found(&path("real")), []);
        assert!(found(&path("else"))[0].detail.contains("/x, "));
    }

    /// No file says nothing; one that is none or is not to be understood is an error, and a large one is
    /// not read to its end.
    #[test]
    fn no_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let look = || differences(&file, Path::new("/b"), Path::new("/c"));
        assert_eq!(look(), Ok(None));
        fs::create_dir(&file).unwrap();
        assert_eq!(look(), Err("it is no file".to_owned()));
        fs::remove_dir(&file).unwrap();
        fs::write(&file, "[[").unwrap();
        assert!(look().unwrap_err().contains("not TOML"));
        let size = usize::try_from(CONFIG_BYTES_MAX).unwrap();
        fs::write(&file, "#".repeat(size)).unwrap();
        assert_eq!(look(), Ok(Some(Vec::new())));
        fs::write(&file, "#".repeat(size + 1)).unwrap();
        assert!(look().unwrap_err().contains("larger"));
    }
}
