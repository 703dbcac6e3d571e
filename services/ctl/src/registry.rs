//! `registry serve`: what the store has, as a registry for others.
//!
//! Invariant: it is served while the command runs, and no longer; for a registry that stays, there is a setting.

use std::process::ExitCode;

use clap::Subcommand;
use gantry_proto::registry::{ServeRequest, serve_event};

use crate::error::{Error, Result};
use crate::output::print;
use crate::peers::Engine;

/// A registry of our own
#[derive(Debug, Subcommand)]
pub enum Registry {
    /// Serve the store as an OCI registry until Ctrl-C
    #[command(
        after_help = "EXAMPLES:\n  ctl registry serve\n  ctl registry serve --listen 0.0.0.0:5000 --tls-cert cert.pem --tls-key key.pem --htpasswd users\n\nWhat is pushed as team/app is gantry.local/team/app here. Images of the store are offered under their own names:\ndocker.io/library/debian as library/debian, others with their registry in front.\nThe table [registry.serve] of the settings serves always."
    )]
    Serve {
        /// Address and port; port 0 = any
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
        listen: String,
        /// Registry name of what is pushed
        #[arg(long, value_name = "NAME", default_value = "gantry.local")]
        name: String,
        /// Offer only what was pushed here
        #[arg(long)]
        only_own: bool,
        /// Registry of which what is not here is fetched and kept (may be given more than once)
        #[arg(long, value_name = "REGISTRY")]
        upstream: Vec<String>,
        /// Certificate chain, PEM
        #[arg(long, value_name = "FILE", requires = "tls_key")]
        tls_cert: Option<String>,
        /// Its key, PEM
        #[arg(long, value_name = "FILE", requires = "tls_cert")]
        tls_key: Option<String>,
        /// Users, as htpasswd -B makes the file
        #[arg(long, value_name = "FILE")]
        htpasswd: Option<String>,
        /// Take no pushes
        #[arg(long)]
        read_only: bool,
        /// Do not print requests
        #[arg(short, long)]
        quiet: bool,
    },
}

/// A path that means the same to the engine, which has another working directory.
fn absolute(path: Option<String>) -> Result<String> {
    let Some(path) = path else {
        return Ok(String::new());
    };
    let absolute = std::path::absolute(&path).map_err(Error::io(format!("resolve {path}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}

impl Registry {
    /// Does it.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let Registry::Serve {
            listen,
            name,
            only_own,
            upstream,
            tls_cert,
            tls_key,
            htpasswd,
            read_only,
            quiet,
        } = self;
        let request = ServeRequest {
            listen,
            name,
            only_own,
            upstreams: upstream,
            tls_cert: absolute(tls_cert)?,
            tls_key: absolute(tls_key)?,
            htpasswd: absolute(htpasswd)?,
            read_only,
        };
        let mut events = engine
            .call(|| {
                let (mut client, request) = (engine.registry(), request.clone());
                async move { client.serve(request).await }
            })
            .await?;
        loop {
            let next = tokio::select! {
                next = events.message() => next.map_err(|status| engine.explain(status))?,
                _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            };
            match next.map(|event| event.event) {
                Some(Some(serve_event::Event::Listening(address))) => {
                    print(&format!("Listening on {address}\n"))?;
                }
                Some(Some(serve_event::Event::Request(request))) if !quiet => {
                    print(&format!(
                        "{} {} {} {} {:.1} ms\n",
                        request.from,
                        request.method,
                        request.path,
                        request.status,
                        request.microseconds as f64 / 1000.0
                    ))?;
                }
                Some(_) => {}
                None => {
                    let gone = tonic::Status::unavailable("the engine ended");
                    return Err(engine.explain(gone));
                }
            }
        }
    }
}
