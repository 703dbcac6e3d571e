//! A process that is stopped and goes on notices nothing of it.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gantry_sys::fd;

#[test]
fn a_wait_goes_on_after_a_stop() {
    let (mut far, near) = UnixStream::pair().unwrap();
    // The time limit is what makes the kernel cut the wait off.
    near.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let pid = std::process::id();
    let script =
        format!("sleep 0.3; kill -STOP {pid}; sleep 0.1; kill -CONT {pid}; sleep 0.3; echo");
    let mut shell = std::process::Command::new("sh");
    let mut child = shell
        .args(["-c", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let teller = std::thread::spawn(move || {
        // Only after the stop.
        std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut Vec::new()).unwrap();
        child.wait().unwrap();
        far.write_all(b"there").unwrap();
    });
    let mut buffer = [0; 8];
    let (length, fds) = fd::recv_with_fds(near.as_fd(), &mut buffer).unwrap();
    assert_eq!((&buffer[..length], fds.len()), (&b"there"[..], 0));
    teller.join().unwrap();
}
