//! Create: makes a process at its gate from a plan and its mounts.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::Boot;
use super::table::{Container, Init, Pending, Stage};
use crate::container::channel::Channel;
use crate::container::delivered::DeliveredMounts;
use crate::container::donated::Donated;
use crate::container::filter::Filter;
use crate::container::join_info::JoinInfo;
use crate::container::namespaces::clone_flags;
use crate::container::outside_ids::OutsideIds;
use crate::container::shared_names;
use crate::container::steps::shared_memory;
use crate::control::message::{Donations, Done};
use crate::error::{Context, Result};
use crate::newborn;
use crate::newborn::init::Newborn;
use crate::spec::plan::ContainerPlan;
use crate::sys::clone::Cloned;
use crate::types::{Limited, PodPid, ProcessId};

impl Boot {
    pub(super) fn create(
        &mut self,
        number: u64,
        mut plan: ContainerPlan,
        donations: Donations,
        descriptors: Vec<OwnedFd>,
        limited: Limited,
    ) -> Result<()> {
        self.containers.check_free(&plan.id)?;
        let mounts = self.mounts.take(&plan.id)?;
        shared_names::set_shared(&plan, self.own_id)?;
        let ids = plan.mappings.clone().map(OutsideIds).or_else(|| self.ids.clone());
        if let Some(ids) = &ids {
            ids.apply(&mut plan)?;
        }
        let Some(process) = &plan.process else {
            shared_names::set_users(&plan, self.users.as_ref(), &self.alone)?;
            let join_info = Rc::new(JoinInfo::pause(&plan));
            self.containers.insert(plan.id, Container { init: None, join_info });
            self.reply(number, Ok(Done::Ok));
            return Ok(());
        };
        let mut donated = Donated::sort(donations, descriptors)?;
        let profile = donated.seccomp.take();
        let filter = Filter::new(&plan.baseline, profile, plan.watch.as_ref(), limited);
        let root = self.own_id.container_root();
        shared_memory::make_if_wanted(&plan, root)?;
        let times_of = plan.times_of.as_deref().map(|id| self.containers.running_init(id));
        let times_of = times_of.transpose()?;
        let (channel, child_channel) = Channel::pair()?;
        let newborn = Newborn {
            plan: &plan,
            process,
            limits: &self.limits,
            donated: &donated,
            filter: &filter,
            users: self.users.as_ref(),
            times_of: times_of.as_ref(),
            ids: ids.as_ref(),
            root,
            views: self.views.add(&plan),
            channel: newborn::Channel { boot: child_channel.as_fd(), log: self.log.as_fd() },
            alone: &self.alone,
        };
        let (pid, pidfd) = self.clone_init(newborn, mounts)?;
        drop(child_channel);
        let join_info = Rc::new(JoinInfo::new(&plan, filter, ids));
        let gate_pidfd = pidfd.try_clone().context(|| "dup of a pidfd")?;
        let init = Init { pid, pidfd, gate: None, running: true };
        let process = ProcessId::init(&plan.id);
        self.containers.insert(plan.id, Container { init: Some(init), join_info });
        self.expect(Pending {
            number,
            process,
            pid,
            pidfd: gate_pidfd,
            terminal: None,
            channel,
            stage: Stage::ToGate,
            mappings: plan.mappings,
            hands_listener_over: false,
        })
    }

    /// Clones the container's init into its first namespaces. It makes the others itself.
    /// Its mounts are then its own: no close here is the last one of a mount.
    fn clone_init(
        &self,
        newborn: Newborn<'_>,
        mounts: DeliveredMounts,
    ) -> Result<(PodPid, OwnedFd)> {
        let joined = newborn.plan.pids_of.as_deref();
        let joined = joined.map(|id| self.containers.running_init(id)).transpose()?;
        match self.clone_among(joined.as_ref(), clone_flags(newborn.plan), newborn.donated)? {
            (Cloned::Child, birth) => newborn::init::run(newborn, mounts, birth),
            (Cloned::Parent { pid, pidfd }, _) => Ok((PodPid(pid), pidfd)),
        }
    }

    /// Watches the channel of a new process.
    pub(super) fn expect(&mut self, pending: Pending) -> Result<()> {
        let token = self.containers.add_pending(pending);
        let channel = &self.containers.pending[&token].channel;
        self.events.watch(channel, token)
    }
}
