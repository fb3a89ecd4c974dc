//! Delete and Resources: the requests that end or change nothing but boot's
//! own knowledge.

use rustix::process::{Signal, pidfd_send_signal};

use super::Boot;
use crate::cgroup::Limits;
use crate::control::message::{Done, FailureKind};
use crate::error::{Error, Result};

impl Boot {
    /// Forgets a container. One that never started is killed: it has run
    /// nothing of the user's.
    pub(super) fn delete(&mut self, number: u64, id: &str) -> Result<()> {
        let container = self.containers.get(id)?;
        if let Some(init) = container.init.as_ref().filter(|init| init.running) {
            if init.gate.is_none() {
                let message = format!("container {id} is running; kill it first");
                return Err(Error::new(FailureKind::State, message));
            }
            // Already dead is as good.
            let _ = pidfd_send_signal(&init.pidfd, Signal::KILL);
            let pid = init.pid;
            self.containers.disown(pid);
        }
        self.containers.remove(id);
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }

    /// Takes note of a live resize.
    pub(super) fn resources(
        &mut self,
        number: u64,
        container: Option<&str>,
        limits: Limits,
    ) -> Result<()> {
        if let Some(id) = container {
            self.containers.get(id)?;
        }
        log::debug!("{} now has {limits:?}", container.unwrap_or("the sandbox"));
        self.reply(number, Ok(Done::Ok));
        Ok(())
    }
}
