//! Settings of the table `[build]`.

use serde::{Deserialize, Serialize};

/// How images are made. There is nothing to set yet; the table is there so that a wrong key in it is an error.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}
