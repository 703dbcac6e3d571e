//! The sandboxes of this boot, a file each below the run directory.
//!
//! Invariants: a file is whole or not there (rename); the page cache outlives kill -9, so what was acknowledged is here;
//! files of another boot count for nothing, since their namespaces are gone.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::Error;
use crate::schema::SandboxRecord;

/// Not an id, as no id has a blank.
const BOOT: &str = " boot";

/// The folder.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
}

impl Journal {
    /// Opens the folder. Gives the records, or None when the host was started since, or is new.
    pub(crate) fn open(dir: &Path) -> Result<(Journal, Option<Vec<SandboxRecord>>), Error> {
        std::fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
        let journal = Journal {
            dir: dir.to_owned(),
        };
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mark = dir.join(BOOT);
        let same = std::fs::read_to_string(&mark).is_ok_and(|old| old == boot);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let path = entry.map_err(Error::io("list", dir))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name == BOOT {
                continue;
            }
            // What ends in a tilde was being written when the process was killed.
            if !same || name.ends_with('~') {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                continue;
            }
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            let record =
                SandboxRecord::decode(bytes.as_slice()).map_err(|error| Error::Record {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            records.push(record);
        }
        if !same {
            std::fs::write(&mark, boot).map_err(Error::io("write", &mark))?;
        }
        Ok((journal, same.then_some(records)))
    }

    pub(crate) fn put(&self, record: &SandboxRecord) -> Result<(), Error> {
        let path = self.dir.join(&record.id);
        let fresh = self.dir.join(format!("{}~", record.id));
        std::fs::write(&fresh, record.encode_to_vec()).map_err(Error::io("write", &fresh))?;
        std::fs::rename(&fresh, &path).map_err(Error::io("write", &path))
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.dir.join(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_but_not_a_boot() {
        let home = tempfile::tempdir().unwrap();
        let record = |id: &str| SandboxRecord {
            id: id.into(),
            live: true,
            ..SandboxRecord::default()
        };
        let (journal, found) = Journal::open(home.path()).unwrap();
        assert!(found.is_none());
        for id in ["a", "b"] {
            journal.put(&record(id)).unwrap();
        }
        journal.remove("b").unwrap();
        journal.remove("b").unwrap();
        std::fs::write(home.path().join("c~"), "half").unwrap();
        let (_, found) = Journal::open(home.path()).unwrap();
        assert_eq!(found.unwrap(), [record("a")]);
        std::fs::write(home.path().join(BOOT), "another").unwrap();
        let (_, found) = Journal::open(home.path()).unwrap();
        assert!(found.is_none());
        assert!(!home.path().join("a").exists());
    }
}
