//! TLS of the registry that we serve.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::Error;

/// From PEM files.
///
/// # Errors
/// [`Error::Hosts`] names the file that cannot be used.
pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, Error> {
    let broken = |path: &Path, reason: String| Error::Hosts {
        path: path.to_owned(),
        reason,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| broken(cert, format!("no certificates: {error}")))?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| broken(key, format!("no key: {error}")))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Client(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| broken(cert, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
