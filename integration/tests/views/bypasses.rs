//! Who sees the kernel's files after all, and what nobody changes.

use std::fs;

use integration::attack::Attacks;
use integration::container::options;
use integration::containerd::{Containerd, Version};
use integration::cri::{pod_security, security};
use integration::spec;
use k8s_cri::v1::SecurityProfile;
use k8s_cri::v1::security_profile::ProfileType;
use serde_json::Value;

use super::{LARGE, LOOK, RUNC, SMALL, ask, host, limited, limited_in_pod, look, seen_in, total};

fn add(spec: &mut Value, list: &str, path: &str) {
    spec["linux"][list].as_array_mut().expect("a list of paths").push(path.into());
}

/// A masked path is empty, whatever lies below.
#[test]
fn paths_that_a_spec_masks_or_makes_read_only_stay_so() {
    let containerd = Containerd::start(Version::V2_1);
    for runtime in [containerd.runtime_name(), RUNC] {
        let id = runtime.split('.').nth(2).expect("a name");
        let container = limited(&containerd, id, SMALL).runtime(runtime).spec(|spec| {
            add(spec, "maskedPaths", "/proc/meminfo");
            add(spec, "maskedPaths", "/sys/devices/system/node");
            add(spec, "readonlyPaths", "/proc/stat");
            add(spec, "readonlyPaths", "/proc/pressure");
        });
        let container = container.start();
        let masked = ask(&container, "masked", "cat /proc/meminfo; ls /sys/devices/system/node");
        assert_eq!(masked, "", "{runtime}");
        let cpus = ask(&container, "read-only", "grep -c '^cpu[0-9]' /proc/stat");
        let wanted = if runtime == RUNC { host().cpus } else { SMALL.seen().cpus };
        assert_eq!(cpus, format!("{wanted}\n"), "{runtime}");
    }
}

/// What a spec mounts there itself is what the container sees.
#[test]
fn a_mount_of_the_spec_over_a_view_wins() {
    let containerd = Containerd::start(Version::V2_1);
    let mine = containerd.directory().join("mine");
    fs::write(&mine, "MemTotal: 4711 kB\n").expect("write a file");
    let mine = mine.to_str().expect("an ASCII path");
    let container =
        limited(&containerd, "mine", SMALL).bind(mine, "/proc/meminfo", &["bind", "ro"]);
    let container = container.start();
    assert_eq!(ask(&container, "look", "cat /proc/meminfo"), "MemTotal: 4711 kB\n");
    if containerd.runtime_name() != RUNC {
        assert_eq!(ask(&container, "others", "grep -c '^cpu[0-9]' /proc/stat"), "1\n");
    }
}

/// An option of the administrator's, and an annotation of the pod's owner.
#[test]
fn a_container_without_views_sees_the_kernel_s_files() {
    let containerd = Containerd::start(Version::V2_1);
    let off = limited(&containerd, "off", SMALL).options(options("views = 'off'", "")).start();
    assert_eq!(look(&off, "now"), host());
    assert_eq!(ask(&off, "mounts", "grep -c fuse /proc/self/mountinfo; true"), "0\n");
    let annotated = limited(&containerd, "annotated", SMALL).spec(|spec| {
        spec["annotations"]["dev.palisade.views"] = "off".into();
    });
    let annotated = annotated.options(options("allow_annotations = ['views']", "")).start();
    assert_eq!(look(&annotated, "now"), host());
    let on = limited(&containerd, "on", SMALL).options(options("views = 'on'", "")).start();
    assert_eq!(look(&on, "now"), SMALL.seen());
}

/// Neither the limits of a container nor what it sees depends on its privilege.
#[test]
fn privileged_containers_see_their_limits() {
    let containerd = Containerd::start(Version::V2_1);
    let container = limited(&containerd, "mighty", SMALL).privileged(|_| ()).start();
    assert_eq!(look(&container, "before"), SMALL.seen());
    container.update(&LARGE.resources()).expect("update it");
    assert_eq!(look(&container, "after"), LARGE.seen());

    let pod = containerd.pod_with("mighty-pod", |config| pod_security(config).privileged = true);
    let container = pod.container("main", "sleep 1000", |config| {
        SMALL.set_in_pod(config);
        security(config).privileged = true;
    });
    // Its sysfs can be written to, by which it manages the machine's CPUs: it sees all of them there.
    let script =
        "cat /proc/meminfo; grep -c '^processor' /proc/cpuinfo; ls /sys/devices/system/cpu";
    let output = container.ask(script);
    assert_eq!(total(&output), SMALL.seen().memory);
    assert!(output.contains(&format!("kB\n{}\ncpu0\ncpu1\n", SMALL.seen().cpus)), "{output}");
}

/// `procMount: Unmasked`: nothing is masked, and the limits are seen; a proc that it mounts
/// itself, for a namespace of its own, is the kernel's (docs/views.md).
#[test]
fn an_unmasked_container_sees_its_limits_and_a_nested_proc_is_the_kernel_s() {
    let containerd =
        Containerd::start_with_option_file(Version::V2_1, "baseline_allow = ['user_namespaces']");
    let pod = containerd.pod("unmasked");
    let unconfined = || {
        let kind = ProfileType::Unconfined.into();
        Some(SecurityProfile { profile_type: kind, localhost_ref: String::new() })
    };
    let container = pod.container("main", "sleep 1000", |config| {
        SMALL.set_in_pod(config);
        let context = security(config);
        (context.masked_paths, context.readonly_paths) = (Vec::new(), Vec::new());
        (context.apparmor, context.seccomp) = (unconfined(), unconfined());
    });
    assert_eq!(seen_in(&container.exec(LOOK).stdout), SMALL.seen());
    let nested = "mkdir -p /tmp/p && unshare -Urmpf sh -c \
                  'mount -t proc proc /tmp/p && cat /tmp/p/meminfo'";
    assert_eq!(total(&container.ask(nested)), host().memory);
}

fn with_all_capabilities(spec: &mut Value) {
    SMALL.set(spec);
    spec::add_all_capabilities(&mut spec["process"]);
}

/// What lies below a view is not uncovered.
#[test]
fn a_view_cannot_be_taken_away() {
    let containerd = Containerd::start(Version::V2_1);
    let lines = ["/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu"].map(|path| {
        [
            format!("umount {path}"),
            format!("umount -l {path}"),
            format!("unshare -m umount {path}"),
            format!("mkdir -p /tmp/d; touch /tmp/f; mount --move {path} /tmp/f || mount --move {path} /tmp/d"),
        ]
    });
    containerd.holds("uncovers", &Attacks::privileged(lines.concat()), with_all_capabilities);
}

/// It belongs to nobody inside, and nobody writes to it.
#[test]
fn a_view_cannot_be_changed() {
    let containerd = Containerd::start(Version::V2_1);
    let attempts = [
        "echo x > /proc/meminfo",
        "echo x >> /sys/devices/system/cpu/online",
        "chmod 666 /proc/meminfo",
        "chown 1 /proc/meminfo",
        "rm /proc/meminfo",
        "ln /proc/meminfo /proc/other",
        "touch -d 2000-01-01 /proc/meminfo",
        "touch /sys/devices/system/cpu/new",
        "mkdir /sys/devices/system/cpu/new",
        "rmdir /sys/devices/system/cpu/cpu0",
        "rm -r /proc/pressure",
        "mount -o remount,bind,rw /proc/meminfo && echo x > /proc/meminfo",
        "mount -o remount,bind,rw /sys/devices/system/cpu && touch /sys/devices/system/cpu/new",
    ];
    let attempts: String =
        attempts.iter().map(|line| format!("( {line} ) 2>/dev/null && echo '{line}'; ")).collect();
    let script = format!("{attempts} {LOOK}");
    let container = containerd.shell("writes", &script).spec(with_all_capabilities);
    let (_, output) = container.without_baseline().start().finish();
    assert_eq!(seen_in(&output), SMALL.seen());
    // Neither did anything of it change the host's, nor another container's.
    let pod = containerd.pod("other");
    let other = limited_in_pod(&pod, "main", LARGE);
    assert_eq!(seen_in(&other.exec(LOOK).stdout), LARGE.seen());
}

/// One who binds the host's sysfs wants to see the host, and a bind may be shared with it.
#[test]
fn a_bind_of_the_host_s_sysfs_is_left_alone() {
    let containerd = Containerd::start(Version::V2_1);
    // Another sysfs that is shared, so that nothing of the machine's own can be spoilt.
    let hosts = containerd.directory().join("sys");
    fs::create_dir(&hosts).expect("make a directory");
    let mounted = HostsSysfs::mount(&hosts);
    let container = limited(&containerd, "agent", SMALL).privileged(|spec| {
        spec["linux"]["rootfsPropagation"] = "rshared".into();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "network");
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/sys");
        spec::add_bind(spec, mounted.path(), "/sys", &["rbind", "ro", "rshared"]);
    });
    let container = container.start();
    let online = "cat /sys/devices/system/cpu/online";
    let hosts_online = fs::read_to_string("/sys/devices/system/cpu/online").expect("read it");
    assert_eq!(ask(&container, "look", online), hosts_online);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    assert!(!mounts.lines().any(|line| line.contains(" - fuse views")), "{mounts}");
}

/// A sysfs on the host.
struct HostsSysfs(std::path::PathBuf);

impl HostsSysfs {
    fn mount(at: &std::path::Path) -> Self {
        use nix::mount::{MsFlags, mount};
        let none = None::<&str>;
        mount(Some("sysfs"), at, Some("sysfs"), MsFlags::empty(), none).expect("mount a sysfs");
        let mounted = Self(at.to_owned());
        mount(none, at, none, MsFlags::MS_SHARED, none).expect("share it");
        mounted
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("an ASCII path")
    }
}

impl Drop for HostsSysfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What a spec covers by a mount is not uncovered by a proc of one's own, where the kernel allows
/// one: the views leave that as it is. The control has nothing covered.
#[test]
fn a_proc_that_a_spec_covers_by_mounts_cannot_be_mounted_anew() {
    let containerd = Containerd::start(Version::V2_1);
    let mine = containerd.directory().join("mine");
    fs::write(&mine, "nothing\n").expect("write a file");
    let mine = mine.to_str().expect("an ASCII path");
    let anew = "mkdir -p /tmp/p; unshare -Urmpf mount -t proc proc /tmp/p 2>/dev/null; echo $?";
    let bare = |id: &str| {
        limited(&containerd, id, SMALL).without_baseline().spec(|spec| {
            for list in ["maskedPaths", "readonlyPaths"] {
                spec["linux"][list] = Value::Array(Vec::new());
            }
        })
    };
    let control = bare("control").start();
    assert_eq!(ask(&control, "anew", anew), "0\n");
    let covered = bare("covered").bind(mine, "/proc/cpuinfo", &["bind", "ro"]).start();
    assert_eq!(ask(&covered, "look", "cat /proc/cpuinfo"), "nothing\n");
    assert_eq!(ask(&covered, "anew", anew), "1\n");
}
