//! Delete: forgets a container.

use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};

use super::Boot;
use super::table::Pending;
use crate::control::message::Done;
use crate::error::{Context, Error, FailureKind, Result};
use crate::types::ProcessId;

impl Boot {
    /// Forgets a container. One that never started is killed, since it has run no program
    /// of the user. If Create was never requested, its mounts may have been delivered, and
    /// are dropped.
    pub(super) fn delete(&mut self, number: u64, id: &str) -> Result<()> {
        if self.cancel_restore(id) {
            self.reply(number, Ok(Done::Ok));
            return Ok(());
        }
        let container = self.containers.get(id).inspect_err(|_| {
            self.mounts.discard(id);
            self.views.remove(id);
        })?;
        let init = container.init.as_ref().filter(|init| init.running);
        if let Some((pid, at_gate)) = init.map(|init| (init.pid, init.gate.is_some())) {
            match self.containers.take_on_way_to_gate(pid) {
                Some(pending) => self.cancel(pending),
                None if at_gate => {}
                None => {
                    let message = format!("container {id} is running; kill it first");
                    return Err(Error::new(FailureKind::State, message));
                }
            }
            self.containers.disown(pid);
        }
        let removed = self.containers.remove(id).and_then(|container| container.init);
        if let Some(init) = removed.filter(|init| init.running) {
            // It may be dead already.
            let _ = pidfd_send_signal(&init.pidfd, Signal::KILL);
        }
        self.views.remove(id);
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }

    /// Kills one process of a container. boot is its parent, so that its PID is its own.
    pub(super) fn kill(&mut self, number: u64, process: &ProcessId) -> Result<()> {
        if let Some(pid) = self.containers.pid_of(process).and_then(|pid| Pid::from_raw(pid.0)) {
            kill_process(pid, Signal::KILL).context(|| format!("kill process {pid:?}"))?;
        }
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }

    /// Replies to a Create that is cancelled.
    fn cancel(&mut self, pending: Pending) {
        self.events.forget(&pending.channel);
        let message =
            format!("container {} was deleted while it was made", pending.process.container);
        self.reply(pending.number, Err(Error::new(FailureKind::State, message)));
    }
}
