//! The steps of an exec'd process from its clone to execve, in order. It was cloned into
//! the container's PID namespace.

use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};

use super::process::{OwnProcFiles, Prepared, set_initial_affinity};
use super::{Birth, Channel, donated, keyring, terminal};
use crate::container::donated::Donated;
use crate::container::join_info::JoinInfo;
use crate::container::terminal::Terminal;
use crate::control::newborn::AtGate;
use crate::error::{Context, Result};
use crate::spec::plan::ProcessPlan;
use crate::sys::process::{Rlimit, become_root, exit_now};

/// The input of an exec'd process.
#[derive(Clone, Copy)]
pub(crate) struct Joining<'a> {
    pub(crate) process: &'a ProcessPlan,
    /// The limits with which boot started.
    pub(crate) limits: &'a [Rlimit],
    pub(crate) container: &'a JoinInfo,
    pub(crate) init: &'a OwnedFd,
    pub(crate) terminal: Option<&'a Terminal>,
    pub(crate) donated: &'a Donated,
    pub(crate) channel: Channel<'a>,
}

/// Runs the process. Never returns into boot's code, of which it is a copy.
pub(crate) fn run(joining: Joining<'_>, birth: Birth) -> ! {
    let error = match to_execve(joining, birth) {
        Ok(prepared) => prepared.execute(),
        Err(error) => error,
    };
    joining.channel.report(error);
    exit_now(1)
}

fn to_execve(joining: Joining<'_>, birth: Birth) -> Result<Prepared<'_>> {
    set_initial_affinity(joining.process)?;
    keyring::join(joining.process, &joining.container.id)?;
    let own_files = OwnProcFiles::open(joining.process)?;
    donated::join_cgroups(joining.donated, birth)?;
    donated::install_stdio(joining.donated, joining.terminal)?;
    let namespaces = joining.container.namespaces - CloneFlags::CLONE_NEWPID;
    setns(joining.init, namespaces).context(|| "enter the container's namespaces")?;
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        become_root().context(|| "become root of the container's user namespace")?;
    }
    joining.terminal.map_or(Ok(()), terminal::name)?;
    donated::give_up_others(joining.channel, &own_files, &AtGate::default())?;
    let filter = &joining.container.filter;
    let (limits, has_terminal) = (joining.limits, joining.terminal.is_some());
    Prepared::new(joining.process, limits, filter, has_terminal, own_files, joining.channel)
}
