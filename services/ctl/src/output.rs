//! What is printed: tables, JSON lines, templates.
//!
//! Invariants: a row is known by docker's key names; a reader that closes the pipe ends the command quietly; escape sequences go to
//! terminals only.

pub mod template;
pub mod text;

use std::io::{IsTerminal as _, Write as _};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use template::Template;

/// One thing of a list.
pub type Row = Map<String, Value>;

/// Prints to standard output.
///
/// # Errors
/// When it cannot be written; a closed pipe is [`Error::Closed`].
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|source| {
            if source.kind() == std::io::ErrorKind::BrokenPipe {
                Error::Closed
            } else {
                Error::Io {
                    what: "write to standard output".into(),
                    source,
                }
            }
        })
}

/// Whether colours and moving bars are welcome on standard error.
pub fn is_lively() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A list as the user wants it: `json`, `table TEMPLATE`, a template a row, or (nothing) the table with these columns.
///
/// # Errors
/// For a template that is wrong.
pub fn list(format: Option<&str>, columns: &[(&str, &str)], rows: &[Row]) -> Result<()> {
    let mut text = String::new();
    match format {
        Some("json") => {
            for row in rows {
                text.push_str(&Value::Object(row.clone()).to_string());
                text.push('\n');
            }
        }
        None | Some("" | "table") => {
            let titles = columns
                .iter()
                .map(|(title, _)| (*title).to_owned())
                .collect();
            let mut table = vec![titles];
            for row in rows {
                let cells = columns.iter().map(|(_, key)| cell(row, key));
                table.push(cells.collect());
            }
            text = align(&table);
        }
        Some(format) => match format.strip_prefix("table ") {
            Some(rest) => {
                let template = Template::parse(&unescape(rest))?;
                let titles: Row = columns
                    .iter()
                    .map(|(title, key)| ((*key).to_owned(), Value::from(*title)))
                    .collect();
                let mut table = Vec::new();
                for row in std::iter::once(&titles).chain(rows) {
                    let line = template.render(&Value::Object(row.clone()))?;
                    table.push(line.split('\t').map(str::to_owned).collect());
                }
                text = align(&table);
            }
            None => {
                let template = Template::parse(&unescape(format))?;
                for row in rows {
                    text.push_str(&template.render(&Value::Object(row.clone()))?);
                    text.push('\n');
                }
            }
        },
    }
    print(&text)
}

/// `\t` and `\n` as shells pass them.
pub fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn cell(row: &Row, key: &str) -> String {
    match row.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Columns three spaces apart, as docker has them.
fn align(table: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in table {
        for (at, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(at) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if at + 1 < row.len() {
                let fill = widths.get(at).copied().unwrap_or(0) + 3 - cell.chars().count();
                line.push_str(&" ".repeat(fill));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["A".to_owned(), "LONG".into()],
            vec!["bbbb".into(), "c".into()],
        ];
        assert_eq!(align(&rows), "A      LONG\nbbbb   c\n");
    }
}
