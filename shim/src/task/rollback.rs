//! What a Create has made so far, rolled back if it fails or is cancelled.

use std::sync::Arc;
use std::time::Duration;

use sandbox_core::cgroup::Cgroup;

use super::boot::BootClient;
use super::create_plan::CreatePlan;
use super::shim::Shim;
use super::{hooks, teardown};

/// How long poststop hooks may hold up the reply that a Create has failed.
const POSTSTOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a Create has made so far.
#[derive(Default)]
pub(super) struct Rollback {
    /// The container's cgroup.
    pub(super) cgroup: Option<Arc<Cgroup>>,
    /// The sandbox that it has made.
    pub(super) made: Option<Arc<BootClient>>,
    /// The sandbox that it has joined.
    pub(super) joined: Option<Arc<BootClient>>,
    /// Whether hooks may have prepared something.
    pub(super) hooked: bool,
}

impl Rollback {
    /// Undoes it in the reverse order, so that nothing of the container is left.
    pub(super) async fn run(self, shim: &Shim, plan: &CreatePlan) {
        let hooked = self.hooked;
        self.remove(shim, &plan.id).await;
        if hooked {
            // runtime-spec, runtime.md, "Lifecycle": whatever step has failed.
            let poststop = hooks::poststop(&plan.id, &plan.bundle, &plan.plan);
            if tokio::time::timeout(POSTSTOP_TIMEOUT, poststop).await.is_err() {
                log::warn!("container {}: its poststop hooks take too long", plan.id);
            }
        }
    }

    async fn remove(self, shim: &Shim, id: &str) {
        if let Some(boot) = self.made {
            // Takes the root's cgroup along.
            return teardown::tear_down(&boot).await;
        }
        if let Some(boot) = self.joined {
            teardown::forget(shim, &boot, id).await;
        }
        if let Some(cgroup) = self.cgroup {
            // All in there is the container's: what a boot that does not reply
            // leaves.
            let killed = cgroup.kill_now();
            if let Err(error) = cgroup.remove().and(killed) {
                log::warn!("container {id}: {error}");
            }
        }
    }
}
