//! `gantryd config explain`: every value and where it came from.

use crate::config::{ConfigError, Settings};

/// A line a value: `table.key = value  # origin`.
///
/// # Errors
/// [`ConfigError::Parse`] when a value has no TOML form.
pub fn explain(settings: &Settings) -> Result<String, ConfigError> {
    let tables = toml::Table::try_from(&settings.tables).map_err(|error| ConfigError::Parse {
        origin: "in effect".into(),
        message: error.to_string(),
    })?;
    let mut out = String::new();
    for (table, values) in &tables {
        for (key, value) in values.as_table().into_iter().flatten() {
            let name = format!("{table}.{key}");
            let origin = settings
                .origins
                .get(&name)
                .map_or("default", String::as_str);
            out.push_str(&format!("{name} = {value}  # {origin}\n"));
        }
    }
    Ok(out)
}
