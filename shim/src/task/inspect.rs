//! Inspect: returns how containers were planned, as JSON for operators.

mod from;

use std::fs;

use rustix::mount::MountAttrFlags;
use sandbox_core::spec::baseline::{held, name_of, native};
use sandbox_core::spec::names_of;
use sandbox_core::spec::plan::{
    DeliveredSource, FsOption, MountPlan, MountSource, Plan, ProcessPlan,
};
use serde_json::{Value, json};

use super::container::Container;
use super::shim::Shim;
use crate::error::{Error, Result};

/// The numbers of system calls are lower.
const CALLS: u32 = 1024;

/// File system options whose keys contain one of these may be secrets.
const SECRETS: [&str; 3] = ["pass", "secret", "key"];

/// Returns the plan of one container, or those of the whole pod. `values`: whether arguments and
/// environment, which may contain secrets, are among it.
pub(crate) fn inspect(shim: &Shim, id: &str, values: bool) -> Result<Value> {
    let table = shim.table();
    let is_pod = table.containers().any(|container| container.boot.root == id);
    let chosen = table.containers().filter(|container| is_pod || container.id == id);
    let containers: Vec<_> = chosen.map(|container| of(container, values)).collect();
    if containers.is_empty() {
        return Err(Error::not_found(format!(
            "container {id} does not exist in this pod, or is still being created"
        )));
    }
    let boot = table.containers().next().map(|container| container.boot.clone());
    let pod = boot.map(|boot| {
        json!({
            "id": boot.root,
            "namespace": shim.namespace,
            "shim": std::process::id(),
            "boot": boot.pid(),
        })
    });
    Ok(json!({ "pod": pod, "containers": containers }))
}

fn of(container: &Container, values: bool) -> Value {
    let plan = &*container.plan;
    let (inner, host) = (&plan.container, &plan.host);
    let capacity = container.cgroup.capacity(container.capacity_policy).ok();
    let paths: Vec<_> = container.cgroup.paths().collect();
    let options = container.options.explained(&host.annotations);
    let options = from::Options(options);
    let sysctls = [&inner.sysctls[..], &inner.user_sysctls, &host.network_sysctls].concat();
    json!({
        "id": container.id,
        "bundle": container.bundle,
        "pid": container.init.pid,
        "process": inner.process.as_ref().map(|plan| process(plan, values)),
        "namespaces": {
            "pid": inner.namespaces.pid,
            "ipc": inner.namespaces.ipc,
            "uts": inner.namespaces.uts,
            "cgroup": inner.namespaces.cgroup,
            "time": inner.namespaces.time,
            "user": inner.user_namespace,
            "network": format!("{:?}", host.network),
            "pids_of": inner.pids_of,
            "times_of": inner.times_of,
            "no_user_namespace": host.no_user_namespace,
        },
        "id_mappings": mappings(container.init.pid),
        "root": {
            "path": host.rootfs,
            "readonly": inner.readonly_root,
        },
        "mounts": mounts(plan),
        "devices": inner.devices,
        "masked_paths": inner.masked_paths,
        "readonly_paths": inner.readonly_paths,
        "sysctls": sysctls,
        "seccomp": seccomp(plan),
        "cgroup": {
            "paths": paths,
            "resources_at_create": host.resources,
            "resources_now": container.resources.get(),
        },
        "capacity": capacity.map(|capacity| {
            json!({ "cpus": capacity.cpus, "memory": capacity.memory })
        }),
        "views": inner.views,
        "powerless": host.powerless,
        "from": from::of(plan, &options),
        "options": options.0,
    })
}

fn process(plan: &ProcessPlan, values: bool) -> Value {
    let names = |set: u64| -> Vec<String> { names_of(set).collect() };
    let sets = &plan.capabilities;
    let variables = plan.env.iter().map(|variable| match values {
        true => variable.as_str(),
        false => variable.split('=').next().unwrap_or_default(),
    });
    json!({
        "user": { "uid": plan.uid, "gid": plan.gid, "additional_gids": plan.additional_gids },
        "cwd": plan.cwd,
        "args": values.then_some(&plan.args),
        "environment": variables.collect::<Vec<_>>(),
        "capabilities": {
            "bounding": names(sets.bounding),
            "effective": names(sets.effective),
            "inheritable": names(sets.inheritable),
            "permitted": names(sets.permitted),
            "ambient": names(sets.ambient),
        },
        "no_new_privileges": plan.no_new_privileges,
        "oom_score_adj": plan.oom_score_adj,
        "rlimits": plan.rlimits,
        "apparmor_profile": plan.apparmor_profile,
        "selinux_label": plan.selinux_label,
        "terminal": plan.terminal.is_some(),
    })
}

/// Returns the ID mappings of a process, as the kernel has them.
fn mappings(pid: u32) -> Value {
    let read = |file: &str| -> Value {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let line = |line: &str| {
            let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
            let mut next = || numbers.next().flatten();
            json!({ "inside": next(), "outside": next(), "size": next() })
        };
        text.map(|text| text.lines().map(line).collect::<Vec<_>>()).into()
    };
    json!({ "uids": read("uid_map"), "gids": read("gid_map") })
}

fn mounts(plan: &Plan) -> Vec<Value> {
    let delivered = |index: usize| {
        let found = plan.host.delivered.iter().find(|(of, _)| *of == index);
        found.map(|(_, source)| source)
    };
    let all = plan.container.mounts.iter().enumerate();
    all.map(|(index, mount)| one_mount(mount, delivered(index), plan)).collect()
}

fn one_mount(mount: &MountPlan, delivered: Option<&DeliveredSource>, plan: &Plan) -> Value {
    let (source, file_system, options, mapped) = match (&mount.source, delivered) {
        (_, Some(DeliveredSource::Bind { source, recursive, idmap })) => {
            let options = vec![((if *recursive { "rbind" } else { "bind" }).to_owned(), None)];
            (json!(source), None, options, Some(format!("{idmap:?}").to_lowercase()))
        }
        (_, Some(DeliveredSource::FileSystem { fs_type, source, options })) => {
            (json!(source), Some(fs_type.as_str()), options.clone(), None)
        }
        (own, _) => (Value::Null, Some(file_system(own)), own.options().to_vec(), None),
    };
    let attributes = &mount.attributes;
    let set = attributes.set | attributes.recursive_set;
    // What is attached in U1 is locked below; message queues belong to U2.
    let locked = plan.container.user_namespace && mount.source != MountSource::Mqueue;
    json!({
        "destination": mount.destination,
        "source": source,
        "file_system": file_system,
        "options": options.iter().map(option).collect::<Vec<_>>(),
        "flags": flags(set),
        "cleared_flags": flags(attributes.clear | attributes.recursive_clear),
        "locked_flags": if locked { flags(set) } else { Vec::new() },
        "propagation": mount.propagation.map(|propagation| format!("{:?}", propagation.kind)),
        "mapped": mapped,
    })
}

fn file_system(source: &MountSource) -> &'static str {
    match source {
        MountSource::Proc => "proc",
        MountSource::Devpts(_) => "devpts",
        MountSource::Mqueue => "mqueue",
        MountSource::Tmpfs { .. } | MountSource::SharedMemory(_) => "tmpfs",
        MountSource::Cgroup => "cgroup",
        MountSource::Sysfs => "sysfs",
        MountSource::Delivered => "unknown",
    }
}

fn option((key, value): &FsOption) -> String {
    match value {
        Some(_) if SECRETS.iter().any(|secret| key.to_lowercase().contains(secret)) => {
            format!("{key}=(left out)")
        }
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    }
}

fn flags(flags: MountAttrFlags) -> Vec<String> {
    let names = flags.iter_names().map(|(name, _)| name);
    names.map(|name| name.trim_start_matches("MOUNT_ATTR_").to_lowercase()).collect()
}

fn seccomp(plan: &Plan) -> Value {
    let profile = plan.host.seccomp.as_ref().map(|profile| {
        json!({
            "default_action": profile.default_action(),
            "rules": profile.syscalls().as_ref().map_or(0, Vec::len),
        })
    });
    let baseline = plan.host.confined.as_ref().map(|confined| {
        let calls = (0..CALLS).map(|number| native(number, [0; 6]));
        let refused = calls.filter(|call| held(confined, call).is_some());
        let names: Vec<String> = refused.filter_map(|call| name_of(&call)).collect();
        let allowed: Vec<_> = confined.baseline.allowed.names().collect();
        json!({ "level": confined.baseline.level, "allowed": allowed, "refuses": names })
    });
    json!({ "profile": profile, "baseline": baseline })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_of_a_file_system_is_told() {
        let told = |key: &str| option(&(key.to_owned(), Some("x".to_owned())));
        assert_eq!(told("size"), "size=x");
        for secret in ["password", "PassWord2", "secret", "keyring"] {
            assert!(told(secret).ends_with("=(left out)"), "{secret}");
        }
    }
}
