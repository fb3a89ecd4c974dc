//! Makes the namespaces that a pod's containers share, and that belong to them.
//!
//! A capability counts in the user namespace that owns a namespace, and above it. So the
//! network, IPC and UTS namespaces are made in the pod's user namespace, a second one
//! below boot's, in which the containers live. boot enters them, and stays in its own
//! user namespace.

use std::os::fd::AsFd;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::error::{Context, Error, Result};
use crate::spec::plan::Mappings;
use crate::sys::child::Child;
use crate::sys::clone::SingleThreaded;
use crate::sys::process::set_dumpable;

/// Makes the pod's user namespace with these mappings, and IPC, UTS and, if asked, network
/// namespaces in it, which this process enters. Returns the child that made them, and is
/// needed no more.
pub(super) fn enter_new(mappings: &Mappings, new_network: bool) -> Result<Child> {
    let mut shared = CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    shared.set(CloneFlags::CLONE_NEWNET, new_network);
    // The message queues of an IPC namespace belong to whom the files of its maker do.
    let (root_uid, root_gid) = mappings.root_outside().unwrap_or_default();
    let gid = setfsgid(Gid::from_raw(root_gid));
    let uid = setfsuid(Uid::from_raw(root_uid));
    // The change of users made this process not dumpable, and the child's maps would
    // belong to the host's root. No container exists that could look.
    set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
    let alone = SingleThreaded::prove().context(|| "clone into the pod's user namespace")?;
    let child = Child::idle(&alone, shared | CloneFlags::CLONE_NEWUSER)
        .context(|| "clone3 into the pod's user namespace")?;
    setfsgid(gid);
    setfsuid(uid);
    set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
    mappings.write(format!("/proc/{}", host_pid(&child)?))?;
    setns(child.as_fd(), shared).context(|| "enter the pod's namespaces")?;
    Ok(child)
}

/// Returns a child's PID in the PID namespace of the proc that this process sees: the
/// host's. It is 2 in this process's own.
fn host_pid(child: &Child) -> Result<i32> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", child.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0)
        .ok_or_else(|| Error::internal(format!("{path} names no process of this /proc")))
}
