//! Calls to a peer that may be restarting.
//!
//! Invariant: only calls that are safe to repeat are made through here; the contracts see to it that all are.

use std::future::Future;
use std::time::{Duration, Instant};

use gantry_types::ErrorKind;
use tonic::Status;

use crate::{Drain, Fault};

/// How long a peer that is away is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks until the peer answers something else than that it is away, each time at most `deadline`.
///
/// # Errors
/// What the peer says; that it did not answer; that it stayed away, at once when this process is to end: whoever asked
/// asks its successor.
pub async fn ask<T, F>(
    drain: &Drain,
    peer: &'static str,
    deadline: Duration,
    make: impl Fn() -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Status>>,
{
    let began = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let fault = match tokio::time::timeout(deadline, make()).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) => Fault::from(status),
            Err(_) => Fault {
                kind: ErrorKind::TimedOut,
                message: format!("{peer}: no answer within {} s", deadline.as_secs()),
                resource: None,
            },
        };
        let waits = fault.kind == ErrorKind::Unavailable && began.elapsed() < PATIENCE;
        if !waits || drain.is_started() {
            return Err(fault);
        }
        tokio::select! {
            () = drain.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
