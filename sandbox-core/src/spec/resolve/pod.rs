//! Reads the annotations that Kubernetes' runtimes write, and decides whether a
//! container is privileged.

use std::collections::HashMap;

use oci_spec::runtime::{Capability, Linux, LinuxResources, Spec};

use super::unit_properties;

/// Annotation with a container's type: `io.kubernetes.cri.container-type` of
/// containerd (`internal/cri/annotations`) and
/// `io.kubernetes.cri-o.ContainerType` of CRI-O.
const CONTAINER_TYPE: [&str; 2] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// Annotation of CRI-O's for the sandbox container of a privileged pod.
const PRIVILEGED: &str = "io.kubernetes.cri-o.PrivilegedRuntime";

/// Returns the annotations that change what a plan contains. One that ends in a dot is a prefix.
pub fn annotations() -> impl Iterator<Item = &'static str> {
    CONTAINER_TYPE.into_iter().chain([PRIVILEGED, unit_properties::PREFIX])
}

/// Whether this is the sandbox container of a Kubernetes pod.
pub(super) fn is_sandbox(spec: &Spec) -> bool {
    CONTAINER_TYPE.iter().any(|key| annotation(spec, key) == Some("sandbox"))
}

/// Whether this is the well-known pause container. It does nothing that boot
/// does not do as well: it holds the namespaces, reaps, and waits for a signal.
pub(super) fn is_pause(spec: &Spec) -> bool {
    let args = spec.process().as_ref().and_then(|process| process.args().as_deref());
    is_sandbox(spec) && args.is_some_and(|args| args == ["/pause"])
}

/// The CPU shares of a cgroup in which boot is alone: ten CPUs' worth, all of it on the one
/// CPU that its one thread runs on.
const SHARES_OF_BOOT: u64 = 10 * 1024;

/// Raises the CPU shares of a pause container. Engines give it the least that there is, 2, as
/// its program only sleeps. But boot works there, and newborns on their way to their container
/// do: beside a busy container of the pod, their execs would take seconds. No program of a
/// user's runs in that cgroup.
pub fn with_share_of_boot(mut resources: LinuxResources) -> LinuxResources {
    let mut cpu = resources.cpu().clone().unwrap_or_default();
    cpu.set_shares(Some(cpu.shares().unwrap_or_default().max(SHARES_OF_BOOT)));
    resources.set_cpu(Some(cpu));
    resources
}

/// Returns the sign that a container, or the pod whose sandbox container it is,
/// is privileged. Returns `None` if it is not.
pub(super) fn privileged(spec: &Spec) -> Option<&'static str> {
    if is_sandbox(spec) {
        return privileged_pod(spec);
    }
    privileged_container(spec).then_some("the container is privileged")
}

/// Returns the sign that a sandbox container's pod is privileged. The spec has
/// no field for it, but some of what containerd omits or changes shows it:
///
/// - From 2.0.3 on, `/sys` is `rw` in the sandbox container of a privileged pod
///   and `ro` in others (`internal/cri/server/podsandbox/sandbox_run.go`).
/// - Before 2.0, the sandbox container of a privileged pod has no seccomp
///   profile (`generateSeccompSpecOpts` returns none). The kubelet requests the
///   runtime's default profile for the sandbox of every pod, so with the kubelet
///   a missing profile means privileged. Other clients may request none at all.
///   The name of the log directory, `<namespace>_<name>_<uid>`, identifies the
///   kubelet.
/// - CRI-O writes an annotation.
///
/// Two cases go unnoticed: a privileged pod of a client other than the kubelet
/// with containerd before 2.0.3, and any privileged pod with 2.0.0 to 2.0.2.
/// The annotation with the sandbox image's name distinguishes these versions
/// from older ones.
fn privileged_pod(spec: &Spec) -> Option<&'static str> {
    let writable_sys = sys_options(spec).is_some_and(|options| options.iter().any(|o| o == "rw"));
    let crio = annotation(spec, PRIVILEGED) == Some("true");
    if writable_sys || crio {
        return Some("the pod is privileged");
    }
    let before_2_0 = annotation(spec, "io.kubernetes.cri.podsandbox.image-name").is_none();
    let seccomp = spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some());
    (before_2_0 && !seccomp && is_from_kubelet(spec))
        .then_some("the pod is privileged (its sandbox container has no seccomp profile)")
}

fn sys_options(spec: &Spec) -> Option<&[String]> {
    let mut mounts = spec.mounts().iter().flatten();
    let sys = mounts.find(|mount| mount.destination().as_os_str() == "/sys")?;
    (sys.typ().as_deref() == Some("sysfs")).then_some(sys.options().as_deref()?)
}

/// Whether the log directory's name is one of the kubelet's function
/// `BuildPodLogsDirectory`.
fn is_from_kubelet(spec: &Spec) -> bool {
    let part = |key: &str| annotation(spec, &format!("io.kubernetes.cri.sandbox-{key}"));
    let parts = (part("log-directory"), part("namespace"), part("name"), part("uid"));
    let (Some(directory), Some(namespace), Some(name), Some(uid)) = parts else {
        return false;
    };
    let last = directory.trim_end_matches('/').rsplit('/').next();
    last == Some(format!("{namespace}_{name}_{uid}").as_str())
}

/// Whether a container is privileged, by what `oci.WithPrivileged` of
/// containerd, nerdctl and Docker have in common: capabilities over the whole
/// machine, no seccomp profile, and no masked or read-only paths.
fn privileged_container(spec: &Spec) -> bool {
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let bounding = capabilities.and_then(|sets| sets.bounding().as_ref());
    let machine = [Capability::SysAdmin, Capability::SysModule, Capability::SysRawio];
    let all = bounding.is_some_and(|set| machine.iter().all(|capability| set.contains(capability)));
    all && spec.linux().as_ref().is_some_and(unconfined)
}

fn unconfined(linux: &Linux) -> bool {
    let empty = |paths: &Option<Vec<String>>| paths.as_ref().is_none_or(Vec::is_empty);
    linux.seccomp().is_none() && empty(linux.masked_paths()) && empty(linux.readonly_paths())
}

fn annotation<'a>(spec: &'a Spec, key: &str) -> Option<&'a str> {
    let annotations: &HashMap<String, String> = spec.annotations().as_ref()?;
    annotations.get(key).map(String::as_str)
}
