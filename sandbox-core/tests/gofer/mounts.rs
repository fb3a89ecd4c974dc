use std::fs;
use std::os::unix::fs::chown;

use rustix::mount::MountAttrFlags;
use sandbox_core::control::gofer::{RequestedMount, Slot};
use sandbox_core::spec::plan::{DeliveredSource, IdmapChoice};
use sandbox_core::sys::mount::{FsContext, attach_at};

use crate::harness::*;

fn plain(index: usize, source: DeliveredSource) -> RequestedMount {
    RequestedMount { index, source, propagation: None }
}

#[test]
fn binds_show_mapped_owners_and_write_through() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let file = host.write("data/file", "f");
    chown(&file, Some(5), Some(6)).unwrap();
    host.mount("tmpfs", "shm");
    let mut request = request();
    request.mounts = vec![bind(1, host.path("data")), bind(4, &file), bind(9, host.path("shm"))];
    let before = host.mounts();
    let run = gofer(&request, Some(&sandbox));
    assert!(host.mounts().is_subset(&before));
    assert_eq!(owner(run.mount(1), "file"), (HOST_ROOT + 5, HOST_ROOT + 6));
    write_as(HOST_ROOT, run.mount(1), "new", "n").unwrap();
    assert_eq!(owner_at(host.path("data/new")), (0, 0));
    let bound = run.get(Slot::Mount { index: 4, is_file: true });
    assert_eq!(owner(bound, ""), (HOST_ROOT + 5, HOST_ROOT + 6));
    write_as(HOST_ROOT, run.mount(9), "shared", "s").unwrap();
    assert_eq!(owner_at(host.path("shm/shared")), (0, 0));
}

#[test]
fn kernel_file_systems_sockets_and_devices_are_bound_as_they_are() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let _socket = std::os::unix::net::UnixListener::bind(host.path("socket")).unwrap();
    let mut request = request();
    let sources = ["/proc/sys", "/sys", "/sys/fs/cgroup", "/dev/null"];
    request.mounts = sources.iter().enumerate().map(|(i, source)| bind(i, source)).collect();
    request.mounts.push(bind(4, host.path("socket")));
    let run = gofer(&request, Some(&sandbox));
    assert!(list(run.mount(0), "").contains(&"kernel".to_owned()));
    assert!(list(run.mount(1), "").contains(&"class".to_owned()));
    assert!(!list(run.mount(2), "").is_empty());
    let null = run.get(Slot::Mount { index: 3, is_file: true });
    assert_eq!(owner(null, ""), (0, 0));
    let socket = run.get(Slot::Mount { index: 4, is_file: true });
    assert_eq!(owner(socket, ""), (HOST_ROOT, HOST_ROOT));
}

#[test]
fn a_tree_is_mapped_where_it_can_be_and_keeps_the_kernels_parts() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("host/etc/file", "f");
    host.mount("proc", "host/proc");
    host.mount("tmpfs", "host/run");
    host.write("host/run/lock/x", "x");
    host.mount("sysfs", "host/run/sys");
    let mut request = request();
    request.mounts = vec![bind(0, host.path("host"))];
    let before = host.mounts();
    let run = gofer(&request, Some(&sandbox));
    assert!(host.mounts().is_subset(&before));
    let tree = run.mount(0);
    assert_eq!(owner(tree, "etc/file").0, HOST_ROOT);
    assert_eq!(owner(tree, "run/lock/x").0, HOST_ROOT);
    assert_eq!(owner(tree, "run/sys/class").0, 0);
    assert!(list(tree, "proc").contains(&"1".to_owned()));
}

#[test]
fn the_spec_can_choose_the_mapping() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.write("data/file", "f");
    host.mount("tmpfs", "data/below");
    host.write("data/below/deep", "d");
    let with = |index, idmap| {
        let source = host.path("data");
        plain(index, DeliveredSource::Bind { source, recursive: true, idmap })
    };
    let mappings_choice =
        |outside, recursive| IdmapChoice::Mappings { mappings: mappings(outside), recursive };
    let none = sandbox_core::spec::plan::Mappings { uids: vec![], gids: vec![] };
    let mut request = request();
    request.mounts = vec![
        with(0, IdmapChoice::None),
        with(1, mappings_choice(2_000_000, true)),
        with(2, mappings_choice(2_000_000, false)),
        with(3, mappings_choice(HOST_ROOT, true)),
        with(4, IdmapChoice::Mappings { mappings: none, recursive: true }),
    ];
    let run = gofer(&request, Some(&sandbox));
    let owners = |i| (owner(run.mount(i), "file").0, owner(run.mount(i), "below/deep").0);
    assert_eq!(owners(0), (0, 0));
    assert_eq!(owners(1), (2_000_000, 2_000_000));
    assert_eq!(owners(2), (2_000_000, 0));
    assert_eq!(owners(3), (HOST_ROOT, HOST_ROOT));
    assert_eq!(owners(4), (HOST_ROOT, HOST_ROOT));

    // Without a user namespace the mount's own mappings still work.
    request.mounts = vec![with(0, mappings_choice(2_000_000, true))];
    assert_eq!(owner(gofer(&request, None).mount(0), "file").0, 2_000_000);
}

#[test]
fn a_volume_that_containerd_shifted_is_taken_as_it_is() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let shm = host.mount("tmpfs", "shm");
    chown(shm, Some(HOST_ROOT), Some(HOST_ROOT)).unwrap();
    let mut request = request();
    request.mounts = vec![bind(0, host.path("shm"))];
    let run = gofer(&request, Some(&sandbox));
    write_as(HOST_ROOT, run.mount(0), "x", "x").unwrap();
    assert_eq!(owner_at(host.path("shm/x")).0, HOST_ROOT);
}

#[test]
fn a_bind_that_is_not_recursive_leaves_the_mounts_below_behind() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount("tmpfs", "data/below");
    host.write("data/below/deep", "d");
    let (source, idmap) = (host.path("data"), IdmapChoice::Sandbox);
    let mut request = request();
    request.mounts = vec![plain(0, DeliveredSource::Bind { source, recursive: false, idmap })];
    let run = gofer(&request, Some(&sandbox));
    assert!(list(run.mount(0), "below").is_empty());
}

#[test]
fn proc_shows_the_sandbox_and_sysfs_its_network_alone() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut request = request();
    request.sandbox_proc = true;
    request.mounts = vec![plain(3, DeliveredSource::Sysfs), bind(4, host.dir.path())];
    let run = gofer(&request, Some(&sandbox));
    let proc = run.get(Slot::SandboxProc);
    let numbers = list(proc, "").into_iter().filter(|n| n.parse::<u32>().is_ok());
    assert_eq!(numbers.collect::<Vec<_>>(), ["1"]);
    assert_eq!(read(proc, "1/comm").unwrap(), "sleep\n");
    assert_eq!(list(run.mount(3), "class/net"), ["lo"]);

    // A sandbox in the host's network sees the host's devices.
    request.sandbox_proc = false;
    request.mounts.truncate(1);
    let run = gofer(&request, None);
    let mut devices: Vec<_> = fs::read_dir("/sys/class/net").unwrap().collect();
    devices.retain(|entry| entry.as_ref().unwrap().path().is_dir());
    let seen = list(run.mount(3), "class/net");
    assert!(seen.len() >= devices.len() && seen.contains(&"lo".to_owned()), "{seen:?}");
}

#[test]
fn any_file_system_can_be_mounted_for_a_container() {
    let sandbox = Sandbox::new();
    let mut request = request();
    request.mounts = vec![plain(
        2,
        DeliveredSource::FileSystem {
            fs_type: "tmpfs".to_owned(),
            source: "volume".to_owned(),
            options: vec![("mode".to_owned(), Some("1777".to_owned()))],
        },
    )];
    let run = gofer(&request, Some(&sandbox));
    assert_eq!(owner(run.mount(2), "").0, HOST_ROOT);
    write_as(HOST_ROOT + 8, run.mount(2), "x", "x").unwrap();
    assert_eq!(owner(run.mount(2), "x").0, HOST_ROOT + 8);
}

#[test]
fn many_mounts_come_in_several_packets_and_in_order() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut request = request();
    for index in 0..70 {
        host.write(&format!("{index}/name"), &index.to_string());
        request.mounts.push(bind(index, host.path(&index.to_string())));
    }
    let run = gofer(&request, Some(&sandbox));
    assert_eq!(run.packets, [30, 30, 10]);
    for index in 0..70 {
        assert_eq!(run.delivered[index].0, Slot::Mount { index, is_file: false });
        assert_eq!(read(run.mount(index), "name").unwrap(), index.to_string());
    }
}

/// Mounts an overlay of the host at a new directory, as mount(8) does.
fn overlay(host: &Host, below: &str, options: &[(&str, &str)]) -> std::path::PathBuf {
    let context = FsContext::open("overlay").unwrap();
    for (key, value) in options {
        context.string(key, *value).unwrap();
    }
    context.create().unwrap();
    let path = host.mkdir(below);
    attach_at(context.mount(MountAttrFlags::MOUNT_ATTR_NODEV).unwrap(), &path).unwrap();
    path
}

/// Kubernetes' image volumes, and a directory of the host with one below it.
#[test]
fn an_overlay_without_an_upper_directory_is_mounted_anew() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let owned = host.write("one:two/dir/file", "of the lower layer");
    chown(owned, Some(5), Some(6)).unwrap();
    host.write("upper/dir/other", "of the upper layer");
    let escaped = host.text("one:two").replace(':', "\\:");
    let lower = format!("{}:{escaped}", host.text("upper"));
    let image = overlay(&host, "volumes/image", &[("lowerdir", &lower)]);
    let appended = overlay(
        &host,
        "appended",
        &[("lowerdir+", &host.text("upper")), ("lowerdir+", &host.text("one:two"))],
    );
    let mut request = request();
    request.mounts = vec![
        bind(0, &image),
        bind(1, image.join("dir")),
        bind(2, host.path("volumes")),
        bind(3, &appended),
        bind(4, image.join("dir/file")),
    ];
    let before = host.mounts();
    let run = gofer(&request, Some(&sandbox));
    assert!(host.mounts().is_subset(&before));
    for (index, file, other) in [
        (0, "dir/file", "dir/other"),
        (1, "file", "other"),
        (2, "image/dir/file", "image/dir/other"),
        (3, "dir/file", "dir/other"),
    ] {
        let mount = run.mount(index);
        assert_eq!(owner(mount, file), (HOST_ROOT + 5, HOST_ROOT + 6), "{index}");
        assert_eq!(read(mount, other).unwrap(), "of the upper layer", "{index}");
        assert!(write_as(HOST_ROOT, mount, other, "x").is_err(), "{index} can be written");
    }
    let file = run.get(Slot::Mount { index: 4, is_file: true });
    assert_eq!(owner(file, ""), (HOST_ROOT + 5, HOST_ROOT + 6));
    let line = host.table_line(run.mount(0));
    assert!(line.contains("ro,nodev"), "the mount's own options are lost: {line}");
}
