//! `createContainer` hooks: programs of the host that find the container's mounts below
//! `root.path` of the bundle, before the container has a process (OCI runtime spec, config,
//! "CreateContainer Hooks"). `hook_view.rs` makes what they see.
//!
//! They run as the host's root with the host's paths, as the specification demands: who writes
//! the spec trusts them. Each is PID 1 of a PID namespace, so that nothing of it outlives it:
//! what is left would hold the mounts of its view.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, memfd_create};
use rustix::process::{
    Signal, WaitId, WaitIdOptions, WaitIdStatus, chdir, pidfd_send_signal, umask, waitid,
};

use crate::control::gofer::{GoferRequest, HookJob};
use crate::error::{Context, Error, Result};
use crate::gofer::assemble::isolate_mounts;
use crate::gofer::hook_view::{Carried, View};
use crate::gofer::means::Gofer;
use crate::spec::plan::HookPlan;
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::descriptor::install_stdio;
use crate::sys::process::{die_with_parent, execute, exit_now, reset_signals};

/// The longest output of a hook in an error.
const MAX_OUTPUT: u64 = 4096;

/// Runs the hooks, one after another, in a mount namespace that ends with them. Returns the
/// mounts that come from there.
pub(super) fn run(job: &HookJob, request: &GoferRequest, gofer: &mut Gofer) -> Result<Carried> {
    let host = File::open("/proc/self/ns/mnt").context(|| "open /proc/self/ns/mnt")?;
    unshare(CloneFlags::CLONE_NEWNS).context(|| "unshare the mount namespace for hooks")?;
    isolate_mounts()?;
    let view = View::make(job, request, gofer)?;
    for hook in &job.hooks {
        run_one(hook, job)
            .map_err(|why| Error::new(why.kind, format!("hook {} {why}", hook.path.display())))?;
    }
    let carried = view.carry(gofer)?;
    setns(&host, CloneFlags::CLONE_NEWNS).context(|| "setns back into the host's mounts")?;
    Ok(carried)
}

fn run_one(hook: &HookPlan, job: &HookJob) -> Result<()> {
    // Memory files rather than pipes: these need no reader and no writer at the same time.
    let mut stdin = memory_file("state")?;
    stdin.write_all(job.state.as_bytes()).and_then(|()| stdin.rewind()).context(|| "state")?;
    let mut output = memory_file("output")?;
    let alone = SingleThreaded::prove().context(|| "counting threads")?;
    let cloned = clone_into(&alone, CloneFlags::CLONE_NEWPID, None).context(|| "clone3")?;
    let pidfd = match cloned {
        Cloned::Parent { pidfd, .. } => pidfd,
        Cloned::Child => become_hook(hook, job, &stdin, &output),
    };
    let status = wait(&pidfd, hook.timeout)?;
    let ending = match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("failed with exit status {code}"),
        (_, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
    };
    let mut text = Vec::new();
    let _ = output
        .rewind()
        .and_then(|()| Read::by_ref(&mut output).take(MAX_OUTPUT).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text).replace(|c: char| c.is_control(), " ");
    let colon = if text.trim().is_empty() { "" } else { ": " };
    Err(Error::internal(format!("{ending}{colon}{}", text.trim())))
}

fn memory_file(name: &str) -> Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC).context(|| "memfd_create")?.into())
}

fn become_hook(hook: &HookPlan, job: &HookJob, stdin: &File, output: &File) -> ! {
    let attempt = || -> std::io::Result<std::convert::Infallible> {
        die_with_parent()?;
        reset_signals()?;
        umask(Mode::from_raw_mode(0o022));
        // As under runc.
        chdir(&job.root)?;
        install_stdio(stdin, 0)?;
        install_stdio(output, 1)?;
        install_stdio(output, 2)?;
        let path = CString::new(hook.path.as_os_str().as_bytes())?;
        let strings = |list: &[String]| -> std::io::Result<Vec<CString>> {
            list.iter().map(|s| Ok(CString::new(s.as_str())?)).collect()
        };
        execute(&path, &strings(&hook.args)?, &strings(&hook.env)?)
    };
    let Err(error) = attempt();
    let mut output = output;
    let _ = write!(output, "execute it: {error}");
    // Shells exit so if a program cannot be executed.
    exit_now(127)
}

/// Waits for a hook, and kills it and what it has started after its timeout.
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
        (_, 0) => {
            let seconds = timeout.unwrap_or_default().as_secs();
            Err(Error::internal(format!("was killed: it did not end within {seconds} s")))
        }
        (Some(status), _) => Ok(status),
        (None, _) => Err(Error::internal("vanished")),
    }
}
