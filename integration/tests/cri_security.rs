//! A pod's security contexts and volumes.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use integration::attack::Attacks;
use integration::containerd::Containerd;
use integration::cri::{PodContainer, security};
use integration::{host, image, on_each_cri};
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{Capability, Int64Value, Mount, MountPropagation, SecurityProfile};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

on_each_cri!(
    a_read_only_root_file_system,
    a_container_runs_as_its_user,
    supplementary_groups_open_a_volume,
    capabilities_are_added_and_dropped,
    no_new_privileges_holds,
    the_default_seccomp_profile_holds,
    volumes_are_shared_between_containers,
    a_read_only_volume_cannot_be_written,
    a_single_file_can_be_a_volume,
    mounts_of_the_host_appear_in_a_slave_volume,
    mounts_of_the_host_stay_out_of_a_private_volume,
    a_missing_volume_is_named,
);

fn volume(containerd: &Containerd, name: &str) -> PathBuf {
    let path = containerd.directory().join("volumes").join(name);
    fs::create_dir_all(&path).expect("make a volume");
    path
}

fn at(container_path: &str, host_path: &std::path::Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

fn a_read_only_root_file_system(containerd: Containerd) {
    let pod = containerd.pod("read-only");
    let container = pod.container("main", "sleep 1000", |config| {
        security(config).readonly_rootfs = true;
    });
    let writable = pod.shell("writable", "sleep 1000");
    for attempt in ["echo x > /etc/file", "mkdir /new"] {
        let answer = container.exec(attempt);
        assert_ne!(answer.code, 0, "{attempt}");
        assert!(answer.stderr.contains("Read-only file system"), "{answer:?}");
        writable.ask(attempt);
    }
    assert_eq!(container.ask("echo x > /dev/shm/file; cat /dev/shm/file"), "x");
}

fn a_container_runs_as_its_user(containerd: Containerd) {
    let pod = containerd.pod("users");
    let by_id = pod.container("by-id", "sleep 1000", |config| {
        let context = security(config);
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.run_as_group = Some(Int64Value { value: 1001 });
    });
    assert_eq!(by_id.ask("id -u; id -g"), "1000\n1001");
    assert_eq!(by_id.ask("stat -c %u:%g /proc/1"), "1000:1001");
    let by_name = pod.container("by-name", "sleep 1000", |config| {
        security(config).run_as_username = "bob".into();
    });
    assert_eq!(by_name.ask("id -un; id -u"), "bob\n1001");
    // Whose directory it is may.
    by_id.ask("ls /home/alice");
    assert_ne!(by_name.exec("ls /home/alice").code, 0);

    let refused = pod.create("unknown-user", 0, "true", |config| {
        security(config).run_as_username = "mallory".into();
    });
    let started = refused.and_then(|container| container.start());
    assert!(started.expect_err("no user has that name").message().contains("no users found"));
}

/// fsGroup makes the volume belong to a group that the user is in.
fn supplementary_groups_open_a_volume(containerd: Containerd) {
    let shared = volume(&containerd, "of-a-group");
    chown(&shared, Some(0), Some(4711)).expect("chown");
    fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o2770))
        .expect("chmod");
    let pod = containerd.pod("groups");
    let as_alice = |name: &str, groups: Vec<i64>| {
        pod.container(name, "sleep 1000", |config| {
            let context = security(config);
            context.run_as_user = Some(Int64Value { value: 1000 });
            context.supplemental_groups = groups;
            config.mounts.push(at("/shared", &shared));
        })
    };
    let member = as_alice("member", vec![4711]);
    assert!(member.ask("id -G").split_whitespace().any(|group| group == "4711"));
    assert_eq!(member.ask("echo mine > /shared/note; cat /shared/note"), "mine");
    assert_ne!(as_alice("stranger", Vec::new()).exec("cat /shared/note").code, 0);
    let note = fs::metadata(shared.join("note")).expect("the file");
    assert_eq!((note.uid(), note.gid()), (1000, 4711));
}

fn effective(container: &PodContainer<'_>) -> u64 {
    let mask = container.ask("grep CapEff /proc/self/status | cut -f2");
    u64::from_str_radix(&mask, 16).expect("a mask in hexadecimal")
}

fn capabilities_are_added_and_dropped(containerd: Containerd) {
    let pod = containerd.pod("capabilities");
    let container = |name: &str, add: &[&str], drop: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        pod.container(name, "sleep 1000", |config| {
            security(config).capabilities = Some(Capability {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                ..Default::default()
            });
        })
    };
    const CHOWN: u64 = 1;
    const NET_ADMIN: u64 = 1 << 12;
    assert_eq!(effective(&container("none", &[], &["ALL"])), 0);
    assert_eq!(effective(&container("one", &["CHOWN"], &["ALL"])), CHOWN);
    let more = effective(&container("more", &["NET_ADMIN"], &[]));
    assert_eq!(more & (CHOWN | NET_ADMIN), CHOWN | NET_ADMIN);
    let mighty = container("all", &["ALL"], &[]);
    // The host's clock, which keeps what it has.
    let attacks = Attacks::on_host(["adjtimex -t 10000"]);
    assert_eq!(mighty.ask(&attacks.script()), "done");
    // The pod's name is its own.
    assert_eq!(mighty.ask("hostname other; hostname"), "other");
    let host_s = fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    assert_ne!(host_s.trim(), "other");
    containerd.attacks_work("mighty", &attacks, |_| ());
}

fn no_new_privileges_holds(containerd: Containerd) {
    let pod = containerd.pod("privileges");
    let container = pod.container("held-back", "sleep 1000", |config| {
        let context = security(config);
        context.no_new_privs = true;
        context.run_as_user = Some(Int64Value { value: 1000 });
    });
    assert_eq!(container.ask("grep NoNewPrivs /proc/self/status | cut -f2"), "1");
    assert_eq!(host::status(container.pid(), "NoNewPrivs"), "1");
}

fn the_default_seccomp_profile_holds(containerd: Containerd) {
    let pod = containerd.pod("seccomp");
    let program = image::sibling("surfaces");
    let with = |name: &str, profile: ProfileType| {
        pod.container(name, "sleep 1000", |config| {
            config.mounts.push(at("/surfaces", &program));
            security(config).seccomp =
                Some(SecurityProfile { profile_type: profile.into(), ..Default::default() });
        })
    };
    let ask = "grep '^Seccomp:' /proc/self/status | cut -f2";
    // The baseline has a filter in any case. open_tree(2) tells them apart.
    let surface = "/surfaces strict | grep '^mount: '";
    let held_back = with("default", ProfileType::RuntimeDefault);
    assert_eq!(held_back.ask(ask), "2");
    assert_ne!(held_back.ask(surface), "mount: reached");
    let free = with("free", ProfileType::Unconfined);
    assert_eq!(free.ask(surface), "mount: reached");
}

fn volumes_are_shared_between_containers(containerd: Containerd) {
    let shared = volume(&containerd, "shared");
    fs::write(shared.join("from-host"), "hello\n").expect("write a file");
    let pod = containerd.pod("volumes");
    let with_volume = |name: &str| {
        pod.container(name, "sleep 1000", |config| config.mounts.push(at("/deep/er/data", &shared)))
    };
    let (one, two) = (with_volume("one"), with_volume("two"));
    assert_eq!(one.ask("cat /deep/er/data/from-host"), "hello");
    one.ask("echo written > /deep/er/data/note");
    assert_eq!(two.ask("cat /deep/er/data/note; stat -c %u:%g /deep/er/data/note"), "written\n0:0");
    let note = fs::metadata(shared.join("note")).expect("the file");
    assert_eq!((note.uid(), note.gid()), (0, 0));
}

fn a_read_only_volume_cannot_be_written(containerd: Containerd) {
    let kept = volume(&containerd, "kept");
    fs::write(kept.join("file"), "as it was\n").expect("write a file");
    let pod = containerd.pod("kept");
    let container = pod.container("main", "sleep 1000", |config| {
        config.mounts.push(Mount { readonly: true, ..at("/kept", &kept) });
    });
    assert_eq!(container.ask("cat /kept/file"), "as it was");
    let attempts = ["echo x > /kept/file", "touch /kept/new", "rm /kept/file"];
    for attempt in attempts {
        assert_ne!(container.exec(attempt).code, 0, "{attempt}");
    }
    assert_eq!(fs::read_to_string(kept.join("file")).expect("the file"), "as it was\n");
    let free = pod.container("free", "sleep 1000", |config| config.mounts.push(at("/kept", &kept)));
    attempts.iter().for_each(|attempt| drop(free.ask(attempt)));
}

fn a_single_file_can_be_a_volume(containerd: Containerd) {
    let file = volume(&containerd, "files").join("settings");
    fs::write(&file, "fruit = pear\n").expect("write a file");
    let pod = containerd.pod("settings");
    let container = pod.container("main", "sleep 1000", |config| {
        config.mounts.push(at("/etc/settings.d/settings", &file));
        config.mounts.push(at("/etc/passwd", &file));
    });
    assert_eq!(
        container.ask("cat /etc/settings.d/settings /etc/passwd"),
        "fruit = pear\nfruit = pear"
    );
}

/// A tmpfs of the host below a volume, unmounted on drop.
struct HostMount(PathBuf);

impl HostMount {
    fn new(at: PathBuf) -> HostMount {
        fs::create_dir_all(&at).expect("make a mount point");
        mount(Some("none"), &at, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mount");
        HostMount(at)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn share(at: &std::path::Path) {
    let shared = mount(None::<&str>, at, None::<&str>, MsFlags::MS_SHARED, None::<&str>);
    shared.expect("make a mount shared");
}

fn propagated(containerd: &Containerd, propagation: MountPropagation) -> (String, String) {
    let volume = HostMount::new(volume(containerd, "tree"));
    share(&volume.0);
    let before = HostMount::new(volume.0.join("before"));
    fs::write(before.0.join("file"), "").expect("write a file");
    let pod = containerd.pod("propagation");
    let container = pod.container("main", "sleep 1000", |config| {
        let propagation = propagation.into();
        config.mounts.push(Mount { propagation, ..at("/tree", &volume.0) });
    });
    let after = HostMount::new(volume.0.join("after"));
    fs::write(after.0.join("file"), "").expect("write a file");
    (container.ask("ls /tree/before"), container.ask("ls /tree/after"))
}

fn mounts_of_the_host_appear_in_a_slave_volume(containerd: Containerd) {
    let (before, after) = propagated(&containerd, MountPropagation::PropagationHostToContainer);
    assert_eq!((before.as_str(), after.as_str()), ("file", "file"));
}

fn mounts_of_the_host_stay_out_of_a_private_volume(containerd: Containerd) {
    let (before, after) = propagated(&containerd, MountPropagation::PropagationPrivate);
    assert_eq!((before.as_str(), after.as_str()), ("file", ""));
}

fn a_missing_volume_is_named(containerd: Containerd) {
    let pod = containerd.pod("missing");
    let gone = volume(&containerd, "gone").join("file");
    fs::write(&gone, "").expect("write a file");
    let container = pod.create("main", 0, "true", |config| config.mounts.push(at("/gone", &gone)));
    let container = container.expect("create it, as the volume is there");
    fs::remove_file(&gone).expect("remove the volume");
    let refused = container.start().expect_err("the volume is gone");
    assert!(refused.message().contains(&*gone.to_string_lossy()), "{refused}");
}

mod needs_apparmor {
    use integration::containerd::{Containerd, Version};

    /// If the kernel has AppArmor, containerd requests its own profile.
    #[test]
    fn a_container_runs_under_containerd_s_profile() {
        let containerd = Containerd::start(Version::V2_1);
        let pod = containerd.pod("profiled");
        let container = pod.shell("main", "sleep 1000");
        let profile = "cri-containerd.apparmor.d (enforce)";
        assert_eq!(container.ask("cat /proc/1/attr/current"), profile);
        assert_eq!(container.ask("cat /proc/self/attr/current"), profile);
    }
}
