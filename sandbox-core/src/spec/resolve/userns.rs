//! The sandbox's user namespace: whether it has one, and with which mappings.

use std::ffi::CStr;

use oci_spec::runtime::{Linux, Spec};

use super::check::refuse;
use super::facts::{NamespaceId, SandboxFacts};
use super::ids::{self, covered};
use super::namespaces::Resolved;
use super::{Context, pod};
use crate::error::Result;
use crate::spec::plan::{IdMapping, Mappings};
use crate::sys::kernel;
use crate::types::{Rootless, Userns};

/// The result for the user namespace.
pub(super) struct UserNamespace {
    /// Whether the sandbox has one.
    pub(super) made: bool,
    pub(super) mappings: Option<Mappings>,
    /// Whether these are the spec's own.
    pub(super) given: bool,
    /// The reason why `userns = "auto"` makes none, or would make none if this
    /// were the root container.
    pub(super) reason: Option<String>,
}

/// Decides for the root container. For a later one, checks that it fits its
/// sandbox.
pub(super) fn resolve(
    spec: &Spec,
    linux: &Linux,
    resolved: &Resolved,
    context: &Context<'_>,
) -> Result<UserNamespace> {
    let mappings = spec_mappings(linux, resolved)?;
    let reason = match resolved.host {
        _ if mappings.is_some() => None,
        _ if pod::privileged(spec).is_some() => pod::privileged(spec).map(Into::into),
        Some(host) => Some(format!("the pod uses the host's {host} namespace")),
        // There nothing is mapped on a tmpfs.
        None if context.id_pool.rootless.is_some() => None,
        None => too_old(rustix::system::uname().release()),
    };
    let given = mappings.is_some();
    let mappings = match (mappings, context.id_pool.rootless) {
        (Some(given), Some(rootless)) => {
            check_rootless(&given, rootless)?;
            Some(given.cut_at(rootless.lines))
        }
        (mappings, _) => mappings,
    };
    let Some(facts) = context.sandbox else {
        check_root_user(resolved, mappings.as_ref())?;
        let made = decide(context.userns, mappings.as_ref(), reason.as_deref())?;
        let mappings = match context.id_pool.rootless {
            Some(rootless) if made => mappings.or_else(|| Some(of_rootless(rootless, context))),
            _ => mappings,
        };
        return Ok(UserNamespace { made, mappings, given, reason });
    };
    check_pod_user(resolved, mappings.as_ref(), facts)?;
    let (made, mappings) = (facts.user_namespace, facts.mappings.clone());
    Ok(UserNamespace { made, mappings, given, reason })
}

/// Returns the mappings of a sandbox whose shim is not root of the host: the first IDs of the
/// shim's user namespace, as they are.
fn of_rootless(rootless: Rootless, context: &Context<'_>) -> Mappings {
    let size = rootless.of_containers(context.id_pool.per_sandbox);
    let line = IdMapping { inside: 0, outside: 0, size };
    Mappings { uids: vec![line], gids: vec![line] }.cut_at(rootless.lines)
}

/// Refuses mappings to IDs that such a shim has not itself.
fn check_rootless(mappings: &Mappings, rootless: Rootless) -> Result<()> {
    for (field, lines) in [("uidMappings", &mappings.uids), ("gidMappings", &mappings.gids)] {
        let beyond = |line: &&IdMapping| line.outside.saturating_add(line.size) > rootless.ids;
        if let Some(line) = lines.iter().find(beyond) {
            return refuse(
                format!("linux.{field}"),
                format!(
                    "{} IDs from {} on: containerd runs in a user namespace with the IDs 0 to {}; \
                     give its user more in /etc/subuid and /etc/subgid",
                    line.size,
                    line.outside,
                    rootless.ids - 1
                ),
            );
        }
    }
    Ok(())
}

/// The first kernel whose mount_setattr(2) can idmap a tmpfs. The devices and
/// volumes of a sandbox are on tmpfs.
const IDMAPPED_TMPFS: (u32, u32) = (6, 3);

/// Returns why `userns = "auto"` makes no user namespace on this kernel, if it
/// is too old.
fn too_old(release: &CStr) -> Option<String> {
    let (wanted, since) = IDMAPPED_TMPFS;
    (kernel::version_in(release)? < IDMAPPED_TMPFS).then(|| {
        let release = release.to_string_lossy();
        format!("Linux {release} cannot map the owners on a tmpfs, {wanted}.{since} and later can")
    })
}

fn spec_mappings(linux: &Linux, resolved: &Resolved) -> Result<Option<Mappings>> {
    let (uids, gids) = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
    let mappings = ids::mappings("linux", uids, gids)?;
    match &mappings {
        Some(_) if resolved.user.is_none() => {
            refuse("linux.uidMappings", "no user namespace is listed in linux.namespaces")
        }
        Some(given) => check_root(given).map(|()| mappings),
        None => Ok(None),
    }
}

/// Checks the root container's user namespace. Before containerd starts a pod's
/// sandbox, it pins a user namespace and gives both its path and its mappings.
/// A new namespace with the same mappings serves as well. A path that comes
/// without mappings would have to be joined, which is not supported.
fn check_root_user(resolved: &Resolved, mappings: Option<&Mappings>) -> Result<()> {
    match (&resolved.user, mappings) {
        (Some(Some(path)), None) => refuse(
            "linux.namespaces",
            format!(
                "user: joining {} is not supported; expected linux.uidMappings and linux.gidMappings",
                path.display()
            ),
        ),
        (Some(None), None) => {
            refuse("linux.uidMappings", "expected beside the user namespace in linux.namespaces")
        }
        _ => Ok(()),
    }
}

/// Checks that a later container has the same user namespace as its sandbox:
/// all containers of a sandbox have the same IDs.
fn check_pod_user(
    resolved: &Resolved,
    mappings: Option<&Mappings>,
    facts: &SandboxFacts,
) -> Result<()> {
    let Some(path) = &resolved.user else {
        return Ok(());
    };
    let same_mappings = mappings.is_some() && mappings == facts.mappings.as_ref();
    let same_namespace = match path {
        Some(path) => {
            NamespaceId::of(path).is_ok_and(|id| id == facts.user || id == facts.pod_user)
        }
        None => false,
    };
    // A spec that names the namespace itself need not repeat its mappings, but
    // mappings that contradict it are an error.
    if same_mappings || same_namespace && mappings.is_none() {
        return Ok(());
    }
    refuse(
        "linux.namespaces",
        "user: is not the user namespace of this pod's sandbox, nor has its mappings",
    )
}

/// Decides whether the sandbox gets a user namespace. `reason` is why `auto`
/// makes none.
fn decide(userns: Userns, mappings: Option<&Mappings>, reason: Option<&str>) -> Result<bool> {
    match (userns, mappings) {
        (Userns::Never, Some(_)) => refuse(
            "linux.namespaces",
            "user: the spec asks for a user namespace, which the option userns = \"never\" forbids",
        ),
        (Userns::Never, None) | (Userns::Spec, None) => Ok(false),
        (_, Some(_)) => Ok(true),
        (Userns::Auto, None) => Ok(reason.is_none()),
    }
}

/// Checks that ID 0 is mapped: that ID puts the container's file system
/// together.
fn check_root(mappings: &Mappings) -> Result<()> {
    for (field, lines) in [("uidMappings", &mappings.uids), ("gidMappings", &mappings.gids)] {
        if !covered(lines, 0) {
            return refuse(format!("linux.{field}"), "expected container ID 0 to be mapped");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_map_tmpfs_is_named() {
        for old in [c"6.2.16-generic", c"5.15.0-101", c"4.18.0-513.el8.x86_64"] {
            assert!(too_old(old).is_some_and(|why| why.contains(&*old.to_string_lossy())));
        }
        for new in [c"6.3.0", c"6.12.48+deb13-amd64", c"10.0", c"unheard of"] {
            assert_eq!(too_old(new), None);
        }
    }
}
