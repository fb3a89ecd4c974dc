//! The sandbox's network namespace.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::{Context, Result};
use crate::spec::plan::{IdMapping, Network, sysctl_file};
use crate::sys::network::write_sysctl;

/// The groups whose members may send pings without a capability.
const PING_GROUPS: &str = "net/ipv4/ping_group_range";

/// A stay of this thread in another network namespace, which ends on drop.
#[derive(Debug)]
pub struct Visit {
    home: OwnedFd,
}

impl Visit {
    /// Enters the namespace that `path` names. A child cloned meanwhile is in
    /// it from the start: a process in a user namespace of its own could not
    /// enter a namespace that belongs to the host.
    ///
    /// # Errors
    /// The error names the path and the field that it comes from.
    pub fn enter(path: &Path) -> Result<Self> {
        let what = || format!("linux.namespaces: join the network namespace {}", path.display());
        let home = fs::File::open("/proc/thread-self/ns/net")
            .context(|| "open /proc/thread-self/ns/net")?;
        let there = fs::File::open(path).context(what)?;
        setns(there.as_fd(), CloneFlags::CLONE_NEWNET).context(what)?;
        Ok(Self { home: home.into() })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // A shim that stayed would act in the pod's network from now on.
        if setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
            crate::sys::process::exit_now(1);
        }
    }
}

/// Returns the sysctls that the pod requests, as paths below `/proc/sys`. Adds
/// those that make up for what a container cannot do in a network namespace
/// that belongs to the host: to bind ports below 1024 and to send pings. They
/// are not added if the pod sets them itself.
///
/// `groups` are those of the user namespace from which the sysctls are written.
/// The kernel refuses a range that ends in a group that does not exist there,
/// but Docker's "0 2147483647" means all groups. Such a range ends with the
/// last group.
pub fn sysctls(wanted: &[(String, String)], groups: &[IdMapping]) -> Vec<(String, String)> {
    let paths = wanted.iter().map(|(name, value)| (sysctl_file(name), value.clone()));
    let mut all: Vec<_> = paths.collect();
    let last_group =
        groups.iter().map(|m| m.inside + (m.size - 1)).max().unwrap_or(i32::MAX as u32);
    let last_group = last_group.min(i32::MAX as u32);
    for (_, range) in all.iter_mut().filter(|(path, _)| path == PING_GROUPS) {
        if let Some(shorter) = shortened(range, last_group) {
            *range = shorter;
        }
    }
    let defaults = [
        ("net/ipv4/ip_unprivileged_port_start", "0".to_owned()),
        (PING_GROUPS, format!("0 {last_group}")),
    ];
    for (path, value) in defaults {
        if !all.iter().any(|(set, _)| set == path) {
            all.push((path.to_owned(), value));
        }
    }
    all
}

/// Returns the range "FIRST LAST" with an earlier end, if it needs one.
fn shortened(range: &str, last: u32) -> Option<String> {
    let (first, end) = range.trim().split_once(char::is_whitespace)?;
    let (first, end): (u32, u32) = (first.parse().ok()?, end.trim().parse().ok()?);
    (first <= last && end > last).then(|| format!("{first} {last}"))
}

/// Writes sysctls of the network namespace that this thread is in.
pub fn write_sysctls(sysctls: &[(String, String)]) -> Result<()> {
    for (path, value) in sysctls {
        write_sysctl(path, value)
            .context(|| format!("linux.sysctl: write {value:?} to /proc/sys/{path}"))?;
    }
    Ok(())
}

/// Whether the sandbox gets a new network namespace, in which nothing is set
/// up.
pub fn is_new(network: &Network) -> bool {
    matches!(network, Network::New)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_of_the_pod_is_not_overridden() {
        let wanted = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned())];
        let all = sysctls(&wanted, &[]);
        let starts: Vec<_> = all.iter().filter(|(p, _)| p.ends_with("port_start")).collect();
        assert_eq!(starts.len(), 1);
        assert_eq!(starts[0].1, "1024");
    }

    #[test]
    fn the_range_of_pings_ends_where_the_groups_do() {
        let range = |wanted: &str, groups: &[IdMapping]| {
            let wanted = [("net.ipv4.ping_group_range".to_owned(), wanted.to_owned())];
            let all = sysctls(&wanted, groups);
            all.into_iter().find(|(path, _)| path == PING_GROUPS).expect("a range").1
        };
        let groups = [IdMapping { inside: 0, outside: 1 << 30, size: 65536 }];
        assert_eq!(range("0 2147483647", &groups), "0 65535");
        assert_eq!(range("1000 2000", &groups), "1000 2000");
        assert_eq!(range("1 0", &groups), "1 0");
        assert_eq!(range("0 2147483647", &[]), "0 2147483647");
        assert_eq!(range("nonsense", &groups), "nonsense");
    }
}
