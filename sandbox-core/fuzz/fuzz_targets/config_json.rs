//! Any config.json, as the shim loads and plans it: a plan or an error that names
//! the field, never a panic, and nothing in a plan leads out of the container's
//! root. As in the fixtures of the unit tests, which are the corpus to begin with,
//! a path that begins with `@/` lies in the bundle.

#![no_main]

use std::cell::LazyCell;
use std::fs;
use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use sandbox_core::spec::plan::Plan;
use sandbox_core::spec::{Context, SandboxFacts, load, plan};
use sandbox_core::types::{HostPid, IdPool, Userns};
use tempfile::TempDir;

thread_local! {
    static BUNDLE: LazyCell<TempDir> = const { LazyCell::new(bundle) };
    static SANDBOX: LazyCell<SandboxFacts> = const { LazyCell::new(sandbox) };
}

fuzz_target!(|json: &[u8]| {
    BUNDLE.with(|bundle| SANDBOX.with(|sandbox| plan_both(json, bundle.path(), sandbox)));
});

/// Plans it as a sandbox's root container, and as a later container of one.
fn plan_both(json: &[u8], bundle: &Path, sandbox: &SandboxFacts) {
    write(json, bundle);
    let Ok(spec) = load(bundle) else {
        return;
    };
    for (userns, sandbox) in [(Userns::Auto, None), (Userns::Never, Some(sandbox))] {
        let context = Context {
            id: "c1",
            bundle,
            rootfs_mounts_given: false,
            userns,
            id_pool: IdPool::default(),
            baseline: Default::default(),
            tells_refusals: false,
            views: None,
            sandbox,
            other_containers: &[],
        };
        if let Ok(plan) = plan(&spec, &context) {
            check(&plan);
        }
    }
}

fn check(plan: &Plan) {
    let container = &plan.container;
    container.mounts.iter().for_each(|mount| stays(&mount.destination));
    let paths = container.devices.iter().chain(&container.masked_paths);
    paths.chain(&container.readonly_paths).for_each(|path| stays(path));
    assert!(plan.host.rootfs.is_absolute());
    // What the gofer is to deliver has its place, in order.
    let delivered: Vec<usize> = plan.host.delivered.iter().map(|(index, _)| *index).collect();
    let is_delivered = |index: &usize| container.mounts[*index].source.is_delivered();
    assert_eq!(delivered, (0..container.mounts.len()).filter(is_delivered).collect::<Vec<_>>());
    assert_eq!(container.devices.len(), plan.host.devices.len());
}

fn stays(path: &Path) {
    let inside = |part| matches!(part, Component::RootDir | Component::Normal(_));
    assert!(path.is_absolute() && path.components().all(inside), "{}", path.display());
}

fn bundle() -> TempDir {
    let bundle = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    for folder in ["rootfs", "shm"] {
        fs::create_dir(bundle.path().join(folder)).expect("mkdir");
    }
    for file in ["hosts", "resolv.conf"] {
        fs::write(bundle.path().join(file), "").expect("write");
    }
    bundle
}

/// This process stands for boot.
fn sandbox() -> SandboxFacts {
    let own = HostPid(std::process::id().cast_signed());
    SandboxFacts::read(own, true, None).expect("namespaces of this process")
}

/// Writes config.json, with the bundle's path in the place of `@`.
fn write(json: &[u8], bundle: &Path) {
    let mut text = Vec::with_capacity(json.len() + 1024);
    let mut rest = json;
    while let Some(at) = rest.windows(3).position(|window| window == b"\"@/") {
        text.extend(&rest[..=at]);
        text.extend(bundle.as_os_str().as_encoded_bytes());
        rest = &rest[at + 2..];
    }
    text.extend(rest);
    fs::write(bundle.join("config.json"), text).expect("write config.json");
}
