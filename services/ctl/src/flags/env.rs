//! `-e`, `--env-file`, `--label`, `--label-file`.
//!
//! Invariant: a name without `=` means the value of our own environment, and nothing when there is none.

use super::bad;

/// The variables of the files, then of the flags.
///
/// # Errors
/// A sentence naming the file, the line or the flag.
pub fn variables(
    files: &[String],
    flags: &[String],
    own: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    for file in files {
        for (at, line) in lines("--env-file", file)?.into_iter().enumerate() {
            out.extend(
                variable(&line, &own)
                    .map_err(|why| bad("--env-file", file, format!("line {}: {why}", at + 1)))?,
            );
        }
    }
    for flag in flags {
        out.extend(variable(flag, &own).map_err(|why| bad("--env", flag, why))?);
    }
    Ok(out)
}

fn variable(
    text: &str,
    own: &impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, &'static str> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err("write NAME=VALUE");
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(own(name).map(|value| format!("{name}={value}")))
}

fn lines(flag: &str, file: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| bad(flag, file, error))?;
    let kept = text
        .lines()
        .map(|line| line.trim_start_matches('\u{feff}').trim_start())
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(kept.map(str::to_owned).collect())
}

/// The labels of the files, then of the flags.
///
/// # Errors
/// A sentence naming the file or the flag.
pub fn labels(
    files: &[String],
    flags: &[String],
) -> Result<std::collections::HashMap<String, String>, String> {
    let mut out = std::collections::HashMap::new();
    let mut texts = Vec::new();
    for file in files {
        texts.extend(lines("--label-file", file)?);
    }
    texts.extend(flags.iter().cloned());
    for text in texts {
        let (key, value) = text.split_once('=').unwrap_or((&text, ""));
        if key.is_empty() {
            return Err(bad("--label", &text, "write KEY=VALUE"));
        }
        out.insert(key.to_owned(), value.to_owned());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_first_and_bare_names_are_ours() {
        let file = std::env::temp_dir().join(format!("gantry-ctl-env-{}", std::process::id()));
        std::fs::write(&file, "# note\n\nA=1\nOWN\nGONE\n").unwrap();
        let path = file.to_str().unwrap().to_owned();
        let own = |name: &str| (name == "OWN").then(|| "mine".to_owned());
        let all = variables(std::slice::from_ref(&path), &["B=x=y".into()], own).unwrap();
        assert_eq!(all, ["A=1", "OWN=mine", "B=x=y"]);
        assert!(
            variables(&[], &["=x".into()], own)
                .unwrap_err()
                .contains("--env")
        );
        std::fs::write(&file, "a b=c\n").unwrap();
        assert!(
            variables(std::slice::from_ref(&path), &[], own)
                .unwrap_err()
                .contains("line 1")
        );
        std::fs::remove_file(&file).unwrap();
        assert!(variables(&[path], &[], own).is_err());
    }
}
