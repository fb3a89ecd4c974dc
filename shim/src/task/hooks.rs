//! Hooks that run on the host (OCI runtime-spec, `config.md`, "POSIX-platform
//! Hooks"). They get the container's state on standard input and only the
//! spec's environment, and are killed by SIGKILL at the end of their time.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sandbox_core::sandbox::printable;
use sandbox_core::spec::plan::{HookPlan, Plan};
use sandbox_core::sys::open_files::AsInherited;
use tokio::runtime::Handle;

use crate::error::{Context, Error, Result};
use crate::ready::readable;

/// The time that a hook without a timeout has. containerd itself cancels the
/// request much sooner.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The container's state, as a hook or a seccomp agent gets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct State<'a> {
    pub(super) id: &'a str,
    /// The init's PID; zero if there is no process any more.
    pub(super) pid: u32,
    pub(super) status: &'a str,
    pub(super) bundle: &'a str,
    pub(super) plan: &'a Plan,
}

impl State<'_> {
    /// Formats the state as in OCI runtime-spec, `runtime.md`, "State".
    pub(super) fn json(&self) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": "1.2.0",
            "id": self.id,
            "status": self.status,
            "bundle": self.bundle,
            "annotations": self.plan.host.annotations,
        });
        if self.pid != 0 {
            state["pid"] = self.pid.into();
        }
        state
    }
}

/// Runs the hooks of a container that is gone, or could not be made. Logs their
/// errors, since no request depends on them.
pub(super) async fn poststop(id: &str, bundle: &str, plan: &Plan) {
    let state = State { id, pid: 0, status: "stopped", bundle, plan };
    for hook in &plan.host.hooks.poststop {
        if let Err(error) = run(hook, &state).await {
            log::warn!("container {id}: {error}");
        }
    }
}

/// Runs one hook to its end.
pub(super) async fn run(hook: &HookPlan, state: &State<'_>) -> Result<()> {
    let path = hook.path.display();
    // Memory files rather than pipes: these need no reader and no writer at the
    // same time.
    let mut stdin = memory_file("state")?;
    stdin.write_all(state.json().to_string().as_bytes()).context(|| "write a hook's state")?;
    stdin.rewind().context(|| "rewind a hook's state")?;
    let mut stderr = memory_file("stderr")?;
    let mut command = Command::new(&hook.path);
    if let [name, args @ ..] = hook.args.as_slice() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(stdin).stdout(Stdio::null());
    command.stderr(stderr.try_clone().context(|| "dup of a memory file")?);
    let child = {
        let _limit = AsInherited::begin().context(|| "prlimit RLIMIT_NOFILE")?;
        command.spawn().context(|| format!("run hook {path}"))?
    };
    let status = finish(Running::new(child)?, hook).await?;
    if status.success() {
        return Ok(());
    }
    let mut output = Vec::new();
    let _ = stderr
        .rewind()
        .and_then(|()| Read::by_ref(&mut stderr).take(4096).read_to_end(&mut output));
    let output = printable(&output);
    let output = output.trim();
    let colon = if output.is_empty() { "" } else { ": " };
    Err(Error::internal(format!("hook {path} {}{colon}{output}", ending(status))))
}

fn memory_file(name: &str) -> Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC).context(|| "memfd_create")?.into())
}

/// A hook's process, and its pidfd. Dropping it kills the process, since the
/// client of the request may go.
struct Running(Option<(Child, OwnedFd)>);

impl Running {
    fn new(child: Child) -> Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::internal("a hook without a process"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context(|| "pidfd_open of a hook")?;
        Ok(Self(Some((child, pidfd))))
    }

    async fn end(&mut self) -> Result<ExitStatus> {
        let Some((child, pidfd)) = &mut self.0 else {
            return Err(Error::internal("a hook that has ended already"));
        };
        readable(pidfd.as_fd()).await?;
        let status = child.wait().context(|| "wait for a hook")?;
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((mut child, pidfd)) = self.0.take() else { return };
        let _ = child.kill();
        // The process may be in a state in which no signal reaches it. No request
        // waits for its end.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _ = readable(pidfd.as_fd()).await;
                let _ = child.wait();
            });
        }
    }
}

/// Waits until the hook has ended, but not longer than its timeout.
async fn finish(mut running: Running, hook: &HookPlan) -> Result<ExitStatus> {
    let timeout = hook.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let ended = tokio::time::timeout(timeout, running.end()).await;
    ended.unwrap_or_else(|_| {
        Err(Error::internal(format!(
            "hook {} was killed: it did not end within {} s",
            hook.path.display(),
            timeout.as_secs()
        )))
    })
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".to_string(),
    }
}
