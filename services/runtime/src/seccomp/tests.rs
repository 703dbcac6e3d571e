//! Programs are run by a small machine that knows what the kernel's does.

use super::profile::number;
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

/// What the program says of a call (architecture of the host unless given).
fn run(program: &[u8], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&nr.to_ne_bytes());
    data.extend_from_slice(&arch.to_ne_bytes());
    data.extend_from_slice(&[0; 8]);
    args.iter()
        .for_each(|arg| data.extend_from_slice(&arg.to_ne_bytes()));
    let lines = program.as_chunks::<8>().0;
    let (mut at, mut accumulator, mut steps) = (0usize, 0u32, 0);
    loop {
        let line = lines[at];
        let code = u16::from_ne_bytes([line[0], line[1]]);
        let value = u32::from_ne_bytes([line[4], line[5], line[6], line[7]]);
        let (yes, no) = (usize::from(line[2]), usize::from(line[3]));
        steps += 1;
        assert!(steps < 60, "too many steps");
        at += 1;
        match code {
            0x20 => {
                let from = value as usize;
                accumulator = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
            }
            0x54 => accumulator &= value,
            0x05 => at += value as usize,
            0x15 => at += if accumulator == value { yes } else { no },
            0x25 => at += if accumulator > value { yes } else { no },
            0x35 => at += if accumulator >= value { yes } else { no },
            0x06 => return value,
            other => panic!("{other:#x}"),
        }
    }
}

fn caps(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn arch() -> u32 {
    if cfg!(target_arch = "aarch64") {
        0xC000_00B7
    } else {
        0xC000_003E
    }
}

fn ask(program: &[u8], name: &str, first: u64) -> u32 {
    let number = number(name).unwrap_or_else(|| panic!("{name}"));
    run(program, arch(), number, [first, 0, 0, 0, 0, 0])
}

#[test]
fn the_default_profile_decides_as_dockers() {
    let program = compile("", &caps(&["SYS_CHROOT"])).unwrap();
    for allowed in [
        "read",
        "execve",
        "chroot",
        "openat2",
        "ptrace",
        "futex_waitv",
    ] {
        assert_eq!(ask(&program, allowed, 0), ALLOW, "{allowed}");
    }
    for refused in [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "reboot",
        "io_uring_setup",
        "keyctl",
        "kexec_load",
        "swapon",
        "add_key",
        "open_by_handle_at",
        "userfaultfd",
        "perf_event_open",
        "init_module",
    ] {
        assert_eq!(ask(&program, refused, 0), EPERM, "{refused}");
    }
    assert_eq!(ask(&program, "clone3", 0), ENOSYS);
    assert_eq!(ask(&program, "clone", 0x11), ALLOW);
    assert_eq!(ask(&program, "clone", 0x1000_0011), EPERM);
    assert_eq!(ask(&program, "socket", 1), ALLOW);
    assert_eq!(ask(&program, "socket", 40), EPERM);
    assert_eq!(
        ask(&program, "socket", 40 | 1 << 40),
        ALLOW,
        "all 64 bits are compared"
    );
    assert_eq!(ask(&program, "personality", 8), ALLOW);
    assert_eq!(ask(&program, "personality", 0x0040_0000), EPERM);
    assert_eq!(
        run(&program, 0x1234, 0, [0; 6]),
        EPERM,
        "a foreign architecture"
    );
    assert_eq!(run(&program, arch(), 0x4000_0000, [0; 6]), ENOSYS, "x32");
    assert_eq!(
        run(&program, arch(), 100_000, [0; 6]),
        ENOSYS,
        "a call of the future"
    );
    let more = compile("", &caps(&["SYS_ADMIN"])).unwrap();
    assert_eq!(ask(&more, "mount", 0), ALLOW);
    assert_eq!(ask(&more, "clone", 0x1000_0011), ALLOW);
    assert!(
        program.len() / 8 < 700,
        "{} instructions",
        program.len() / 8
    );
}

#[test]
fn every_comparison_of_a_profile() {
    let rule = |op: &str, value: u64, two: u64| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{{"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW",
            "args":[{{"index":0,"value":{value},"valueTwo":{two},"op":"{op}"}}]}}]}}"#
        )
    };
    let big = 5u64 << 33;
    type Case<'a> = (&'a str, u64, u64, &'a [u64], &'a [u64]);
    let cases: [Case<'_>; 7] = [
        ("SCMP_CMP_EQ", big, 0, &[big], &[0, big + 1, 5]),
        ("SCMP_CMP_NE", big, 0, &[0, big + 1], &[big]),
        (
            "SCMP_CMP_GT",
            big,
            0,
            &[big + 1, u64::MAX],
            &[big, big - 1, 7],
        ),
        ("SCMP_CMP_GE", big, 0, &[big, big + 1], &[big - 1, 0]),
        ("SCMP_CMP_LT", big, 0, &[big - 1, 0], &[big, big + 1]),
        ("SCMP_CMP_LE", big, 0, &[big, 0], &[big + 1, u64::MAX]),
        ("SCMP_CMP_MASKED_EQ", 0xf0, 0x10, &[0x10, 0x1f], &[0x20, 0]),
    ];
    for (op, value, two, yes, no) in cases {
        let program = compile(&rule(op, value, two), &caps(&[])).unwrap();
        for argument in yes {
            assert_eq!(ask(&program, "read", *argument), ALLOW, "{op} {argument}");
        }
        for argument in no {
            assert_eq!(ask(&program, "read", *argument), ENOSYS, "{op} {argument}");
        }
    }
    assert!(compile(&rule("SCMP_CMP_XX", 0, 0), &caps(&[])).is_err());
    assert!(compile("{", &caps(&[])).is_err());
    assert!(compile("unconfined", &caps(&[])).unwrap().is_empty());
}

#[test]
fn capabilities_open_and_close_rules() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
        {"name":"kill","action":"SCMP_ACT_KILL_PROCESS","excludes":{"caps":["CAP_KILL"]}}]}"#;
    let with = compile(json, &caps(&["SYS_ADMIN", "KILL"])).unwrap();
    let without = compile(json, &caps(&[])).unwrap();
    assert_eq!(
        (ask(&with, "mount", 0), ask(&without, "mount", 0)),
        (ALLOW, EPERM)
    );
    assert_eq!(
        (ask(&with, "kill", 0), ask(&without, "kill", 0)),
        (EPERM, 0x8000_0000)
    );
}
