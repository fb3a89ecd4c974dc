//! Says where the values of a plan come from: a field of the spec, the client's Create, an option
//! of the node with where that comes from, or the default. Its keys are those of the document.

use sandbox_core::spec::plan::{Network, Plan, ProcessPlan};
use serde_json::{Map, Value, json};

/// The user sysctl that a baseline sets, for want of a seccomp rule.
const LIMIT: &str = "user.max_user_namespaces";

/// What the values of options come from, by their names.
pub(super) struct Options(pub(super) Value);

impl Options {
    /// Names an option, its value and where that comes from.
    fn option(&self, name: &str) -> String {
        let value = match &self.0[name]["value"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let from = self.0[name]["from"].as_str().unwrap_or("default");
        format!("option {name} = {value} ({from})")
    }
}

/// Returns where a field comes from that the spec may have.
fn given(is_given: bool, field: &str) -> String {
    if is_given { format!("spec {field}") } else { "default".to_owned() }
}

/// Returns the document. The mounts have their own, by their indices.
pub(super) fn of(plan: &Plan, options: &Options) -> Value {
    let (inner, host) = (&plan.container, &plan.host);
    let profile = given(host.seccomp.is_some(), "linux.seccomp");
    let baseline = match &host.confined {
        None if inner.process.is_none() => "none: the container has no process".to_owned(),
        None if options.0["baseline"]["value"] == "off" => options.option("baseline"),
        None => "none: the container is privileged".to_owned(),
        Some(confined) if confined.baseline.allowed.names().next().is_some() => {
            format!("{}, {}", options.option("baseline"), options.option("baseline_allow"))
        }
        Some(_) => options.option("baseline"),
    };
    let cgroup = given(!host.cgroups_path.is_empty(), "linux.cgroupsPath");
    let paths = |paths: &[_], field| given(!paths.is_empty(), field);
    json!({
        "process": inner.process.as_ref().map(process),
        "namespaces": namespaces(plan, options),
        "id_mappings": ids(plan, options),
        "root": {
            "path": "spec root.path",
            "readonly": given(inner.readonly_root, "root.readonly"),
        },
        "mounts": "spec mounts, by index",
        "devices": paths(&inner.devices, "linux.devices"),
        "masked_paths": paths(&inner.masked_paths, "linux.maskedPaths"),
        "readonly_paths": paths(&inner.readonly_paths, "linux.readonlyPaths"),
        "sysctls": sysctls(plan, options),
        "seccomp": { "profile": profile, "baseline": baseline },
        "cgroup": {
            "paths": format!("{cgroup}, {}", options.option("cgroup_driver")),
            "resources_at_create": match inner.process {
                Some(_) => "spec linux.resources",
                None => "spec linux.resources, and CPU shares for the sandbox process",
            },
            "resources_now": "as at create, with the updates that containerd has asked for since",
        },
        "capacity": format!(
            "the cgroup's limits as they are now, {}, {}",
            options.option("cpu_from_quota"),
            options.option("cpu_minimum"),
        ),
        "views": options.option("views"),
    })
}

fn process(plan: &ProcessPlan) -> Value {
    let capabilities = "spec process.capabilities";
    json!({
        "user": "spec process.user",
        "cwd": "spec process.cwd",
        "args": "spec process.args",
        "environment": given(!plan.env.is_empty(), "process.env"),
        "capabilities": match plan.capabilities == Default::default() {
            true => "default: none",
            false => capabilities,
        },
        "no_new_privileges": given(plan.no_new_privileges, "process.noNewPrivileges"),
        "oom_score_adj": match plan.oom_score_adj {
            Some(_) => "spec process.oomScoreAdj",
            None => "default: containerd's, plus one",
        },
        "rlimits": match plan.rlimits.is_empty() {
            true => "default: containerd's",
            false => "spec process.rlimits; others are containerd's",
        },
        "apparmor_profile": given(plan.apparmor_profile.is_some(), "process.apparmorProfile"),
        "selinux_label": given(plan.selinux_label.is_some(), "process.selinuxLabel"),
        "terminal": given(plan.terminal.is_some(), "process.terminal"),
    })
}

fn namespaces(plan: &Plan, options: &Options) -> Value {
    let inner = &plan.container;
    let own = |own: bool| match own {
        true => "spec linux.namespaces",
        false => "spec linux.namespaces: the pod's, or the host's",
    };
    let user = match (inner.user_namespace, &plan.host.no_user_namespace) {
        (true, _) if plan.host.mappings.is_some() => {
            "spec linux.uidMappings and linux.gidMappings".to_owned()
        }
        (false, Some(reason)) => format!("{}: {reason}", options.option("userns")),
        _ => options.option("userns"),
    };
    let network = match plan.host.network {
        Network::Host => "spec linux.namespaces: none is listed there",
        _ => "spec linux.namespaces",
    };
    json!({
        "pid": own(inner.namespaces.pid || inner.pids_of.is_some()),
        "ipc": own(inner.namespaces.ipc),
        "uts": own(inner.namespaces.uts),
        "cgroup": own(inner.namespaces.cgroup),
        "time": own(inner.namespaces.time || inner.times_of.is_some()),
        "user": user,
        "network": network,
    })
}

fn ids(plan: &Plan, options: &Options) -> String {
    match (plan.container.user_namespace, &plan.host.mappings) {
        (false, _) => "none: the host's IDs".to_owned(),
        (true, Some(_)) => "spec linux.uidMappings and linux.gidMappings".to_owned(),
        (true, None) => format!(
            "a free slice of the node's, {}, {}, {}",
            options.option("id_range_start"),
            options.option("id_range_size"),
            options.option("ids_per_sandbox"),
        ),
    }
}

/// Names each sysctl.
fn sysctls(plan: &Plan, options: &Options) -> Value {
    let (inner, host) = (&plan.container, &plan.host);
    let all = [&inner.sysctls[..], &inner.user_sysctls, &host.network_sysctls].concat();
    let is_limited = inner.user_namespace && !host.nested_users;
    let of = |name: String| {
        let from = match name == LIMIT && is_limited {
            true => options.option("baseline"),
            false => "spec linux.sysctl".to_owned(),
        };
        (name, from.into())
    };
    Value::Object(all.into_iter().map(|(name, _)| of(name)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_named_with_its_value_and_where_that_is_from() {
        let options = json!({
            "userns": {"value": "auto", "from": "/etc/palisade/config.toml"},
            "cpu_minimum": {"value": 2, "from": "default"},
        });
        let options = Options(options);
        assert_eq!(options.option("userns"), "option userns = auto (/etc/palisade/config.toml)");
        assert_eq!(options.option("cpu_minimum"), "option cpu_minimum = 2 (default)");
    }
}
