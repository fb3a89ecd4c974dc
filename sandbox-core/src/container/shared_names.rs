//! The names and sysctls that a container sets in namespaces that it shares with the
//! sandbox.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rustix::pipe::{PipeFlags, pipe_with};

use super::own_id::OwnId;
use super::steps::names::{open_sysctls, set_names, set_sysctls};
use crate::error::{Context, Error, Result};
use crate::spec::plan::ContainerPlan;
use crate::sys::child::Child;
use crate::sys::clone::SingleThreaded;

/// Sets a container's names and sysctls in namespaces that it shares with the sandbox, for
/// which the container's own root lacks the privilege.
pub(crate) fn set_shared(plan: &ContainerPlan, own_id: OwnId) -> Result<()> {
    if !plan.namespaces.uts {
        set_names(plan)?;
    }
    if plan.namespaces.ipc || plan.sysctls.is_empty() {
        return Ok(());
    }
    let directory = open_sysctls()?;
    if !plan.user_namespace {
        return set_sysctls(&plan.sysctls, directory.as_fd());
    }
    // The kernel checks for root here, not for capabilities.
    own_id.leave()?;
    let set = set_sysctls(&plan.sysctls, directory.as_fd());
    own_id.restore()?;
    set
}

/// Sets the sysctls of the pod's user namespace for a container without a process, which
/// would set them itself. boot could not return from there, so a child of it does it.
pub(crate) fn set_users(
    plan: &ContainerPlan,
    users: Option<&OwnedFd>,
    alone: &SingleThreaded,
) -> Result<()> {
    let Some(users) = users.filter(|_| !plan.user_sysctls.is_empty()) else { return Ok(()) };
    let (answer, child_answer) = pipe_with(PipeFlags::CLOEXEC).context(|| "pipe")?;
    let directory = open_sysctls()?;
    let set = || {
        setns(users, CloneFlags::CLONE_NEWUSER)
            .context(|| "enter the user namespace of the pod's containers")?;
        set_sysctls(&plan.user_sysctls, directory.as_fd())
    };
    let child = Child::run(alone, CloneFlags::empty(), || {
        let text = set().map_or_else(|error| error.to_string(), |()| SET.to_owned());
        // If boot is gone, so is the pod.
        let _ = rustix::io::write(&child_answer, text.as_bytes());
    });
    let child = child.context(|| "clone3 to set sysctls")?;
    drop(child_answer);
    let mut text = String::new();
    File::from(answer).read_to_string(&mut text).context(|| "read from a child")?;
    drop(child);
    match text.as_str() {
        SET => Ok(()),
        "" => Err(Error::internal("linux.sysctl: the process that was to set them died")),
        error => Err(Error::internal(error)),
    }
}

/// The child's answer once all is set.
const SET: &str = "set";
