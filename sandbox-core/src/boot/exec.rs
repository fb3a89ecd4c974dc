//! Exec: one more process in a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::sched::{CloneFlags, setns};

use super::Boot;
use super::pending::{Pending, Stage};
use super::table::{Owner, PodPid};
use crate::container::donated::Donated;
use crate::container::exec::{self, Joining};
use crate::container::{Channel, terminal};
use crate::control::message::{Donations, FailureKind};
use crate::error::{Context, Error, Result};
use crate::spec::plan::ProcessPlan;
use crate::sys::clone::{Cloned, clone_into};

impl Boot {
    pub(super) fn exec(
        &mut self,
        number: u64,
        id: String,
        exec: String,
        process: &ProcessPlan,
        donations: Donations,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        let donated = Donated::sort(donations, descriptors)?;
        let container = self.containers.get(&id)?;
        let inside = Rc::clone(&container.inside);
        let init = container.init.as_ref().filter(|init| init.running).ok_or_else(|| {
            Error::new(FailureKind::State, format!("container {id} runs no process to join"))
        })?;
        let init = init.pidfd.try_clone().context(|| "dup of a pidfd")?;
        let terminal = terminal::make(process, inside.terminals())?;
        let (channel, child_channel) = Channel::pair()?;
        let joining = Joining {
            process,
            inside: &inside,
            init: &init,
            terminal: terminal.as_ref(),
            donated: &donated,
            channel: &child_channel,
        };
        let (pid, pidfd) = self.clone_into_container(joining)?;
        drop(child_channel);
        self.containers.own(pid, Owner { container: id.clone(), exec: Some(exec.clone()) });
        self.expect(Pending {
            number,
            container: id,
            exec: Some(exec),
            pid,
            pidfd,
            terminal: terminal.map(|t| t.master),
            channel,
            stage: Stage::Executing,
            tree: None,
        })
    }

    /// A PID namespace is joined by the children of whoever enters it, so boot
    /// looks in for the time of the clone; the child enters the others itself.
    fn clone_into_container(&self, joining: Joining<'_>) -> Result<(PodPid, OwnedFd)> {
        let visits = joining.inside.own_pid_namespace();
        let pid_namespace = CloneFlags::CLONE_NEWPID;
        if visits {
            setns(joining.init, pid_namespace).context(|| "enter the container's PID namespace")?;
        }
        let cloned = clone_into(&self.alone, 0, None).context(|| "clone3 of an exec'd process");
        if matches!(cloned, Ok(Cloned::Child)) {
            exec::run(joining);
        }
        if visits {
            setns(self.own_pid_namespace.as_fd(), pid_namespace)
                .context(|| "come back from the container's PID namespace")?;
        }
        match cloned? {
            Cloned::Parent { pid, pidfd } => Ok((PodPid(pid), pidfd)),
            Cloned::Child => exec::run(joining),
        }
    }
}
