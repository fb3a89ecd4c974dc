//! `linux.namespaces`: which namespaces are the container's own, which are the
//! pod's, and which network the sandbox joins.
//!
//! By the specification, a type that is missing in the list means the runtime's
//! namespace. In the root container's spec that is the host's, which the sandbox
//! then shares, unless it has a user namespace ([`Resolved::host_namespaces`]). In
//! the spec of a later container it is boot's.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType as Type, Spec};

use super::check::{absolute, refuse};
use super::facts::{NamespaceId, SandboxFacts, own};
use super::{Context, pod};
use crate::error::{Error, FailureKind, Result};
use crate::spec::plan::{HostNamespaces, Namespaces, Network, TimeOffset};
use crate::types::HostPid;

/// The resolved list.
pub(super) struct Resolved {
    pub(super) namespaces: Namespaces,
    pub(super) pids_of: Option<String>,
    pub(super) network: Network,
    pub(super) times: Times,
    /// Name of the first host namespace that the root container's spec asks
    /// for.
    pub(super) host: Option<&'static str>,
    /// The host's namespaces that the root container's spec asks for beside the network.
    pub(super) host_namespaces: HostNamespaces,
    /// Set if a user namespace is listed, with its path if it has one.
    pub(super) user: Option<Option<PathBuf>>,
    /// Whether the type is listed. If so, the spec may set its sysctls and
    /// names.
    pub(super) ipc_listed: bool,
    pub(super) uts_listed: bool,
    pub(super) cgroup_listed: bool,
}

/// The time namespace.
#[derive(Default)]
pub(super) struct Times {
    /// Whether the container has its own.
    own: bool,
    /// The container whose time namespace it joins.
    pub(super) of: Option<String>,
    /// The path of the one that a new sandbox joins.
    pub(super) path: Option<PathBuf>,
}

/// The list, as type and path.
struct Listed<'a>(Vec<(Type, Option<&'a Path>)>);

/// The spec's entry for one type.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// Not listed.
    Runtime,
    /// Listed without a path.
    New,
    /// Listed with this path.
    At(&'a Path),
}

/// Resolves the list.
pub(super) fn resolve(spec: &Spec, context: &Context<'_>) -> Result<Resolved> {
    let linux = spec.linux().as_ref();
    let listed =
        Listed::parse(linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default())?;
    listed.check_mount()?;
    listed.check_without_path(Type::Cgroup)?;
    let facts = context.sandbox;
    // The sandbox container of a pod uses boot's namespaces, which are the
    // pod's. The pod's other containers find them by the process ID that the
    // shim reports for it.
    let pods = facts.is_none() && pod::is_sandbox(spec);
    let pids_of = listed.joined_container(context.other_containers, facts.map(|f| f.pid));
    let pid = match pids_of {
        Some(_) => false,
        None => listed.is_own(Type::Pid, facts.map(|f| f.pid), pods)?,
    };
    let ipc = listed.is_own(Type::Ipc, facts.map(|f| f.ipc), pods)?;
    let uts = listed.is_own(Type::Uts, facts.map(|f| f.uts), pods)?;
    let network = match facts {
        None => listed.root_network()?,
        Some(facts) => listed.pod_network(facts)?,
    };
    let times = match facts {
        None => listed.root_times(pod::is_pause(spec))?,
        Some(facts) => listed.pod_times(facts, context.other_containers)?,
    };
    Ok(Resolved {
        namespaces: Namespaces { pid, ipc, uts, cgroup: true, time: times.own },
        times,
        pids_of,
        host: if facts.is_none() { listed.host(&network) } else { None },
        host_namespaces: if facts.is_none() {
            listed.host_namespaces()
        } else {
            Default::default()
        },
        network,
        user: listed.user(),
        ipc_listed: listed.has(Type::Ipc),
        uts_listed: listed.has(Type::Uts),
        cgroup_listed: listed.has(Type::Cgroup),
    })
}

impl<'a> Listed<'a> {
    fn parse(namespaces: &'a [LinuxNamespace]) -> Result<Self> {
        let mut listed: Vec<(Type, Option<&Path>)> = Vec::with_capacity(namespaces.len());
        for (i, namespace) in namespaces.iter().enumerate() {
            let kind = namespace.typ();
            let field = || format!("linux.namespaces[{i}]");
            if listed.iter().any(|(other, _)| *other == kind) {
                return refuse(field(), format!("{} is listed twice", name(kind)));
            }
            if !SUPPORTED.contains(&kind) {
                return refuse(field(), format!("{} namespaces are not supported", name(kind)));
            }
            // Go programs write an absent path as an empty one.
            let path = namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty());
            if let Some(path) = path {
                absolute(|| format!("{}.path", field()), path)?;
            }
            listed.push((kind, path));
        }
        Ok(Self(listed))
    }

    fn wanted(&self, kind: Type) -> Wanted<'a> {
        match self.0.iter().find(|(listed, _)| *listed == kind) {
            None => Wanted::Runtime,
            Some((_, None)) => Wanted::New,
            Some((_, Some(path))) => Wanted::At(path),
        }
    }

    fn has(&self, kind: Type) -> bool {
        !matches!(self.wanted(kind), Wanted::Runtime)
    }

    fn user(&self) -> Option<Option<PathBuf>> {
        match self.wanted(Type::User) {
            Wanted::Runtime => None,
            Wanted::New => Some(None),
            Wanted::At(path) => Some(Some(path.into())),
        }
    }

    fn check_mount(&self) -> Result<()> {
        if !self.has(Type::Mount) {
            return refuse("linux.namespaces", "expected a mount namespace in the list");
        }
        self.check_without_path(Type::Mount)
    }

    fn check_without_path(&self, kind: Type) -> Result<()> {
        match self.wanted(kind) {
            Wanted::At(path) => refuse(
                "linux.namespaces",
                format!(
                    "{}: joining {} is not supported; expected no path",
                    name(kind),
                    path.display()
                ),
            ),
            Wanted::New | Wanted::Runtime => Ok(()),
        }
    }

    /// Whether the container gets its own namespace rather than boot's.
    fn is_own(&self, kind: Type, sandbox: Option<NamespaceId>, pods: bool) -> Result<bool> {
        match self.wanted(kind) {
            Wanted::Runtime => Ok(false),
            Wanted::New => Ok(!pods),
            Wanted::At(path) if sandbox == Some(identify(kind, path)?) => Ok(false),
            // The host's, by its path.
            Wanted::At(path)
                if sandbox.is_none() && own(file(kind)) == Some(identify(kind, path)?) =>
            {
                Ok(false)
            }
            Wanted::At(path) => refuse(
                "linux.namespaces",
                format!(
                    "{}: {} is not the namespace of this pod's sandbox, and no other sandbox's can \
                     be joined; put both containers into one pod, or run both with another runtime",
                    name(kind),
                    path.display()
                ),
            ),
        }
    }

    /// Returns the container of this pod whose own PID namespace is listed.
    fn joined_container(
        &self,
        other_containers: &[(String, HostPid)],
        sandbox: Option<NamespaceId>,
    ) -> Option<String> {
        let Wanted::At(path) = self.wanted(Type::Pid) else { return None };
        let wanted = NamespaceId::of(path).ok().filter(|id| Some(*id) != sandbox)?;
        container_in(Type::Pid, wanted, other_containers)
    }

    /// Resolves the time namespace of a new sandbox's first container.
    fn root_times(&self, pause: bool) -> Result<Times> {
        let none = Times::default();
        match self.wanted(Type::Time) {
            Wanted::Runtime => Ok(none),
            Wanted::New if pause => refuse(
                "linux.namespaces",
                "time: no process would be in it; expected in the spec of another container",
            ),
            Wanted::New => self.new_times(),
            Wanted::At(path) if Some(identify(Type::Time, path)?) == own("time") => Ok(none),
            Wanted::At(path) => Ok(Times { path: Some(path.into()), ..none }),
        }
    }

    /// Resolves that of a later container.
    fn pod_times(
        &self,
        facts: &SandboxFacts,
        other_containers: &[(String, HostPid)],
    ) -> Result<Times> {
        let none = Times::default();
        let path = match self.wanted(Type::Time) {
            Wanted::Runtime => return Ok(none),
            Wanted::New => return self.new_times(),
            Wanted::At(path) => path,
        };
        let wanted = identify(Type::Time, path)?;
        match container_in(Type::Time, wanted, other_containers) {
            _ if facts.time == Some(wanted) => Ok(none),
            Some(id) => Ok(Times { of: Some(id), ..none }),
            None => refuse(
                "linux.namespaces",
                format!(
                    "time: {} is neither the namespace of this pod's sandbox nor of one of its \
                     containers; only a pod's first container can join another",
                    path.display()
                ),
            ),
        }
    }

    fn new_times(&self) -> Result<Times> {
        match own("time") {
            Some(_) => Ok(Times { own: true, ..Times::default() }),
            None => refuse("linux.namespaces", "time: this kernel has no time namespaces"),
        }
    }

    fn root_network(&self) -> Result<Network> {
        match self.wanted(Type::Network) {
            Wanted::Runtime => Ok(Network::Host),
            Wanted::New => Ok(Network::New),
            Wanted::At(path) if Some(identify(Type::Network, path)?) == own("net") => {
                Ok(Network::Host)
            }
            Wanted::At(path) => Ok(Network::Path(path.into())),
        }
    }

    /// Checks the network of a later container, which must be the sandbox's.
    fn pod_network(&self, facts: &SandboxFacts) -> Result<Network> {
        let message = match self.wanted(Type::Network) {
            Wanted::Runtime if facts.host_network => return Ok(Network::Host),
            Wanted::At(path) if identify(Type::Network, path)? == facts.network => {
                return Ok(if facts.host_network {
                    Network::Host
                } else {
                    Network::Path(path.into())
                });
            }
            Wanted::Runtime => {
                "the host's is asked for (none is listed), but the pod has its own".into()
            }
            Wanted::New => {
                "a new one is asked for (no path is given), but containers of a pod share the pod's"
                    .into()
            }
            Wanted::At(path) => {
                format!("{} is not the namespace of this pod's sandbox", path.display())
            }
        };
        refuse("linux.namespaces", format!("network: {message}"))
    }

    fn host_namespaces(&self) -> HostNamespaces {
        let is_host = |kind: Type| match self.wanted(kind) {
            Wanted::Runtime => true,
            Wanted::New => false,
            Wanted::At(path) => NamespaceId::of(path).ok() == own(file(kind)),
        };
        HostNamespaces { pid: is_host(Type::Pid), ipc: is_host(Type::Ipc), uts: is_host(Type::Uts) }
    }

    fn host(&self, network: &Network) -> Option<&'static str> {
        if *network == Network::Host {
            Some("network")
        } else if self.host_namespaces().pid {
            Some("PID")
        } else if self.host_namespaces().ipc {
            Some("IPC")
        } else {
            None
        }
    }
}

/// Returns the container whose init is in a namespace.
fn container_in(
    kind: Type,
    wanted: NamespaceId,
    containers: &[(String, HostPid)],
) -> Option<String> {
    let is_in = |(_, pid): &&(String, HostPid)| {
        let path = format!("/proc/{}/ns/{}", pid.0, file(kind));
        NamespaceId::of(Path::new(&path)).is_ok_and(|id| id == wanted)
    };
    containers.iter().find(is_in).map(|(id, _)| id.clone())
}

/// Resolves `linux.timeOffsets`, which is for a new time namespace.
pub(super) fn time_offsets(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<TimeOffset>> {
    let mut offsets = Vec::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let field = || format!("linux.timeOffsets[{clock:?}]");
        if !namespaces.time {
            return refuse(
                "linux.timeOffsets",
                "expected a time namespace without a path in linux.namespaces",
            );
        }
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return refuse(field(), "is no clock of a time namespace: monotonic or boottime");
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return refuse(field(), format!("nanosecs is {nanoseconds}; expected below 10^9"));
        }
        let seconds = offset.secs().unwrap_or(0);
        offsets.push(TimeOffset { clock: clock.clone(), seconds, nanoseconds });
    }
    // A HashMap has no order, but the same spec always gives the same plan.
    offsets.sort_unstable_by(|a, b| a.clock.cmp(&b.clock));
    Ok(offsets)
}

fn identify(kind: Type, path: &Path) -> Result<NamespaceId> {
    NamespaceId::of(path).or_else(|error| match process_of(path) {
        // containerd's CRI names the pod's namespaces by the process of its pause container.
        Some(pid) if error.kind() == ErrorKind::NotFound => Err(Error::new(
            FailureKind::State,
            format!(
                "linux.namespaces: {}: {}: process {pid} has ended, and the pod with it",
                name(kind),
                path.display()
            ),
        )),
        _ => refuse("linux.namespaces", format!("{}: {}: {error}", name(kind), path.display())),
    })
}

/// Returns the process in a path such as `/proc/7/ns/ipc`.
fn process_of(path: &Path) -> Option<u32> {
    let (pid, _) = path.to_str()?.strip_prefix("/proc/")?.split_once("/ns/")?;
    pid.parse().ok()
}

/// The namespaces that a spec may list.
const SUPPORTED: [Type; 8] = [
    Type::Cgroup,
    Type::Ipc,
    Type::Mount,
    Type::Network,
    Type::Pid,
    Type::Time,
    Type::User,
    Type::Uts,
];

/// Returns the names of the namespaces that a spec may list.
pub fn namespace_names() -> impl Iterator<Item = &'static str> {
    SUPPORTED.into_iter().map(name)
}

/// Returns the type's name below `/proc/PID/ns`.
fn file(kind: Type) -> &'static str {
    match kind {
        Type::Mount => "mnt",
        Type::Network => "net",
        other => name(other),
    }
}

/// Returns the type's name in config.json.
fn name(kind: Type) -> &'static str {
    match kind {
        Type::Mount => "mount",
        Type::Cgroup => "cgroup",
        Type::Uts => "uts",
        Type::Ipc => "ipc",
        Type::User => "user",
        Type::Pid => "pid",
        Type::Network => "network",
        Type::Time => "time",
    }
}
