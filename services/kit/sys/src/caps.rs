//! Capabilities (capabilities(7)): names, numbers, sets, dropping.
//!
//! Invariant: numbers are the kernel's; a capability that this kernel does not have is never set.

use std::io;

/// Names by number, without the prefix CAP_.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless asked otherwise: docker's set, mask 00000000a80425fb.
pub const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The number of a name, with or without CAP_, in any case.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .iter()
        .position(|known| *known == bare)
        .and_then(|at| u32::try_from(at).ok())
}

/// Numbers as a mask.
pub fn mask(numbers: &[u32]) -> u64 {
    numbers
        .iter()
        .filter(|number| **number < 64)
        .fold(0, |mask, number| mask | 1 << number)
}

fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: these options take integers only.
    crate::check(unsafe { libc::prctl(option, a, b, 0, 0) }.into())
}

/// Takes everything but these out of the bounding set; needs CAP_SETPCAP for what it removes.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for number in 0..64u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_READ, number.into(), 0) {
            Ok(1) => drop(prctl(libc::PR_CAPBSET_DROP, number.into(), 0)?),
            Ok(_) => {}
            // EINVAL: past the last one that this kernel has.
            Err(_) => break,
        }
    }
    Ok(())
}

/// The permitted set of this process.
///
/// # Errors
/// When the kernel refuses.
pub fn permitted() -> io::Result<u64> {
    let mut data = [Data::default(); 2];
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // SAFETY: version 3 reads into two data structs, which live across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_capget,
            std::ptr::from_mut(&mut header),
            data.as_mut_ptr(),
        )
    };
    crate::check(result)?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// Sets the three sets of this process; bits that it does not have permitted are left out.
///
/// # Errors
/// EPERM for inheritable bits outside the bounding set.
pub fn set(effective: u64, permitted_wanted: u64, inheritable: u64) -> io::Result<()> {
    let have = permitted()?;
    #[allow(clippy::cast_possible_truncation)]
    let half = |shift: u32| Data {
        effective: ((effective & permitted_wanted & have) >> shift) as u32,
        permitted: ((permitted_wanted & have) >> shift) as u32,
        inheritable: ((inheritable & have) >> shift) as u32,
    };
    let data = [half(0), half(32)];
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // SAFETY: version 3 reads two data structs, which live across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_capset,
            std::ptr::from_mut(&mut header),
            data.as_ptr(),
        )
    };
    crate::check(result).map(drop)
}

/// Sets the ambient set; each must be permitted and inheritable.
///
/// # Errors
/// EPERM for one that is not.
pub fn set_ambient(wanted: u64) -> io::Result<()> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
        0,
    )?;
    for number in (0..64u32).filter(|number| wanted & (1 << number) != 0) {
        prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
            number.into(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_is_dockers() {
        let numbers: Vec<u32> = DEFAULT.iter().map(|name| number(name).unwrap()).collect();
        assert_eq!(mask(&numbers), 0xa804_25fb);
        assert_eq!(number("cap_net_admin"), Some(12));
        assert_eq!(number("NO_SUCH"), None);
    }
}
