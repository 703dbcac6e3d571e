//! Users: Basic credentials against a file of bcrypt hashes.
//!
//! Invariants: the file is read anew when it changes; what was right a moment ago is not hashed again, and only the hash of the
//! credentials is remembered. Source: htpasswd(1), option -B.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::Digest as _;

use super::error::Refusal;
use crate::error::Error;

/// How long right credentials are remembered.
const REMEMBER: Duration = Duration::from_secs(300);

/// The file of users.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hashes: HashMap<String, String>,
    changed: Option<SystemTime>,
    right: HashMap<[u8; 32], Instant>,
}

fn load(path: &Path) -> Result<State, String> {
    let changed = std::fs::metadata(path).and_then(|meta| meta.modified());
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut hashes = HashMap::new();
    for (nth, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (user, hash) = line
            .split_once(':')
            .ok_or_else(|| format!("line {}: write USER:HASH", nth + 1))?;
        if !hash.starts_with("$2") {
            return Err(format!(
                "line {}: only bcrypt is understood; make the entry with htpasswd -B",
                nth + 1
            ));
        }
        hashes.insert(user.to_owned(), hash.to_owned());
    }
    Ok(State {
        hashes,
        changed: changed.ok(),
        right: HashMap::new(),
    })
}

impl Users {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Hosts`] names the file and the line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let state = load(path).map_err(|reason| Error::Hosts {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(state),
        })
    }

    /// Whether a request shows right credentials.
    ///
    /// # Errors
    /// 401.
    pub async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let shown = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, pair)| {
                let engine = base64::engine::general_purpose::STANDARD;
                String::from_utf8(engine.decode(pair.trim()).ok()?).ok()
            })
            .ok_or_else(Refusal::unauthorized)?;
        let (user, password) = shown.split_once(':').ok_or_else(Refusal::unauthorized)?;
        let key: [u8; 32] = sha2::Sha256::digest(&shown).into();
        let hash = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = std::fs::metadata(&self.path).and_then(|meta| meta.modified());
            if now.ok() != state.changed {
                match load(&self.path) {
                    Ok(fresh) => *state = fresh,
                    Err(reason) => {
                        tracing::warn!(path = %self.path.display(), reason, "the file of users is broken; the old one holds");
                    }
                }
            }
            state.right.retain(|_, since| since.elapsed() < REMEMBER);
            if state.right.contains_key(&key) {
                return Ok(());
            }
            state.hashes.get(user).cloned()
        };
        // Somebody unknown costs as much as a wrong password, so that names cannot be found out.
        let unknown = "$2b$10$0gdeflYcfObN/QI4grOVau.3bnwN7.G42Qv2XVCVwWoOKKg65SYF6";
        let (known, hash) = (hash.is_some(), hash.unwrap_or_else(|| unknown.to_owned()));
        let password = password.to_owned();
        let right = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash))
            .await
            .is_ok_and(|verified| verified.unwrap_or(false));
        if !(known && right) {
            return Err(Refusal::unauthorized());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.right.insert(key, Instant::now());
        Ok(())
    }
}
