//! Settings: defaults, then the file, then `--set`; every table belongs to one service.
//!
//! Invariants: an unknown table or key is an error; loading has no side effects; everything is validated before
//! anything is bound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const DEFAULT_FILE: &str = "/etc/gantry/gantry.toml";

/// Why the settings are not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not readable.
    #[error("read settings {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not TOML, or a value is wrong.
    #[error("settings {origin}: {message}")]
    Parse {
        /// The file, or the `--set` that is wrong.
        origin: String,
        /// What is wrong, with the place.
        message: String,
    },
    /// A value that the service refuses.
    #[error("settings, table [{table}]: {message}")]
    Invalid {
        /// The service.
        table: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// Who may connect to the sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketConfig {
    /// Mode of the sockets, octal as text: "0660".
    pub mode: String,
    /// Users besides root whose calls are served, by number.
    pub allow_uids: Vec<u32>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            mode: "0600".into(),
            allow_uids: Vec::new(),
        }
    }
}

impl SocketConfig {
    /// The mode as a number.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is not octal.
    pub fn mode(&self) -> Result<u32, ConfigError> {
        u32::from_str_radix(self.mode.trim_start_matches("0o"), 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| ConfigError::Invalid {
                table: "socket",
                message: format!("mode {:?}: write an octal mode such as \"0660\"", self.mode),
            })
    }
}

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tables {
    /// The sockets of all services.
    pub socket: SocketConfig,
    /// Images, blobs, leases.
    pub store: gantry_store::Config,
    /// Networks, endpoints, published ports, names.
    pub network: gantry_network::Config,
    /// Layers, snapshots, volumes.
    pub snapshotter: gantry_snapshotter::Config,
    /// Pulls.
    pub registry: gantry_registry::Config,
    /// Containers.
    pub runtime: gantry_runtime::Config,
    /// Making images.
    pub build: gantry_build::Config,
}

/// What was loaded and where each value came from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The values.
    pub tables: Tables,
    /// `table.key` of every value that is not a default, and its origin.
    pub origins: BTreeMap<String, String>,
}

impl Settings {
    /// Reads the file (a missing default file is fine), applies each `table.key=value`, validates.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file or the argument, the key and what is wrong.
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Settings, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
                String::new()
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let origin = path.display().to_string();
        // Parsed once as the typed value alone, since those errors carry the line of the file.
        toml::from_str::<Tables>(&text).map_err(|error| parse(&origin, &error))?;
        let mut root: toml::Table =
            toml::from_str(&text).map_err(|error| parse(&origin, &error))?;
        let mut origins = BTreeMap::new();
        for (table, values) in &root {
            for key in values.as_table().into_iter().flat_map(toml::Table::keys) {
                origins.insert(format!("{table}.{key}"), origin.clone());
            }
        }
        for set in sets {
            apply(&mut root, set)?;
            let key = set.split('=').next().unwrap_or_default().to_owned();
            origins.insert(key, format!("--set {set}"));
        }
        let tables: Tables = root
            .try_into()
            .map_err(|error| parse("given by --set", &error))?;
        tables.validate()?;
        Ok(Settings { tables, origins })
    }
}

fn parse(origin: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError::Parse {
        origin: origin.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    }
}

/// Puts `table.key=value` into the tree; a value that is not TOML is taken as text.
fn apply(root: &mut toml::Table, set: &str) -> Result<(), ConfigError> {
    let wrong = |message: &str| ConfigError::Parse {
        origin: format!("--set {set}"),
        message: message.to_owned(),
    };
    let (path, value) = set
        .split_once('=')
        .ok_or_else(|| wrong("write table.key=value"))?;
    let (table, key) = path
        .split_once('.')
        .ok_or_else(|| wrong("write table.key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut at = root
        .entry(table.to_owned())
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let mut key = key;
    // A table may have tables: registry.serve.listen.
    loop {
        let table = at
            .as_table_mut()
            .ok_or_else(|| wrong("that name is not a table"))?;
        let Some((inner, rest)) = key.split_once('.') else {
            table.insert(key.to_owned(), value);
            return Ok(());
        };
        at = table
            .entry(inner.to_owned())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        key = rest;
    }
}

impl Tables {
    fn validate(&self) -> Result<(), ConfigError> {
        self.socket.mode()?;
        let checked = [
            ("store", self.store.validate()),
            ("network", self.network.validate()),
            ("snapshotter", self.snapshotter.validate()),
            ("registry", self.registry.validate()),
            ("runtime", self.runtime.validate()),
        ];
        for (table, result) in checked {
            result.map_err(|message| ConfigError::Invalid { table, message })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, sets: &[&str]) -> Result<Settings, ConfigError> {
        // Tests run side by side, and equal texts may have one address.
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("gantryd-config-{}-{number}", std::process::id()));
        std::fs::write(&dir, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        let settings = Settings::load(Some(&dir), &sets);
        std::fs::remove_file(&dir).unwrap();
        settings
    }

    #[test]
    fn a_set_wins_over_the_file_and_says_so() {
        let settings = load("[socket]\nmode = \"0660\"\n", &["socket.mode=\"0666\""]).unwrap();
        assert_eq!(settings.tables.socket.mode().unwrap(), 0o666);
        assert!(settings.origins["socket.mode"].starts_with("--set"));
        let inner = load("", &["registry.serve.listen=127.0.0.1:5000"]).unwrap();
        assert_eq!(inner.tables.registry.serve.listen, "127.0.0.1:5000");
        assert!(load("", &["registry.serve.listen.deep=1"]).is_err());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let error = load("[socket]\nmood = 1\n", &[]).unwrap_err().to_string();
        assert!(error.contains("mood"), "{error}");
        let error = load("", &["nonsense.key=1"]).unwrap_err().to_string();
        assert!(error.contains("nonsense"), "{error}");
        let error = load("", &["socket.mode=9"]).unwrap_err().to_string();
        assert!(error.contains("mode"), "{error}");
        assert!(load("", &["socket"]).is_err());
    }
}
