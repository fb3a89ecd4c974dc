//! Writes the spec of a sandbox without a container: the spec that CRI's plugin would write
//! for the pause container of the same pod (`internal/cri/server/podsandbox/
//! sandbox_run_linux.go`), except for the parts about that container's program.

use std::collections::HashMap;
use std::path::PathBuf;

use caps::{CapSet, Capability};
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use oci_spec::runtime::{
    Linux, LinuxCpuBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType as Type, LinuxResourcesBuilder, Mount, MountBuilder,
    Process, RootBuilder, Spec,
};

use super::cri::cri::{
    IDMapping, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, UserNamespace,
};
use crate::error::{Context, Error, Result};

/// The annotation that marks a pod's sandbox container.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// The prefix of the pod's annotations that are for Palisade. The pod could use others to claim
/// what only containerd may declare, such as that the pod is privileged.
const OURS: &str = "dev.palisade.";

/// The `oom_score_adj` that the kubelet gives to every pause container, so that it is killed
/// last.
const OOM_SCORE_ADJ: i32 = -998;

/// Writes the spec from the pod's configuration.
pub(super) fn of_pod(id: &str, config: &PodSandboxConfig) -> Result<Spec> {
    let linux = config.linux.get_or_default();
    let security = linux.security_context.get_or_default();
    let options = security.namespace_options.get_or_default();
    let mut process = Process::default();
    process.set_oom_score_adj(Some(permitted(OOM_SCORE_ADJ)?));
    let mut spec = Spec::default();
    spec.set_hostname(Some(config.hostname.clone()).filter(|name| !name.is_empty()));
    spec.set_process(Some(process));
    spec.set_mounts(Some(vec![sysfs(security.privileged)?]));
    spec.set_annotations(Some(annotations(config)));
    spec.set_linux(Some(section(id, linux, options)?));
    Ok(spec)
}

/// Completes any spec to one of a sandbox without a container: with the network that the
/// request names, and a pause process, whose work boot does.
pub(super) fn complete(spec: &mut Spec, request: &CreateSandboxRequest) -> Result<()> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    if !request.netns_path.is_empty() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != Type::Network);
        namespaces.push(namespace(Type::Network, Some(&request.netns_path))?);
        linux.set_namespaces(Some(namespaces));
    }
    spec.set_linux(Some(linux));
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.extend(ours(&request.annotations));
    annotations.insert(CONTAINER_TYPE.to_string(), "sandbox".to_string());
    spec.set_annotations(Some(annotations));
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(vec!["/pause".to_string()]));
    spec.set_process(Some(process));
    // containerd makes this directory in every bundle.
    let root = RootBuilder::default().path("rootfs").readonly(true).build();
    spec.set_root(Some(root.context(|| "root")?));
    Ok(())
}

fn annotations(config: &PodSandboxConfig) -> HashMap<String, String> {
    let metadata = config.metadata.as_ref().cloned().unwrap_or_else(PodSandboxMetadata::new);
    let added = [
        ("io.kubernetes.cri.sandbox-name", metadata.name),
        ("io.kubernetes.cri.sandbox-namespace", metadata.namespace),
        ("io.kubernetes.cri.sandbox-uid", metadata.uid),
        ("io.kubernetes.cri.sandbox-log-directory", config.log_directory.clone()),
        // The name of an image marks a spec of containerd 2, in which a missing seccomp
        // profile does not mean a privileged pod.
        ("io.kubernetes.cri.podsandbox.image-name", String::new()),
    ];
    let added = added.into_iter().map(|(key, value)| (key.to_string(), value));
    ours(&config.annotations).chain(added).collect()
}

fn ours(annotations: &HashMap<String, String>) -> impl Iterator<Item = (String, String)> {
    let is_ours = |(key, _): &(&String, &String)| key.starts_with(OURS);
    annotations.iter().filter(is_ours).map(|(key, value)| (key.clone(), value.clone()))
}

/// Returns the mount of `/sys`, which is writable in a privileged pod.
fn sysfs(privileged: bool) -> Result<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    let options = ["nosuid", "noexec", "nodev", access].map(str::to_string).to_vec();
    let mount = MountBuilder::default().destination("/sys").typ("sysfs").source("sysfs");
    mount.options(options).build().context(|| "mounts")
}

fn section(id: &str, config: &LinuxPodSandboxConfig, options: &NamespaceOption) -> Result<Linux> {
    let mut namespaces = vec![namespace(Type::Mount, None)?];
    let of_the_node =
        |mode: protobuf::EnumOrUnknown<NamespaceMode>| mode.enum_value() == Ok(NamespaceMode::NODE);
    if !of_the_node(options.network) {
        namespaces.push(namespace(Type::Network, None)?);
        namespaces.push(namespace(Type::Uts, None)?);
    }
    if !of_the_node(options.pid) {
        namespaces.push(namespace(Type::Pid, None)?);
    }
    if !of_the_node(options.ipc) {
        namespaces.push(namespace(Type::Ipc, None)?);
    }
    let mut linux = Linux::default();
    if let Some(user) = options.userns_options.as_ref() {
        add_user_namespace(&mut linux, &mut namespaces, user)?;
    }
    linux.set_namespaces(Some(namespaces));
    linux.set_sysctl(Some(config.sysctls.clone()));
    linux.set_cgroups_path(cgroups_path(&config.cgroup_parent, id));
    // As for the pause container: next to nothing if others need CPU time.
    let cpu = LinuxCpuBuilder::default().shares(2u64).build().context(|| "cpu")?;
    let resources = LinuxResourcesBuilder::default().cpu(cpu).build();
    linux.set_resources(Some(resources.context(|| "resources")?));
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    Ok(linux)
}

/// Adds the pod's own user namespace (`hostUsers: false`).
fn add_user_namespace(
    linux: &mut Linux,
    namespaces: &mut Vec<LinuxNamespace>,
    user: &UserNamespace,
) -> Result<()> {
    match user.mode.enum_value() {
        Ok(NamespaceMode::NODE) => Ok(()),
        Ok(NamespaceMode::POD) => {
            namespaces.push(namespace(Type::User, None)?);
            linux.set_uid_mappings(Some(mappings(&user.uids)?));
            linux.set_gid_mappings(Some(mappings(&user.gids)?));
            Ok(())
        }
        mode => Err(Error::invalid(format!(
            "linux.security_context.namespace_options.userns_options.mode: {mode:?}; expected POD or NODE"
        ))),
    }
}

fn mappings(mappings: &[IDMapping]) -> Result<Vec<LinuxIdMapping>> {
    let one = |mapping: &IDMapping| {
        LinuxIdMappingBuilder::default()
            .host_id(mapping.host_id)
            .container_id(mapping.container_id)
            .size(mapping.length)
            .build()
            .context(|| "userns_options")
    };
    mappings.iter().map(one).collect()
}

fn namespace(kind: Type, path: Option<&str>) -> Result<LinuxNamespace> {
    let mut builder = LinuxNamespaceBuilder::default().typ(kind);
    if let Some(path) = path {
        builder = builder.path(PathBuf::from(path));
    }
    builder.build().context(|| "namespaces")
}

/// Returns a path below the pod's cgroup, where containerd also puts the pod's containers
/// (`internal/cri/server/helpers_linux.go`, `getCgroupsPath`).
fn cgroups_path(parent: &str, id: &str) -> Option<PathBuf> {
    let last = parent.rsplit('/').next().unwrap_or_default();
    match parent {
        "" => None,
        _ if last.ends_with(".slice") => Some(format!("{last}:cri-containerd:{id}").into()),
        _ => Some(format!("{}/{id}", parent.trim_end_matches('/')).into()),
    }
}

/// Returns the `oom_score_adj` that the sandbox can have. Lowering it needs
/// CAP_SYS_RESOURCE. Without that, the shim's own is the lowest.
fn permitted(wanted: i32) -> Result<i32> {
    let may_lower = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE);
    if may_lower.unwrap_or(false) {
        return Ok(wanted);
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own = own.context(|| "read /proc/self/oom_score_adj")?;
    Ok(own.trim().parse::<i32>().unwrap_or_default().max(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodSandboxConfig {
        let mut config = PodSandboxConfig::new();
        config.hostname = "a-pod".into();
        config.linux.mut_or_insert_default().cgroup_parent = "/kubepods/burstable/pod1".into();
        config
    }

    fn kinds(spec: &Spec) -> Vec<Type> {
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        namespaces.iter().map(LinuxNamespace::typ).collect()
    }

    #[test]
    fn a_pod_has_namespaces_of_its_own_and_a_cgroup_beside_its_containers() {
        let spec = of_pod("id", &pod()).unwrap();
        assert_eq!(kinds(&spec), [Type::Mount, Type::Network, Type::Uts, Type::Pid, Type::Ipc]);
        let path = spec.linux().as_ref().unwrap().cgroups_path().clone().unwrap();
        assert_eq!(path, PathBuf::from("/kubepods/burstable/pod1/id"));
        assert_eq!(spec.hostname().as_deref(), Some("a-pod"));
    }

    #[test]
    fn a_slice_means_systemd() {
        let path = cgroups_path("/kubepods.slice/kubepods-pod1.slice", "id").unwrap();
        assert_eq!(path, PathBuf::from("kubepods-pod1.slice:cri-containerd:id"));
        assert_eq!(cgroups_path("", "id"), None);
    }

    #[test]
    fn namespaces_of_the_node_are_not_listed() {
        let mut config = pod();
        let security =
            config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        let options = security.namespace_options.mut_or_insert_default();
        options.network = NamespaceMode::NODE.into();
        options.pid = NamespaceMode::NODE.into();
        assert_eq!(kinds(&of_pod("id", &config).unwrap()), [Type::Mount, Type::Ipc]);
    }

    #[test]
    fn a_pod_cannot_claim_privileges_by_annotations() {
        let mut config = pod();
        for key in ["io.kubernetes.cri-o.PrivilegedRuntime", "dev.palisade.userns"] {
            config.annotations.insert(key.into(), "true".into());
        }
        let annotations = of_pod("id", &config).unwrap().annotations().clone().unwrap();
        assert!(annotations.contains_key("dev.palisade.userns"));
        assert!(!annotations.contains_key("io.kubernetes.cri-o.PrivilegedRuntime"));
    }

    #[test]
    fn the_network_is_the_request_s() {
        let mut spec = of_pod("id", &pod()).unwrap();
        let request =
            CreateSandboxRequest { netns_path: "/run/netns/x".into(), ..Default::default() };
        complete(&mut spec, &request).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let networks: Vec<_> = namespaces.iter().filter(|n| n.typ() == Type::Network).collect();
        assert_eq!(networks.len(), 1);
        assert_eq!(networks[0].path().as_deref(), Some("/run/netns/x".as_ref()));
    }
}
