//! OCI specs as JSON: the defaults of `ctr run` and Kubernetes, which a test
//! changes before it uses them. They are JSON rather than typed structs, since
//! many tests need a spec that is wrong.

use serde_json::{Value, json};

use crate::host;

/// The capabilities that containerd gives an ordinary container.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The capabilities of capabilities(7) that a host of any age has, without
/// their prefix.
const ALL_CAPABILITIES: [&str; 38] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
];

/// Returns a container's spec with containerd's defaults (its package `oci`).
pub fn container<S: AsRef<str>>(args: &[S], cgroups_path: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": { "path": "rootfs" },
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": cgroups_path,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "network" },
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Returns a process that runs as root without new privileges, with
/// containerd's capabilities.
pub fn process<S: AsRef<str>>(args: &[S]) -> Value {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!([
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ])
}

/// Adds a bind mount to a spec.
pub fn add_bind(spec: &mut Value, source: &str, destination: &str, options: &[&str]) {
    let mount = json!({
        "destination": destination, "type": "bind", "source": source, "options": options,
    });
    spec["mounts"].as_array_mut().expect("a spec has mounts").push(mount);
}

/// Makes a container one of the sandbox of another, whose ID is `first`. It joins the namespaces of
/// these kinds of a process there: `network`, `pid`.
pub fn join_sandbox(spec: &mut Value, first: &str, process: i32, kinds: &[&str]) {
    spec["annotations"] = json!({ "io.containerd.runc.v2.group": first });
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    for kind in kinds {
        let file = kind.trim_end_matches("work");
        namespaces.retain(|namespace| namespace["type"] != *kind);
        namespaces.push(json!({ "type": kind, "path": format!("/proc/{process}/ns/{file}") }));
    }
}

/// Gives a process every capability, and the means to gain them again.
pub fn add_all_capabilities(process: &mut Value) {
    add_capabilities(process, |_| true);
}

/// Gives a process every capability that root has on this machine.
pub fn add_capabilities_of_host(process: &mut Value) {
    let mask = host::status(std::process::id().cast_signed(), "CapEff");
    let mask = u64::from_str_radix(&mask, 16).expect("a mask in hexadecimal");
    add_capabilities(process, |number| mask & (1 << number) != 0);
}

fn add_capabilities(process: &mut Value, wanted: impl Fn(usize) -> bool) {
    let named = ALL_CAPABILITIES.iter().enumerate().filter(|(number, _)| wanted(*number));
    let names: Vec<String> = named.map(|(_, name)| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted", "inheritable"] {
        process["capabilities"][set] = names.clone().into();
    }
    process["noNewPrivileges"] = false.into();
}
