//! A container's life as a pure state machine, and the restart policies.
//!
//! ```text
//! Created --start--> Starting --launched--> Running --ended--> Exited --start--> Starting
//!                       \---failed--> Exited    \--stop--> Stopping --ended--> Exited
//! Created, Exited --remove--> Removing
//! ```
//! Invariant: this is the only place that says which step follows which.

use std::time::Duration;

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// The process's own, or 128 + signal, or 125 to 127 for a start that failed.
    pub code: i32,
    /// The kernel killed for want of memory.
    pub oom: bool,
    /// Why a start failed, or what went wrong.
    pub error: String,
    /// Unix time, nanoseconds.
    pub at: i64,
}

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Never ran.
    Created,
    /// Its shim is being made.
    Starting,
    /// It runs.
    Running {
        /// Of its first process, on the host.
        pid: i32,
    },
    /// It was asked to end.
    Stopping {
        /// Of its first process, on the host.
        pid: i32,
    },
    /// It ran, or could not start.
    Exited(Exit),
    /// It is being taken away.
    Removing,
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Somebody wants it to run.
    Start,
    /// Its program runs.
    Launched(i32),
    /// Somebody wants it to end.
    Stop,
    /// It ended, or its start failed.
    Ended(Exit),
    /// Somebody wants it gone.
    Remove,
}

impl State {
    /// The name that users see.
    pub fn name(&self) -> &'static str {
        match self {
            State::Created => "created",
            State::Starting => "starting",
            State::Running { .. } => "running",
            State::Stopping { .. } => "stopping",
            State::Exited(_) => "exited",
            State::Removing => "being removed",
        }
    }

    /// Its first process, while there is one.
    pub fn pid(&self) -> Option<i32> {
        match self {
            State::Running { pid } | State::Stopping { pid } => Some(*pid),
            _ => None,
        }
    }

    /// It has processes, or is about to.
    pub fn is_active(&self) -> bool {
        matches!(
            self,
            State::Starting | State::Running { .. } | State::Stopping { .. }
        )
    }

    /// What follows, if the step is possible.
    pub fn after(&self, step: &Step) -> Option<State> {
        Some(match (self, step) {
            (State::Created | State::Exited(_), Step::Start) => State::Starting,
            (State::Starting, Step::Launched(pid)) => State::Running { pid: *pid },
            (State::Running { pid } | State::Stopping { pid }, Step::Stop) => {
                State::Stopping { pid: *pid }
            }
            (
                State::Starting | State::Running { .. } | State::Stopping { .. },
                Step::Ended(exit),
            ) => State::Exited(exit.clone()),
            (State::Created | State::Exited(_) | State::Removing, Step::Remove) => State::Removing,
            _ => return None,
        })
    }
}

/// Whether, and after which pause, the policy starts a container again.
pub fn restart_after(
    policy: &str,
    most: i32,
    exit: &Exit,
    restarts: i32,
    ran_for: Duration,
    stopped_by_user: bool,
) -> Option<Duration> {
    let again = !stopped_by_user
        && match policy {
            "always" | "unless-stopped" => true,
            "on-failure" => exit.code != 0 && (most == 0 || restarts < most),
            _ => false,
        };
    if !again {
        return None;
    }
    // One that ran well starts over at once; one that fails each time waits longer each time (docker: 100 ms, doubled).
    let steps = if ran_for > Duration::from_secs(10) {
        0
    } else {
        u32::try_from(restarts).unwrap_or(0).min(10)
    };
    Some(Duration::from_millis(100 << steps).min(Duration::from_secs(60)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Start),
            (1..1000).prop_map(Step::Launched),
            Just(Step::Stop),
            (0..256).prop_map(|code| Step::Ended(Exit {
                code,
                ..Exit::default()
            })),
            Just(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_order(steps in proptest::collection::vec(any_step(), 0..40)) {
            let mut state = State::Created;
            for step in steps {
                let Some(next) = state.after(&step) else { continue };
                if let State::Running { pid } = next {
                    prop_assert!(state == State::Starting && step == Step::Launched(pid));
                }
                if state == State::Removing {
                    prop_assert_eq!(&next, &State::Removing);
                }
                if next == State::Removing {
                    prop_assert!(!state.is_active());
                }
                if matches!(next, State::Exited(_)) {
                    prop_assert!(state.is_active());
                }
                state = next;
            }
        }
    }

    #[test]
    fn policies() {
        let exit = |code| Exit {
            code,
            ..Exit::default()
        };
        let short = Duration::from_secs(1);
        let ask = |policy, most, code, restarts, user| {
            restart_after(policy, most, &exit(code), restarts, short, user)
        };
        assert_eq!(ask("no", 0, 1, 0, false), None);
        assert_eq!(ask("on-failure", 0, 0, 0, false), None);
        assert_eq!(ask("on-failure", 2, 1, 2, false), None);
        assert!(ask("on-failure", 2, 1, 1, false).is_some());
        assert_eq!(ask("always", 0, 0, 0, true), None);
        assert_eq!(
            ask("always", 0, 0, 3, false),
            Some(Duration::from_millis(800))
        );
        assert_eq!(
            ask("always", 0, 0, 50, false),
            Some(Duration::from_secs(60))
        );
        let long = restart_after("always", 0, &exit(0), 50, Duration::from_secs(11), false);
        assert_eq!(long, Some(Duration::from_millis(100)));
    }
}
