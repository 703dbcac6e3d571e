//! The kernel: every raw system call of Gantry, and the only `unsafe`.
//!
//! Invariants: functions here decide nothing and know no container; each `unsafe` block states why it is sound;
//! no other crate names `nix` or `libc`; every failure is an [`std::io::Error`] with the kernel's number in it.
#![allow(unsafe_code)]

pub mod caps;
pub mod cgroup;
pub mod devices;
pub mod event;
pub mod fd;
pub mod fs;
pub mod mount;
pub mod netns;
pub mod ns;
pub mod overlay;
pub mod process;
pub mod seccomp;
pub mod tree;
pub mod tty;

/// Turns the kernel's -1 into an error.
fn check(result: libc::c_long) -> std::io::Result<libc::c_long> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A path or name as the kernel wants it.
fn c_string(text: &std::ffi::OsStr) -> std::io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::CString::new(text.as_bytes()).map_err(|_| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "a NUL byte in a path or name",
        )
    })
}
