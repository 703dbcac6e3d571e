//! Settings of the kernel's network stack, of the namespace that the calling thread is in.
//!
//! Invariant: what has the value already is not written, so that a read-only /proc/sys with the right values is enough.

use std::path::{Path, PathBuf};

use crate::Error;

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

pub(crate) fn get(name: &str) -> Option<String> {
    std::fs::read_to_string(path(name))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Sets `net/...` to a value.
pub(crate) fn set(name: &str, value: &str) -> Result<(), Error> {
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = path(name);
    std::fs::write(&path, value).map_err(Error::io("set", &path))
}

/// Sets it where the kernel has it; for what is better with it but works without.
pub(crate) fn try_set(name: &str, value: &str) {
    if let Err(error) = set(name, value) {
        tracing::debug!(%error, "a setting was left as it is");
    }
}

/// Whether addresses of IPv6 can be given.
pub(crate) fn has_ipv6() -> bool {
    get("net/ipv6/conf/all/disable_ipv6").as_deref() == Some("0")
}

/// Lets packets pass between interfaces. A host that learns its IPv6 router from announcements must go on to listen to
/// them, which it would not do as a router itself.
pub(crate) fn forward(ipv6: bool) -> Result<(), Error> {
    set("net/ipv4/ip_forward", "1")?;
    if !ipv6 || get("net/ipv6/conf/all/forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    for entry in std::fs::read_dir(path("net/ipv6/conf"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let setting = format!("net/ipv6/conf/{name}/accept_ra");
        if name != "all" && get(&setting).as_deref() == Some("1") {
            try_set(&setting, "2");
        }
    }
    set("net/ipv6/conf/all/forwarding", "1")
}
