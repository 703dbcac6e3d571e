//! Seccomp filters (seccomp(2)): loading one.
//!
//! Invariant: the program's bytes are `struct sock_filter`s as the kernel has them, 8 bytes each.

use std::io;

/// Loads a filter for this process and what it executes.
///
/// # Errors
/// EINVAL for a program that the kernel's checker refuses, EACCES without CAP_SYS_ADMIN and without no_new_privs.
pub fn load(program: &[u8], flags: u32) -> io::Result<()> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a seccomp program is 1 to 4096 instructions of 8 bytes",
        )
    };
    let (chunks, rest) = program.as_chunks::<8>();
    if !rest.is_empty() || chunks.is_empty() {
        return Err(wrong());
    }
    let filters: Vec<libc::sock_filter> = chunks
        .iter()
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: filters.len().try_into().map_err(|_| wrong())?,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its instructions live across the call; the kernel copies and checks them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    };
    crate::check(result).map(drop)
}
