//! The last stages before exec: identity, limits, capabilities, seccomp, the program itself.
//!
//! Invariants: after the filter is loaded nothing is done but what docker's default profile allows; every descriptor from 3
//! on closes by exec; the environment is the plan's and nothing of ours.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use gantry_proto::shim::Process;
use gantry_sys::{caps, fd, process, seccomp};

use super::Failed;
use crate::users;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that is one execve away from the program.
#[derive(Debug)]
pub struct Ready {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
}

fn step<T>(what: &str, result: std::io::Result<T>) -> Result<T, Failed> {
    result.map_err(|error| Failed::from(format!("{what}: {error}")))
}

/// Takes on everything that the program is to be.
pub fn prepare(plan: &Process, accounts: &(String, String)) -> Result<Ready, Failed> {
    let who = users::resolve(
        &plan.user,
        &plan.additional_groups,
        &accounts.0,
        &accounts.1,
    )?;
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", who.home));
    }
    let cwd = if plan.cwd.is_empty() { "/" } else { &plan.cwd };
    if !Path::new(cwd).exists() {
        // docker makes a missing working directory, owned by root.
        step(
            &format!("make working directory {cwd}"),
            std::fs::create_dir_all(cwd),
        )?;
    }
    for limit in &plan.rlimits {
        let what = format!("set resource limit {}", limit.resource);
        step(
            &what,
            process::set_rlimit(limit.resource, limit.soft, limit.hard),
        )?;
    }
    if let Some(score) = plan.oom_score_adj {
        // Lowering needs CAP_SYS_RESOURCE on the host; a container that is killed a little sooner is better than none.
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    step(
        "limit the capabilities",
        caps::limit_bounding(caps::mask(&plan.bounding)),
    )?;
    if !plan.no_new_privileges && !plan.seccomp.is_empty() {
        // Needs CAP_SYS_ADMIN, which is about to go.
        step(
            "load the seccomp filter",
            seccomp::load(&plan.seccomp, plan.seccomp_flags),
        )?;
    }
    let what = format!("become user {}:{}", who.uid, who.gid);
    step(&what, process::become_user(who.uid, who.gid, &who.groups))?;
    step(
        &format!("enter working directory {cwd}"),
        std::env::set_current_dir(cwd),
    )?;
    let sets = (
        caps::mask(&plan.effective),
        caps::mask(&plan.permitted),
        caps::mask(&plan.inheritable),
    );
    // A user other than root has what exec gives it: its ambient set.
    let effective = if who.uid == 0 {
        sets.0
    } else {
        sets.0 & caps::mask(&plan.ambient)
    };
    let permitted = if who.uid == 0 {
        sets.1
    } else {
        sets.1 & caps::mask(&plan.ambient)
    };
    step(
        "set the capabilities",
        caps::set(effective, permitted, sets.2),
    )?;
    step(
        "set the ambient capabilities",
        caps::set_ambient(caps::mask(&plan.ambient)),
    )?;
    if plan.no_new_privileges {
        step("give up new privileges", process::no_new_privileges())?;
        if !plan.seccomp.is_empty() {
            step(
                "load the seccomp filter",
                seccomp::load(&plan.seccomp, plan.seccomp_flags),
            )?;
        }
    }
    let program = find(plan, &env)?;
    process::set_umask(0o022);
    process::reset_signals();
    step("close descriptors", fd::cloexec_from(3))?;
    Ok(Ready {
        program,
        args: plan.args.clone(),
        env,
    })
}

/// The program's path: as given when it has a slash, else by the container's own PATH.
fn find(plan: &Process, env: &[String]) -> Result<PathBuf, Failed> {
    let name = plan
        .args
        .first()
        .ok_or_else(|| "no command specified".to_owned())?;
    let missing = |text: String| Failed {
        code: 127,
        message: text,
    };
    let denied = |text: String| Failed {
        code: 126,
        message: text,
    };
    let judge = |path: &Path| match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(denied(format!("exec: {name:?}: is a directory"))),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Err(denied(format!("exec: {name:?}: permission denied")))
        }
        Ok(_) => Ok(path.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(denied(format!("exec: {name:?}: permission denied")))
        }
        Err(_) => Err(missing(format!(
            "exec: {name:?}: stat {}: no such file or directory",
            path.display()
        ))),
    };
    if name.contains('/') {
        return judge(Path::new(name));
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut last = missing(format!(
        "exec: {name:?}: executable file not found in $PATH"
    ));
    for dir in path
        .split(':')
        .filter(|dir| !dir.is_empty() && !name.is_empty())
    {
        match judge(&Path::new(dir).join(name)) {
            Ok(found) => return Ok(found),
            Err(error) if error.code == 126 => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

impl Ready {
    /// Becomes the program; returns only when that failed.
    pub fn exec(&self) -> Failed {
        let error = process::exec(&self.program, &self.args, &self.env);
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            127
        } else {
            126
        };
        let name = self.args.first().map_or("", String::as_str);
        Failed {
            code,
            message: format!("exec: {name:?}: {error}"),
        }
    }

    /// Stays as PID 1, runs the program as a child, passes signals on and reaps; returns only when nothing could be run.
    pub fn run_with_reaper(&self, status: &mut UnixStream) -> Failed {
        let child = match process::fork() {
            Ok(None) => {
                let failed = self.exec();
                let mut message = vec![failed.code];
                message.extend_from_slice(failed.message.as_bytes());
                let _ = status.write_all(&message);
                process::exit_now(i32::from(failed.code));
            }
            Ok(Some(pid)) => pid,
            Err(error) => {
                return Failed::from(format!("start the program under the reaper: {error}"));
            }
        };
        // The parent takes the closing of its status socket as "runs": ours must go, the child's goes by exec.
        let _ = status.shutdown(std::net::Shutdown::Read);
        gantry_sys::fd::close_from(3);
        process::forward_signals(child)
    }
}
