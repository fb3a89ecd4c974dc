//! `createContainer` hooks: programs of the host that find the container's mounts below
//! `root.path` of the bundle, before the container has a process (OCI runtime spec, config,
//! "CreateContainer Hooks"). `hook_view.rs` makes what they see.
//!
//! They run as the host's root with the host's paths, as the specification demands: who writes
//! the spec trusts them. Each is PID 1 of a PID namespace, so that nothing of it outlives it:
//! what is left would hold the mounts of its view.

use std::fs::File;
use std::io::{Read, Seek, Write};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{MemfdFlags, Mode, memfd_create};
use rustix::process::{chdir, umask};

use crate::control::gofer::{GoferRequest, HookJob};
use crate::error::{Context, Error, Result};
use crate::gofer::assemble::isolate_mounts;
use crate::gofer::hook_view::{Carried, View};
use crate::gofer::means::Gofer;
use crate::hook_process::{self, Ending};
use crate::spec::plan::HookPlan;
use crate::sys::clone::{Cloned, SingleThreaded, clone_into};
use crate::sys::descriptor::install_stdio;
use crate::sys::open_files;
use crate::sys::process::{die_with_parent, exit_now, reset_signals};

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
    let ending = match hook_process::wait(&pidfd, hook.timeout)? {
        Ending::Exited(0) => return Ok(()),
        Ending::Exited(code) => format!("failed with exit status {code}"),
        Ending::Signalled(signal) => format!("was ended by signal {signal}"),
        Ending::TimedOut => {
            let seconds = hook.timeout.unwrap_or_default().as_secs();
            return Err(Error::internal(format!("was killed: it did not end within {seconds} s")));
        }
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
        open_files::limit_to(job.open_files)?;
        umask(Mode::from_raw_mode(0o022));
        // As under runc.
        chdir(&job.root)?;
        install_stdio(stdin, 0)?;
        install_stdio(output, 1)?;
        install_stdio(output, 2)?;
        hook_process::execute(hook)
    };
    let Err(error) = attempt();
    let mut output = output;
    let _ = write!(output, "execute it: {error}");
    // Shells exit so if a program cannot be executed.
    exit_now(127)
}
