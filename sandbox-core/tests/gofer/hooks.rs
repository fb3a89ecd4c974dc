//! `createContainer` hooks, and what the container gets of their work.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use sandbox_core::control::gofer::*;
use sandbox_core::spec::plan::{HookPlan, MountAttributes};

use crate::harness::*;

/// Asks for a hook that runs a line of shell in the root, with the mounts that are asked for at
/// `/0`, `/1`, ...
pub fn with_hook(host: &Host, mut request: GoferRequest, script: &str) -> GoferRequest {
    let root = host.mkdir("bundle/rootfs");
    let args = ["sh", "-euc", script].map(str::to_owned).to_vec();
    let env = vec!["PATH=/usr/bin:/bin:/usr/sbin:/sbin".to_owned()];
    let hook = HookPlan { path: PathBuf::from("/bin/sh"), args, env, timeout: None };
    let mounts = request.mounts.iter().map(|mount| HookMount {
        index: mount.index,
        destination: format!("/{}", mount.index).into(),
        attributes: MountAttributes::default(),
    });
    let mounts = mounts.collect();
    let state = "{}".to_owned();
    let (hooks, devices, open_files) = (vec![hook], Vec::new(), 1024);
    request.hooks = Some(HookJob { hooks, state, root, mounts, devices, open_files });
    request
}

const MAKE: &str = "echo made > made; mkdir dir; echo more >> etc/base";

/// Gives a tree to the sandbox's root, as containerd shifts a snapshot.
fn shift(path: PathBuf) {
    chown(&path, Some(HOST_ROOT), Some(HOST_ROOT)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(&path).unwrap().for_each(|entry| shift(entry.unwrap().path()));
    }
}

#[test]
fn what_a_hook_makes_belongs_to_the_containers_root_whoever_owns_the_layers() {
    for kind in ["plain", "volatile", "shifted", "uidmap", "directory", "shifted directory"] {
        let (host, sandbox) = (Host::new(), Sandbox::new());
        let mut overlay = snapshots(&host);
        match kind {
            "volatile" => overlay.options.push("volatile".to_owned()),
            "shifted" | "shifted directory" => shift(host.path("snapshots")),
            "uidmap" => {
                let map = format!("0:{HOST_ROOT}:65536");
                overlay.options.extend([format!("uidmap={map}"), format!("gidmap={map}")]);
                shift(host.path("snapshots/3"));
            }
            _ => {}
        }
        let mut request = asking_for(vec![overlay]);
        if kind.contains("directory") {
            request.rootfs = RootfsSource::Directory(host.path("snapshots/1/fs"));
        }
        let before = host.mounts();
        let run = gofer(&with_hook(&host, request, MAKE), Some(&sandbox));
        assert!(host.mounts().is_subset(&before), "{kind}");
        for path in ["made", "dir", "etc/base"] {
            assert_eq!(owner(run.rootfs(), path), (HOST_ROOT, HOST_ROOT), "{kind}: {path}");
        }
        assert_eq!(read(run.rootfs(), "etc/base").unwrap(), "basemore\n", "{kind}");
        write_as(HOST_ROOT, run.rootfs(), "dir/mine", "x").unwrap();
    }
}

#[test]
fn without_a_user_namespace_a_hook_writes_as_root() {
    let host = Host::new();
    let run = gofer(&with_hook(&host, asking_for(vec![snapshots(&host)]), MAKE), None);
    assert_eq!(owner(run.rootfs(), "made"), (0, 0));
    assert_eq!(owner_at(host.path("snapshots/3/fs/made")), (0, 0));
}

#[test]
fn a_hooks_mounts_travel_with_mapped_owners() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("volume/file", "of the host");
    let mut request = asking_for(vec![snapshots(&host)]);
    request.mounts.push(bind(0, host.path("volume")));
    let script = format!(
        "mkdir deep; mount -t tmpfs none deep; echo a > deep/file; cat 0/file > deep/copy; \
         mkdir deep/er; mount --bind {} deep/er",
        host.text("volume")
    );
    let run = gofer(&with_hook(&host, request, &script), Some(&sandbox));
    let of_hook = |path: &str| run.get(Slot::OfHook { path: path.into(), is_file: false });
    assert_eq!(read(of_hook("/deep"), "copy").unwrap(), "of the host");
    assert_eq!(owner(of_hook("/deep"), "file"), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owner(of_hook("/deep/er"), "file"), (HOST_ROOT, HOST_ROOT));
}

#[test]
fn what_cannot_be_carried_over_is_refused_in_a_sentence() {
    let table = [
        ("mkdir x; mount --bind etc x", "bound a part of the root file system"),
        ("umount 0", "has unmounted a mount of the container"),
        ("mkdir x; mount -t ramfs none x", "A createContainer hook mounted it"),
        ("echo why >&2; exit 7", "failed with exit status 7: why"),
        ("kill -9 $$; sleep 1; exit 1", "hook /bin/sh "),
    ];
    for (script, words) in table {
        let (host, sandbox) = (Host::new(), Sandbox::new());
        let mut request = asking_for(vec![snapshots(&host)]);
        request.mounts.push(bind(0, host.mkdir("volume")));
        let before = host.mounts();
        let run = gofer(&with_hook(&host, request, script), Some(&sandbox));
        assert!(run.error().contains(words), "{script}: {}", run.error());
        assert!(host.mounts().is_subset(&before), "{script}");
    }
}

/// What a hook leaves running would hold the root file system's overlay.
#[test]
fn nothing_of_a_hook_outlives_it() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let request = asking_for(vec![snapshots(&host)]);
    let run = gofer(&with_hook(&host, request, "sleep 1000 < /dev/null & :"), Some(&sandbox));
    write_as(HOST_ROOT, run.rootfs(), "mine", "x").unwrap();
}
