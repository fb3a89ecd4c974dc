//! The agent that decides about the system calls of one container.

use std::path::PathBuf;
use std::sync::Arc;

use sandbox_core::spec::plan::Plan;
use sandbox_core::spec::seccomp;

/// A process of the host to which `seccomp_agent.rs` sends listeners.
pub(super) struct Agent {
    /// Its socket.
    pub(super) path: PathBuf,
    /// The container's ID.
    pub(super) id: String,
    /// The container's bundle.
    pub(super) bundle: String,
    /// The container's plan.
    pub(super) plan: Arc<Plan>,
}

impl Agent {
    /// Returns the agent that a container's profile needs.
    pub(super) fn of(plan: &Arc<Plan>, bundle: &str) -> Option<Self> {
        let profile = plan.host.seccomp.as_ref().filter(|profile| seccomp::notifies(profile))?;
        let path = profile.listener_path().clone()?;
        Some(Self {
            path,
            id: plan.container.id.clone(),
            bundle: bundle.to_owned(),
            plan: plan.clone(),
        })
    }
}
