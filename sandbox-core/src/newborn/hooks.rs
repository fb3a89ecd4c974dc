//! `startContainer` hooks: programs that run inside the container just before its init
//! executes the user's program (OCI runtime spec, config, "StartContainer Hooks").

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};
use serde_json::json;
use std::os::fd::AsFd;

use crate::error::{Context, Error, Result};
use crate::spec::plan::{ContainerPlan, HookPlan};
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::descriptor::install_stdio;
use crate::sys::process::{execute, exit_now, reset_signals};

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
    let status = wait(&pidfd, hook.timeout)?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Error::internal(format!("exited with {code}"))),
        (_, signal) => Err(Error::internal(format!("killed by signal {}", signal.unwrap_or(0)))),
    }
}

fn become_hook(hook: &HookPlan, stdin: &OwnedFd) -> ! {
    let attempt = || -> std::io::Result<std::convert::Infallible> {
        reset_signals()?;
        install_stdio(stdin, 0)?;
        let path = CString::new(hook.path.as_os_str().as_bytes())?;
        let strings = |list: &[String]| -> std::io::Result<Vec<CString>> {
            list.iter().map(|s| Ok(CString::new(s.as_str())?)).collect()
        };
        execute(&path, &strings(&hook.args)?, &strings(&hook.env)?)
    };
    // Shells exit so if a program cannot be executed.
    let _ = attempt();
    exit_now(127)
}

/// Waits for a hook, and kills it after its timeout.
fn wait(pidfd: &OwnedFd, timeout: Option<Duration>) -> Result<WaitIdStatus> {
    let limit = timeout.and_then(|t| Timespec::try_from(t).ok());
    let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], limit.as_ref())
        .context(|| "wait for the hook")?;
    if ended == 0 {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    let status =
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context(|| "reap the hook")?;
    match (status, ended) {
        (Some(_), 0) => Err(Error::internal(format!("did not end within {timeout:?}"))),
        (Some(status), _) => Ok(status),
        (None, _) => Err(Error::internal("vanished")),
    }
}
