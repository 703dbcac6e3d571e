//! What every daemon needs and no daemon is: sockets, serving, connecting, draining, status mapping, telemetry.
//!
//! Invariants: knows no service's nouns; the only `tokio::spawn` is in [`Drain`]; errors leave a process only through
//! [`to_status`] and come back only through [`Fault`].

mod ask;
mod connect;
mod drain;
pub mod metrics;
mod paths;
pub mod pipe;
mod serve;
mod status;
pub mod telemetry;

pub use ask::ask;
pub use connect::{Channel, check_health, connect};
pub use drain::Drain;
pub use paths::Paths;
pub use serve::{Listener, ServeError, bind, serve};
pub use status::{Fault, to_status};
