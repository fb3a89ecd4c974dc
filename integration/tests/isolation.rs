//! What a workload cannot reach, seen from inside and checked from the host.

use std::fs;

use integration::container::Container;
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::{host, on_each_containerd, sandbox, spec};
use serde_json::{Value, json};

on_each_containerd!(
    root_inside_is_nobody_outside,
    two_sandboxes_have_different_users,
    the_host_s_processes_are_out_of_reach,
    capabilities_hold_nothing_outside,
    descriptors_are_the_three_streams,
    boot_is_nobody_with_an_empty_root,
    boot_cannot_be_traced_from_inside,
    the_proc_of_the_container_is_masked,
    files_made_inside_belong_to_root_on_a_volume,
);

/// Every capability there is.
fn all_capabilities(spec: &mut Value) {
    let all: Vec<String> =
        CAPABILITIES.split_whitespace().map(|name| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(all);
    }
    spec["process"]["noNewPrivileges"] = json!(false);
}

const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID \
    SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER \
    SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE \
    SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN \
    SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

fn host_users(container: &Container<'_>) -> Vec<u32> {
    let users = host::status(container.pid(), "Uid");
    users.split_whitespace().map(|user| user.parse().expect("a user ID")).collect()
}

fn root_inside_is_nobody_outside(containerd: Containerd) {
    let container = containerd.container("root", ["sleep", "1000"]).start();
    assert_eq!(container.exec_shell("who", "id -u; id -g").1, "0\n0\n");
    for ids in ["Uid", "Gid"] {
        let outside = host::status(container.pid(), ids);
        for id in outside.split_whitespace() {
            let id: u32 = id.parse().expect("a number");
            assert!(id >= 65_536, "{ids} {id} of the host");
        }
    }
    let (_, map) = container.exec_shell("map", "cat /proc/self/uid_map /proc/self/gid_map");
    let sizes = map.lines().map(|line| line.split_whitespace().last().unwrap_or("").to_owned());
    assert_eq!(sizes.collect::<Vec<_>>(), ["65536", "65536"], "{map}");
}

fn two_sandboxes_have_different_users(containerd: Containerd) {
    let one = containerd.container("one", ["sleep", "1000"]).start();
    let two = containerd.container("two", ["sleep", "1000"]).start();
    let (one, two) = (host_users(&one)[0], host_users(&two)[0]);
    assert!(one.abs_diff(two) >= 65_536, "{one} and {two} are in ranges that overlap");
}

fn the_host_s_processes_are_out_of_reach(containerd: Containerd) {
    let container = containerd.container("alone", ["sleep", "1000"]).spec(all_capabilities).start();
    let ask = |id: &str, script: &str| container.exec_shell(id, script).1.trim().to_owned();
    assert_eq!(ask("first", "cat /proc/1/comm"), "sleep");
    let count: u32 = ask("count", "ls -d /proc/[0-9]* | wc -l").parse().expect("a number");
    assert!(count <= 4, "{count} processes are visible");
    // Not by the way of its own first process either.
    let host_root = fs::read_link("/proc/self/ns/pid").expect("the host's PID namespace");
    assert_ne!(ask("ns", "readlink /proc/1/ns/pid"), host_root.to_string_lossy());
    let marker = containerd.directory().join("config.toml");
    let climb = format!("ls /proc/1/root{0} /proc/1/cwd/../../../..{0} 2>&1", marker.display());
    let (code, said) = container.exec_shell("climb", &climb);
    assert_ne!(code, 0, "{said}");
}

/// With every capability that a spec can name, and without a seccomp profile.
/// Each attempt is harmless even where it works.
fn capabilities_hold_nothing_outside(containerd: Containerd) {
    let container =
        containerd.container("mighty", ["sleep", "1000"]).spec(all_capabilities).start();
    let mut process = spec::process(&["true"]);
    let mut holder = json!({ "process": process });
    all_capabilities(&mut holder);
    process = holder["process"].take();
    let attempts = [
        ("mount a disk", "mknod /tmp/disk b 254 0 && mount -o ro -t ext4 /tmp/disk /mnt"),
        (
            "write the host's sysctls",
            "read n < /proc/sys/kernel/panic && echo $n > /proc/sys/kernel/panic",
        ),
        ("load a module", "modprobe dummy"),
        (
            "set the time",
            "date -s @$(date +%s) >/tmp/said 2>&1; ! grep -q \"can't set date\" /tmp/said",
        ),
        ("read the kernel's log", "dmesg | grep -q ."),
        ("raise its rlimits", "ulimit -Hn 99999999"),
        ("make a mount writable", "mount -o remount,rw /sys && touch /sys/x"),
        ("uncover a masked path", "umount /proc/kcore"),
        ("write a bus", "mount -o remount,rw /proc/bus && touch /proc/bus/x"),
        ("join the host", "nsenter -t 1 -p -- cat /proc/1/cmdline | grep -q init"),
        ("be a user of the host", "setpriv --reuid 70000 true"),
    ];
    for (n, (what, script)) in attempts.iter().enumerate() {
        let mut process = process.clone();
        process["args"] = json!(["sh", "-c", format!("({script}) && echo SUCCEEDED")]);
        let exec = container.exec(&format!("attempt-{n}"), process, Streams::Captured);
        let exec = exec.expect("add an exec");
        exec.start().expect("start it");
        exec.wait();
        let output = exec.stdio().output();
        assert!(!output.contains("SUCCEEDED"), "it could {what}: {output}");
    }
    assert!(fs::exists("/sys/kernel").unwrap_or(false), "the host is as it was");
}

fn descriptors_are_the_three_streams(containerd: Containerd) {
    let container = containerd.container("open", ["sleep", "1000"]).start();
    let of_first: Vec<u32> = host::descriptors(container.pid()).into_keys().collect();
    assert_eq!(of_first, [0, 1, 2], "{:?}", host::descriptors(container.pid()));

    let exec = container.exec("extra", spec::process(&["sleep", "1000"]), Streams::Piped);
    let exec = exec.expect("add an exec");
    exec.start().expect("start it");
    let of_exec: Vec<u32> = host::descriptors(exec.pid()).into_keys().collect();
    assert_eq!(of_exec, [0, 1, 2], "{:?}", host::descriptors(exec.pid()));

    let with_terminal = containerd.container("typed", ["sleep", "1000"]).streams(Streams::Terminal);
    let with_terminal = with_terminal.start();
    let open = host::descriptors(with_terminal.pid());
    assert_eq!(open.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{open:?}");
    assert!(open.values().all(|to| to.ends_with("/0")), "{open:?}");
}

fn boot_is_nobody_with_an_empty_root(containerd: Containerd) {
    let container = containerd.container("held", ["sleep", "1000"]).start();
    let boot = sandbox::boot_of(container.shim());
    let user: u32 = host::status(boot.pid, "Uid")
        .split_whitespace()
        .next()
        .and_then(|u| u.parse().ok())
        .expect("a user");
    assert!(user >= 65_536, "boot is user {user} of the host");
    assert_eq!(
        fs::read_link(format!("/proc/{}/cwd", boot.pid)).expect("its directory").to_string_lossy(),
        "/"
    );
    let root: Vec<_> =
        fs::read_dir(format!("/proc/{}/root", boot.pid)).expect("its root").flatten().collect();
    let names: Vec<String> =
        root.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    for host_folder in ["etc", "home", "usr", "var", "tmp", "root", "boot"] {
        assert!(
            !names.iter().any(|name| name == host_folder),
            "boot sees /{host_folder}: {names:?}"
        );
    }
    for (number, to) in host::descriptors(boot.pid) {
        let harmless = [
            "socket:",
            "pipe:",
            "anon_inode:",
            "/dev/null",
            "mnt:",
            "pid:",
            "user:",
            "net:",
            "/memfd:",
            "/",
        ];
        assert!(
            harmless.iter().any(|kind| to.starts_with(kind)),
            "descriptor {number} of boot is {to}"
        );
        assert!(
            !to.starts_with("/tmp/") && !to.starts_with("/run/containerd"),
            "descriptor {number} of boot is {to}"
        );
    }
}

fn boot_cannot_be_traced_from_inside(containerd: Containerd) {
    let pod = containerd.pod_with("family", |config| {
        let options = integration::cri::pod_security(config).namespace_options.as_mut();
        options.expect("namespace options").pid = k8s_cri::v1::NamespaceMode::Pod.into();
    });
    let container = pod.shell("main", "sleep 1000");
    // The pod shares its PIDs, so PID 1 is boot, and visible.
    for file in ["environ", "maps", "mem", "fd", "root/", "cwd/", "ns/user"] {
        let answer = container
            .exec(&format!("head -c 1 /proc/1/{file} || ls -A /proc/1/{file} | grep -v ^/proc/1/"));
        assert_ne!(answer.code, 0, "/proc/1/{file} of boot: {answer:?}");
    }
    assert_ne!(container.exec("kill -9 1").code, 137);
    assert_eq!(container.ask("kill -TERM 1; echo alive"), "alive");
    assert!(pod.is_ready());
}

fn the_proc_of_the_container_is_masked(containerd: Containerd) {
    let container = containerd.container("masked", ["sleep", "1000"]).start();
    let script = "wc -c < /proc/kcore; wc -c < /proc/keys; wc -c < /proc/timer_list; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | tr -d '\\n' | wc -c";
    assert_eq!(container.exec_shell("read", script).1, "0\n0\n0\n0\n");
    let (_, said) = container.exec_shell(
        "written",
        "echo 1 > /proc/sys/vm/swappiness || echo b > /proc/sysrq-trigger || echo refused",
    );
    assert_eq!(said, "refused\n");
}

/// Idmapped: what root inside makes is root's on the volume, as with runc.
fn files_made_inside_belong_to_root_on_a_volume(containerd: Containerd) {
    use std::os::unix::fs::MetadataExt;
    let volume = containerd.directory().join("volume");
    fs::create_dir(&volume).expect("make a directory");
    let script = "touch /volume/of-root; touch /volume/of-alice; chown 1000:1000 /volume/of-alice";
    let container = containerd.shell("writes", script);
    let container = container.bind(&volume.to_string_lossy(), "/volume", &["rbind", "rw"]).start();
    assert_eq!(container.wait().code, 0, "{}", container.stdio().errors());
    for (name, owner) in [("of-root", 0), ("of-alice", 1000)] {
        let file = fs::metadata(volume.join(name)).expect("the file");
        assert_eq!((file.uid(), file.gid()), (owner, owner), "{name}");
    }
}
