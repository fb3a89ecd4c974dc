//! Prints what a process of a container sees and may do, a fact on each line: a
//! key, a space, a value. `integration/tests/fidelity` runs it under two runtimes
//! and compares. Facts that no two runs share (inodes, process IDs) are printed
//! in words.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketType, ipproto, netdevice, socket};
use rustix::process::{dumpable_behavior, getpgrp, getpid, getsid};
use rustix::termios::{isatty, tcgetwinsize};
use rustix::thread::capabilities_secure_bits;

fn main() {
    identity();
    privileges();
    inherited();
    limits();
    names();
    namespaces();
    mounts();
    devices();
    paths();
    sysctls();
    cgroups();
    streams();
    processes();
    network();
    root();
    actions();
}

fn fact(key: impl Display, value: impl Display) {
    let value = value.to_string();
    println!("{key} {}", value.split_whitespace().collect::<Vec<_>>().join(" "));
}

fn read(path: &str) -> String {
    fs::read(path).map_or_else(outcome, |content| String::from_utf8_lossy(&content).into_owned())
}

/// Returns an error in one word.
fn outcome(error: std::io::Error) -> String {
    match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        (None, kind) => kind.to_string(),
    }
}

/// Returns the fields of /proc/self/status.
fn status() -> BTreeMap<String, String> {
    let pairs = read("/proc/self/status");
    let pairs = pairs.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn identity() {
    let status = status();
    for (key, field) in [("uid", "Uid"), ("gid", "Gid"), ("groups", "Groups"), ("umask", "Umask")] {
        fact(key, status.get(field).map_or("none", |value| value));
    }
    for map in ["uid_map", "gid_map"] {
        let text = read(&format!("/proc/self/{map}"));
        let mut numbers: Vec<&str> = text.split_whitespace().collect();
        if numbers.get(1).is_some_and(|first| first.parse().is_ok_and(|first: u64| first > 65535)) {
            numbers[1] = "mapped";
        }
        fact(map, numbers.join(" "));
    }
    fact("setgroups", read("/proc/self/setgroups"));
}

fn privileges() {
    let status = status();
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        fact(field, status.get(field).map_or("none", |value| value));
    }
    let bits = capabilities_secure_bits().map_or(u32::MAX, |bits| bits.bits());
    fact("securebits", bits);
    fact("dumpable", format!("{:?}", dumpable_behavior()));
    fact("label", read("/proc/self/attr/current"));
}

fn inherited() {
    let status = status();
    for field in ["SigBlk", "SigIgn", "Cpus_allowed_list", "Mems_allowed_list"] {
        fact(field, status.get(field).map_or("none", |value| value));
    }
    for name in ["personality", "coredump_filter", "timerslack_ns", "oom_score_adj", "loginuid"] {
        fact(name, read(&format!("/proc/self/{name}")));
    }
    let stat = read("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    // proc(5) counts from 1, and the first two fields come before the parenthesis.
    for (name, number) in [("priority", 18), ("nice", 19), ("rt_priority", 40), ("policy", 41)] {
        fact(name, fields.get(number - 3).unwrap_or(&"none"));
    }
    fact("ioprio", shell("ionice -p $$"));
    let mut open: Vec<String> = fs::read_dir("/proc/self/fd")
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into()).collect())
        .unwrap_or_default();
    open.sort();
    // The last is the one that reads the directory.
    open.pop();
    fact("descriptors", open.join(","));
}

fn limits() {
    for line in read("/proc/self/limits").lines().skip(1) {
        let (name, values) = line.split_at_checked(26).unwrap_or((line, ""));
        let values: Vec<&str> = values.split_whitespace().take(2).collect();
        fact(format!("rlimit.{}", name.trim().replace(' ', "-")), values.join(" "));
    }
}

fn names() {
    fact("cwd", link("/proc/self/cwd"));
    for (name, value) in std::env::vars_os() {
        fact(format!("env.{}", text(&name)), text(&value));
    }
    fact("args", std::env::args_os().map(|arg| text(&arg)).collect::<Vec<_>>().join(","));
    for name in ["hostname", "domainname"] {
        fact(name, read(&format!("/proc/sys/kernel/{name}")));
    }
}

fn text(bytes: &OsString) -> String {
    bytes.as_bytes().escape_ascii().to_string()
}

fn link(path: &str) -> String {
    fs::read_link(path).map_or_else(outcome, |target| target.display().to_string())
}

/// The test knows which of them are the host's.
fn namespaces() {
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        fact(format!("ns.{kind}"), link(&format!("/proc/self/ns/{kind}")));
    }
}

/// The part of a mount that is its file system's business and differs by run.
const PLACES: [&str; 3] = ["lowerdir=", "upperdir=", "workdir="];

fn mounts() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in read("/proc/self/mountinfo").lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) =
            (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(place), Some(options)) = (left.get(3), left.get(4), left.get(5))
        else {
            continue;
        };
        let propagation: Vec<&str> =
            left[6..].iter().map(|tag| tag.split(':').next().unwrap_or("")).collect();
        let count = seen.entry((*place).to_owned()).or_default();
        *count += 1;
        let again = if *count > 1 { format!("#{count}") } else { String::new() };
        let kind = right.first().unwrap_or(&"");
        fact(format!("mount.{place}{again}.type"), kind);
        fact(format!("mount.{place}{again}.options"), sorted(options));
        fact(format!("mount.{place}{again}.propagation"), propagation.join(","));
        let filesystem = right.get(2).unwrap_or(&"");
        if is_mapped(options) || is_mapped(filesystem) {
            fact(format!("mount.{place}{again}.mapped"), "yes");
        }
        if !["ext4", "overlay", "xfs", "btrfs"].contains(kind) {
            fact(format!("mount.{place}{again}.root"), root);
            fact(format!("mount.{place}{again}.filesystem"), sorted(filesystem));
        }
    }
}

/// Returns the options in their order, without what [`is_mapped`] reports.
fn sorted(options: &str) -> String {
    let mut options: Vec<String> = options.split(',').filter_map(without_mapping).collect();
    options.sort_unstable();
    options.join(",")
}

/// Replaces an ID of the host by the container's. Sandboxes have slices of 65536
/// IDs, and the kernel shows no ID that is 0.
fn without_mapping(option: &str) -> Option<String> {
    // The kernel's default, which some kernels show.
    let default = option == "inode64";
    if default || option == "idmapped" || PLACES.iter().any(|place| option.starts_with(place)) {
        return None;
    }
    match mapped_id(option) {
        Some((_, 0)) => None,
        Some((key, id)) => Some(format!("{key}={id}")),
        None => Some(option.to_owned()),
    }
}

/// Returns the key and the container's ID of an option such as `uid=1073741824`.
fn mapped_id(option: &str) -> Option<(&str, u64)> {
    let (key, id) = option.split_once('=')?;
    let id: u64 = id.parse().ok()?;
    ((key == "uid" || key == "gid") && id > 65535).then_some((key, id % 65536))
}

/// Whether an option shows the sandbox's IDs.
fn is_mapped(options: &str) -> bool {
    options.split(',').any(|option| option == "idmapped" || mapped_id(option).is_some())
}

/// The devices that are opened. To open a watchdog, a terminal or a tape has
/// effects on the host.
const HARMLESS: [&str; 9] =
    ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fuse", "mine"];

fn devices() {
    let mut names: Vec<String> = fs::read_dir("/dev")
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into()).collect())
        .unwrap_or_default();
    names.sort();
    // A host makes and removes some of them as they are used.
    names.retain(|name| !name.starts_with("vcs") && !name.starts_with("loop"));
    for name in &names {
        let path = format!("/dev/{name}");
        describe(&format!("dev.{name}"), &path);
        if HARMLESS.contains(&name.as_str()) {
            fact(format!("dev.{name}.open"), opened(&path, OFlags::RDWR));
        }
    }
}

fn describe(key: &str, path: &str) {
    match fs::symlink_metadata(path) {
        Err(error) => fact(key, outcome(error)),
        Ok(found) => fact(key, describe_file(&found, path)),
    }
}

fn describe_file(found: &Metadata, path: &str) -> String {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_symlink() => return format!("link {}", link(path)),
        () if kind.is_dir() => "directory".to_owned(),
        () if kind.is_file() => "file".to_owned(),
        () if kind.is_fifo() => "fifo".to_owned(),
        () if kind.is_socket() => "socket".to_owned(),
        () if kind.is_char_device() => format!("character {}", device(found.rdev())),
        () if kind.is_block_device() => format!("block {}", device(found.rdev())),
        () => "something".to_owned(),
    };
    format!("{what} {:o} {}:{}", found.permissions().mode() & 0o7777, found.uid(), found.gid())
}

fn device(number: u64) -> String {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    // Numbers of terminals come as they are free.
    if major == 136 { "136:any".to_owned() } else { format!("{major}:{minor}") }
}

fn opened(path: &str, flags: OFlags) -> String {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(_) => "yes".to_owned(),
        Err(error) => outcome(error.into()),
    }
}

/// What runtimes mask, make read-only, or leave.
const PATHS: [&str; 40] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/proc/1/environ",
    "/proc/1/exe",
    "/proc/1/root",
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/cpuinfo",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/self/mem",
    "/proc/slabinfo",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/msgmax",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/module",
];

fn paths() {
    for path in PATHS {
        describe(&format!("path.{path}"), path);
        let Ok(found) = fs::metadata(path) else { continue };
        if found.is_dir() {
            let entries = fs::read_dir(path).map(|entries| entries.count());
            let shown =
                entries.map_or_else(outcome, |n| if n == 0 { "empty" } else { "full" }.into());
            fact(format!("path.{path}.list"), shown);
            continue;
        }
        fact(format!("path.{path}.read"), first_byte(path));
        fact(format!("path.{path}.write"), opened(path, OFlags::WRONLY));
    }
}

/// Returns whether a file can be read and has something to read.
fn first_byte(path: &str) -> String {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(error) => return outcome(error.into()),
    };
    match File::from(file).read(&mut [0]) {
        Ok(0) => "empty".to_owned(),
        Ok(_) => "yes".to_owned(),
        Err(error) if error.kind() == ErrorKind::WouldBlock => "yes".to_owned(),
        Err(error) => outcome(error),
    }
}

const SYSCTLS: [&str; 17] = [
    "fs.mqueue.msg_max",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "net.core.somaxconn",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_keepalive_time",
    "user.max_user_namespaces",
    "vm.overcommit_memory",
];

fn sysctls() {
    for name in SYSCTLS {
        fact(format!("sysctl.{name}"), read(&format!("/proc/sys/{}", name.replace('.', "/"))));
    }
}

fn cgroups() {
    let unified = !read("/proc/self/cgroup").lines().any(|line| line.contains(":memory:"));
    let version = if unified { "cgroup2" } else { "cgroup1" };
    for line in read("/proc/self/cgroup").lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (name, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let name = if name.is_empty() { "unified" } else { name };
        fact(format!("{version}.{name}.path"), path);
    }
    let files: &[&str] = if unified {
        &["cgroup.procs", "cgroup.subtree_control", "cpu.max", "memory.max", "pids.max"]
    } else {
        &[
            "memory/memory.limit_in_bytes",
            "memory/cgroup.procs",
            "cpu/cpu.cfs_quota_us",
            "cpu/cpu.shares",
            "pids/pids.max",
            "systemd/cgroup.procs",
        ]
    };
    for file in files {
        let path = format!("/sys/fs/cgroup/{file}");
        if Path::new(&path).exists() {
            fact(format!("{version}.{file}.write"), opened(&path, OFlags::WRONLY));
            if !file.ends_with("procs") {
                fact(format!("{version}.{file}"), read(&path));
            }
        }
    }
}

fn streams() {
    for (number, name) in ["stdin", "stdout", "stderr"].iter().enumerate() {
        let path = format!("/proc/self/fd/{number}");
        let found = fs::metadata(&path);
        fact(name, found.map_or_else(outcome, |found| describe_file(&found, &path)));
        let flags = if number == 0 { OFlags::RDONLY } else { OFlags::WRONLY };
        fact(format!("{name}.again"), opened(&format!("/dev/{name}"), flags));
    }
    if isatty(rustix::stdio::stdout()) {
        let size = tcgetwinsize(rustix::stdio::stdout());
        fact("terminal", size.map_or("?".into(), |s| format!("{}x{}", s.ws_col, s.ws_row)));
        fact("terminal.name", link("/proc/self/fd/1"));
    }
    fact("terminal.controlling", opened("/dev/tty", OFlags::RDWR));
}

fn processes() {
    let (pid, session) = (getpid(), getsid(None).ok());
    fact("pid.1", if pid.is_init() { "itself" } else { "another" });
    fact("session", if session == Some(pid) { "its own" } else { "another's" });
    fact("group", if getpgrp() == pid { "its own" } else { "another's" });
    let others = fs::read_dir("/proc").map(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.parse::<i32>().is_ok()).count()
    });
    fact(
        "processes",
        others.map_or_else(outcome, |n| if n > 5 { "many".into() } else { n.to_string() }),
    );
}

fn network() {
    let devices = read("/proc/net/dev");
    let mut names: Vec<&str> =
        devices.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    names.sort_unstable();
    // Those of a host come and go.
    fact("interfaces", if names.len() > 3 { "many".to_owned() } else { names.join(",") });
    let up = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.send_to(b"x", "127.0.0.1:9"));
    fact("loopback", up.map_or_else(outcome, |_| "up".into()));
    fact(
        "index-of-loopback",
        socket(AddressFamily::INET, SocketType::DGRAM, None)
            .and_then(|s| netdevice::name_to_index(&s, "lo"))
            .map_or_else(|e| outcome(e.into()), |n| n.to_string()),
    );
}

fn root() {
    for path in ["/", "/bin", "/etc", "/tmp", "/home/alice", "/proc", "/sys", "/dev", "/root"] {
        describe(&format!("file.{path}"), path);
    }
}

/// What a process tries, each in a shell of its own: `yes` if it succeeds.
const ACTIONS: [(&str, &str); 26] = [
    ("chown", "touch /tmp/f1 && chown 1000:1000 /tmp/f1"),
    ("chown-65535", "touch /tmp/f2 && chown 65535 /tmp/f2"),
    ("chown-70000", "touch /tmp/f3 && chown 70000 /tmp/f3"),
    ("chroot", "chroot / true"),
    ("device-null", "mknod /tmp/null c 1 3 && echo > /tmp/null"),
    ("device-mem", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem > /dev/null"),
    ("device-block", "mknod /tmp/block b 8 0"),
    ("fifo", "mkfifo /tmp/fifo"),
    ("file-in-root", "touch /new"),
    ("hostname", "hostname other"),
    ("kill-init", "kill -0 1"),
    ("lower-oom-score", "echo -5 > /proc/self/oom_score_adj"),
    ("raise-oom-score", "echo 900 > /proc/self/oom_score_adj"),
    ("lower-nice", "nice -n -5 true"),
    ("mount-tmpfs", "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m"),
    ("mount-bind", "mkdir -p /tmp/m && mount -o bind /bin /tmp/m && umount /tmp/m"),
    ("mount-proc", "mkdir -p /tmp/m && mount -t proc proc /tmp/m && umount /tmp/m"),
    ("unmount", "umount /dev/mqueue"),
    ("remount-proc-writable", "mount -o remount,rw,bind /proc/sys"),
    ("setuid-bit", "cp /bin/busybox /tmp/b && chmod 4755 /tmp/b && [ -u /tmp/b ]"),
    ("become-alice", "su alice -s /bin/sh -c true"),
    ("unshare-user", "unshare -U true"),
    ("unshare-mount", "unshare -m true"),
    ("unshare-net", "unshare -n true"),
    ("add-address", "ip address add 10.99.0.1/32 dev lo"),
    ("more-files", "ulimit -Hn 2000000"),
];

fn actions() {
    let port = TcpListener::bind("127.0.0.1:80").map_or_else(outcome, |_| "yes".into());
    fact("may.port-80", port);
    let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP));
    fact("may.raw-socket", raw.map_or_else(|e| outcome(e.into()), |_| "yes".into()));
    let ping = socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP));
    fact("may.ping-socket", ping.map_or_else(|e| outcome(e.into()), |_| "yes".into()));
    let packet = socket(AddressFamily::PACKET, SocketType::RAW, None);
    fact("may.packet-socket", packet.map_or_else(|e| outcome(e.into()), |_| "yes".into()));
    for (name, script) in ACTIONS {
        // What one does to the mounts, another must not see.
        let tried = Command::new("/bin/busybox")
            .args(["sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let shown = match tried {
            Ok(status) if status.success() => "yes".to_owned(),
            Ok(_) => "no".to_owned(),
            Err(error) => outcome(error),
        };
        fact(format!("may.{name}"), shown);
    }
}

fn shell(script: &str) -> String {
    let output = Command::new("/bin/busybox").args(["sh", "-c", script]).output();
    output.map_or_else(outcome, |output| String::from_utf8_lossy(&output.stdout).into_owned())
}
