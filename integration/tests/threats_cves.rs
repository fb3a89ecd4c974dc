//! The vulnerabilities that container runtimes had, tried again: those of the table in
//! docs/threat-model.md that no other test tries. Where a race made them possible, another
//! container exchanges what the runtime looks up, for many rounds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use integration::attack::{Attacks, add_attacker, attacker, rewrite};
use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::stdio::Streams;
use integration::{host, spec, wait};
use serde_json::{Value, json};

const ROUNDS: usize = 40;

/// A volume, and a directory of the host that is not on it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir_in("/var/tmp").expect("make a directory");
        let place = Place { directory };
        for folder in ["volume", "target", "payload"] {
            fs::create_dir(place.path(folder)).expect("make a directory");
        }
        fs::write(place.path("target/secret"), "of the host").expect("write");
        fs::write(place.path("payload/file"), "payload").expect("write");
        fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755))
            .expect("chmod");
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn text(&self, below: &str) -> String {
        self.path(below).to_str().expect("an ASCII path").to_owned()
    }

    fn assert_untouched(&self, when: &str) {
        let entries = fs::read_dir(self.path("target")).expect("read it");
        let names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(names, ["secret"], "{when}: something was made on the host");
        let target = self.text("target");
        let mounted = host::mount_points().into_iter().any(|point| point.starts_with(&target));
        assert!(!mounted, "{when}: something was mounted on the host");
    }

    /// Starts a container that exchanges pairs of files of the volume.
    fn exchanged_by<'a>(&self, containerd: &'a Containerd, names: &[&str]) -> Container<'a> {
        let paths = names.iter().map(|name| format!("/volume/{name}"));
        let args = ["/attacker", "exchange"].map(str::to_owned).into_iter().chain(paths);
        let container = containerd.container("neighbour", args.collect::<Vec<_>>());
        let source = self.text("volume");
        let container = container.spec(add_attacker).bind(&source, "/volume", &["rbind", "rw"]);
        let container = container.start();
        container.stdio().wait_for_output("exchanging");
        container
    }

    /// Checks that a program that follows the path on the host is led out of the volume.
    fn leads_out(&self) {
        wait::until("a directory is made on the host", || {
            let _ = fs::create_dir(self.path("volume/sub/control"));
            fs::remove_dir(self.path("target/control")).ok()
        });
        for place in ["volume/sub/control", "volume/trap/control", "target/control"] {
            let _ = fs::remove_dir(self.path(place));
        }
    }
}

/// Runs containers whose `/volume/sub` is by turns a directory and a symlink out of the volume,
/// and checks that nothing of the host is reached or changed.
fn race(names: &[&str], change: impl Fn(&Place, usize, &mut Value)) {
    let containerd = Containerd::start(Version::V2_1);
    let place = Place::new();
    for name in names {
        fs::create_dir_all(place.path("volume/sub").join(name)).expect("make a mount point");
    }
    fs::create_dir_all(place.path("volume/sub")).expect("make a directory");
    symlink(place.path("target"), place.path("volume/trap")).expect("symlink");
    let neighbour = place.exchanged_by(&containerd, &["sub", "trap"]);
    place.leads_out();
    let volume = place.text("volume");
    let script = "cat /volume/*/secret /volume/*/*/secret /volume/*/*/*/secret 2>/dev/null; \
                  echo done";
    let mut started = 0;
    for round in 0..ROUNDS {
        let container = containerd.shell(&format!("victim-{round}"), script).spec(|spec| {
            spec::add_bind(spec, &volume, "/volume", &["rbind", "rw"]);
            change(&place, round, spec);
        });
        // What leads nowhere at the moment may be refused.
        if let Ok(container) = container.try_create()
            && container.start().is_ok()
        {
            assert_eq!(container.finish().1, "done\n", "round {round}");
            started += 1;
        }
        place.assert_untouched(&format!("round {round}"));
    }
    assert!(started > 0, "no container started");
    neighbour.kill(9).expect("kill it");
}

/// CVE-2021-30465: a mount point that is exchanged for a symlink between look-up and mount.
#[test]
fn a_mount_point_that_is_exchanged_leads_nowhere() {
    race(&["mnt", "tmp", "masked", "read-only"], |place, _, spec| {
        spec::add_bind(spec, &place.text("payload"), "/volume/sub/mnt", &["rbind", "rw"]);
        let tmpfs = json!({ "destination": "/volume/sub/tmp", "type": "tmpfs", "source": "tmpfs" });
        spec["mounts"].as_array_mut().expect("mounts").push(tmpfs);
        spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/volume/sub/masked"]);
        spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/volume/sub/read-only"]);
        spec["process"]["cwd"] = json!("/volume/sub");
    });
}

/// CVE-2024-45310: a directory or an empty file that is made for a mount is made on the host.
#[test]
fn what_is_made_for_a_mount_is_made_inside() {
    race(&[], |place, round, spec| {
        let payload = place.text("payload");
        let below = |name: &str| format!("/volume/sub/{name}-{round}");
        spec::add_bind(spec, &payload, &format!("{}/er", below("deep")), &["rbind", "rw"]);
        spec::add_bind(spec, &format!("{payload}/file"), &below("file"), &["bind", "rw"]);
        spec["process"]["cwd"] = json!(below("cwd"));
        spec["linux"]["devices"] =
            json!([{ "path": below("null"), "type": "c", "major": 1, "minor": 3 }]);
    });
}

/// CVE-2025-31133 and CVE-2025-52565, raced: what `/dev/null`, `/dev/console` and `/dev/ptmx`
/// are changes while masks and the terminal are made.
#[test]
fn masks_and_terminals_are_real_while_devices_are_exchanged() {
    let containerd = Containerd::start(Version::V2_1);
    let place = Place::new();
    let mut names = Vec::new();
    for name in ["null", "console", "ptmx"] {
        fs::write(place.path("volume").join(name), "").expect("write");
        let trap = format!("{name}.trap");
        symlink("/proc/sys/kernel/core_pattern", place.path("volume").join(&trap))
            .expect("symlink");
        names.extend([name.to_owned(), trap]);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let neighbour = place.exchanged_by(&containerd, &names);
    let attacks = Attacks::on_host([
        "test $(head -c 1 /proc/timer_list | wc -c) -gt 0".to_owned(),
        rewrite("/proc/sys/kernel/core_pattern"),
    ]);
    let volume = place.text("volume");
    let mut started = 0;
    for round in 0..ROUNDS {
        let streams = if round % 2 == 0 { Streams::Captured } else { Streams::Terminal };
        let container = containerd.shell(&format!("victim-{round}"), &attacks.script());
        let container = container.streams(streams).spec(|spec| {
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            let is_dev = |mount: &Value| {
                mount["destination"].as_str().is_some_and(|at| at.starts_with("/dev"))
            };
            mounts.retain(|mount| !is_dev(mount));
            spec::add_bind(spec, &volume, "/dev", &["rbind", "rw"]);
        });
        if let Ok(container) = container.try_create()
            && container.start().is_ok()
        {
            let (code, output) = container.finish();
            assert_eq!((code, output.trim_end()), (0, "done"), "round {round}");
            started += 1;
        }
    }
    neighbour.kill(9).expect("kill it");
    assert!(started > 0, "no container started");
    containerd.attacks_work("real", &attacks, |_| ());
}

/// What a runtime writes to for the process that it starts, below a proc: its score, its label,
/// and sysctls.
const WRITTEN: [&str; 6] = [
    "self/oom_score_adj",
    "self/attr/exec",
    "self/attr/current",
    "self/attr/apparmor/exec",
    "sys/net/ipv4/ip_unprivileged_port_start",
    "sys/kernel/domainname",
];

/// Asks for things that the runtime does by writing to a proc.
fn ask_for_writes(spec: &mut Value) {
    spec["process"]["oomScoreAdj"] = json!(321);
    spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "77" });
}

/// Checks that they have happened to the process, and not elsewhere.
fn assert_written(container: &Container<'_>, when: &str) {
    let pid = container.pid().to_string();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("read it");
    assert_eq!(score.trim(), "321", "{when}");
    let sysctl = ["-t", &pid, "-n", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"];
    let sysctl = Command::new("nsenter").args(sysctl).output().expect("run nsenter");
    assert_eq!(String::from_utf8_lossy(&sysctl.stdout).trim(), "77", "{when}");
}

/// CVE-2019-16884, CVE-2023-28642 and CVE-2025-52881: an image or a volume offers a proc of its
/// own, or lays something over parts of the real one, and the runtime writes there.
#[test]
fn what_is_written_for_a_process_is_written_to_the_real_proc() {
    let containerd = Containerd::start(Version::V2_1);
    let place = Place::new();
    for name in WRITTEN {
        let file = place.path("volume").join(name);
        fs::create_dir_all(file.parent().expect("a parent")).expect("mkdir");
        fs::write(file, "0").expect("write");
    }
    symlink("self", place.path("volume/thread-self")).expect("symlink");
    symlink("self", place.path("volume/1")).expect("symlink");
    let assert_fake = |when: &str| {
        for name in WRITTEN {
            let held = fs::read_to_string(place.path("volume").join(name)).expect("read");
            assert_eq!(held, "0", "{when}: {name}");
        }
    };
    let plain = containerd.container("plain", ["sleep", "1000"]).spec(ask_for_writes).start();
    assert_written(&plain, "plain");
    let mut started = 0;
    for (number, (from, to)) in [
        ("", "/proc"),
        ("self", "/proc/self"),
        ("self", "/proc/thread-self"),
        ("self/attr", "/proc/self/attr"),
        ("self/attr", "/proc/thread-self/attr"),
        ("self", "/proc/1"),
        ("sys", "/proc/sys"),
        ("sys/net", "/proc/sys/net"),
        ("sys/net/ipv4", "/proc/sys/net/ipv4"),
        ("self/oom_score_adj", "/proc/self/oom_score_adj"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = place.text("volume").to_owned() + "/" + from;
        let container = containerd.container(&format!("fake-{number}"), ["sleep", "1000"]);
        let container = container.spec(ask_for_writes).spec(|spec| {
            if to == "/proc" {
                let mounts = spec["mounts"].as_array_mut().expect("mounts");
                mounts.retain(|mount| mount["destination"] != "/proc");
            }
            spec::add_bind(spec, &source, to, &["rbind", "rw"]);
        });
        // runc refuses what lies on its proc.
        if let Ok(container) = container.try_create()
            && container.start().is_ok()
        {
            assert_written(&container, to);
            let exec = container.exec("more", spec::process(&["sleep", "1000"]), Streams::Captured);
            let exec = exec.expect("add an exec");
            if exec.start().is_ok() {
                assert_ne!(exec.pid(), 0);
            }
            started += 1;
            assert_fake(to);
            if to == "/proc" {
                // Whoever writes by the path writes to the volume.
                let asked = "echo 5 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj";
                assert_eq!(container.exec_shell("fooled", asked).1, "5\n");
                fs::write(place.path("volume/self/oom_score_adj"), "0").expect("write");
            }
        }
        assert_fake(to);
    }
    let refuses = containerd.runtime_name().contains("runc");
    assert!(refuses || started > 0, "no container started");
}

/// The same by a race: a mount whose place leads by turns to a directory and onto proc.
#[test]
fn no_mount_that_is_exchanged_takes_what_is_written_for_a_process() {
    let containerd = Containerd::start(Version::V2_1);
    let place = Place::new();
    fs::create_dir_all(place.path("payload/attr")).expect("mkdir");
    for name in ["ip_unprivileged_port_start", "oom_score_adj", "attr/exec"] {
        fs::write(place.path("payload").join(name), "0").expect("write");
    }
    fs::create_dir(place.path("volume/one")).expect("mkdir");
    fs::create_dir(place.path("volume/two")).expect("mkdir");
    symlink("/proc/sys/net/ipv4", place.path("volume/one.trap")).expect("symlink");
    symlink("/proc/self", place.path("volume/two.trap")).expect("symlink");
    let neighbour = place.exchanged_by(&containerd, &["one", "one.trap", "two", "two.trap"]);
    let (volume, payload) = (place.text("volume"), place.text("payload"));
    let mut started = 0;
    for round in 0..ROUNDS {
        let container = containerd.container(&format!("victim-{round}"), ["sleep", "1000"]);
        let container = container.spec(ask_for_writes).spec(|spec| {
            spec::add_bind(spec, &volume, "/volume", &["rbind", "rw"]);
            for place in ["/volume/one", "/volume/two"] {
                spec::add_bind(spec, &payload, place, &["rbind", "rw"]);
            }
        });
        if let Ok(container) = container.try_create()
            && container.start().is_ok()
        {
            assert_written(&container, &format!("round {round}"));
            started += 1;
        }
        for name in ["ip_unprivileged_port_start", "oom_score_adj", "attr/exec"] {
            let held = fs::read_to_string(place.path("payload").join(name)).expect("read");
            assert_eq!(held, "0", "round {round}: {name}");
        }
    }
    neighbour.kill(9).expect("kill it");
    assert!(started > 0, "no container started");
}

/// CVE-2022-0847 (Dirty Pipe): the kernel's, whose protection no runtime can add to. A file of a
/// volume that is mounted read-only, and one of the image's layers, which other containers have.
#[test]
fn a_file_that_is_only_readable_is_not_written_by_a_pipe() {
    let containerd = Containerd::start(Version::V2_1);
    let place = Place::new();
    let file = place.path("payload/file");
    fs::write(&file, "x".repeat(8192)).expect("write");
    let before = fs::read(&file).expect("read");
    let container = containerd
        .container("pipe", ["/attacker", "pipe", "/kept/file", "/bin/busybox", "/attacker"])
        .spec(add_attacker)
        .bind(&place.text("payload"), "/kept", &["rbind", "ro"])
        .start();
    let wanted = "spliced 1 of /kept/file: true\nspliced 1 of /bin/busybox: true\n\
                  spliced 1 of /attacker: true\ndone\n";
    assert_eq!(container.finish(), (0, wanted.to_owned()));
    assert!(fs::read(&file).expect("read") == before, "the file has changed");
    // Where it is not read-only, the same root changes it.
    let free = containerd
        .shell("free", "echo dirty > /kept/file")
        .bind(&place.text("payload"), "/kept", &["rbind", "rw"])
        .start();
    assert_eq!(free.finish().0, 0);
    assert_eq!(fs::read_to_string(&file).expect("read"), "dirty\n");
}

/// CVE-2022-0185: the kernel's again. What it takes, a user namespace or a file system's context,
/// is out of reach with the default profile.
#[test]
fn with_the_default_profile_no_file_system_is_configured() {
    use k8s_cri::v1::security_profile::ProfileType;
    use k8s_cri::v1::{LinuxContainerSecurityContext, Mount, SecurityProfile};
    let containerd = Containerd::start(Version::V2_1);
    let pod = containerd.pod("context");
    let container = pod.container("main", "sleep 1000", |config| {
        let linux = config.linux.get_or_insert_default();
        let security: &mut LinuxContainerSecurityContext =
            linux.security_context.get_or_insert_default();
        let profile = ProfileType::RuntimeDefault.into();
        security.seccomp = Some(SecurityProfile { profile_type: profile, ..Default::default() });
        config.mounts.push(Mount {
            container_path: "/attacker".to_owned(),
            host_path: attacker().to_string_lossy().into_owned(),
            readonly: true,
            ..Default::default()
        });
    });
    assert_eq!(container.ask("/attacker context"), "done");
    let host = Command::new(attacker()).arg("context").output().expect("run it");
    let printed = String::from_utf8_lossy(&host.stdout).into_owned();
    assert!(printed.contains("opened a context\n0 unknown options were kept"), "{printed}");
}

mod needs_v1 {
    use super::*;

    /// CVE-2022-0492: the release agent of a hierarchy is a program that the host runs.
    #[test]
    fn no_container_sets_a_release_agent() {
        let containerd = Containerd::start(Version::V2_1);
        let table = fs::read_to_string("/proc/cgroups").expect("read /proc/cgroups");
        let controllers = table.lines().filter(|line| !line.starts_with('#'));
        let controllers = controllers.filter_map(|line| line.split_whitespace().next());
        let mount = |controller: &str| {
            let agent = rewrite("/tmp/release_agent");
            format!("mount -t cgroup -o {controller} none /tmp && {agent}")
        };
        // Only the topmost directory of a hierarchy that is mounted has the file.
        let mounted = fs::read_to_string("/proc/self/mounts").expect("read the mounts");
        let alone = |name: &str| {
            mounted.lines().any(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                fields.len() > 3
                    && fields[2] == "cgroup"
                    && fields[3].split(',').any(|option| option == name)
            })
        };
        let controllers: Vec<&str> = controllers.filter(|name| alone(name)).collect();
        assert!(!controllers.is_empty(), "no controller is mounted");
        let plain = controllers.iter().map(|name| mount(name));
        let attacks = Attacks::on_host(plain);
        let nested: String = controllers
            .iter()
            .flat_map(|name| {
                let line = mount(name).replace('\'', "'\\''");
                ["unshare -UrmC", "unshare -Urm"].map(|unshare| {
                    format!("if {unshare} sh -c '{line}' 2>/dev/null; then echo {name}; fi\n")
                })
            })
            .collect();
        let capable = |spec: &mut Value| spec::add_all_capabilities(&mut spec["process"]);
        containerd.holds("agent", &attacks, capable);
        for (id, change) in [("capable", true), ("plain", false)] {
            let container = containerd.shell(id, &format!("{nested}echo done"));
            let container = container.spec(|spec| {
                if change {
                    capable(spec)
                }
            });
            let ended = container.without_baseline().start().finish();
            assert_eq!(ended, (0, "done\n".to_owned()), "{id}");
        }
    }
}
