//! `-v`, `--mount` and `--tmpfs` (docker's reference, "Storage").
//!
//! Invariant: targets are absolute; relative bind sources are made absolute against the given directory.

use std::path::Path;

use super::{bad, units};
use gantry_proto::runtime::MountSpec;

const PROPAGATION: [&str; 6] = [
    "rprivate", "private", "rshared", "shared", "rslave", "slave",
];

fn target(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.trim_end_matches('/').is_empty() {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "the path in the container must be absolute and not /, not {text:?}"
        ))
    }
}

fn host_path(source: &str, here: &Path) -> Option<String> {
    if source.starts_with('/') {
        Some(source.to_owned())
    } else if source == "."
        || source == ".."
        || source.starts_with("./")
        || source.starts_with("../")
    {
        Some(here.join(source).to_string_lossy().into_owned())
    } else {
        None
    }
}

fn volume_name(name: &str) -> Result<String, String> {
    let good = name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if good {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is no volume name ([a-zA-Z0-9][a-zA-Z0-9_.-]+); for a host path write it absolute or with ./"
        ))
    }
}

/// One `-v [SOURCE:]TARGET[:OPTIONS]`; `here` is the working directory.
///
/// # Errors
/// A sentence naming the flag and the value.
pub fn volume(text: &str, here: &Path) -> Result<MountSpec, String> {
    parse_volume(text, here).map_err(|why| bad("--volume", text, why))
}

fn parse_volume(text: &str, here: &Path) -> Result<MountSpec, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, to, options) = match parts.as_slice() {
        [to] => ("", *to, ""),
        [source, to] => (*source, *to, ""),
        [source, to, options] => (*source, *to, *options),
        _ => return Err("write [SOURCE:]TARGET[:ro]; paths with a colon need --mount".into()),
    };
    let mut mount = MountSpec {
        target: target(to)?,
        ..Default::default()
    };
    if parts.len() > 1 && source.is_empty() {
        return Err("the source is empty; leave out the colon for an anonymous volume".into());
    }
    match host_path(source, here) {
        Some(path) => {
            mount.r#type = "bind".into();
            mount.source = path;
            mount.create_source = true;
        }
        None => {
            mount.r#type = "volume".into();
            if !source.is_empty() {
                mount.source = volume_name(source)?;
            }
        }
    }
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => mount.readonly = true,
            "rw" => mount.readonly = false,
            "nocopy" => mount.no_copy = true,
            // Labels and consistency have no meaning here; docker accepts them on every host.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            p if PROPAGATION.contains(&p) => mount.propagation = p.to_owned(),
            other => {
                return Err(format!(
                    "unknown option {other:?}; there are ro, rw, nocopy and {}",
                    PROPAGATION.join(", ")
                ));
            }
        }
    }
    Ok(mount)
}

/// Fields of one line of CSV (RFC 4180: quotes around a field, doubled inside).
fn csv(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut().map(|f| f.push('"')).unwrap_or_default();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().map(|f| f.push(c)).unwrap_or_default(),
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    Ok(fields)
}

/// One `--mount type=bind,source=...,target=...`.
///
/// # Errors
/// A sentence naming the flag and the value.
pub fn mount(text: &str, here: &Path) -> Result<MountSpec, String> {
    parse_mount(text, here).map_err(|why| bad("--mount", text, why))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("{key}={other}: write true or false")),
    }
}

fn parse_mount(text: &str, here: &Path) -> Result<MountSpec, String> {
    let mut mount = MountSpec {
        r#type: "volume".into(),
        ..Default::default()
    };
    for field in csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let key = key.trim().to_ascii_lowercase();
        let need = || {
            value
                .filter(|v| !v.is_empty())
                .ok_or_else(|| format!("{key} needs a value"))
        };
        match key.as_str() {
            "type" => mount.r#type = need()?.to_owned(),
            "source" | "src" => mount.source = need()?.to_owned(),
            "target" | "destination" | "dst" => mount.target = target(need()?)?,
            "readonly" | "ro" => mount.readonly = flag(&key, value)?,
            "bind-propagation" => {
                let p = need()?;
                if !PROPAGATION.contains(&p) {
                    return Err(format!(
                        "bind-propagation={p}: one of {}",
                        PROPAGATION.join(", ")
                    ));
                }
                mount.propagation = p.to_owned();
            }
            "bind-create-src" => mount.create_source = flag(&key, value)?,
            "consistency" => {}
            "volume-nocopy" => mount.no_copy = flag(&key, value)?,
            "tmpfs-size" => mount.tmpfs_size = units::size(need()?)?,
            "tmpfs-mode" => {
                mount.tmpfs_mode = u32::from_str_radix(need()?, 8)
                    .map_err(|_| "tmpfs-mode is an octal number such as 1777".to_owned())?;
            }
            other => {
                return Err(format!(
                    "unknown key {other:?}; there are type, source, target, readonly, bind-propagation, volume-nocopy, tmpfs-size, tmpfs-mode"
                ));
            }
        }
    }
    if mount.target.is_empty() {
        return Err("target is missing; add target=/path".into());
    }
    let kind = mount.r#type.clone();
    match kind.as_str() {
        "bind" if mount.source.is_empty() => {
            return Err("a bind mount needs source=/host/path".into());
        }
        "bind" => {
            mount.source = host_path(&mount.source, here)
                .unwrap_or_else(|| here.join(&mount.source).to_string_lossy().into_owned());
        }
        "volume" if !mount.source.is_empty() => mount.source = volume_name(&mount.source)?,
        "volume" => {}
        "tmpfs" if !mount.source.is_empty() => return Err("a tmpfs has no source".into()),
        "tmpfs" => {}
        other => {
            return Err(format!(
                "type {other:?} is not supported; there are bind, volume and tmpfs"
            ));
        }
    }
    if kind != "tmpfs" && (mount.tmpfs_size != 0 || mount.tmpfs_mode != 0) {
        return Err("tmpfs-size and tmpfs-mode need type=tmpfs".into());
    }
    if kind != "bind" && !mount.propagation.is_empty() {
        return Err("bind-propagation needs type=bind".into());
    }
    Ok(mount)
}

/// One `--tmpfs TARGET[:OPTIONS]`; docker mounts it noexec, nosuid, nodev unless told otherwise.
///
/// # Errors
/// A sentence naming the flag and the value.
pub fn tmpfs(text: &str) -> Result<MountSpec, String> {
    let (to, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = MountSpec {
        r#type: "tmpfs".into(),
        target: target(to).map_err(|why| bad("--tmpfs", text, why))?,
        ..Default::default()
    };
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) if !value.ends_with('%') => {
                mount.tmpfs_size = units::size(value).map_err(|why| bad("--tmpfs", text, why))?;
            }
            Some(("mode", value)) => {
                mount.tmpfs_mode = u32::from_str_radix(value, 8)
                    .map_err(|_| bad("--tmpfs", text, "mode is an octal number such as 1777"))?;
            }
            None if option == "ro" => mount.readonly = true,
            _ => mount.options.push(option.to_owned()),
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Result<MountSpec, String> {
        volume(text, Path::new("/here"))
    }
    fn m(text: &str) -> Result<MountSpec, String> {
        mount(text, Path::new("/here"))
    }

    #[test]
    fn volumes() {
        let bind = v("/a:/b:ro,rshared").unwrap();
        assert_eq!(
            (
                bind.r#type.as_str(),
                bind.source.as_str(),
                bind.target.as_str()
            ),
            ("bind", "/a", "/b")
        );
        assert!(bind.readonly && bind.create_source && bind.propagation == "rshared");
        assert_eq!(v("./x:/b").unwrap().source, "/here/./x");
        assert_eq!(v(".:/b").unwrap().r#type, "bind");
        assert_eq!(v("data:/b").unwrap().r#type, "volume");
        assert_eq!(v("/only").unwrap().source, "");
        for bad in [
            "",
            "b",
            "a:b",
            ":/b",
            "a b:/c",
            "/a:/b:bogus",
            "/a:/b:ro:x",
            "/a:/",
        ] {
            assert!(v(bad).unwrap_err().contains("--volume"), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let bind = m("type=bind,src=/a,dst=/b,readonly").unwrap();
        assert!(bind.readonly && !bind.create_source);
        assert_eq!(
            m("type=volume,source=v1,target=/d,volume-nocopy=true")
                .unwrap()
                .source,
            "v1"
        );
        let t = m("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770").unwrap();
        assert_eq!((t.tmpfs_size, t.tmpfs_mode), (64 << 20, 0o1770));
        assert_eq!(
            m("type=bind,\"source=/a,b\",target=/c").unwrap().source,
            "/a,b"
        );
        for bad in [
            "type=bind,target=/b",
            "source=v1",
            "type=nfs,target=/b",
            "type=tmpfs,source=x,target=/b",
            "target=/b,colour=red",
            "target=/b,\"",
            "target=/b,tmpfs-size=1m",
        ] {
            assert!(m(bad).unwrap_err().contains("--mount"), "{bad}");
        }
    }

    #[test]
    fn tmpfs_options() {
        let t = tmpfs("/run:rw,size=1m,mode=700,exec").unwrap();
        assert_eq!((t.tmpfs_size, t.tmpfs_mode), (1 << 20, 0o700));
        assert_eq!(t.options, ["rw", "exec"]);
        assert!(tmpfs("run").is_err());
    }
}
