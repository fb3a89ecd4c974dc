//! Reaps processes, as every PID 1 must.

use super::Boot;
use crate::control::message::Upward;
use crate::sys::process::{collect_child, ended_child};
use crate::types::PodPid;

impl Boot {
    /// Reaps every child that has exited, including orphans of the pod, and reports those of
    /// a container to the shim. In a container with its own PID namespace the init comes
    /// after the exec'd processes: the kernel keeps it until all others there are reaped.
    pub(super) fn reap(&mut self) {
        while let Some(pid) = ended_child() {
            self.ended(PodPid(pid));
        }
    }

    fn ended(&mut self, pid: PodPid) {
        // It may have reported an error, or its execve, before it ended. The shim must learn
        // of that while the PID is still its own.
        while let Some(token) = self.containers.pending_of(pid) {
            self.receive(token);
        }
        let Some(status) = collect_child(pid.0) else { return };
        self.gave(pid);
        self.writer_ended(pid);
        let Some(process) = self.containers.disown(pid) else { return };
        if process.is_init() {
            self.containers.init_ended(&process.container);
            self.user_log.ended(&process.container);
        }
        self.send(&Upward::Exited { process, status });
    }
}
