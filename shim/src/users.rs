//! Who the process runs as: docker's `--user` against the image's own passwd and group files.
//!
//! Invariants: files are read up to a bound; numbers need no entry; an unknown name is an error that names it.

use std::io::Read as _;
use std::path::Path;

/// Largest passwd or group file that is read.
const LONGEST_FILE: u64 = 4 << 20;

/// An identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, "/" where unknown.
    pub home: String,
}

/// Reads a file of accounts; a missing one is empty.
///
/// # Errors
/// The path and the cause.
pub fn read(path: &Path) -> Result<String, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("read {}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn field<'a>(fields: &[&'a str], at: usize) -> &'a str {
    fields.get(at).copied().unwrap_or_default()
}

fn group_number(group: &str, name: &str) -> Option<u32> {
    let by_name = lines(group)
        .find(|fields| field(fields, 0) == name)
        .and_then(|fields| field(&fields, 2).parse().ok());
    by_name.or_else(|| name.parse().ok())
}

/// Resolves "", "user", "uid", "user:group" or "uid:gid", and further groups by name or number.
///
/// # Errors
/// Names the user or group that is not there.
pub fn resolve(
    user: &str,
    additional: &[String],
    passwd: &str,
    group: &str,
) -> Result<Identity, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number: Option<u32> = name.parse().ok();
    let entry = lines(passwd)
        .find(|fields| field(fields, 0) == name)
        .or_else(|| {
            lines(passwd).find(|fields| number.is_some() && field(fields, 2).parse().ok() == number)
        });
    let uid = match (&entry, number) {
        (Some(fields), _) => field(fields, 2)
            .parse()
            .map_err(|_| format!("user {name:?}: its entry in /etc/passwd has no number"))?,
        (None, Some(number)) => number,
        (None, None) => {
            return Err(format!(
                "unable to find user {name}: no matching entries in the image's /etc/passwd; use a number"
            ));
        }
    };
    let gid = match group_name {
        Some(wanted) if !wanted.is_empty() => group_number(group, wanted)
            .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in the image's /etc/group; use a number"))?,
        _ => entry.as_ref().and_then(|fields| field(fields, 3).parse().ok()).unwrap_or(0),
    };
    let mut groups = Vec::new();
    // As docker does: the groups of the account only when no group was asked for.
    if group_name.is_none_or(str::is_empty)
        && let Some(fields) = &entry
    {
        let account = field(fields, 0);
        groups.extend(
            lines(group)
                .filter(|fields| field(fields, 3).split(',').any(|member| member == account))
                .filter_map(|fields| field(&fields, 2).parse::<u32>().ok()),
        );
    }
    for wanted in additional {
        let number = group_number(group, wanted)
            .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in the image's /etc/group; use a number"))?;
        if !groups.contains(&number) {
            groups.push(number);
        }
    }
    let home = entry
        .map(|fields| field(&fields, 5).to_owned())
        .filter(|home| !home.is_empty());
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "# accounts\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:\n7:x:70:70::/:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:web,other\nweb:x:34:\naudio:x:29:root\n";

    fn who(user: &str) -> Result<Identity, String> {
        resolve(user, &[], PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(
            who("web").unwrap(),
            Identity {
                uid: 33,
                gid: 34,
                groups: vec![50],
                home: "/var/www".into()
            }
        );
        assert_eq!(who("33").unwrap().groups, [50]);
        assert_eq!(
            who("web:staff").unwrap(),
            Identity {
                uid: 33,
                gid: 50,
                groups: vec![],
                home: "/var/www".into()
            }
        );
        assert_eq!(
            who("1000:1000").unwrap(),
            Identity {
                uid: 1000,
                gid: 1000,
                groups: vec![],
                home: "/".into()
            }
        );
        assert_eq!(
            who("").unwrap(),
            Identity {
                uid: 0,
                gid: 0,
                groups: vec![29],
                home: "/root".into()
            }
        );
        assert_eq!(
            who("7").unwrap().uid,
            70,
            "a name that is a number wins, as in docker"
        );
        let more = resolve("web", &["audio".into(), "999".into()], PASSWD, GROUP).unwrap();
        assert_eq!(more.groups, [50, 29, 999]);
    }

    #[test]
    fn unknown_names_are_said() {
        assert!(who("nobody").unwrap_err().contains("nobody"));
        assert!(who("web:nogroup").unwrap_err().contains("nogroup"));
    }
}
