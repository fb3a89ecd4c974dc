//! Turns a spec into a plan, with one file for each section.

mod baseline;
pub(crate) mod capabilities;
mod check;
mod devices;
pub mod facts;
mod foreign_ids;
mod hooks;
pub mod ids;
mod intel_rdt;
mod labels;
mod mount_options;
mod mounts;
pub(super) mod namespaces;
mod net_devices;
pub mod pod;
pub mod powerless;
pub mod process;
mod rlimits;
mod scheduling;
pub mod sysctls;
mod unit_properties;
mod unsupported;
mod userns;
mod views;
mod watch;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Spec};

use self::check::{inside, refuse, text, without_nul};
use self::facts::SandboxFacts;
use self::ids::{Ids, Range};
use self::powerless::Powers;
use super::baseline::Baseline;
use super::mount_options::{Meaning, meaning};
use super::plan::{
    ContainerPlan, HostNamespaces, HostPlan, Network, Plan, ProcessPlan, Propagation, Views,
};
use super::seccomp;
use crate::error::{Error, Result};
use crate::types::{HostPid, IdPool, Userns};

/// The input of a plan besides the spec.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// The bundle directory, absolute.
    pub bundle: &'a Path,
    /// Whether the Create request carries mounts for the root file system.
    pub rootfs_mounts_given: bool,
    /// The node's option `userns`.
    pub userns: Userns,
    /// The node's IDs for sandboxes.
    pub id_pool: IdPool,
    /// The node's baseline.
    pub baseline: Baseline,
    /// Whether boot is asked about what a container is refused.
    pub tells_refusals: bool,
    /// How the views of containers count, if they have any.
    pub views: Option<Views>,
    /// The sandbox that the container goes into; `None` for the root container.
    pub sandbox: Option<&'a SandboxFacts>,
    /// The containers that run in the sandbox already: ID and init of each.
    pub other_containers: &'a [(String, HostPid)],
}

/// Checks a spec and resolves it. An error names the field and what was
/// expected there.
pub fn plan(spec: &Spec, context: &Context<'_>) -> Result<Plan> {
    check_id(context.id)?;
    unsupported::check(spec)?;
    let Some(linux) = spec.linux() else {
        return refuse("linux", "expected the section of a Linux container");
    };
    let resolved = namespaces::resolve(spec, context)?;
    let user = userns::resolve(spec, linux, &resolved, context)?;
    let rootfs = rootfs(spec, context)?;
    let range = Range { size: context.id_pool.per_sandbox, foreign: None };
    let ids = Ids::of(user.made, user.mappings.as_ref(), range);
    let label = labels::selinux("linux.mountLabel", linux.mount_label().as_deref())?;
    let section = mounts::MountContext {
        bundle: context.bundle,
        user_namespace: user.made,
        label: label.as_deref(),
    };
    let mut mounts = mounts::plan(spec, &section)?;
    let root_propagation = root_propagation(linux)?;
    let devices = devices::plan(linux.devices().as_deref().unwrap_or_default(), &ids)?;
    let section = sysctls::SysctlContext {
        resolved: &resolved,
        root: context.sandbox.is_none(),
        hostname: spec.hostname().as_ref().is_some_and(|name| !name.is_empty()),
        user_namespace: user.made,
    };
    let mut sysctls = sysctls::plan(linux.sysctl().as_ref(), &section)?;
    // The kernel lets only the host's root write these, but each owner of the namespace set
    // the names. As under runc, the sysctl counts, not the field.
    let hostname = sysctls::take(&mut sysctls.container, "kernel.hostname");
    let domainname = sysctls::take(&mut sysctls.container, "kernel.domainname");
    let net_devices = net_devices::plan(linux, &resolved.network)?;
    let (hooks, start_hooks) = hooks::plan(spec)?;
    if !hooks.create_container.is_empty() && !pod::is_pause(spec) {
        mounts.deliver_tmpfs();
    }
    if let Some(profile) = linux.seccomp() {
        seccomp::check(profile)?;
    }

    let process = first_process(spec, linux, ids, user.made)?;
    let baseline =
        baseline::resolve(spec, process.as_ref(), user.made, context.baseline, context.sandbox);
    baseline.limit(&mut sysctls.user);
    let own_network = match context.sandbox {
        Some(facts) => facts.own_network,
        None => resolved.network == Network::New,
    };
    let host_network = match context.sandbox {
        Some(facts) => facts.host_network,
        None => resolved.network == Network::Host,
    };
    let network_of_host = user.made && !own_network && !host_network;
    let container_views = views::of_container(&mounts.container, process.as_ref(), context);
    let watch = watch::resolve(
        linux,
        &baseline,
        context.tells_refusals,
        network_of_host,
        container_views.is_some(),
    );
    let listed = resolved.uts_listed;
    let container = ContainerPlan {
        id: context.id.into(),
        process,
        namespaces: resolved.namespaces,
        pids_of: resolved.pids_of,
        times_of: resolved.times.of,
        time_offsets: namespaces::time_offsets(linux, &resolved.namespaces)?,
        user_namespace: user.made,
        mappings: None,
        readonly_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        root_propagation,
        mounts: mounts.container,
        devices: devices.iter().map(|node| node.path.clone()).collect(),
        masked_paths: paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
        readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        hostname: uts_name("hostname", hostname.as_ref().or(spec.hostname().as_ref()), listed)?,
        domainname: uts_name(
            "domainname",
            domainname.as_ref().or(spec.domainname().as_ref()),
            listed,
        )?,
        sysctls: sysctls.container,
        user_sysctls: sysctls.user,
        baseline: baseline.program(linux),
        watch,
        views: container_views,
        bundle: context.bundle.into(),
        start_hooks,
    };
    let annotations = spec.annotations().clone().unwrap_or_default();
    let mut powerless = Vec::new();
    if let Some(process) = &container.process {
        let powers = Powers {
            user_namespace: user.made,
            own_network,
            raw_sockets: container.watch.as_ref().is_some_and(|watch| watch.raw_sockets),
            mappings_given: user.given,
            limits_stand_in: facts::may_raise_limits(),
        };
        powerless.extend(powerless::capabilities(&process.capabilities, powers));
        if user.made {
            powerless.extend(rlimits::cut(&process.rlimits));
            powerless.extend(powerless::propagation(
                &container.mounts,
                &mounts.delivered,
                root_propagation,
            ));
        }
    }
    if let (Some(rootless), None, true) = (context.id_pool.rootless, context.sandbox, user.made) {
        powerless.extend(powerless::ids(rootless, context.id_pool.per_sandbox, user.given));
    }
    powerless.extend(baseline.powerless(linux));
    powerless.extend(powerless::resources(linux));
    powerless.extend(powerless::listener(linux));
    powerless.extend(watch::powerless(
        linux,
        &baseline,
        container.process.is_some(),
        context.tells_refusals,
    ));
    powerless.extend(views::powerless(context));
    powerless.extend(powerless::cgroup_namespace(
        spec,
        resolved.cgroup_listed,
        facts::has_cgroup_v2_only(),
    ));
    if user.made {
        powerless.extend(powerless::host_namespaces(resolved.host_namespaces));
        powerless.extend(powerless::host_cgroups(
            &container.mounts,
            &mounts.delivered,
            facts::has_cgroup_v2_only(),
        ));
    }
    let foreign_ids = match (user.made, &user.mappings) {
        (true, None) => foreign_ids::of(&container, &devices, context.id_pool.per_sandbox),
        _ => Vec::new(),
    };
    let host = HostPlan {
        rootfs,
        delivered: mounts.delivered,
        devices,
        cgroups_path: cgroups_path(linux)?,
        resources: match linux.resources().clone().unwrap_or_default() {
            resources if pod::is_pause(spec) => pod::with_share_of_boot(resources),
            resources => resources,
        },
        intel_rdt: intel_rdt::plan(linux, context.id, pod::is_pause(spec))?,
        network: resolved.network,
        time_namespace: resolved.times.path,
        net_devices,
        range_size: context.id_pool.per_sandbox,
        foreign_ids,
        host_namespaces: match user.made {
            true => HostNamespaces::default(),
            false => resolved.host_namespaces,
        },
        mappings: user.mappings,
        no_user_namespace: user.reason,
        oom_score_adj: process_oom_score_adj(spec),
        network_sysctls: sysctls.network,
        seccomp: linux.seccomp().clone(),
        confined: baseline.confined,
        nested_users: baseline.nested_users,
        views: views::of_pod(context),
        hooks,
        unit_properties: unit_properties::plan(&annotations)?,
        annotations,
        bundle: context.bundle.into(),
        powerless,
        checkpoint: None,
    };
    Ok(Plan { container, host })
}

/// Returns `process.oomScoreAdj`. For a pause container only boot gets it.
fn process_oom_score_adj(spec: &Spec) -> Option<i32> {
    spec.process().as_ref().and_then(|process| process.oom_score_adj())
}

/// Checks a container's ID, which becomes the name of a directory. runc allows
/// the same letters (`libcontainer/factory_linux.go`, `validateID`).
fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() || id.len() > 255 || matches!(id, "." | "..") || !id.chars().all(allowed) {
        return Err(Error::invalid(format!(
            "container ID {id:?}: expected 1 to 255 letters, digits, '_', '+', '-' or '.'"
        )));
    }
    Ok(())
}

/// Resolves `root.path`. It must exist only if nothing is mounted there.
fn rootfs(spec: &Spec, context: &Context<'_>) -> Result<PathBuf> {
    let path = match spec.root().as_ref().map(|root| root.path()) {
        None => {
            return refuse("root", "is missing; expected the container's root file system");
        }
        Some(path) if path.as_os_str().is_empty() => {
            return refuse("root.path", "is empty; expected a directory");
        }
        Some(path) => path,
    };
    text(|| "root.path".into(), path)?;
    let path = context.bundle.join(path);
    if !context.rootfs_mounts_given {
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return refuse("root.path", format!("{} is not a directory", path.display()));
            }
            Err(error) => return refuse("root.path", format!("{}: {error}", path.display())),
        }
    }
    Ok(path)
}

fn first_process(
    spec: &Spec,
    linux: &Linux,
    ids: Ids,
    user_namespace: bool,
) -> Result<Option<ProcessPlan>> {
    if pod::is_pause(spec) {
        return Ok(None);
    }
    match spec.process() {
        Some(process) => process::first(process, linux, ids, user_namespace).map(Some),
        None => refuse("process", "is missing; expected the program to run"),
    }
}

/// Resolves `linux.rootfsPropagation`.
fn root_propagation(linux: &Linux) -> Result<Option<Propagation>> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(given) => match meaning(given) {
            Some(Meaning::Propagation(propagation)) => Ok(Some(propagation)),
            _ => refuse(
                "linux.rootfsPropagation",
                format!(
                    "{given:?}; expected shared, slave, private or unbindable, or one of these after an r"
                ),
            ),
        },
    }
}

fn paths(field: &str, paths: Option<&[String]>) -> Result<Vec<PathBuf>> {
    let paths = paths.unwrap_or_default().iter().enumerate();
    paths.map(|(i, path)| inside(|| format!("{field}[{i}]"), Path::new(path))).collect()
}

/// Checks a name for sethostname(2) or setdomainname(2), which take 64 bytes.
/// Go programs write an absent name as an empty one.
///
/// As with runc, a container of the host's UTS namespace has no name of its own.
fn uts_name(field: &str, name: Option<&String>, listed: bool) -> Result<Option<String>> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    if !listed {
        return refuse(field, "would name the host: expected a UTS namespace in linux.namespaces");
    }
    if name.len() > 64 {
        return refuse(field, format!("{name:?} is longer than 64 bytes"));
    }
    without_nul(|| field.into(), name).map(|name| Some(name.into()))
}

fn cgroups_path(linux: &Linux) -> Result<String> {
    let Some(path) = linux.cgroups_path() else {
        return Ok(String::new());
    };
    let shown = text(|| "linux.cgroupsPath".into(), path)?;
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return refuse("linux.cgroupsPath", format!("{shown:?} holds \"..\""));
    }
    Ok(shown.into())
}
