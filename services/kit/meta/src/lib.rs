//! Typed, versioned tables over sled.
//!
//! Invariants: one database a service, one tree, a key is a table's tag byte and the record's own key, changes are one
//! batch. No transactions and no second tree, so another engine fits behind [`Db`]. What [`Db::commit`] has returned for
//! survives kill -9 of the process and, after the flush it waited for, a loss of power.

mod db;
mod error;
mod table;

pub use db::{Batch, Db, Migration};
pub use error::Error;
pub use table::Table;
