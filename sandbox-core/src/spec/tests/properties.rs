//! Properties that hold for every spec, however strange.

use std::path::Component;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::spec::load_process;

const FIXTURES: [&str; 6] =
    [CTR, CTR_PRIVILEGED, CTR_OPTIONS, RUNC_ROOTLESS, CRI_SANDBOX, CRI_CONTAINER];

/// Values on which parsers have failed before.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        Just(json!("")),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[./r\0]{0,8}".prop_map(Value::from),
        "(r?(bind|ro|idmap|private|sync|noatime)|[a-z]{1,3}=?){1}".prop_map(Value::from),
        "(net|kernel|fs)[./][a-z./]{0,9}".prop_map(Value::from),
        "/proc/self/ns/(net|pid|ipc|mnt|none)".prop_map(Value::from),
    ]
}

/// Replaces one value of the document by another.
fn mutate(value: &mut Value, seed: usize, new: Value) {
    let children: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    // In one case of three the value at this level is replaced, so that values
    // of every depth are.
    let (count, pick) = (children.len(), seed / 3);
    match children.into_iter().nth(pick % count.max(1)) {
        Some(child) if !seed.is_multiple_of(3) || pick.is_multiple_of(5) => {
            mutate(child, pick / count, new)
        }
        _ => *value = new,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_spec_makes_it_panic_or_leave_the_root(
        which in 0..FIXTURES.len(),
        later in any::<bool>(),
        changes in prop::collection::vec((any::<usize>(), odd()), 1..4),
    ) {
        let mut story = Story::of(FIXTURES[which]);
        for (seed, new) in changes {
            mutate(&mut story.spec, seed, new);
        }
        if later {
            story = story.inside(sandbox());
        }
        if let Ok(plan) = story.plan() {
            let stays = |path: &Path| {
                path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            };
            let container = &plan.container;
            prop_assert!(container.mounts.iter().all(|mount| stays(&mount.destination)));
            prop_assert!(container.devices.iter().all(|path| stays(path)));
            prop_assert!(container.masked_paths.iter().chain(&container.readonly_paths).all(|path| stays(path)));
            prop_assert!(plan.host.rootfs.is_absolute());
            // The gofer's mounts are those that boot expects, in their order.
            let delivered: Vec<usize> = plan.host.delivered.iter().map(|(index, _)| *index).collect();
            let expected: Vec<usize> = (0..container.mounts.len())
                .filter(|&i| container.mounts[i].source.is_delivered())
                .collect();
            prop_assert_eq!(delivered, expected);
            prop_assert_eq!(container.devices.len(), plan.host.devices.len());
        }
    }

    #[test]
    fn destinations_never_leave_the_root(path in "(/|[.]{1,3}|[ab]){0,12}") {
        let mount = json!({"destination": path, "type": "tmpfs"});
        if let Ok(plan) = Story::of(CTR).set("/mounts/7", mount).plan() {
            let cleaned = plan.container.mounts[7].destination.to_str().unwrap();
            prop_assert!(cleaned.starts_with('/'));
            prop_assert!(!cleaned.split('/').any(|part| part == ".." || part == "."), "{}", cleaned);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a-z0-9]{0,60}") {
        let _ = load_process(&bytes);
        let _ = load_process(text.as_bytes());
    }
}
