//! A shim that is not root of the host: containerd runs in a user namespace that an ordinary
//! user has made, as RootlessKit does with newuidmap(1), and the shim is its root.
//! docs/rootless.md says what is different then.

use std::fs::{self, read_to_string};
use std::os::linux::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use sandbox_core::spec::plan::{Network, Plan, Powerless};
use sandbox_core::types::Rootless;

use crate::error::{Context, Error, Result};

/// The inode number of the first user namespace: the kernel's `PROC_USER_INIT_INO`.
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Returns the IDs that this process's user namespace has, unless it is the host's first one.
pub(crate) fn of_this_process() -> Option<Rootless> {
    static FOUND: OnceLock<Option<Rootless>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let own = fs::metadata("/proc/self/ns/user").ok()?;
        (own.st_ino() != FIRST_USER_NAMESPACE).then(|| {
            let map = |name| lines(&read_to_string(name).unwrap_or_default());
            let (uids, gids) = (map("/proc/self/uid_map"), map("/proc/self/gid_map"));
            let mut starts: Vec<u32> = uids.iter().chain(&gids).map(|line| line.0).collect();
            starts.sort_unstable();
            starts.dedup();
            Rootless { ids: from_zero(&uids).min(from_zero(&gids)), lines: starts.leak() }
        })
    })
}

/// Checks that this process can run containers: as root, of the host or of a user namespace
/// with IDs and groups to give to containers.
pub(crate) fn check() -> Result<()> {
    let how = "run containerd as root, or in a user namespace with subordinate IDs, as \
               RootlessKit makes (docs/rootless.md)";
    if !rustix::process::geteuid().is_root() {
        return Err(Error::state(format!("Palisade runs as no user but root: {how}")));
    }
    let Some(rootless) = of_this_process() else { return Ok(()) };
    if rootless.ids < 2 {
        return Err(Error::state(format!(
            "containerd's user namespace has {} user and group IDs, and a container takes two at \
             least: {how}, and give its user IDs in /etc/subuid and /etc/subgid",
            rootless.ids
        )));
    }
    let groups = read_to_string("/proc/self/setgroups").context(|| "read /proc/self/setgroups")?;
    if groups.trim() == "deny" {
        return Err(Error::state(format!(
            "setgroups(2) is denied in containerd's user namespace, without which no process can \
             have its container's groups: {how}"
        )));
    }
    Ok(())
}

/// Reads the text of a uid_map: the first ID inside of each line and their number, ascending.
fn lines(map: &str) -> Vec<(u32, u32)> {
    let mut lines: Vec<(u32, u32)> = map
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// Counts the IDs from 0 on that are there without a gap.
fn from_zero(lines: &[(u32, u32)]) -> u32 {
    lines.iter().fold(0, |end, &(inside, size)| match inside <= end {
        true => end.max(inside.saturating_add(size)),
        false => end,
    })
}

/// Returns the directory of the state of a shim that is not root of the host: the user's own,
/// since `/run/palisade` may be the host's.
pub(crate) fn state_root() -> Option<PathBuf> {
    of_this_process()?;
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.filter(|folder| folder.is_absolute()).map(|folder| folder.join("palisade"))
}

/// Refuses what would take this process into a namespace that it could not leave: its own
/// network may be the host's, to which only the host's root returns. `new_sandbox` says
/// whether the plan is for one.
pub(crate) fn check_visits(plan: &Plan, new_sandbox: bool) -> Result<()> {
    let host = &plan.host;
    let visits = new_sandbox && matches!(host.network, Network::Path(_));
    if (visits || !host.net_devices.is_empty()) && !owns("net") {
        let field = if visits { "linux.namespaces: network" } else { "linux.netDevices" };
        return Err(Error::invalid(format!(
            "{field}: containerd is in the host's network, to which its user could not return; \
             give containerd a network of its own (rootlesskit --net=slirp4netns), or the \
             container a new one without a path"
        )));
    }
    if new_sandbox && host.time_namespace.is_some() && !owns("time") {
        return Err(Error::invalid(
            "linux.namespaces: time: containerd is in the host's, to which its user could not \
             return; expected a new one without a path",
        ));
    }
    Ok(())
}

/// Whether this process's user namespace owns a namespace that it is in.
fn owns(name: &str) -> bool {
    let file = fs::File::open(format!("/proc/self/ns/{name}"));
    file.and_then(sandbox_core::sys::namespace::owner).is_ok()
}

/// Takes an `oom_score_adj` out of a plan that this user may not set, since it is lower than
/// the lowest that its processes ever had (proc_pid_oom_score_adj(5)), and names it.
pub(crate) fn without_refused_score(plan: &mut Plan) {
    let process = plan.container.process.as_mut();
    let Some(wanted) = plan.host.oom_score_adj else { return };
    if may_have_score(wanted) {
        return;
    }
    plan.host.oom_score_adj = None;
    if let Some(process) = process {
        process.oom_score_adj = None;
    }
    plan.host.powerless.push(Powerless {
        field: "process.oomScoreAdj".into(),
        lost: format!("{wanted}: only root of the host goes below what containerd was given"),
        instead: "set no lower one than containerd's own".into(),
        by_default: false,
    });
}

/// Whether this user's processes may have this `oom_score_adj`: tries it on this one.
pub(crate) fn may_have_score(wanted: i32) -> bool {
    const OWN: &str = "/proc/self/oom_score_adj";
    let Ok(before) = read_to_string(OWN) else { return true };
    let may = fs::write(OWN, wanted.to_string()).is_ok();
    if may {
        let _ = fs::write(OWN, before.trim());
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_from_zero_on_are_counted_up_to_a_gap() {
        let from_zero = |map| from_zero(&lines(map));
        assert_eq!(
            from_zero("         0       1000          1\n         1     100000      65536\n"),
            65537
        );
        assert_eq!(from_zero("0 1000 1\n"), 1);
        assert_eq!(from_zero("10 1000 10\n0 100 10\n"), 20);
        assert_eq!(from_zero("0 100 10\n11 1000 10\n"), 10);
        assert_eq!(from_zero("1 100 10\n"), 0);
        assert_eq!(from_zero("0 0 4294967295\n"), u32::MAX);
        assert_eq!(from_zero(""), 0);
    }
}
