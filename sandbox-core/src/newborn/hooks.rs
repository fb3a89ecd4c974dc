//! `startContainer` hooks: programs that run inside the container just before its init
//! executes the user's program (OCI runtime spec, config, "StartContainer Hooks").

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::hook_process::{self, Ending};
use crate::spec::plan::{ContainerPlan, HookPlan};
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::descriptor::install_stdio;
use crate::sys::process::{exit_now, reset_signals};

/// Runs the hooks in order. The first failure ends the container, as in runc.
pub(super) fn run(plan: &ContainerPlan, alone: &SingleThreaded) -> Result<()> {
    plan.start_hooks.iter().try_for_each(|hook| {
        run_one(hook, &state(plan), alone).map_err(|why| {
            Error::internal(format!("hooks.startContainer: {}: {why}", hook.path.display()))
        })
    })
}

/// Returns the container's state for a hook: runtime spec, "State".
fn state(plan: &ContainerPlan) -> String {
    json!({
        "ociVersion": "1.2.0",
        "id": plan.id,
        "status": "created",
        "pid": rustix::process::getpid().as_raw_pid(),
        "bundle": plan.bundle,
    })
    .to_string()
}

fn run_one(hook: &HookPlan, state: &str, alone: &SingleThreaded) -> Result<()> {
    let (stdin, ours) = pipe_with(PipeFlags::CLOEXEC).context(|| "pipe")?;
    let pidfd = match clone_into(alone, CloneFlags::empty(), None).context(|| "clone3")? {
        Cloned::Parent { pidfd, .. } => pidfd,
        Cloned::Child => become_hook(hook, &stdin),
    };
    drop(stdin);
    // A hook need not read its state.
    let _ = File::from(ours).write_all(state.as_bytes());
    let why = match hook_process::wait(&pidfd, hook.timeout)? {
        Ending::Exited(0) => return Ok(()),
        Ending::Exited(code) => format!("exited with {code}"),
        Ending::Signalled(signal) => format!("killed by signal {signal}"),
        Ending::TimedOut => format!("did not end within {:?}", hook.timeout),
    };
    Err(Error::internal(why))
}

fn become_hook(hook: &HookPlan, stdin: &OwnedFd) -> ! {
    let attempt = || -> std::io::Result<std::convert::Infallible> {
        reset_signals()?;
        install_stdio(stdin, 0)?;
        hook_process::execute(hook)
    };
    // Shells exit so if a program cannot be executed.
    let _ = attempt();
    exit_now(127)
}
