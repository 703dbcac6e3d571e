//! Telling the service manager what we are up to (sd_notify(3)).
//!
//! Invariant: without `NOTIFY_SOCKET` nothing happens; a failure is never fatal.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends one state line such as `READY=1`.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let Some(path) = path.to_str() else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| match path.strip_prefix('@') {
        Some(name) => socket.send_to_addr(state.as_bytes(), &SocketAddr::from_abstract_name(name)?),
        None => socket.send_to(state.as_bytes(), path),
    });
    if let Err(error) = sent {
        tracing::debug!(%error, "the service manager did not hear {state}");
    }
}
