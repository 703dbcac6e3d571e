//! Dockerfile instructions that change an image's settings, as `commit --change` and `import --change` take them. Pure.
//!
//! Invariant: an instruction is carried out whole or refused by name. Sources: Dockerfile reference; OCI image specification, config.md.

use serde_json::{Map, Value, json};

use crate::error::Error;

fn wrong(line: &str, reason: impl Into<String>) -> Error {
    Error::Change {
        line: line.to_owned(),
        reason: reason.into(),
    }
}

/// Words with quotes and backslashes as the Dockerfile has them.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut inside) = (Vec::new(), None::<String>, None::<char>);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, inside) {
            ('\\', None | Some('"')) => {
                let next = letters.next().ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (quote @ ('"' | '\''), None) => {
                inside = Some(quote);
                word.get_or_insert_default();
            }
            (quote, Some(open)) if quote == open => inside = None,
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    if inside.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

/// `K=V ...`, or `K V` with one of each.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    let Some(first) = words.first() else {
        return Err("it has no value; write KEY=VALUE".into());
    };
    if !first.contains('=') {
        let (key, value) = text
            .trim()
            .split_once(char::is_whitespace)
            .ok_or("it has no value; write KEY=VALUE")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not KEY=VALUE")),
        })
        .collect()
}

/// JSON, or a line for the shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => json!(list),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

/// JSON, or words.
fn list(text: &str) -> Result<Vec<String>, String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => Ok(list),
        Err(_) => words(text),
    }
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let entry = config.entry(key.to_owned()).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        // Just made one.
        _ => unreachable!(),
    }
}

/// Sets a variable of the environment, in its place when it is there.
pub fn set_env(config: &mut Map<String, Value>, key: &str, value: &str) {
    let entry = config.entry("Env".to_owned()).or_insert_with(|| json!([]));
    if !entry.is_array() {
        *entry = json!([]);
    }
    if let Value::Array(all) = entry {
        let prefix = format!("{key}=");
        let text = json!(format!("{key}={value}"));
        let old = all
            .iter_mut()
            .find(|one| one.as_str().is_some_and(|one| one.starts_with(&prefix)));
        match old {
            Some(old) => *old = text,
            None => all.push(text),
        }
    }
}

/// Carries one instruction out on an image's `config` object.
///
/// # Errors
/// [`Error::Change`].
pub fn apply(config: &mut Map<String, Value>, line: &str) -> Result<(), Error> {
    let fail = |reason: String| wrong(line, reason);
    let (word, rest) = line
        .trim()
        .split_once(char::is_whitespace)
        .ok_or_else(|| wrong(line, "write INSTRUCTION and its arguments"))?;
    let rest = rest.trim();
    match word.to_ascii_uppercase().as_str() {
        "CMD" => {
            config.insert("Cmd".into(), command(rest));
        }
        "ENTRYPOINT" => {
            config.insert("Entrypoint".into(), command(rest));
            // As in a Dockerfile: a new entrypoint drops the command that was for the old one.
            config.remove("Cmd");
        }
        "ENV" => {
            for (key, value) in pairs(rest).map_err(fail)? {
                set_env(config, &key, &value);
            }
        }
        "LABEL" => {
            let labels = object(config, "Labels");
            for (key, value) in pairs(rest).map_err(fail)? {
                labels.insert(key, json!(value));
            }
        }
        "EXPOSE" => {
            let ports = object(config, "ExposedPorts");
            for port in words(rest).map_err(fail)? {
                let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
                let known = matches!(protocol, "tcp" | "udp" | "sctp");
                if number.parse::<u16>().is_err() || !known {
                    return Err(wrong(line, format!("{port:?} is no PORT[/tcp|/udp|/sctp]")));
                }
                ports.insert(format!("{number}/{protocol}"), json!({}));
            }
        }
        "VOLUME" => {
            let volumes = object(config, "Volumes");
            for path in list(rest).map_err(fail)? {
                volumes.insert(path, json!({}));
            }
        }
        "USER" => {
            config.insert("User".into(), json!(rest));
        }
        "WORKDIR" => {
            let old = config
                .get("WorkingDir")
                .and_then(Value::as_str)
                .unwrap_or("/");
            let joined = std::path::Path::new(old).join(rest);
            config.insert("WorkingDir".into(), json!(joined.to_string_lossy()));
        }
        "STOPSIGNAL" => {
            config.insert("StopSignal".into(), json!(rest));
        }
        "ONBUILD" => {
            let entry = config
                .entry("OnBuild".to_owned())
                .or_insert_with(|| json!([]));
            if !entry.is_array() {
                *entry = json!([]);
            }
            if let Value::Array(all) = entry {
                all.push(json!(rest));
            }
        }
        other => {
            return Err(wrong(
                line,
                format!(
                    "{other} is not possible here; possible are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_the_config() {
        let mut config = Map::new();
        for line in [
            "ENV A=1 B=\"two words\"",
            "env A=3",
            "ENV C see this",
            "CMD [\"run\", \"-v\"]",
            "LABEL a.b=c 'd e'=f",
            "EXPOSE 80 53/udp",
            "VOLUME [\"/a b\"]",
            "VOLUME /c /d",
            "WORKDIR /w",
            "WORKDIR x",
            "USER 1:2",
            "ONBUILD RUN x",
            "STOPSIGNAL SIGINT",
        ] {
            apply(&mut config, line).unwrap();
        }
        let got = Value::Object(config.clone());
        assert_eq!(got["Env"], json!(["A=3", "B=two words", "C=see this"]));
        assert_eq!(got["Cmd"], json!(["run", "-v"]));
        assert_eq!(got["Labels"], json!({"a.b": "c", "d e": "f"}));
        assert_eq!(got["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(got["Volumes"], json!({"/a b": {}, "/c": {}, "/d": {}}));
        assert_eq!(got["WorkingDir"], "/w/x");
        apply(&mut config, "ENTRYPOINT echo hi").unwrap();
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "echo hi"]));
        assert!(!config.contains_key("Cmd"));
        for bad in [
            "RUN x",
            "CMD",
            "ENV A",
            "EXPOSE http",
            "LABEL \"a=b",
            "ENV A=1 =2",
        ] {
            assert!(apply(&mut config, bad).is_err(), "{bad}");
        }
    }
}
