//! Raw sockets in a network that CNI made: the shim opens them for processes that have
//! CAP_NET_RAW, and for no others.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use integration::containerd::{Containerd, Version};
use integration::cri::{Pod, PodContainer, security};
use integration::{attack, host, on_each_containerd, wait};
use k8s_cri::v1::{Capability, Int64Value, LinuxContainerSecurityContext, Mount};

on_each_containerd!(
    a_granted_process_makes_raw_sockets,
    nobody_else_makes_raw_sockets,
    a_flood_of_raw_sockets_waits,
);

const KINDS: &str = "packet packets icmp icmp6";

fn ours(containerd: &Containerd) -> bool {
    containerd.runtime_name().contains("palisade")
}

/// Runs a container with `/attacker`, and with capabilities and a user as given.
fn container<'a>(
    pod: &'a Pod<'_>,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> PodContainer<'a> {
    pod.container(name, script, |config| {
        config.mounts.push(mount());
        change(security(config));
    })
}

fn mount() -> Mount {
    Mount {
        container_path: "/attacker".to_owned(),
        host_path: attack::attacker().to_str().expect("an ASCII path").to_owned(),
        readonly: true,
        ..Default::default()
    }
}

fn with_capability(name: &str) -> impl Fn(&mut LinuxContainerSecurityContext) {
    move |security| {
        let add = vec![name.to_owned()];
        security.capabilities = Some(Capability { add_capabilities: add, ..Default::default() });
    }
}

fn opened(answer: &str) -> bool {
    let kinds = KINDS.split(' ').map(|kind| format!("{kind}: opened"));
    let wanted: BTreeSet<_> = kinds.chain(["done".to_owned()]).collect();
    answer.lines().map(str::to_owned).collect::<BTreeSet<_>>() == wanted
}

fn refused(answer: &str) {
    assert_eq!(answer.matches("EPERM").count(), 4, "{answer}");
}

/// They are of the pod's network, and work: an ARP request to the bridge is answered.
fn a_granted_process_makes_raw_sockets(containerd: Containerd) {
    let pod = containerd.pod("raw");
    let raw = format!("/attacker raw {KINDS}");
    let granted = container(&pod, "granted", "sleep 1000", |_| {});
    let answer = granted.ask(&raw);
    assert!(opened(&answer), "{answer}");
    assert!(granted.ask("/attacker raw nothing").contains("EPROTONOSUPPORT"));
    let gateway = "$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')";
    let answer = granted.ask(&format!("arping -c 1 -w 5 -I eth0 {gateway}"));
    assert!(answer.contains("eply from"), "{answer}");
    // A socket with SOCK_RAW, which ping takes if it may not have the other.
    granted.ask(&format!("/attacker ping {gateway}"));
    // The same without new privileges, where the program is loaded last.
    let no_new = container(&pod, "no-new", "sleep 1000", |security| security.no_new_privs = true);
    let answer = no_new.ask(&raw);
    assert!(opened(&answer), "{answer}");
    // An init's, too, and those of its children.
    let script = format!("/attacker raw {KINDS} > /out; sleep 1000");
    let init = container(&pod, "init", &script, |_| {});
    let answer = init.ask("while ! grep -q done /out; do sleep 0.1; done; cat /out");
    assert!(opened(&answer), "{answer}");
    let told = containerd.log();
    assert!(!told.lines().any(|line| line.contains("CAP_NET_RAW")), "it is powerless no more");
}

/// Each of these would get one if boot asked less than the kernel does.
fn nobody_else_makes_raw_sockets(containerd: Containerd) {
    let pod = containerd.pod("raw");
    let raw = format!("/attacker raw {KINDS}");
    // A container without the capability.
    let without = container(&pod, "without", "sleep 1000", |security| {
        let drop = vec!["NET_RAW".to_owned()];
        security.capabilities = Some(Capability { drop_capabilities: drop, ..Default::default() });
    });
    refused(&without.ask(&raw));
    // A user whose capabilities are only in the bounding set.
    let user = container(&pod, "user", "sleep 1000", |security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
    });
    refused(&user.ask(&raw));
    // A process that has given it up.
    let granted = container(&pod, "granted", "sleep 1000", |_| {});
    refused(&granted.ask(&format!("/attacker raw-without-capability {KINDS}")));
    // In a network of its own the kernel decides, and the socket is of that network.
    if !ours(&containerd) {
        return;
    }
    let admin = container(&pod, "admin", "sleep 1000", with_capability("SYS_ADMIN"));
    assert!(opened(&admin.ask(&raw)));
    let own = admin.ask(&format!("unshare -n {raw}"));
    assert!(opened(&own), "{own}");
    assert!(admin.exec("unshare -n arping -c 1 -w 1 -I eth0 10.0.0.1").code != 0, "no eth0");
}

/// The kernel and the shim do this work outside the container's cgroup, so it has a bound.
fn a_flood_of_raw_sockets_waits(containerd: Containerd) {
    if !ours(&containerd) {
        return;
    }
    let pod = containerd.pod("raw");
    let granted = container(&pod, "granted", "sleep 1000", |_| {});
    let other = container(&pod, "other", "sleep 1000", |_| {});
    let many = ["icmp"; 128].join(" ");
    let begun = Instant::now();
    let answer = thread::scope(|scope| {
        let flood = scope.spawn(|| granted.ask(&format!("/attacker raw {many}")));
        while !flood.is_finished() {
            assert_eq!(other.ask("echo here"), "here");
        }
        flood.join().expect("the flood ends")
    });
    assert_eq!(answer.matches("icmp: opened").count(), 128, "{answer}");
    // 32 at once, at most as many for the time before, and then 32 in a second.
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
}

/// To hand a descriptor in waits until the caller runs: with the lowest priority, beside dozens of threads
/// that never wait, that takes many seconds.
#[test]
fn a_caller_that_does_not_run_holds_nobody_up() {
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("raw");
    let other = container(&pod, "other", "sleep 1000", |_| {});
    let busy = container(&pod, "busy", "exec /attacker raw-idle 60", |_| {});
    let threads = || host::status(busy.pid(), "Threads").parse::<u32>().expect("a number");
    wait::until("the threads run", || (threads() > 70).then_some(()));
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(other.ask("echo here"), "here");
    }
    println!("an exec beside it took {:?}", begun.elapsed() / 20);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
