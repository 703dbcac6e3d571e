//! HTTP clients, one for each way in which TLS is set up.
//!
//! Invariants: made when first needed; shared, so that connections are used again; a certificate that changed on disk is read anew
//! after [`KEEP`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, Identity};

use crate::error::Error;
use crate::hosts::Tls;
use crate::remote::chain;

/// How long to reach a host may take.
const CONNECT: Duration = Duration::from_secs(15);
/// How long a client is used.
const KEEP: Duration = Duration::from_secs(300);

/// The clients.
#[derive(Debug, Default)]
pub struct Clients(Mutex<HashMap<Option<Tls>, (Client, Instant)>>);

impl Clients {
    /// The client for a way; `None` = without TLS.
    ///
    /// # Errors
    /// [`Error::Hosts`] when a certificate cannot be used, [`Error::Client`] when TLS cannot be set up at all.
    pub fn get(&self, tls: Option<&Tls>) -> Result<Client, Error> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, (_, made)| made.elapsed() < KEEP);
        let key = tls.cloned();
        if let Some((client, _)) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = make(tls)?;
        clients.insert(key, (client.clone(), Instant::now()));
        Ok(client)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| broken(path, error.to_string()))
}

fn broken(path: &Path, reason: String) -> Error {
    Error::Hosts {
        path: path.to_owned(),
        reason,
    }
}

fn make(tls: Option<&Tls>) -> Result<Client, Error> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT)
        .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::limited(10));
    match tls {
        // Needs no certificates, which a small host may lack.
        None => builder = builder.tls_certs_only(Vec::new()),
        Some(tls) => {
            for path in &tls.authorities {
                let found = Certificate::from_pem_bundle(&read(path)?)
                    .map_err(|error| broken(path, format!("no certificates: {}", chain(&error))))?;
                builder = builder.tls_certs_merge(found);
            }
            if let Some((cert, key)) = &tls.client {
                let mut pem = read(cert)?;
                if let Some(key) = key {
                    pem.push(b'\n');
                    pem.extend(read(key)?);
                }
                let identity = Identity::from_pem(&pem).map_err(|error| {
                    broken(
                        cert,
                        format!("no certificate with its key: {}", chain(&error)),
                    )
                })?;
                builder = builder.identity(identity);
            }
            if tls.insecure {
                builder = builder.tls_danger_accept_invalid_certs(true);
            }
        }
    }
    builder
        .build()
        .map_err(|error| Error::Client(chain(&error)))
}
