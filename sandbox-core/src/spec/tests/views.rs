//! Which containers have views.

use serde_json::json;

use super::*;

/// Returns whether the container and its pod have views, and whether it is told that it has none.
fn views(mut story: Story, wanted: bool) -> (bool, bool, bool) {
    let counts = Views { cpu_from_quota: true, cpu_minimum: 1 };
    story.views = wanted.then_some(counts);
    let Plan { container, host } = story.accepted();
    assert!(container.views.is_none_or(|views| views == counts));
    (container.views.is_some(), host.views, host.powerless.iter().any(|p| p.field == "views"))
}

#[test]
fn a_container_has_views_unless_the_options_say_otherwise() {
    for fixture in [CTR, CTR_PRIVILEGED, RUNC] {
        assert_eq!(views(Story::of(fixture), true), (true, true, false));
        assert_eq!(views(Story::of(fixture), false), (false, false, false));
    }
    // boot stands in for the pause container, which looks at nothing.
    let pause = || Story::of(CRI_SANDBOX).set("/process/args", json!(["/pause"]));
    assert_eq!(views(pause(), true), (false, true, false));
}

/// The first container decides, since what serves them is made with the pod.
#[test]
fn a_pod_has_views_or_none() {
    let inside = |views| Story::of(CRI_CONTAINER).inside(SandboxFacts { views, ..sandbox() });
    assert_eq!(views(inside(true), true), (true, true, false));
    assert_eq!(views(inside(true), false), (false, true, false));
    assert_eq!(views(inside(false), true), (false, false, true));
    assert_eq!(views(inside(false), false), (false, false, false));
}

#[test]
fn there_are_none_without_a_proc() {
    let with = |proc: serde_json::Value| views(Story::of(CTR).set("/mounts", json!([proc])), true);
    let proc = |at: &str| json!({"destination": at, "type": "proc", "source": "proc"});
    assert_eq!(with(proc("/proc")), (true, true, false));
    assert_eq!(with(proc("/proc/")), (true, true, false));
    assert_eq!(with(proc("/srv/proc")), (false, true, false));
    let bind =
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
    assert_eq!(with(bind), (false, true, false));
}
