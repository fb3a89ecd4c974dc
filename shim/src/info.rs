//! `-info`: prints the features that containerd reads before it runs anything.
//! Without idmap support in them it refuses idmapped containers; `rro` mounts
//! and user namespaces become features of the node's RuntimeHandler.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use sandbox_core::spec::{self, mount_options, seccomp};
use serde_json::{Value, json};

use crate::answer::print;
use crate::error::{Context, Result};
use crate::options::ANNOTATIONS;
use crate::start::GROUPS;

/// Type URL of the OCI features, as containerd's typeurl registers them: the
/// value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

pub(crate) fn info() -> Result<()> {
    let bytes = runtime_info()?.write_to_bytes().context(|| "encode the RuntimeInfo")?;
    print("RuntimeInfo", &bytes)
}

fn runtime_info() -> Result<RuntimeInfo> {
    let features = Any {
        type_url: FEATURES.to_string(),
        value: serde_json::to_vec(&features()).context(|| "encode the features")?,
        ..Default::default()
    };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_string(), ..Default::default() };
    Ok(RuntimeInfo {
        name: crate::RUNTIME.to_string(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..Default::default()
    })
}

/// Returns the features of this runtime (runtime-spec, features.md and
/// features-linux.md), as far as possible from the tables that implement them.
fn features() -> Value {
    let seccomp = seccomp::supported();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": HOOKS,
        "mountOptions": mount_options::names(),
        "linux": {
            "namespaces": spec::namespace_names().collect::<Vec<_>>(),
            "capabilities": spec::capability_names().collect::<Vec<_>>(),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": seccomp.actions,
                "operators": seccomp.operators,
                "archs": seccomp.architectures,
                "knownFlags": seccomp.known_flags,
                "supportedFlags": seccomp.flags,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": MEMORY_MODES, "flags": MEMORY_FLAGS},
            "netDevices": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
        "potentiallyUnsafeConfigAnnotations": unsafe_annotations().collect::<Vec<_>>(),
    })
}

/// Returns the annotations of a spec that change what Palisade does. Whoever lets others write
/// a spec should keep these from them.
fn unsafe_annotations() -> impl Iterator<Item = &'static str> {
    spec::annotations().chain([ANNOTATIONS]).chain(GROUPS)
}

const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];

const MEMORY_FLAGS: [&str; 3] =
    ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Features, LinuxSeccomp, Spec};
    use sandbox_core::spec::plan::Plan;
    use sandbox_core::spec::{Context as PlanContext, plan};
    use serde::de::DeserializeOwned;

    use super::*;

    #[test]
    fn the_features_are_the_specs() {
        let info = runtime_info().unwrap();
        assert_eq!(info.name, "io.containerd.palisade.v1");
        let features: Features = serde_json::from_slice(&info.features.value).unwrap();
        let linux = features.linux().as_ref().unwrap();
        let idmap = linux.mount_extensions().as_ref().unwrap().idmap().as_ref().unwrap();
        assert_eq!(*idmap.enabled(), Some(true));
        assert!(features.mount_options().as_ref().unwrap().contains(&"rro".to_string()));
        let annotations = features.potentially_unsafe_config_annotations().as_ref().unwrap();
        for known in ["dev.palisade.", "org.systemd.property.", "io.kubernetes.cri.sandbox-id"] {
            assert!(annotations.contains(&known.to_string()), "{annotations:?}");
        }
    }

    /// All mount options of runc 1.3 and of mount(8), claimed or not.
    const KNOWN_MOUNT_OPTIONS: &str = "acl async atime bind defaults dev diratime dirsync exec \
        iversion lazytime loop loud mand noacl noatime nodev nodiratime noexec noiversion \
        nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev \
        rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime \
        rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave \
        rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid sync \
        symfollow tmpcopyup unbindable idmap ridmap noidmap user nouser auto noauto nofail \
        _netdev group users owner";

    #[test]
    fn exactly_the_mount_options_that_a_spec_can_have_are_claimed() {
        let claimed = strings(&features()["mountOptions"]);
        let known = KNOWN_MOUNT_OPTIONS.split_whitespace().map(str::to_owned);
        let recursive = claimed.iter().map(|option| format!("r{option}"));
        for option in claimed.iter().cloned().chain(known).chain(recursive) {
            // Of all types, a bind alone knows no options but those of every mount.
            let bind = json!({"destination": "/a", "source": "/", "options": ["bind", option]});
            let tmpfs = json!({"destination": "/a", "type": "tmpfs", "options": [option]});
            let accepted = planned("/mounts", json!([bind])).is_ok()
                || option == "tmpcopyup" && planned("/mounts", json!([tmpfs])).is_ok();
            assert_eq!(accepted, claimed.contains(&option), "{option}");
        }
    }

    #[test]
    fn exactly_what_seccomp_compiles_is_claimed() {
        let claims = &features()["linux"]["seccomp"];
        let compiles = |profile: Value| {
            let planned = planned("/linux/seccomp", profile.clone()).is_ok();
            let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
            let compiled = seccomp::compile(&profile);
            assert_eq!(planned, compiled.is_ok(), "{profile:?}: {compiled:?}");
            planned
        };
        let rule = |action: &str, operator: &str| {
            let arg = json!({"index": 0, "value": 1, "valueTwo": 1, "op": operator});
            let rule = json!({"names": ["read"], "action": action, "args": [arg]});
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "listenerPath": "/agent"})
        };
        for action in variants::<oci_spec::runtime::LinuxSeccompAction>() {
            let in_rule = compiles(rule(&action, "SCMP_CMP_EQ"));
            let default = compiles(json!({"defaultAction": action}));
            assert_eq!(default, in_rule && action != "SCMP_ACT_NOTIFY", "{action}");
            assert_eq!(in_rule, strings(&claims["actions"]).contains(&action), "{action}");
        }
        for operator in variants::<oci_spec::runtime::LinuxSeccompOperator>() {
            let compiles = compiles(rule("SCMP_ACT_LOG", &operator));
            assert_eq!(compiles, strings(&claims["operators"]).contains(&operator), "{operator}");
        }
        for arch in variants::<oci_spec::runtime::Arch>() {
            let compiles =
                compiles(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": [arch]}));
            assert_eq!(compiles, strings(&claims["archs"]).contains(&arch), "{arch}");
        }
        for flag in variants::<oci_spec::runtime::LinuxSeccompFilterFlag>() {
            let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag]});
            assert_eq!(
                compiles(profile.clone()),
                strings(&claims["knownFlags"]).contains(&flag),
                "{flag}"
            );
            // The kernel takes this one only with a listener.
            let with_listener = flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
            if with_listener {
                profile["syscalls"] = rule("SCMP_ACT_NOTIFY", "SCMP_CMP_EQ")["syscalls"].clone();
            }
            let bits = seccomp::flags(&serde_json::from_value(profile).unwrap());
            let bits = if with_listener { bits & !(1 << 3) } else { bits };
            assert_eq!(bits != 0, strings(&claims["supportedFlags"]).contains(&flag), "{flag}");
        }
    }

    #[test]
    fn exactly_the_namespaces_and_features_that_a_spec_can_have_are_claimed() {
        let claims = &features()["linux"];
        for kind in variants::<oci_spec::runtime::LinuxNamespaceType>() {
            let mut kinds = ["network", "pid", "ipc", "uts", "mount"].to_vec();
            if !kinds.contains(&&*kind) {
                kinds.push(&kind);
            }
            let listed: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
            let mut linux = json!({"namespaces": listed});
            if kind == "user" {
                let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
                linux["uidMappings"] = ids.clone();
                linux["gidMappings"] = ids;
            }
            let accepted = planned("/linux", linux).is_ok();
            assert_eq!(accepted, strings(&claims["namespaces"]).contains(&kind), "{kind}");
        }
        let rdt = planned("/linux/intelRdt", json!({"closID": "a"})).is_ok();
        assert_eq!(claims["intelRdt"]["enabled"], rdt);
        let device = planned("/linux/netDevices", json!({"eth0": {"name": "eth1"}})).is_ok();
        assert_eq!(claims["netDevices"]["enabled"], device);
        let policies = &claims["memoryPolicy"];
        let modes = variants::<oci_spec::runtime::MemoryPolicyModeType>();
        assert_eq!(strings(&policies["modes"]), modes);
        for mode in modes {
            let with = |nodes: &str| {
                planned("/linux/memoryPolicy", json!({"mode": mode, "nodes": nodes})).is_ok()
            };
            assert!(with("") || with("0"), "{mode}");
        }
        let flags = variants::<oci_spec::runtime::MemoryPolicyFlagType>();
        assert_eq!(strings(&policies["flags"]), flags);
        let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": flags});
        planned("/linux/memoryPolicy", policy).unwrap();
        for capability in strings(&claims["capabilities"]) {
            let sets = json!({"permitted": [capability], "effective": [capability]});
            let planned = planned("/process/capabilities", sets).unwrap();
            let mask = planned.container.process.unwrap().capabilities.permitted;
            assert_eq!(mask.count_ones(), 1, "{capability}");
        }
    }

    #[test]
    fn exactly_the_hooks_that_run_are_claimed() {
        let hook = json!([{"path": "/bin/true"}]);
        let all: serde_json::Map<_, _> =
            HOOKS.iter().map(|name| ((*name).to_owned(), hook.clone())).collect();
        for name in HOOKS {
            assert_eq!(count_of_hooks(json!({ name: hook })), 1, "{name}");
        }
        // The specification knows no others.
        let hooks: oci_spec::runtime::Hooks = serde_json::from_value(all.clone().into()).unwrap();
        assert_eq!(serde_json::to_value(hooks).unwrap().as_object().unwrap().len(), HOOKS.len());
        assert_eq!(count_of_hooks(all.into()), HOOKS.len());
    }

    fn count_of_hooks(hooks: Value) -> usize {
        let plan = planned("/hooks", hooks).unwrap();
        let host = plan.host.hooks;
        let on_host = [host.create_runtime, host.create_container, host.poststart, host.poststop];
        on_host.iter().map(Vec::len).sum::<usize>() + plan.container.start_hooks.len()
    }

    /// Plans a small spec with one more section, in a sandbox with a user
    /// namespace.
    fn planned(section: &str, value: Value) -> sandbox_core::Result<Plan> {
        let mut spec = json!({
            "ociVersion": "1.3.0",
            "root": {"path": "/"},
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
        });
        let (place, name) = section.rsplit_once('/').unwrap();
        spec.pointer_mut(place).unwrap()[name] = value;
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let context = PlanContext {
            id: "a",
            bundle: "/".as_ref(),
            rootfs_mounts_given: false,
            userns: Default::default(),
            id_pool: Default::default(),
            baseline: Default::default(),
            tells_refusals: false,
            views: None,
            sandbox: None,
            other_containers: &[],
        };
        plan(&spec, &context)
    }

    /// Returns the names of all variants of an enum, which serde lists in the
    /// error for a wrong one.
    fn variants<T: DeserializeOwned>() -> Vec<String> {
        let Err(error) = serde_json::from_value::<T>(json!("none of them")) else {
            panic!("it takes anything");
        };
        let message = error.to_string();
        let (_, expected) = message.split_once("expected one of ").unwrap();
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn strings(list: &Value) -> Vec<String> {
        serde_json::from_value(list.clone()).unwrap()
    }
}
