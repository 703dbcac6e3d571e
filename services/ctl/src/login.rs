//! `login` and `logout`: who we are to a registry, kept where docker and containers' tools keep it.
//!
//! Invariants: credentials are written only after the registry took them; the file keeps what else is in it, is replaced in one
//! step, and is readable by its owner alone; where a credential helper is set, the secret goes to it and not to the file.
//! Sources: docker's config.json ("auths", "credsStore", "credHelpers"); docker-credential-helpers' protocol.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use gantry_proto::registry::{Credentials, LoginRequest};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::output::print;
use crate::peers::Engine;
use crate::tty;

/// Give credentials to a registry and keep them
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl login registry.example.com\n  pass registry | ctl login -u alice --password-stdin registry.example.com\n\nFILES:\n  $REGISTRY_AUTH_FILE, else $DOCKER_CONFIG/config.json, else ~/.docker/config.json"
)]
pub struct Login {
    /// User
    #[arg(short, long)]
    username: Option<String>,
    /// Password or token; others on this machine can see it in the list of processes
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Host of the registry, docker.io when left out
    server: Option<String>,
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub struct Logout {
    /// Host of the registry, docker.io when left out
    server: Option<String>,
}

/// The registry as it is named in image names.
fn registry(server: Option<&str>) -> String {
    let server = server.unwrap_or("docker.io");
    let bare = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    let host = bare.split('/').next().unwrap_or(bare);
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        other => other.into(),
    }
}

/// Its key in the file.
fn key(registry: &str) -> &str {
    match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

fn file() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        return file.into();
    }
    let home = var("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    var("DOCKER_CONFIG")
        .map_or_else(|| home.join(".docker"), PathBuf::from)
        .join("config.json")
}

fn read(path: &Path) -> Result<Value> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(json!({})),
        other => other.map_err(Error::io(format!("read {}", path.display())))?,
    };
    let value: Value = serde_json::from_slice(&text).map_err(|error| {
        Error::Usage(format!(
            "{}: {error}; mend or remove the file",
            path.display()
        ))
    })?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Error::Usage(format!(
            "{} is no JSON object; mend or remove the file",
            path.display()
        )))
    }
}

fn write(path: &Path, value: &Value) -> Result<()> {
    let fail = || Error::io(format!("write {}", path.display()));
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Usage(format!("write {}: {error}", path.display())))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(fail())?;
    let part = path.with_extension(format!("part{}", std::process::id()));
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(fail())?;
    let written = file
        .write_all(&text)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(fail())
}

/// The helper that keeps this registry's secret, if any.
fn helper<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    config["credHelpers"][key]
        .as_str()
        .or_else(|| config["credsStore"].as_str())
        .filter(|name| !name.is_empty())
}

fn ask_helper(name: &str, verb: &str, input: &str) -> Result<()> {
    let program = format!("docker-credential-{name}");
    let fail = || Error::io(format!("run {program} {verb}"));
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(fail())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(fail())?;
    }
    let output = child.wait_with_output().map_err(fail())?;
    if output.status.success() {
        return Ok(());
    }
    // Helpers say what is wrong on standard output.
    let said = String::from_utf8_lossy(&output.stdout);
    Err(Error::Usage(format!("{program} {verb}: {}", said.trim())))
}

fn line(prompt: &str, hidden: bool) -> Result<String> {
    eprint!("{prompt}");
    let _guard = hidden.then(tty::Silent::enter).flatten();
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut text)
        .map_err(Error::io("read standard input"))?;
    if hidden {
        eprintln!();
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl Login {
    fn credentials(&self) -> Result<(String, String)> {
        if self.password_stdin && self.username.is_none() {
            return Err(Error::Usage(
                "--password-stdin needs --username too: standard input is the password".into(),
            ));
        }
        let interactive = tty::is_input();
        let username = match &self.username {
            Some(username) => username.clone(),
            None if interactive => line("Username: ", false)?,
            None => {
                return Err(Error::Usage(
                    "standard input is no terminal: give --username and --password-stdin".into(),
                ));
            }
        };
        let password = match &self.password {
            Some(password) => {
                eprintln!(
                    "WARNING: a password on the command line is seen by others; --password-stdin is safer"
                );
                password.clone()
            }
            None if self.password_stdin => {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut std::io::stdin(), &mut text)
                    .map_err(Error::io("read standard input"))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None if interactive => line("Password: ", true)?,
            None => {
                return Err(Error::Usage(
                    "standard input is no terminal: give --password-stdin".into(),
                ));
            }
        };
        if username.is_empty() || password.is_empty() {
            return Err(Error::Usage("user and password must not be empty".into()));
        }
        Ok((username, password))
    }

    /// Logs in.
    ///
    /// # Errors
    /// When the registry does not take the credentials, or they cannot be kept.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let registry = registry(self.server.as_deref());
        let (username, password) = self.credentials()?;
        engine
            .call(|| {
                let mut client = engine.registry();
                let request = LoginRequest {
                    registry: registry.clone(),
                    credentials: Some(Credentials {
                        username: username.clone(),
                        password: password.clone(),
                        ..Credentials::default()
                    }),
                    ..LoginRequest::default()
                };
                async move { client.login(request).await }
            })
            .await?;
        let path = file();
        let mut config = read(&path)?;
        let key = key(&registry);
        if let Some(name) = helper(&config, key) {
            let secret = json!({"ServerURL": key, "Username": username, "Secret": password});
            ask_helper(name, "store", &secret.to_string())?;
            config["auths"][key] = json!({});
        } else {
            config["auths"][key] = json!({"auth": base64(&format!("{username}:{password}"))});
            eprintln!(
                "WARNING: the credentials are kept unencrypted in {}; a credential helper avoids that",
                path.display()
            );
        }
        write(&path, &config)?;
        print("Login Succeeded\n")?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Logout {
    /// Logs out.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn go(self) -> Result<ExitCode> {
        let registry = registry(self.server.as_deref());
        let path = file();
        let mut config = read(&path)?;
        let key = key(&registry);
        if let Some(name) = helper(&config, key) {
            ask_helper(name, "erase", key)?;
        }
        let removed = config["auths"]
            .as_object_mut()
            .and_then(|auths| auths.remove(key));
        if removed.is_none() {
            eprintln!("Not logged in to {registry}");
            return Ok(ExitCode::SUCCESS);
        }
        write(&path, &config)?;
        print(&format!("Removing login credentials for {registry}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_as_images_name_them() {
        for (server, want) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("http://localhost:5000/v2/"), "localhost:5000"),
            (Some("ghcr.io"), "ghcr.io"),
        ] {
            assert_eq!(registry(server), want);
        }
    }
}
