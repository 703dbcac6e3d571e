//! Rules of the source tree that no compiler holds.
//!
//! Invariant: every rule names the file, the line where there is one, and what to do.

use std::path::Path;

use crate::{Outcome, root};

/// Lines of a file before its tests.
const LONGEST: usize = 500;
const UNFINISHED: [&str; 5] = [
    "TO\u{44}O",
    "FIX\u{4d}E",
    "XX\u{58}",
    "for\u{20}now",
    "not yet\u{20}implemented",
];
/// Where generated types may be named inside a service, besides the folder of api.rs.
const BORDER: [&str; 3] = ["api.rs", "peers.rs", "convert.rs"];
const SERVICES: [&str; 6] = [
    "store",
    "network",
    "snapshotter",
    "registry",
    "runtime",
    "build",
];

/// Checks every Rust file of the workspace.
///
/// # Errors
/// Lists what is wrong, a line each.
pub fn check() -> Outcome {
    let root = root();
    let mut wrong = Vec::new();
    for folder in ["proto", "services", "shim", "xtask", "tests"] {
        walk(&root.join(folder), &mut |path, text| {
            file(path.strip_prefix(&root).unwrap_or(path), text, &mut wrong)
        })?;
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

fn walk(folder: &Path, each: &mut dyn FnMut(&Path, &str)) -> Outcome {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("read {}: {error}", folder.display())),
    };
    for entry in entries {
        let path = entry
            .map_err(|error| format!("read {}: {error}", folder.display()))?
            .path();
        if path.is_dir() {
            walk(&path, each)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("read {}: {error}", path.display()))?;
            each(&path, &text);
        }
    }
    Ok(())
}

fn file(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let shown = path.display();
    if !text.starts_with("//!") {
        wrong.push(format!(
            "{shown}: starts without `//!`; say what the file owns and its invariants"
        ));
    }
    let body = text
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .count();
    if body > LONGEST {
        wrong.push(format!(
            "{shown}: {body} lines before its tests, at most {LONGEST}; divide it by what it owns"
        ));
    }
    let own = path.ends_with("tidy.rs");
    for (number, line) in text.lines().enumerate() {
        let at = format!("{shown}:{}", number + 1);
        if line.ends_with([' ', '\t']) {
            wrong.push(format!("{at}: blanks at the end of the line"));
        }
        if !own && let Some(word) = UNFINISHED.iter().find(|word| line.contains(**word)) {
            wrong.push(format!("{at}: {word:?}; finish it or leave it out"));
        }
        if !own && line.trim_start().starts_with("#[ignore") {
            wrong.push(format!("{at}: an ignored test; mend it or remove it"));
        }
    }
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    if let ["services", service, "src", ..] = parts.as_slice()
        && SERVICES.contains(service)
        && !parts.last().is_some_and(|name| BORDER.contains(name))
        && parts.get(3) != Some(&"api")
        && let Some(number) = text
            .lines()
            .position(|line| line.contains("gantry_proto") && !line.trim().starts_with("//"))
    {
        wrong.push(format!(
            "{shown}:{}: names gantry_proto; only {} of a service may",
            number + 1,
            BORDER.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(path: &str, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        file(Path::new(path), text, &mut wrong);
        wrong
    }

    #[test]
    fn each_rule_finds_its_fault() {
        assert!(judge("services/store/src/a.rs", "//! Fine.\nfn a() {}\n").is_empty());
        assert_eq!(judge("a.rs", "fn a() {}\n").len(), 1);
        assert_eq!(judge("a.rs", "//! x\nfn a() {} \n").len(), 1);
        assert_eq!(judge("a.rs", "//! x\n// TO\u{44}O\n").len(), 1);
        assert_eq!(
            judge("a.rs", &format!("//! x\n{}", "a;\n".repeat(501))).len(),
            1
        );
        assert_eq!(
            judge(
                "services/store/src/gc.rs",
                "//! x\nuse gantry_proto::store;\n"
            )
            .len(),
            1
        );
        assert!(
            judge(
                "services/store/src/api.rs",
                "//! x\nuse gantry_proto::store;\n"
            )
            .is_empty()
        );
    }
}
