//! Finds what a spec grants or asks for and the sandbox cannot give.

use std::path::Path;

use oci_spec::runtime::{Linux, Mount, Spec};
use rustix::mount::MountAttrFlags;

use crate::spec::plan::{
    CapabilitySets, DeliveredSource, HostNamespaces, IdmapChoice, MountPlan, Powerless, Propagation,
};
use crate::spec::seccomp;
use crate::sys::mount::PropagationKind;
use crate::types::Rootless;

/// The facts of a sandbox that decide which capabilities have power there.
#[derive(Clone, Copy, Debug)]
pub struct Powers {
    /// Whether containers are in a user namespace.
    pub user_namespace: bool,
    /// Whether that user namespace owns the sandbox's network.
    pub own_network: bool,
    /// Whether the shim opens raw sockets instead.
    pub raw_sockets: bool,
    /// Whether the spec brought the mappings (`hostUsers: false`).
    pub mappings_given: bool,
    /// Whether limits stand in for capabilities (`rlimits.rs`).
    pub limits_stand_in: bool,
}

/// Lists the capabilities that a process is granted and that have no power in its
/// sandbox: most count only in the first user namespace, and those over the network
/// only if a user namespace of the sandbox owns it (capabilities(7), user_namespaces(7)).
pub fn capabilities(granted: &CapabilitySets, powers: Powers) -> Vec<Powerless> {
    if !powers.user_namespace {
        return Vec::new();
    }
    let reachable = granted.permitted | granted.bounding;
    let mut lost: Vec<Powerless> = HOST_ONLY
        .iter()
        .filter(|entry| reachable & 1 << entry.number != 0)
        .map(|entry| Powerless {
            field: "process.capabilities".into(),
            lost: format!("CAP_{}: {}", entry.name, entry.lost(powers)),
            instead: NO_USER_NAMESPACE.into(),
            by_default: entry.by_default,
        })
        .collect();
    lost.extend(
        NETWORK
            .iter()
            .filter(|entry| !powers.own_network && reachable & 1 << entry.number != 0)
            .filter(|entry| !(powers.raw_sockets && entry.number == NET_RAW))
            .map(|entry| Powerless {
                field: "process.capabilities".into(),
                lost: format!("CAP_{}: {}", entry.name, entry.lost),
                instead: if powers.mappings_given { BY_CNI } else { OWN_NETWORK }.into(),
                by_default: entry.by_default,
            }),
    );
    lost
}

/// `CAP_NET_RAW`
const NET_RAW: u32 = 13;

/// Names the IDs that a sandbox should have and a shim that is not root of the host has not.
pub(super) fn ids(rootless: Rootless, wanted: u32, given: bool) -> Option<Powerless> {
    let has = rootless.of_containers(wanted);
    (!given && has < wanted).then(|| Powerless {
        field: "the option ids_per_sandbox".into(),
        lost: format!(
            "{wanted}: the containers have the IDs 0 to {} only, since containerd runs in a user \
             namespace with {}",
            has - 1,
            rootless.ids
        ),
        instead: "give containerd's user more in /etc/subuid and /etc/subgid".into(),
        by_default: false,
    })
}

/// Lists the mounts that share mounts with the host, and cannot do so in full from a user
/// namespace: what is mounted inside never appears on the host, and what the host mounts later
/// comes as it is, since the kernel maps owners only on a mount that is nowhere yet
/// (mount_namespaces(7), mount_setattr(2)).
pub fn propagation(
    mounts: &[MountPlan],
    delivered: &[(usize, DeliveredSource)],
    root: Option<Propagation>,
) -> Vec<Powerless> {
    let shared_root = root.is_some_and(|root| root.kind == PropagationKind::Shared);
    let private_root =
        root.is_some_and(|root| root.recursive && root.kind == PropagationKind::Private);
    let mapped = |source: &DeliveredSource| matches!(source, DeliveredSource::Bind { idmap, .. } if *idmap != IdmapChoice::None);
    let mut lost = Vec::new();
    for (index, source) in delivered {
        let mount = &mounts[*index];
        // As in runc, the root's is that of the binds that ask for none.
        let of_root = root.filter(|_| matches!(source, DeliveredSource::Bind { .. }));
        let kind = mount.propagation.or(of_root).map(|propagation| propagation.kind);
        let place = mount.destination.display();
        if kind == Some(PropagationKind::Shared) && shared_root {
            lost.push(Powerless {
                field: format!("mounts[{index}].options (rshared at {place})"),
                lost: "what is mounted there inside never appears on the host".into(),
                instead: NO_USER_NAMESPACE.into(),
                by_default: false,
            });
        }
        let receives = matches!(kind, Some(PropagationKind::Shared | PropagationKind::Slave));
        if receives && !private_root && mapped(source) {
            lost.push(Powerless {
                field: format!("the owner of what the host mounts at {place} later"),
                lost: format!(
                    "mounts[{index}].options or linux.rootfsPropagation ask for it (rslave or \
                     rshared), and it belongs to nobody inside, where its permissions for others \
                     count"
                ),
                instead: format!("mount it before the container starts, or {NO_USER_NAMESPACE}"),
                by_default: false,
            });
        }
    }
    lost
}

/// Where hosts mount cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Lists the binds of the host's cgroups that a container shall write, but cannot: they
/// belong to the host's root, and the container's own path among them is none that it sees.
/// A recursive bind with `ro` leaves the hierarchies of version 1 below it writable, which
/// systemd needs and a program that only looks at them does not ask for.
pub(super) fn host_cgroups(
    mounts: &[MountPlan],
    delivered: &[(usize, DeliveredSource)],
    v2: bool,
) -> Vec<Powerless> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut found = Vec::new();
    for (index, source) in delivered {
        let DeliveredSource::Bind { source, recursive, .. } = source else { continue };
        let attributes = &mounts[*index].attributes;
        let top_only = attributes.set.contains(read_only);
        let below = *recursive && !v2 && source == Path::new(CGROUPS);
        if !source.starts_with(CGROUPS)
            || attributes.recursive_set.contains(read_only)
            || (top_only && !below)
        {
            continue;
        }
        found.push(Powerless {
            field: format!("mounts[{index}] ({})", mounts[*index].destination.display()),
            lost: "the host's cgroups belong to the host's root, and can be read only".into(),
            instead: "use a mount of type cgroup with the option rw (docker run --privileged, \
                      CRI's cgroup_writable), as which the container's own cgroup can be written"
                .into(),
            by_default: top_only,
        });
    }
    found
}

/// Lists what a spec asks for of cgroups and no kernel of today gives.
pub(super) fn resources(linux: &Linux) -> Option<Powerless> {
    let memory = linux.resources().as_ref()?.memory().as_ref()?;
    (memory.use_hierarchy() == Some(false)).then(|| Powerless {
        field: "linux.resources.memory.useHierarchy".into(),
        lost: "false: since Linux 5.11 the kernel always counts a cgroup in those above it".into(),
        instead: "leave it out".into(),
        by_default: false,
    })
}

/// Names an agent that a seccomp profile never asks.
pub(super) fn listener(linux: &Linux) -> Option<Powerless> {
    let profile = linux.seccomp().as_ref().filter(|profile| !seccomp::notifies(profile))?;
    profile.listener_path().as_ref().map(|path| Powerless {
        field: "linux.seccomp.listenerPath".into(),
        lost: format!("no rule has SCMP_ACT_NOTIFY, so nothing is sent to {}", path.display()),
        instead: "leave it out, or name the calls that the agent shall decide about".into(),
        by_default: false,
    })
}

/// Lists the host's namespaces that a spec asks for, and that a sandbox with a user
/// namespace replaces by its own.
pub(super) fn host_namespaces(asked: HostNamespaces) -> Vec<Powerless> {
    let named = [("pid", asked.pid), ("ipc", asked.ipc), ("uts", asked.uts)];
    let replaced = named.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| Powerless {
        field: "linux.namespaces".into(),
        lost: format!("{name}: the host's is asked for, and the sandbox has its own"),
        instead: NO_USER_NAMESPACE.into(),
        by_default: false,
    });
    replaced.collect()
}

/// Names the host's cgroup namespace where a spec asks for it: each container has its own, which
/// hides the host's paths. Engines that leave it to the defaults list none on version 1, and
/// those that show the cgroups list one on version 2, so that the lack of it there is on purpose:
/// Docker's `--cgroupns=host`, or a privileged container of Kubernetes.
pub(super) fn cgroup_namespace(spec: &Spec, listed: bool, v2: bool) -> Option<Powerless> {
    let has = |shown: fn(&Mount) -> bool| spec.mounts().iter().flatten().any(shown);
    let (own, hosts) = (has(is_cgroup_mount), has(is_bind_of_cgroups));
    let lost = |shown: &str| {
        format!(
            "cgroup: the host's is asked for (none is listed, and {shown}), and the container has \
             its own, in which its cgroup is the root"
        )
    };
    let (lost, instead) = match (own && v2, hosts) {
        (_, true) => (
            lost("the host's cgroups are bound"),
            "let programs find the container's cgroup by its ID, not by /proc/self/cgroup",
        ),
        (true, false) => (
            lost("cgroups are mounted"),
            "mount the host's /sys/fs/cgroup by a bind to show all of it (hostPath)",
        ),
        (false, false) => return None,
    };
    (!listed).then(|| Powerless {
        field: "linux.namespaces".into(),
        lost,
        instead: instead.into(),
        by_default: !v2,
    })
}

fn is_cgroup_mount(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

fn is_bind_of_cgroups(mount: &Mount) -> bool {
    !is_cgroup_mount(mount) && mount.source().as_ref().is_some_and(|s| s.starts_with(CGROUPS))
}

const NO_USER_NAMESPACE: &str =
    "run the pod without a user namespace (option or annotation userns)";

const OWN_NETWORK: &str = "set hostUsers: false in the pod (containerd 1.7 and 2.0 then give it a network of its own), \
     or configure the network by CNI";

const BY_CNI: &str = "configure the network by CNI, since containerd made it before the sandbox, or leave \
     hostUsers: false out and run the pod without a user namespace (option or annotation userns)";

/// A capability that a user namespace takes power from.
struct Entry {
    number: u32,
    name: &'static str,
    lost: &'static str,
    /// Whether containerd and Docker grant it to each container, asked or not.
    by_default: bool,
}

/// What two capabilities lose even where limits stand in for them.
const BESIDE_LIMITS: [(u32, &str); 2] = [
    (14, "SHM_LOCK and huge pages count against containerd's RLIMIT_MEMLOCK"),
    (23, "deadlines, real-time I/O priority and other users' processes are out of reach"),
];

impl Entry {
    fn lost(&self, powers: Powers) -> &'static str {
        let beside = BESIDE_LIMITS.iter().filter(|_| powers.limits_stand_in);
        let mut found = beside.filter(|(number, _)| *number == self.number).map(|(_, lost)| *lost);
        found.next().unwrap_or(self.lost)
    }
}

const fn asked(number: u32, name: &'static str, lost: &'static str) -> Entry {
    Entry { number, name, lost, by_default: false }
}

const fn granted(number: u32, name: &'static str, lost: &'static str) -> Entry {
    Entry { number, name, lost, by_default: true }
}

/// Capabilities that the kernel asks of the first user namespace alone, or in parts.
const HOST_ONLY: [Entry; 20] = [
    asked(2, "DAC_READ_SEARCH", "open_by_handle_at works on no host file system"),
    asked(9, "LINUX_IMMUTABLE", "the attributes +i and +a cannot be changed"),
    asked(14, "IPC_LOCK", "memory is locked up to RLIMIT_MEMLOCK only"),
    asked(16, "SYS_MODULE", "no kernel module can be loaded"),
    asked(17, "SYS_RAWIO", "no port or raw memory can be accessed"),
    asked(20, "SYS_PACCT", "process accounting cannot be switched"),
    asked(
        21,
        "SYS_ADMIN",
        "it counts for what the sandbox owns; block devices cannot be mounted, nor the host be \
         administered",
    ),
    asked(22, "SYS_BOOT", "the machine cannot be restarted"),
    asked(23, "SYS_NICE", "priorities rise up to RLIMIT_NICE and RLIMIT_RTPRIO only"),
    asked(24, "SYS_RESOURCE", "hard limits and quotas cannot be raised"),
    asked(25, "SYS_TIME", "the clock cannot be set"),
    asked(26, "SYS_TTY_CONFIG", "virtual terminals cannot be configured"),
    granted(27, "MKNOD", "device nodes cannot be made"),
    granted(29, "AUDIT_WRITE", "the kernel's audit log takes no record"),
    asked(30, "AUDIT_CONTROL", "the kernel's audit rules cannot be changed"),
    asked(34, "SYSLOG", "the kernel's log cannot be read"),
    asked(35, "WAKE_ALARM", "no timer wakes the machine"),
    asked(37, "AUDIT_READ", "the kernel's audit log cannot be read"),
    asked(38, "PERFMON", "performance counters show the container's own processes only"),
    asked(39, "BPF", "no privileged BPF program can be loaded"),
];

/// Capabilities over the network namespace.
const NETWORK: [Entry; 2] = [
    asked(12, "NET_ADMIN", "the network belongs to the host and cannot be configured"),
    granted(13, "NET_RAW", "the network belongs to the host and no raw socket can be opened"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bits: &[u32], user_namespace: bool, own_network: bool) -> Vec<String> {
        let mask = bits.iter().fold(0, |mask, bit| mask | 1 << bit);
        let granted = CapabilitySets { permitted: mask, bounding: mask, ..Default::default() };
        let lost = capabilities(
            &granted,
            Powers {
                user_namespace,
                own_network,
                raw_sockets: false,
                mappings_given: false,
                limits_stand_in: false,
            },
        );
        lost.iter().map(|p| p.lost.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn power_over_the_network_is_lost_only_where_the_host_owns_it() {
        assert_eq!(names(&[12, 13, 0], true, false), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(names(&[12, 13, 0], true, true), [""; 0]);
        assert_eq!(names(&[12, 13, 25], false, false), [""; 0]);
    }

    #[test]
    fn the_hosts_cgroup_namespace_is_told_where_it_is_asked_for_on_purpose() {
        let spec = |kind: &str| -> Spec {
            let mount = serde_json::json!({
                "destination": "/sys/fs/cgroup", "type": kind,
                "source": if kind == "bind" { "/sys/fs/cgroup" } else { kind },
            });
            serde_json::from_value(serde_json::json!({ "ociVersion": "1.0.0", "mounts": [mount] }))
                .unwrap()
        };
        let told = |kind, listed, v2| cgroup_namespace(&spec(kind), listed, v2).is_some();
        assert!(told("cgroup", false, true), "docker run --cgroupns=host");
        assert!(told("cgroup2", false, true));
        assert!(!told("cgroup", true, true));
        assert!(!told("tmpfs", false, true), "ctr lists none and mounts none");
        assert!(!told("cgroup", false, false), "version 1 has it by default");
        assert!(told("bind", false, true), "the same with -v /sys/fs/cgroup:/sys/fs/cgroup:ro");
        assert!(!told("bind", true, true));
        let told = cgroup_namespace(&spec("bind"), false, false).expect("its path is not there");
        assert!(told.by_default, "a debug message: on version 1 few ask for it on purpose");
    }

    #[test]
    fn power_over_the_machine_is_lost_in_any_user_namespace() {
        assert_eq!(names(&[25, 16, 5], true, true), ["CAP_SYS_MODULE", "CAP_SYS_TIME"]);
    }

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        for entry in HOST_ONLY.iter().chain(&NETWORK) {
            let name = format!("CAP_{}", entry.name);
            let known = super::super::capabilities::capability_names().position(|n| n == name);
            assert_eq!(known, Some(entry.number as usize), "{name}");
        }
    }
}
