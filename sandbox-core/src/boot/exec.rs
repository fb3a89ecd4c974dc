//! Exec: runs one more process in a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::sched::{CloneFlags, setns};

use super::Boot;
use super::table::{Pending, Stage};
use crate::container::channel::Channel;
use crate::container::donated::Donated;
use crate::container::terminal;
use crate::control::message::Donations;
use crate::error::{Context, Result};
use crate::newborn::exec::Joining;
use crate::newborn::{self, Birth};
use crate::spec::plan::ProcessPlan;
use crate::sys::clone::{Cloned, clone_into};
use crate::sys::descriptor::close_copy;
use crate::types::{PodPid, ProcessId};

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
        let init = self.containers.running_init(&id)?;
        let container = Rc::clone(&self.containers.get(&id)?.join_info);
        let terminal = terminal::make(process, container.terminals(), container.ids.as_ref())?;
        let (channel, child_channel) = Channel::pair()?;
        let joining = Joining {
            process,
            limits: &self.limits,
            container: &container,
            init: &init,
            terminal: terminal.as_ref(),
            donated: &donated,
            channel: newborn::Channel { boot: child_channel.as_fd(), log: self.log.as_fd() },
        };
        let (pid, pidfd) = self.clone_into_container(joining)?;
        drop(child_channel);
        let process = ProcessId::exec(id, exec);
        self.containers.own(pid, process.clone());
        self.expect(Pending {
            number,
            process,
            pid,
            pidfd,
            terminal: terminal.map(|t| t.master),
            channel,
            stage: Stage::Executing,
            mappings: None,
            hands_listener_over: false,
        })
    }

    /// Clones a process into a container's PID namespace.
    fn clone_into_container(&self, joining: Joining<'_>) -> Result<(PodPid, OwnedFd)> {
        let visited = joining.container.pids_below().then_some(joining.init);
        match self.clone_among(visited, CloneFlags::empty(), joining.donated)? {
            (Cloned::Child, birth) => newborn::exec::run(joining, birth),
            (Cloned::Parent { pid, pidfd }, _) => Ok((PodPid(pid), pidfd)),
        }
    }

    /// Clones a child into the PID namespace of `init`, or boot's own. Only the children of
    /// a process join the PID namespace that it enters, so boot enters it for the time of
    /// the clone. The child enters the other namespaces itself.
    pub(super) fn clone_among(
        &self,
        init: Option<&OwnedFd>,
        flags: CloneFlags,
        donated: &Donated,
    ) -> Result<(Cloned, Birth)> {
        let Some(init) = init else {
            return self.clone_newborn(flags, donated);
        };
        let pid_namespace = CloneFlags::CLONE_NEWPID;
        setns(init, pid_namespace).context(|| "enter the container's PID namespace")?;
        let cloned = self.clone_newborn(flags, donated);
        if !matches!(cloned, Ok((Cloned::Child, _))) {
            setns(self.own_pid_namespace.as_fd(), pid_namespace)
                .context(|| "return from the container's PID namespace")?;
        }
        cloned
    }

    /// Clones a child into the cgroup that was donated, or beside boot: the container may
    /// have no room for another process by birth, or hold processes only below its cgroup.
    pub(super) fn clone_newborn(
        &self,
        flags: CloneFlags,
        donated: &Donated,
    ) -> Result<(Cloned, Birth)> {
        let directory = donated.cgroup_directory.as_ref().map(AsFd::as_fd);
        if directory.is_some() {
            match clone_into(&self.alone, flags, directory) {
                Ok(cloned) => return Ok((self.without_device(cloned), Birth::InCgroup)),
                Err(e) => log::debug!("clone3 into the container's cgroup: {e}"),
            }
        }
        let cloned =
            clone_into(&self.alone, flags, None).context(|| "clone3 of a container's process")?;
        Ok((self.without_device(cloned), Birth::BesideBoot))
    }

    /// Closes the newborn's copy of the device of the views. One that looked at a view while it
    /// held the device itself could not be killed after boot's end.
    fn without_device(&self, cloned: Cloned) -> Cloned {
        if let (Cloned::Child, Some(device)) = (&cloned, self.views.device()) {
            // It cannot fail for a number that is open.
            let _ = close_copy(device);
        }
        cloned
    }
}
