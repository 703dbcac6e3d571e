//! Who we are to a registry: docker's and containers' credential files, and docker's credential helpers.
//!
//! Invariants: files are read anew for each pull, so a login needs no restart; the first file that knows the registry decides;
//! secrets are in no message and no log.
//! Sources: docker's config.json ("auths", "credHelpers", "credsStore"); containers-auth.json(5).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::error::Error;

/// What to show a registry.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// User and password.
    Basic(String, String),
    /// A token that buys access tokens (OAuth2's refresh token), as `docker login` of some registries leaves it.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::Basic(user, _) => write!(f, "Basic({user:?}, ...)"),
            Credentials::Identity(_) => f.write_str("Identity(...)"),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The files in the order in which they are asked.
fn files() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = var("HOME").map(PathBuf::from).unwrap_or("/root".into());
    let mut found = Vec::new();
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        found.push(file.into());
    }
    if let Some(dir) = var("XDG_RUNTIME_DIR") {
        found.push(Path::new(&dir).join("containers/auth.json"));
    }
    found.push("/run/containers/0/auth.json".into());
    let config = var("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
    found.push(config.join("containers/auth.json"));
    found.push(
        var("DOCKER_CONFIG")
            .map_or_else(|| home.join(".docker"), PathBuf::from)
            .join("config.json"),
    );
    found
}

/// Keys under which a registry, or a part of it, is written, most special first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = format!("{registry}/{repository}");
    loop {
        keys.push(path.clone());
        match path.rfind('/') {
            Some(at) => path.truncate(at),
            None => break,
        }
    }
    let scheme = [
        format!("https://{registry}"),
        format!("http://{registry}"),
        format!("https://{registry}/v1/"),
        format!("https://{registry}/v2/"),
    ];
    keys.extend(scheme);
    if registry == "docker.io" {
        keys.extend(
            [
                "https://index.docker.io/v1/",
                "index.docker.io",
                "registry-1.docker.io",
            ]
            .map(str::to_owned),
        );
    }
    keys
}

/// What the files say of a registry.
///
/// # Errors
/// [`Error::Credentials`] when a file or a helper that knows the registry is broken.
pub async fn find(registry: &str, repository: &str) -> Result<Credentials, Error> {
    find_in(&files(), registry, repository).await
}

async fn find_in(
    files: &[PathBuf],
    registry: &str,
    repository: &str,
) -> Result<Credentials, Error> {
    let broken = |reason: String| Error::Credentials {
        registry: registry.to_owned(),
        reason,
    };
    for path in files {
        let Ok(text) = std::fs::read(path) else {
            continue;
        };
        let file: File = serde_json::from_slice(&text)
            .map_err(|error| broken(format!("read {}: {error}", path.display())))?;
        for key in keys(registry, repository) {
            let helper = file.cred_helpers.get(&key).cloned().or_else(|| {
                let stored = file.auths.contains_key(&key) && !file.creds_store.is_empty();
                stored.then(|| file.creds_store.clone())
            });
            if let Some(helper) = helper
                && let Some(found) = ask_helper(&helper, &key).await.map_err(&broken)?
            {
                return Ok(found);
            }
            if let Some(entry) = file.auths.get(&key)
                && let Some(found) = decode(entry).map_err(|reason| {
                    broken(format!("{}, entry {key:?}: {reason}", path.display()))
                })?
            {
                return Ok(found);
            }
        }
    }
    Ok(Credentials::Anonymous)
}

fn decode(entry: &Entry) -> Result<Option<Credentials>, String> {
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity(entry.identitytoken.clone())));
    }
    if !entry.username.is_empty() {
        return Ok(Some(Credentials::Basic(
            entry.username.clone(),
            entry.password.clone(),
        )));
    }
    if entry.auth.is_empty() {
        return Ok(None);
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(entry.auth.trim())
        .map_err(|_| "\"auth\" is no base64; log in again".to_owned())?;
    let text =
        String::from_utf8(bytes).map_err(|_| "\"auth\" is no text; log in again".to_owned())?;
    let (user, password) = text
        .split_once(':')
        .ok_or_else(|| "\"auth\" has no colon; log in again".to_owned())?;
    let password = password.trim_end_matches('\0');
    Ok(Some(Credentials::Basic(user.into(), password.into())))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    username: String,
    secret: String,
}

/// `docker-credential-NAME get`, the registry on its standard input. `None` when it does not know the registry.
async fn ask_helper(name: &str, registry: &str) -> Result<Option<Credentials>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(format!("{name:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let fail = |error: std::io::Error| format!("run {program}: {error}");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(registry.as_bytes()).await.map_err(fail)?;
    }
    let wait = child.wait_with_output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), wait)
        .await
        .map_err(|_| format!("{program} does not answer"))?
        .map_err(fail)?;
    if !output.status.success() {
        return Ok(None);
    }
    let secret: Secret = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{program} answers with something else than credentials"))?;
    if secret.username == "<token>" {
        return Ok(Some(Credentials::Identity(secret.secret)));
    }
    Ok(Some(Credentials::Basic(secret.username, secret.secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn look(text: &str, registry: &str, repository: &str) -> Result<Credentials, Error> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("auth.json");
        std::fs::write(&path, text).unwrap();
        find_in(&[home.path().join("none"), path], registry, repository).await
    }

    #[tokio::test]
    async fn the_most_special_entry_wins() {
        // alice:secret, bob:word
        let text = r#"{"auths":{"localhost:5000":{"auth":"YWxpY2U6c2VjcmV0"},"localhost:5000/team":{"auth":"Ym9iOndvcmQ="},
            "https://index.docker.io/v1/":{"username":"carol","password":"p"},"id.example":{"auth":"","identitytoken":"t"}}}"#;
        let basic = |user: &str, password: &str| Credentials::Basic(user.into(), password.into());
        assert_eq!(
            look(text, "localhost:5000", "x").await.unwrap(),
            basic("alice", "secret")
        );
        assert_eq!(
            look(text, "localhost:5000", "team/app").await.unwrap(),
            basic("bob", "word")
        );
        assert_eq!(
            look(text, "docker.io", "library/x").await.unwrap(),
            basic("carol", "p")
        );
        assert_eq!(
            look(text, "id.example", "x").await.unwrap(),
            Credentials::Identity("t".into())
        );
        assert_eq!(
            look(text, "other", "x").await.unwrap(),
            Credentials::Anonymous
        );
    }

    #[tokio::test]
    async fn broken_files_are_named_without_their_secrets() {
        for text in [
            "{",
            r#"{"auths":{"r":{"auth":"%%%secret"}}}"#,
            r#"{"credHelpers":{"r":"../evil"}}"#,
        ] {
            let error = look(text, "r", "x").await.unwrap_err().to_string();
            assert!(
                error.contains("credentials for r") && !error.contains("secret"),
                "{error}"
            );
        }
        let shown = format!("{:?}", Credentials::Basic("user".into(), "hidden".into()));
        assert!(!shown.contains("hidden"));
    }
}
