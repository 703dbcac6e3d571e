//! What a container can see and do, asked from inside; what it can use up, and that the engine does not mind.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gantry_tests::{Node, within};
use serde_json::json;

/// Field of the container's own /proc/self/status.
fn status(node: &Node, flags: &[&str], image: &str, field: &str) -> String {
    let out = node
        .sh(flags, image, &format!("grep ^{field}: /proc/self/status"))
        .ok();
    out.text().split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn capabilities_are_dockers() {
    let (node, image) = Node::with_busybox();
    let default = "00000000a80425fb";
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(&node, &[], &image, set), default, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status(&node, &[], &image, set), "0000000000000000", "{set}");
    }
    assert_eq!(
        status(&node, &["-u", "1000"], &image, "CapEff"),
        "0000000000000000"
    );
    assert_eq!(status(&node, &["-u", "1000"], &image, "CapBnd"), default);
    assert_eq!(
        status(&node, &["--cap-drop", "ALL"], &image, "CapBnd"),
        "0000000000000000"
    );
    assert_eq!(
        status(
            &node,
            &["--cap-drop", "ALL", "--cap-add", "NET_RAW"],
            &image,
            "CapEff"
        ),
        "0000000000002000"
    );
    assert_eq!(
        status(&node, &["--cap-add", "CAP_SYS_ADMIN"], &image, "CapEff"),
        "00000000a82425fb"
    );
    node.sh(&["--cap-add", "NO_SUCH"], &image, "true")
        .code(125)
        .complains(&["NO_SUCH"]);
}

#[test]
fn system_calls_are_filtered() {
    let (node, image) = Node::with_busybox();
    assert_eq!(status(&node, &[], &image, "Seccomp"), "2");
    assert_eq!(
        status(
            &node,
            &["--security-opt", "seccomp=unconfined"],
            &image,
            "Seccomp"
        ),
        "0"
    );
    assert_eq!(status(&node, &["--privileged"], &image, "Seccomp"), "0");
    assert_eq!(
        status(
            &node,
            &["--security-opt", "no-new-privileges"],
            &image,
            "NoNewPrivs"
        ),
        "1"
    );
    for forbidden in [
        "unshare -m true",
        "mount -t tmpfs none /mnt",
        "unshare -U true",
    ] {
        let out = node.sh(&[], &image, &format!("mkdir -p /mnt; {forbidden}"));
        assert_ne!(out.code, 0, "{forbidden}");
        assert!(
            out.stderr.to_lowercase().contains("not permitted") || out.stderr.contains("denied"),
            "{out:?}"
        );
    }
}

/// Makes every system call with arguments that can do no harm and prints those that fail with EPERM, then with ENOSYS.
const PROBE: &str = r#"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  for (int want = 1; want <= 38; want += 37) {
    printf("%s", want == 1 ? "eperm" : "enosys");
    for (long nr = 0; nr < 470; nr++) {
      fflush(stdout);
      pid_t pid = fork();
      if (pid == 0) {
        setsid(); alarm(1); errno = 0;
        long r = syscall(nr, -1L, -1L, -1L, -1L, -1L, -1L);
        _exit(r == -1 ? errno : 0);
      }
      int status; waitpid(pid, &status, 0);
      if (WIFEXITED(status) && WEXITSTATUS(status) == want) printf(" %ld", nr);
    }
    printf("\n");
  }
  return 0;
}
"#;

/// What the probe prints in a container of docker 28.5 with its default profile, on x86_64.
const DOCKERS: &str = "\
eperm 56 103 112 134 135 136 139 153 155 156 163 164 165 166 167 168 169 170 171 172 173 174 175 176 177 178 179 180 181 182 183 184 185 212 227 236 237 238 239 246 248 249 250 256 272 279 298 300 304 308 312 313 320 321 323 337 338 339 340 341 342 343 344 345 346 347 348 349 350 351 352 353 354 355 356 357 358 359 360 361 362 363 364 365 366 367 368 369 370 371 372 373 374 375 376 377 378 379 380 381 382 383 384 385 386 387 388 389 390 391 392 393 394 395 396 397 398 399 400 401 402 403 404 405 406 407 408 409 410 411 412 413 414 415 416 417 418 419 420 421 422 423 425 426 427 428 429 430 431 432 433 438 440 442 443 446 450 459 460 461
enosys 202 205 211 214 215 435 453 467 468 469
";

#[test]
#[cfg(target_arch = "x86_64")]
fn every_system_call_meets_what_it_meets_in_docker() {
    let (node, image) = Node::with_busybox();
    let dir = gantry_tests::node::host_dir(&node, "probe");
    std::fs::write(format!("{dir}/probe.c"), PROBE).unwrap();
    gantry_tests::command::shell(&format!("cc -static -O1 -o {dir}/probe {dir}/probe.c"));
    let out = node
        .sh(&["-v", &format!("{dir}:/p:ro")], &image, "/p/probe")
        .ok();
    // A kernel older than the list answers ENOSYS where the list has a later call; none of ours may be let through.
    let calls = |text: &str, word: &str| -> std::collections::BTreeSet<u32> {
        let line = text.lines().find(|line| line.starts_with(word)).unwrap();
        line.split(' ')
            .skip(1)
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let mut refused = calls(&out.stdout, "eperm");
    // uprobe(2): the kernels that have it (6.18) let it pass every filter, older ones do not know it.
    refused.remove(&336);
    assert_eq!(refused, calls(DOCKERS, "eperm"));
    let missing = calls(&out.stdout, "enosys");
    assert!(
        missing.is_superset(&calls(DOCKERS, "enosys")),
        "{missing:?}"
    );
}

#[test]
fn the_kernels_files_are_closed() {
    let (node, image) = Node::with_busybox();
    let script = "
for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug; do [ -e $f ] && [ -s $f ] && head -c 1 $f | wc -c | grep -qv ^0 && echo readable $f; done
for d in /proc/acpi /proc/scsi /sys/firmware; do [ -d $d ] && [ -n \"$(ls -A $d)\" ] && echo listed $d; done
for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/mm/transparent_hugepage/enabled; do
  [ -e $f ] && (echo x >$f) 2>/dev/null && echo wrote $f; done
grep ' /sys ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1; true";
    node.sh(&[], &image, script).ok().prints("ro\n");
    node.sh(
        &["--privileged"],
        &image,
        "grep ' /sys ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1",
    )
    .ok()
    .prints("rw\n");
}

#[test]
fn nothing_of_the_engine_leaks_in() {
    let (node, image) = Node::with_busybox();
    // 3 is the directory that ls itself reads.
    node.sh(&[], &image, "ls /proc/self/fd")
        .ok()
        .prints("0\n1\n2\n3\n");
    node.sh(&[], &image, "ls /proc/1/fd; true")
        .ok()
        .prints("0\n1\n2\n");
    let id = node.detached(&[], &image, &["sleep", "60"]);
    node.ctl(&["exec", &id, "ls", "/proc/1/fd"])
        .ok()
        .prints("0\n1\n2\n");
    node.ctl(&["exec", &id, "ls", "/proc/self/fd"])
        .ok()
        .prints("0\n1\n2\n3\n");
    // The host's users, as docker has it without remapping.
    let maps = node
        .sh(&[], &image, "cat /proc/self/uid_map /proc/self/gid_map")
        .ok();
    for line in maps.stdout.lines() {
        let numbers: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(numbers, ["0", "0", "4294967295"]);
    }
    // Its own processes alone, its own cgroup as the root, no mount that tells where the host keeps things.
    let out = node
        .sh(
            &[],
            &image,
            "ls -d /proc/[0-9]* | wc -l; cut -d: -f3 /proc/self/cgroup | sort -u; echo $$",
        )
        .ok();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert!(lines[0].trim().parse::<u32>().unwrap() <= 4, "{out:?}");
    assert_eq!(&lines[1..], ["/", "1"]);
    let mounts = node.sh(&[], &image, "cat /proc/self/mountinfo").ok();
    let roots: Vec<&str> = mounts
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    assert!(!roots.iter().any(|at| at.contains("gantry")), "{roots:?}");
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(node.sh(&[], &image, "hostname").ok().stdout, name);
}

#[test]
fn devices_are_the_usual_ones() {
    let (node, image) = Node::with_busybox();
    let out = node.sh(&[], &image, "ls /dev").ok();
    let mut names: Vec<&str> = out.stdout.lines().collect();
    names.sort_unstable();
    // A link to /proc/kcore, where the kernel has one.
    names.retain(|name| *name != "core");
    assert_eq!(
        names,
        [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
            "stdout", "tty", "urandom", "zero",
        ]
    );
    node.sh(
        &[],
        &image,
        "echo x >/dev/null && head -c 3 /dev/zero | wc -c; df -k /dev/shm | awk 'NR==2{print $2}'",
    )
    .ok()
    .prints("3\n65536\n");
    // A node can be made (MKNOD is in the default set), but not opened.
    let out = node.sh(&[], &image, "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg");
    assert_ne!(out.code, 0);
    out.complains(&["not permitted"]);
    // Kernel messages, for reading alone.
    let script = "ls -l /dev/other | cut -c1; (echo x >/dev/other) 2>&1 | grep -c permitted";
    node.sh(&["--device", "/dev/kmsg:/dev/other:r"], &image, script)
        .ok()
        .prints("c\n1\n");
}

#[test]
fn limits_are_written() {
    let (node, image) = Node::with_busybox();
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let files = if v2 {
        ["memory.max", "pids.max", "cpu.max"].map(|file| format!("/sys/fs/cgroup/{file}"))
    } else {
        [
            "memory/memory.limit_in_bytes",
            "pids/pids.max",
            "cpu/cpu.cfs_quota_us",
        ]
        .map(|file| format!("/sys/fs/cgroup/{file}"))
    };
    let out = node
        .sh(
            &["-m", "64m", "--pids-limit", "50", "--cpus", "0.5"],
            &image,
            &format!("cat {}", files.join(" ")),
        )
        .ok();
    let cpu = if v2 { "50000 100000" } else { "50000" };
    assert_eq!(out.stdout, format!("{}\n50\n{cpu}\n", 64 << 20));
    node.sh(
        &["--ulimit", "nofile=111:222"],
        &image,
        "ulimit -Sn; ulimit -Hn",
    )
    .ok()
    .prints("111\n222\n");
    node.sh(&["-m", "1k"], &image, "true")
        .code(125)
        .complains(&["memory"]);
}

#[test]
fn a_memory_hog_ends_alone() {
    let (node, image) = Node::with_busybox();
    node.detached(&["--name", "neighbour"], &image, &["sleep", "600"]);
    let out = node.ctl(&[
        "run",
        "--name",
        "hog",
        "-m",
        "32m",
        "--memory-swap",
        "32m",
        &image,
        "sh",
        "-c",
        "tail /dev/zero",
    ]);
    assert_eq!(out.code, 137, "{out:?}");
    let state = node.inspect("hog")["State"].clone();
    assert_eq!(
        (&state["OOMKilled"], &state["ExitCode"]),
        (&json!(true), &json!(137))
    );
    assert_eq!(node.status("neighbour"), "running");
    node.sh(&[], &image, "echo well").ok().prints("well\n");
}

#[test]
fn a_fork_bomb_meets_its_limit() {
    let (node, image) = Node::with_busybox();
    node.detached(
        &["--name", "bomb", "--pids-limit", "40", "--network", "none"],
        &image,
        &["sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 600"],
    );
    std::thread::sleep(Duration::from_secs(2));
    let engine = node.engine();
    node.sh(&[], &image, "echo well").ok().prints("well\n");
    let pid = node.inspect("bomb")["State"]["Pid"].as_i64().unwrap();
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(group.contains(&node.marks().cgroup), "{group}");
    node.ctl(&["rm", "-f", "bomb"]).ok();
    within(Duration::from_secs(10), "nothing is left of it", || {
        node.marks().container_residue().is_empty().then_some(())
    });
    assert_eq!(node.engine(), engine, "no service had to be restarted");
}

#[test]
fn privileged_is_privileged() {
    let (node, image) = Node::with_busybox();
    let host = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = host
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .unwrap();
    assert_eq!(status(&node, &["--privileged"], &image, "CapEff"), bounding);
    node.sh(
        &["--privileged"],
        &image,
        "mkdir /m && mount -t tmpfs none /m && echo mounted",
    )
    .ok()
    .prints("mounted\n");
}
