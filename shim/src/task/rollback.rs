//! Undoes the steps of a Create that failed or was cancelled.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::sandbox::{self, state::StateDirectory};

use super::boot::BootClient;
use super::create_plan::CreatePlan;
use super::shim::Shim;
use super::{hooks, teardown};
use crate::error::{Code, Error};

/// The time that poststop hooks may delay the reply that a Create has failed.
const POSTSTOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The things that a Create has made so far.
#[derive(Default)]
pub(super) struct Rollback {
    /// The state of the sandbox that the Create was to make.
    pub(super) state: Option<StateDirectory>,
    /// The container's cgroup.
    pub(super) cgroup: Option<Arc<Cgroup>>,
    /// The sandbox that the Create has made.
    pub(super) made: Option<Arc<BootClient>>,
    /// The sandbox that the container joins.
    pub(super) joined: Option<Arc<BootClient>>,
    /// Whether the container is recorded there, in the state and perhaps in boot.
    pub(super) recorded: bool,
    /// Whether hooks have begun to run, whose work poststop hooks must undo.
    pub(super) hooked: bool,
}

impl Rollback {
    /// Returns why a step has failed: if the sandbox is ending, because of that.
    pub(super) fn explain(&self, error: Error) -> Error {
        if let Some(joined) = &self.joined {
            return joined.explain(error);
        }
        match &self.made {
            Some(made) if error.code == Code::UNKNOWN && made.sandbox.is_ending() => {
                Error::internal(format!(
                    "the sandbox process of {} died while it was being made ({error}){}",
                    made.root,
                    made.sandbox.describe_end()
                ))
            }
            _ => error,
        }
    }

    /// Removes all of them in the reverse order.
    pub(super) async fn run(self, shim: &Shim, plan: &CreatePlan) {
        let hooked = self.hooked;
        self.remove(shim, &plan.id).await;
        if hooked {
            // runtime-spec, runtime.md, "Lifecycle": after any failed step.
            let poststop = hooks::poststop(&plan.id, &plan.bundle, &plan.plan);
            if tokio::time::timeout(POSTSTOP_TIMEOUT, poststop).await.is_err() {
                log::warn!("container {}: its poststop hooks take too long", plan.id);
            }
        }
    }

    async fn remove(self, shim: &Shim, id: &str) {
        if let Some(boot) = self.made {
            // This removes the root container's cgroup as well.
            return teardown::tear_down(&boot).await;
        }
        if let Some(boot) = self.joined.as_ref().filter(|_| self.recorded) {
            teardown::forget(shim, boot, id).await;
        }
        let removed = self.cgroup.as_ref().map_or(Ok(()), |cgroup| {
            // All processes in it are the container's: a boot that does not reply
            // may leave some.
            let killed = cgroup.kill_now();
            cgroup.remove().and(killed)
        });
        // What could not be removed stays on record.
        let (gone, left) = (removed.is_ok(), self.cgroup);
        warn(id, removed);
        match (self.joined, self.state) {
            (Some(boot), _) if gone => warn(id, boot.sandbox.directory().forget_plan(id)),
            (Some(boot), _) => left.into_iter().for_each(|cgroup| boot.leave(id, cgroup)),
            (None, Some(state)) if gone => warn(id, state.remove()),
            (None, Some(state)) => warn(id, sandbox::leave_unfinished(&state)),
            (None, None) => {}
        }
    }
}

fn warn(id: &str, outcome: sandbox_core::Result<()>) {
    if let Err(error) = outcome {
        log::warn!("container {id}: {error}");
    }
}
