//! Cgroups, and who makes them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sandbox_core::cgroup::Mode;

use super::Finding;
use super::containerd::Configuration;
use super::executables::Options;

/// Looks at the cgroups.
pub(super) fn look(options: Option<&Options>, containerd: &Configuration) -> Vec<Finding> {
    let mode = match Mode::of_host() {
        Ok(mode) => mode,
        Err(error) => {
            return vec![Finding::fault(
                "cgroups",
                error.to_string(),
                "no container can be made",
                "mount -t cgroup2 none /sys/fs/cgroup",
            )];
        }
    };
    let version = match mode {
        Mode::V2 => Finding::ok("cgroups", "version 2"),
        Mode::V1 => Finding::ok("cgroups", "version 1"),
        Mode::Hybrid => Finding::warning(
            "cgroups",
            "version 1, with version 2 beside it (hybrid)",
            "Palisade uses version 1 only; the kubelet gives version 1 up",
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
    };
    let mut findings = vec![version];
    findings.extend(controllers(mode, &available(mode)));
    findings.extend(delegation(mode));
    findings.push(driver(
        Path::new("/run/systemd/system").exists(),
        kubelet_driver(&fs::read_to_string("/var/lib/kubelet/config.yaml").unwrap_or_default()),
        options.map_or("auto", |options| &options.cgroup_driver),
        containerd.systemd_cgroup(),
    ));
    findings
}

fn available(mode: Mode) -> BTreeSet<String> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    if mode.is_v2() {
        return words(fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default());
    }
    // Those that are mounted: this process is in a cgroup of each.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let names = own.lines().filter_map(|line| line.split(':').nth(1));
    names.flat_map(|names| names.split(',')).map(str::to_owned).collect()
}

fn controllers(mode: Mode, available: &BTreeSet<String>) -> Vec<Finding> {
    let io = if mode.is_v2() { "io" } else { "blkio" };
    let wanted = [("cpu", true), ("memory", true), ("pids", true), (io, false), ("cpuset", false)];
    let missing: Vec<_> = wanted.iter().filter(|(name, _)| !available.contains(*name)).collect();
    if missing.is_empty() {
        return vec![Finding::ok("controllers", wanted.map(|(name, _)| name).join(", "))];
    }
    let finding = |(name, needed): &&(&str, bool)| {
        let found = format!("{name} is missing");
        let mend = format!("boot with cgroup_enable={name}, or enable it in the kernel");
        match needed {
            true => Finding::fault("controllers", found, "containers that limit it fail", &mend),
            false => Finding::warning("controllers", found, "containers that limit it fail", &mend),
        }
    };
    missing.iter().map(finding).collect()
}

/// What an ordinary user may divide.
fn delegation(mode: Mode) -> Option<Finding> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let why = "rootless containers have no limits without a cgroup that their user may divide";
    let mend = "systemctl edit user@.service, with [Service] Delegate=cpu cpuset io memory pids";
    if !mode.is_v2() {
        return Some(Finding::warning("delegation", "none with version 1", why, mend));
    }
    let uid = rustix::process::getuid().as_raw();
    let path =
        format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers");
    let delegated = fs::read_to_string(path).unwrap_or_default();
    let lacks = |name: &&str| !delegated.split_whitespace().any(|other| other == *name);
    let missing: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(lacks).collect();
    Some(match missing.is_empty() {
        true => Finding::ok("delegation", delegated.trim()),
        false => {
            let found = format!("{} are not delegated to user {uid}", missing.join(", "));
            Finding::warning("delegation", found, why, mend)
        }
    })
}

/// Returns `cgroupDriver` of the kubelet's configuration.
fn kubelet_driver(yaml: &str) -> Option<&str> {
    let value = yaml.lines().find_map(|line| line.strip_prefix("cgroupDriver:"))?;
    Some(value.trim().trim_matches(['"', '\'']))
}

/// Compares who makes cgroups. containerd writes a path of systemd's form into the spec where the
/// kubelet names a slice, and Palisade's `auto` follows that.
fn driver(
    systemd: bool,
    kubelet: Option<&str>,
    options: &str,
    systemd_cgroup: Option<bool>,
) -> Finding {
    let about = "cgroup driver";
    let wrong = |found: String, mend: &str| {
        let why = "two programs that each believe the tree is theirs move each other's processes";
        Finding::warning(about, found, why, mend)
    };
    let ours = match (options, systemd_cgroup) {
        ("auto", Some(true)) => "systemd",
        (other, _) => other,
    };
    match (kubelet, ours) {
        (_, "systemd") if !systemd => wrong(
            "Palisade's options name systemd, which does not run".into(),
            "set cgroup_driver = \"auto\" in /etc/palisade/config.toml",
        ),
        (Some(kubelet), ours) if ours != "auto" && kubelet != ours => wrong(
            format!("the kubelet uses {kubelet}, Palisade's options name {ours}"),
            "set cgroup_driver = \"auto\" in /etc/palisade/config.toml, and no SystemdCgroup in \
             the runtime's options",
        ),
        (Some("cgroupfs"), _) if systemd => wrong(
            "the kubelet uses cgroupfs where systemd runs".into(),
            "set cgroupDriver: systemd in /var/lib/kubelet/config.yaml",
        ),
        (Some(kubelet), ours) => Finding::ok(about, format!("{ours}, kubelet: {kubelet}")),
        (None, ours) => Finding::ok(about, ours),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_missing_controller_is_told_by_name() {
        let all = |names: &str| names.split(' ').map(str::to_owned).collect();
        let found = controllers(Mode::V2, &all("cpu cpuset io memory pids rdma"));
        assert_eq!(found[0].verdict, Verdict::Ok);
        let found = controllers(Mode::V2, &all("cpu cpuset pids"));
        assert_eq!(found[0].found, "memory is missing");
        assert_eq!((found[0].verdict, found[1].verdict), (Verdict::Fault, Verdict::Warning));
        assert_eq!(
            controllers(Mode::V1, &all("cpu memory pids cpuset"))[0].found,
            "blkio is missing"
        );
    }

    #[test]
    fn drivers_that_disagree_are_a_warning() {
        let verdict =
            |systemd, kubelet, options, table| driver(systemd, kubelet, options, table).verdict;
        assert_eq!(verdict(true, Some("systemd"), "auto", None), Verdict::Ok);
        assert_eq!(verdict(true, Some("systemd"), "auto", Some(true)), Verdict::Ok);
        assert_eq!(verdict(true, Some("systemd"), "cgroupfs", None), Verdict::Warning);
        assert_eq!(verdict(true, Some("cgroupfs"), "auto", None), Verdict::Warning);
        assert_eq!(verdict(false, None, "systemd", None), Verdict::Warning);
        assert_eq!(verdict(false, None, "auto", Some(true)), Verdict::Warning);
        assert_eq!(verdict(false, Some("cgroupfs"), "auto", None), Verdict::Ok);
        assert_eq!(kubelet_driver("kind: X\ncgroupDriver: \"systemd\"\n"), Some("systemd"));
        assert_eq!(kubelet_driver(""), None);
    }
}
