//! Decides what the baseline holds back from a container.

use oci_spec::runtime::{Linux, Spec};

use super::facts::SandboxFacts;
use super::pod;
use crate::spec::baseline::{self, Allowed, Baseline, Confined, Level};
use crate::spec::plan::{Powerless, ProcessPlan};

/// CAP_SYS_ADMIN and CAP_SYS_RESOURCE, as bits.
const SYS_ADMIN: u64 = 1 << 21;
const SYS_RESOURCE: u64 = 1 << 24;

/// The kernel's limit of user namespaces below the pod's.
const LIMIT: &str = "user.max_user_namespaces";

/// The baseline of one container.
pub(super) struct Resolved {
    /// Whether user namespaces are limited in that of the container.
    pub(super) limits: bool,
    /// Whether the pod's containers may make user namespaces as far as the kernel's limit goes.
    pub(super) nested_users: bool,
    /// All that its program depends on, if it has one.
    pub(super) confined: Option<Confined>,
    capabilities: u64,
    pub(super) user_namespace: bool,
}

/// Decides for a container. The limit of user namespaces is the pod's, and its first container
/// decides: if that one may make some, another one that may not has a filter.
pub(super) fn resolve(
    spec: &Spec,
    process: Option<&ProcessPlan>,
    user_namespace: bool,
    option: Baseline,
    sandbox: Option<&SandboxFacts>,
) -> Resolved {
    let baseline = match pod::privileged(spec) {
        Some(_) => Baseline::OFF,
        None => option,
    };
    let held = baseline.holds_user_namespaces();
    let nested_users = sandbox.map_or(!held, |facts| facts.nested_users);
    let capabilities = process.map_or(0, |p| p.capabilities.bounding | p.capabilities.permitted);
    // With SYS_RESOURCE the container may be able to write the limit. Without a user namespace,
    // SYS_ADMIN is more than a nested one gives.
    let limited = user_namespace && !nested_users && capabilities & SYS_RESOURCE == 0;
    let filters = held && !limited && (user_namespace || capabilities & SYS_ADMIN == 0);
    let confined = Confined { baseline, capabilities, filters_user_namespaces: filters };
    let confined = (process.is_some() && baseline.level != Level::Off).then_some(confined);
    let limits = user_namespace && !nested_users;
    Resolved { limits, nested_users, confined, capabilities, user_namespace }
}

impl Resolved {
    /// Returns the program, unless it is joined with that of a profile.
    pub(super) fn program(&self, linux: &Linux) -> Vec<u8> {
        let confined = self.confined.filter(|_| linux.seccomp().is_none());
        confined.and_then(|confined| baseline::program(&confined)).unwrap_or_default()
    }

    /// Sets the kernel's limit, whatever the spec says.
    pub(super) fn limit(&self, sysctls: &mut Vec<(String, String)>) {
        if self.limits {
            sysctls.retain(|(name, _)| name != LIMIT);
            sysctls.push((LIMIT.into(), "0".into()));
        }
    }

    /// Lists what the spec asks for and the baseline takes.
    pub(super) fn powerless(&self, linux: &Linux) -> Vec<Powerless> {
        let mut lost = Vec::new();
        let asked = linux.sysctl().as_ref().and_then(|all| {
            all.iter().find(|(name, value)| name.replace('/', ".") == LIMIT && value.trim() != "0")
        });
        if let (true, Some((name, _))) = (self.limits, asked) {
            lost.push(held(format!("linux.sysctl[{name:?}]"), NESTED, "user_namespaces", false));
        }
        if self.limits && self.user_namespace && self.capabilities & SYS_ADMIN != 0 {
            let lost_here = format!("CAP_SYS_ADMIN: {NESTED}");
            lost.push(held("process.capabilities".into(), &lost_here, "user_namespaces", false));
        }
        if let (Some(profile), Some(confined)) = (linux.seccomp(), self.confined) {
            let allowed = confined.baseline.allowed;
            let calls = baseline::held_back(profile, allowed, self.capabilities);
            for (call, part, by_default) in calls {
                let what = format!("it allows {call}, which the baseline refuses");
                lost.push(held("linux.seccomp".into(), &what, name(part), by_default));
            }
        }
        lost
    }
}

const NESTED: &str = "the baseline lets no container of this pod make user namespaces";

fn held(field: String, lost: &str, part: &str, by_default: bool) -> Powerless {
    Powerless {
        field,
        lost: lost.into(),
        instead: format!("allow {part:?} by the option or annotation baseline_allow"),
        by_default,
    }
}

fn name(part: Allowed) -> &'static str {
    part.names().next().unwrap_or_default()
}
