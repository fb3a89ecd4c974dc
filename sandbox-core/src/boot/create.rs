//! Create: from a plan and its mounts to a process at its gate.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::Boot;
use super::pending::{Pending, Stage};
use super::table::{Container, Init, PodPid};
use crate::container::donated::Donated;
use crate::container::init::{self, Newborn};
use crate::container::tree::Tree;
use crate::container::{Channel, Inside, names, terminal};
use crate::control::message::{Donations, Done};
use crate::error::{Context, Result};
use crate::spec::plan::ContainerPlan;
use crate::sys::clone::Cloned;
use crate::sys::process::set_dumpable;

impl Boot {
    pub(super) fn create(
        &mut self,
        number: u64,
        plan: ContainerPlan,
        donations: Donations,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        self.containers.check_free(&plan.id)?;
        let mounts = self.mounts.take(&plan.id)?;
        names::set_shared(&plan)?;
        let Some(process) = &plan.process else {
            let inside = Rc::new(Inside::pause(&plan));
            self.containers.insert(plan.id, Container { init: None, inside });
            self.reply(number, Ok(Done::Ok));
            return Ok(());
        };
        let donated = Donated::sort(donations, descriptors)?;
        self.trees_made += 1;
        let mut tree = Tree::build(self.trees_made, &plan, mounts)?;
        let terminal = terminal::make(process, tree.terminals())?;
        if let Some(terminal) = &terminal {
            tree.place_console(terminal)?;
        }
        let (channel, child_channel) = Channel::pair()?;
        let newborn = Newborn {
            plan: &plan,
            process,
            tree: &tree,
            terminal: terminal.as_ref(),
            donated: &donated,
            channel: &child_channel,
            alone: &self.alone,
        };
        let (pid, pidfd) = self.give_birth(&plan, newborn)?;
        drop(child_channel);
        channel.let_go_on()?;
        let inside = Rc::new(Inside::new(&plan, &mut tree, donated.seccomp));
        let gate_pidfd = pidfd.try_clone().context(|| "dup of a pidfd")?;
        let init = Init { pid, pidfd, gate: None, running: true };
        let container = plan.id.clone();
        self.containers.insert(plan.id, Container { init: Some(init), inside });
        self.expect(Pending {
            number,
            container,
            exec: None,
            pid,
            pidfd: gate_pidfd,
            terminal: terminal.map(|t| t.master),
            channel,
            stage: Stage::Parking,
            tree: Some(tree),
        })
    }

    /// Clones the container's first process into its namespaces and gives its
    /// user namespace the sandbox's IDs.
    fn give_birth(&self, plan: &ContainerPlan, newborn: Newborn<'_>) -> Result<(PodPid, OwnedFd)> {
        match self.clone_dumpable(init::clone_flags(plan))? {
            Cloned::Child => init::run(newborn),
            Cloned::Parent { pid, pidfd } => {
                if plan.user_namespace {
                    init::write_maps(pid, &self.identities)?;
                }
                Ok((PodPid(pid), pidfd))
            }
        }
    }

    /// Clones while this process counts as dumpable, since only then may the
    /// child's maps be written. The containers' own processes are in user
    /// namespaces below and cannot trace it even so.
    fn clone_dumpable(&self, flags: i32) -> Result<Cloned> {
        set_dumpable(true).context(|| "prctl PR_SET_DUMPABLE")?;
        let cloned = crate::sys::clone::clone_into(&self.alone, flags, None);
        if !matches!(cloned, Ok(Cloned::Child)) {
            set_dumpable(false).context(|| "prctl PR_SET_DUMPABLE")?;
        }
        cloned.context(|| "clone3 of a container's process")
    }

    /// Listens for what becomes of a process.
    pub(super) fn expect(&mut self, pending: Pending) -> Result<()> {
        let token = self.containers.add_pending(pending);
        let channel = &self.containers.pending[&token].channel;
        self.events.watch(channel, token)
    }
}
