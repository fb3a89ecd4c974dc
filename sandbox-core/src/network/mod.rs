//! The sandbox's network namespace.

pub mod devices;
pub mod raw_sockets;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::{Context, Result};
use crate::spec::plan::{IdMapping, Mappings, Network, sysctl_file};
use crate::sys::network::write_sysctl;

/// The groups whose members may send pings without a capability.
const PING_GROUPS: &str = "net/ipv4/ping_group_range";

/// The first port that takes no capability to bind.
const FIRST_FREE_PORT: &str = "net/ipv4/ip_unprivileged_port_start";

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
        let there = fs::File::open(path).context(what)?;
        Self::to(there.as_fd()).context(what)
    }

    /// Enters an open namespace, or that of a process, by its pidfd.
    fn to(there: BorrowedFd<'_>) -> io::Result<Self> {
        let home = fs::File::open("/proc/thread-self/ns/net")?;
        setns(there, CloneFlags::CLONE_NEWNET)?;
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

/// Returns the sysctls that the pod requests, as paths below `/proc/sys`.
///
/// A group of `net.ipv4.ping_group_range` is the container's. The kernel takes it for one
/// of the writer's user namespace, which numbers IDs as the host does, and refuses a range
/// that ends in a group that does not exist there; but Docker's "0 2147483647" means all
/// groups. Such a range ends with the last group.
pub fn sysctls(wanted: &[(String, String)], mappings: Option<&Mappings>) -> Vec<(String, String)> {
    let outside = |name: &str, value: &str| {
        let mappings = mappings.filter(|_| name == PING_GROUPS)?;
        groups_outside(value, &mappings.gids)
    };
    let path = |(name, value): &(String, String)| {
        let path = sysctl_file(name);
        let value = outside(&path, value).unwrap_or_else(|| value.clone());
        (path, value)
    };
    wanted.iter().map(path).collect()
}

/// Returns the same for a network namespace that belongs to the host. If the containers
/// have a user namespace, adds what makes up for what they cannot do there: to bind ports
/// below 1024, and to send pings. The pod's own settings take precedence.
pub fn sysctls_of_host(
    wanted: &[(String, String)],
    mappings: Option<&Mappings>,
) -> Vec<(String, String)> {
    let mut all = sysctls(wanted, mappings);
    if mappings.is_some() {
        for (path, value) in [(FIRST_FREE_PORT, "0"), (PING_GROUPS, "0 2147483647")] {
            if !all.iter().any(|(set, _)| set == path) {
                all.push((path.to_owned(), value.to_owned()));
            }
        }
    }
    all
}

/// Returns the range "FIRST LAST" of groups as the host numbers them. `None` if there is
/// nothing to change: then the kernel judges it.
fn groups_outside(range: &str, lines: &[IdMapping]) -> Option<String> {
    let (first, last) = range.trim().split_once(char::is_whitespace)?;
    let (first, last): (u32, u32) = (first.parse().ok()?, last.trim().parse().ok()?);
    let line = lines.iter().find(|line| line.holds_inside(first)).filter(|_| first <= last)?;
    let last = last.min(line.inside + (line.size - 1));
    let outside = |group: u32| line.outside + (group - line.inside);
    Some(format!("{} {}", outside(first), outside(last)))
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

    fn mappings() -> Mappings {
        let line = IdMapping { inside: 0, outside: 1 << 30, size: 65536 };
        Mappings { uids: vec![line], gids: vec![line] }
    }

    #[test]
    fn a_sysctl_of_the_pod_is_not_overridden() {
        let wanted = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned())];
        let all = sysctls_of_host(&wanted, Some(&mappings()));
        let starts: Vec<_> = all.iter().filter(|(p, _)| p.ends_with("port_start")).collect();
        assert_eq!(starts.len(), 1);
        assert_eq!(starts[0].1, "1024");
    }

    #[test]
    fn only_a_network_of_the_host_with_a_user_namespace_gets_more() {
        assert_eq!(sysctls_of_host(&[], Some(&mappings())).len(), 2);
        assert_eq!(sysctls_of_host(&[], None), []);
        assert_eq!(sysctls(&[], Some(&mappings())), []);
    }

    #[test]
    fn groups_of_pings_are_the_container_s() {
        let range = |wanted: &str, mappings: Option<&Mappings>| {
            let wanted = [("net.ipv4.ping_group_range".to_owned(), wanted.to_owned())];
            let all = sysctls(&wanted, mappings);
            all.into_iter().find(|(path, _)| path == PING_GROUPS).expect("a range").1
        };
        let (start, mappings) = (1 << 30, mappings());
        let inside = |first: u32, last: u32| format!("{} {}", start + first, start + last);
        assert_eq!(range("0 2147483647", Some(&mappings)), inside(0, 65535));
        assert_eq!(range("1000\t2000", Some(&mappings)), inside(1000, 2000));
        assert_eq!(range("1 0", Some(&mappings)), "1 0");
        assert_eq!(range("70000 70001", Some(&mappings)), "70000 70001");
        assert_eq!(range("0 2147483647", None), "0 2147483647");
        assert_eq!(range("nonsense", Some(&mappings)), "nonsense");
    }
}
