//! About which system calls boot is asked.

use serde_json::json;

use super::*;
use crate::spec::baseline::{Allowed, Level};
use crate::spec::plan::Watch;

fn told(mut story: Story) -> Option<Watch> {
    story.tells_refusals = true;
    story.accepted().container.watch
}

#[test]
fn boot_is_asked_only_where_that_is_wanted() {
    assert_eq!(Story::of(CTR).accepted().container.watch, None);
    let watch = told(Story::of(CTR)).expect("it is watched");
    assert!(watch.refusals && !watch.baseline.is_empty());
    let calls =
        |capability: u8| watch.calls.iter().filter(|c| c.capability == Some(capability)).count();
    // It lacks CAP_SYS_ADMIN and has CAP_SYS_CHROOT.
    assert!(calls(21) > 10 && calls(18) == 0, "{watch:?}");
}

/// The engine of a container needs the listeners of its own containers, and the kernel takes
/// one for each process.
#[test]
fn boot_is_not_asked_where_listeners_are_others() {
    assert_eq!(told(Story::of(CTR_PRIVILEGED)), None);
    let with = |level, allowed| {
        let mut story = Story::of(CTR);
        story.baseline = Baseline { level, allowed };
        told(story)
    };
    assert_eq!(with(Level::Default, Allowed::named("user_namespaces").unwrap()), None);
    assert_eq!(with(Level::Off, Allowed::NONE), None);
    assert!(with(Level::Strict, Allowed::NONE).is_some());
    let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"});
    let profile =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent", "syscalls": [rule]});
    let mut story = Story::of(CTR).set("/linux/seccomp", profile);
    story.tells_refusals = true;
    let plan = story.accepted();
    assert_eq!(plan.container.watch, None);
    let told: Vec<_> = plan.host.powerless.iter().map(|p| p.field.as_str()).collect();
    assert!(told.contains(&"user_log"), "{told:?}");
}

/// Which of the two calls are answered is decided once the limits are known.
#[test]
fn calls_are_answered_by_views_where_the_container_has_any() {
    let views = Some(Views { cpu_from_quota: true, cpu_minimum: 1 });
    let watch = |fixture: &str| Story { views, ..Story::of(fixture) }.accepted().container.watch;
    let only_views = Watch { views: true, ..Watch::default() };
    assert_eq!(watch(CTR), Some(only_views));
    assert_eq!(watch(CTR_PRIVILEGED), None);
}

/// The shim makes raw sockets in a network that CNI made, and in no other.
#[test]
fn raw_sockets_are_made_in_networks_of_cni() {
    const POD: &str = "/process/capabilities";
    let of_cni = || SandboxFacts { own_network: false, ..super::sandbox() };
    let makes = |facts: SandboxFacts, names: &[&str]| {
        let mut story = Story::of(CRI_CONTAINER).inside(facts);
        for set in ["bounding", "effective", "permitted"] {
            story = story.set(&format!("{POD}/{set}"), json!(names));
        }
        let plan = story.accepted();
        let told = plan.host.powerless.iter().any(|p| p.lost.starts_with("CAP_NET_RAW"));
        let watch = plan.container.watch;
        assert!(watch.as_ref().is_none_or(|w| w.raw_sockets && !w.refusals && w.calls.len() == 3));
        (watch.is_some(), told)
    };
    let raw = ["CAP_NET_RAW"];
    assert_eq!(makes(of_cni(), &raw), (true, false));
    assert_eq!(makes(of_cni(), &["CAP_CHOWN"]), (false, false));
    assert_eq!(makes(SandboxFacts { own_network: true, ..of_cni() }, &raw), (false, false));
    assert!(!makes(SandboxFacts { host_network: true, ..of_cni() }, &raw).0);
    assert_eq!(makes(SandboxFacts { user_namespace: false, ..of_cni() }, &raw), (false, false));
}
