//! Which control group hierarchies this host has, and where.
//!
//! Invariant: read from the kernel's own mount table, so a v1, a hybrid and a v2 host are told apart by what is there.

use std::io;
use std::path::{Path, PathBuf};

/// One mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its controllers: "memory", "cpu", ...; "name=..." for a named one.
    pub controllers: Vec<String>,
}

/// How the host does control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Controllers in hierarchies of their own (v1), maybe beside a v2 mount without controllers (hybrid).
    V1 {
        /// All of them.
        hierarchies: Vec<Hierarchy>,
        /// There is a v2 mount too.
        hybrid: bool,
    },
    /// One hierarchy for all controllers.
    V2 {
        /// Where it is mounted.
        path: PathBuf,
    },
}

impl Layout {
    /// Looks at this process's mounts.
    ///
    /// # Errors
    /// When the mount table cannot be read, or no hierarchy is mounted.
    pub fn detect() -> io::Result<Layout> {
        Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup",
            )
        })
    }

    /// From the text of mountinfo (proc_pid_mountinfo(5)).
    fn parse(text: &str) -> Option<Layout> {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut v2 = None;
        for line in text.lines() {
            let Some((place, kind)) = line.split_once(" - ") else {
                continue;
            };
            let (mut place, mut kind) = (place.split(' '), kind.split(' '));
            let (Some(path), Some(kind), Some(options)) = (place.nth(4), kind.next(), kind.nth(1))
            else {
                continue;
            };
            let path = PathBuf::from(path);
            match kind {
                "cgroup2" => {
                    v2.get_or_insert(path);
                }
                "cgroup" => {
                    let known = |option: &&str| {
                        !matches!(
                            *option,
                            "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "none"
                        ) && !option.starts_with("release_agent")
                    };
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(known)
                        .map(str::to_owned)
                        .collect();
                    // The same hierarchy may be mounted again, in a container of ours for one.
                    if !v1.iter().any(|seen| seen.controllers == controllers) {
                        v1.push(Hierarchy { path, controllers });
                    }
                }
                _ => {}
            }
        }
        let has = |name: &str| {
            v1.iter()
                .any(|hierarchy| hierarchy.controllers.iter().any(|c| c == name))
        };
        if has("memory") || has("pids") || has("cpu") || v2.is_none() && !v1.is_empty() {
            return Some(Layout::V1 {
                hierarchies: v1,
                hybrid: v2.is_some(),
            });
        }
        v2.map(|path| Layout::V2 { path })
    }

    /// "1", "hybrid" or "2", as `info` shows it.
    pub fn version(&self) -> &'static str {
        match self {
            Layout::V1 { hybrid: false, .. } => "1",
            Layout::V1 { hybrid: true, .. } => "hybrid",
            Layout::V2 { .. } => "2",
        }
    }

    /// Makes the parent group of all containers, and lets it pass its controllers on.
    ///
    /// # Errors
    /// When a directory cannot be made, or on v2 a needed controller cannot be passed on.
    pub fn prepare_parent(&self, parent: &str) -> io::Result<()> {
        match self {
            Layout::V1 { hierarchies, .. } => {
                for hierarchy in hierarchies {
                    let dir = hierarchy.path.join(parent);
                    std::fs::create_dir_all(&dir)?;
                    if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                        inherit_cpuset(&hierarchy.path, parent)?;
                    }
                }
                Ok(())
            }
            Layout::V2 { path } => {
                let mut at = path.clone();
                for part in Path::new(parent).components() {
                    pass_on(&at)?;
                    at.push(part);
                    std::fs::create_dir_all(&at)?;
                }
                pass_on(&at)
            }
        }
    }
}

impl Layout {
    /// Takes the parent group away where nothing is in it any more.
    pub fn release_parent(&self, parent: &str) {
        let roots: Vec<&Path> = match self {
            Layout::V1 { hierarchies, .. } => hierarchies
                .iter()
                .map(|hierarchy| hierarchy.path.as_path())
                .collect(),
            Layout::V2 { path } => vec![path],
        };
        for root in roots {
            // The kernel refuses while there are groups or processes in it.
            let _ = std::fs::remove_dir(root.join(parent));
        }
    }
}

/// A new v1 cpuset is empty and accepts nobody until it has processors and memory.
fn inherit_cpuset(root: &Path, parent: &str) -> io::Result<()> {
    let mut at = root.to_owned();
    for part in Path::new(parent).components() {
        let above = at.clone();
        at.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(at.join(file))?.trim().is_empty() {
                std::fs::write(at.join(file), std::fs::read_to_string(above.join(file))?)?;
            }
        }
    }
    Ok(())
}

fn pass_on(dir: &Path) -> io::Result<()> {
    let available = std::fs::read_to_string(dir.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        let order = format!("+{controller}");
        match std::fs::write(dir.join("cgroup.subtree_control"), &order) {
            Err(error) if ["memory", "pids", "cpu"].contains(&controller) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("pass on {controller} in {}: {error}", dir.display()),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_of_hosts() {
        let v2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Layout::parse(v2).unwrap().version(), "2");
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                  35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let Layout::V1 {
            hierarchies,
            hybrid,
        } = Layout::parse(v1).unwrap()
        else {
            panic!("v1");
        };
        assert!(!hybrid);
        assert_eq!(hierarchies[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(hierarchies[1].controllers, ["name=systemd"]);
        let both = format!("{v1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        assert_eq!(Layout::parse(&both).unwrap().version(), "hybrid");
        assert_eq!(Layout::parse("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
