//! What a hostile container does that no shell can: the mount API of descriptors,
//! other processes by pidfd, races. Tests bind it into a container and read what
//! it says: a line for each attack that succeeded, then `done`.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat};
use rustix::mount::{
    FsPickFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_reconfigure,
    fsconfig_set_flag, fspick, move_mount, unmount,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sandbox_core::sys::mount::{
    AttrChange, Depth, FsContext, attach_at, clone_mount, mount_setattr,
};

const READ_ONLY: u64 = 0x1;
const NO_EXEC: u64 = 0x8;
/// Read-only, nosuid, nodev, noexec.
const FLAGS: [u64; 4] = [READ_ONLY, 0x2, 0x4, NO_EXEC];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["mounts"] => mounts_everywhere(),
        ["process", pid] => process(pid.parse().expect("a PID")),
        ["newborns"] => newborns(),
        ["executable"] => executable(),
        _ => panic!("attacker: mounts, process PID, newborns or executable"),
    }
    println!("done");
}

fn tell(succeeded: bool, attack: impl FnOnce() -> String) {
    if succeeded {
        println!("{}", attack());
    }
}

fn path(path: &str) -> Option<OwnedFd> {
    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// With all that the container has, and again in namespaces of its own.
fn mounts_everywhere() {
    mounts("");
    let both = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    for (more, place) in [
        (CloneFlags::CLONE_NEWNS, "in a mount namespace of its own: "),
        (CloneFlags::CLONE_NEWCGROUP, "in a cgroup namespace of its own: "),
        (CloneFlags::CLONE_NEWNET, "in a network namespace of its own: "),
        (both, "in a user namespace of its own: "),
        (CloneFlags::CLONE_NEWCGROUP, "in a cgroup namespace of that: "),
        (CloneFlags::CLONE_NEWNET, "in a network namespace of that: "),
    ] {
        match unshare(more) {
            Ok(()) => mounts(place),
            Err(e) => println!("{place}{e}"),
        }
    }
}

/// The test has masked, protected and bound these. Each mount below is locked.
fn mounts(place: &str) {
    for at in ["/", "/volume", "/proc", "/proc/sys", "/proc/kcore", "/sys", "/sys/firmware"] {
        let Some(target) = path(at) else { continue };
        let wanted = match at {
            "/volume" => &FLAGS[..],
            // Not read-only: a file is hidden by the null device.
            "/proc" | "/proc/kcore" => &[],
            _ => &FLAGS[..1],
        };
        for clear in wanted.iter().copied() {
            let change = AttrChange { clear, ..AttrChange::default() };
            tell(mount_setattr(&target, Depth::Top, change).is_ok(), || {
                format!("{place}cleared {clear} of {at}")
            });
            for depth in [Depth::Top, Depth::Tree] {
                let Ok(clone) = clone_mount(&target, "", depth) else { continue };
                tell(mount_setattr(&clone, Depth::Top, change).is_ok(), || {
                    format!("{place}cleared {clear} of a clone of {at} ({depth:?})")
                });
            }
        }
        if at == "/" {
            continue;
        }
        tell(unmount(at, UnmountFlags::empty()).is_ok(), || format!("{place}unmounted {at}"));
        tell(unmount(at, UnmountFlags::DETACH).is_ok(), || format!("{place}detached {at}"));
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        tell(move_mount(&target, c"", CWD, c"/tmp", flags).is_ok(), || {
            format!("{place}moved {at} away")
        });
        slip_beneath(place, at);
    }
    uncover(place);
    kernel_file_systems(place);
}

/// A mount below another, which is then taken off.
fn slip_beneath(place: &str, at: &str) {
    let Ok(new) = fresh("tmpfs") else { return };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    if move_mount(&new, c"", CWD, at, flags).is_ok() {
        let off = unmount(at, UnmountFlags::DETACH).is_ok();
        println!("{place}slipped a mount beneath {at}, taken off: {off}");
    }
}

/// A clone without what is mounted below shows what that hides.
fn uncover(place: &str) {
    for (at, hidden) in [("/proc", "kcore"), ("/sys", "firmware"), ("/", "proc/kcore")] {
        let clone = path(at).and_then(|at| clone_mount(at, "", Depth::Top).ok());
        tell(clone.is_some(), || format!("{place}cloned {at} without {hidden}"));
        // A clone with it, in which it is taken off.
        let tree = path(at).and_then(|at| clone_mount(at, "", Depth::Tree).ok());
        if let Some(tree) = tree
            && attach_at(&tree, "/tmp").is_ok()
        {
            let below = format!("/tmp/{hidden}");
            tell(unmount(below.as_str(), UnmountFlags::DETACH).is_ok(), || {
                format!("{place}uncovered {below}")
            });
            let _ = unmount("/tmp", UnmountFlags::DETACH);
        }
    }
}

fn kernel_file_systems(place: &str) {
    for name in ["proc", "sysfs", "debugfs", "securityfs", "tracefs", "bpf", "devtmpfs"] {
        // A BPF file system is the user namespace's own, and empty.
        let harmless = name == "bpf";
        tell(fresh(name).is_ok() && !harmless, || format!("{place}mounted {name}"));
    }
    for (name, option) in [
        ("cgroup2", None),
        ("cgroup", Some("memory")),
        ("cgroup", Some("pids")),
        ("cgroup", Some("devices")),
        ("cgroup", Some("freezer")),
    ] {
        let Ok(mount) = fresh_with(name, option) else { continue };
        let made = mkdirat(&mount, "below", Mode::from_raw_mode(0o755)).is_ok();
        tell(made, || format!("{place}made a cgroup with {name} {option:?}"));
        for file in ["cgroup.procs", "release_agent", "notify_on_release", "memory.max"] {
            let file = openat(&mount, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            tell(file.is_ok(), || format!("{place}opened a file of {name} {option:?}"));
        }
    }
    for at in ["/proc", "/sys", "/", "/volume", "/sys/fs/cgroup", "/sys/fs/cgroup/memory"] {
        let flags = FsPickFlags::FSPICK_CLOEXEC;
        let Ok(context) = fspick(CWD, at, flags) else { continue };
        let _ = fsconfig_set_flag(&context, "rw");
        tell(fsconfig_reconfigure(&context).is_ok(), || format!("{place}reconfigured {at}"));
    }
}

fn fresh(name: &str) -> Result<OwnedFd, String> {
    fresh_with(name, None)
}

fn fresh_with(name: &str, option: Option<&str>) -> Result<OwnedFd, String> {
    let make = || {
        let context = FsContext::open(name)?;
        option.map_or(Ok(()), |option| context.flag(option))?;
        context.create()?;
        context.mount(MountAttrFlags::empty())
    };
    make().map_err(|e: sandbox_core::sys::mount::FsError| e.to_string())
}

/// One that is not the container's: boot, or a copy of it.
fn process(pid: i32) {
    let numbered = nix::unistd::Pid::from_raw(pid);
    tell(nix::sys::ptrace::seize(numbered, nix::sys::ptrace::Options::empty()).is_ok(), || {
        "traced it".to_owned()
    });
    let pidfd = pidfd_open(Pid::from_raw(pid).expect("a PID"), PidfdFlags::empty());
    let pidfd = pidfd.expect("open a pidfd");
    for number in 0..32 {
        let taken = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty());
        tell(taken.is_ok(), || format!("took descriptor {number}"));
    }
    for file in [
        "mem",
        "maps",
        "smaps",
        "pagemap",
        "environ",
        "auxv",
        "io",
        "syscall",
        "stack",
        "exe",
        "personality",
        "fd/0",
        "fd/3",
        "fdinfo/0",
        "root/",
        "cwd/",
        "ns/user",
        "ns/mnt",
        "ns/pid",
        "map_files/",
    ] {
        let file = format!("/proc/{pid}/{file}");
        let read = File::open(&file).is_ok_and(|mut opened| {
            // Some are open to all and refuse to be read.
            opened.metadata().is_ok_and(|m| m.is_dir())
                || std::io::Read::read(&mut opened, &mut [0]).is_ok_and(|n| n > 0)
                || file.contains("/ns/")
        });
        let listed =
            fs::read_dir(&file).is_ok_and(|mut entries| entries.next().is_some_and(|e| e.is_ok()));
        tell(read && !file.ends_with('/') || listed, || format!("opened {file}"));
    }
    for file in ["mem", "uid_map", "gid_map", "setgroups", "timerslack_ns", "attr/current"] {
        let file = format!("/proc/{pid}/{file}");
        let opened = File::options().write(true).open(&file);
        let text = match file.rsplit('/').next() {
            Some("uid_map" | "gid_map") => "0 0 1",
            Some("setgroups") => "deny",
            _ => "0",
        };
        let wrote =
            opened.is_ok_and(|mut f| std::io::Write::write(&mut f, text.as_bytes()).is_ok());
        tell(wrote, || format!("wrote {file}"));
    }
    for flag in [
        CloneFlags::CLONE_NEWUSER,
        CloneFlags::CLONE_NEWNS,
        CloneFlags::CLONE_NEWPID,
        CloneFlags::CLONE_NEWNET,
        CloneFlags::CLONE_NEWCGROUP,
        CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS,
    ] {
        tell(setns(&pidfd, flag).is_ok(), || format!("entered its {flag:?}"));
    }
}

/// Tries to get at each process there is but boot, from its first moment on,
/// until it is killed itself.
fn newborns() {
    println!("waiting");
    let own = std::process::id().cast_signed();
    loop {
        let entries = fs::read_dir("/proc").expect("read /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.filter(|pid| ![1, own].contains(pid)) {
            get_at(pid);
        }
    }
}

/// The shortest ways to what a process has.
fn get_at(pid: i32) {
    for file in ["mem", "environ", "fd/5", "ns/mnt", "exe", "root/", "cwd/"] {
        let opened = File::open(format!("/proc/{pid}/{file}"));
        tell(opened.is_ok(), || format!("opened {file} of {pid}"));
    }
    for file in ["uid_map", "setgroups", "mem"] {
        let opened = File::options().write(true).open(format!("/proc/{pid}/{file}"));
        let wrote = opened.is_ok_and(|mut f| std::io::Write::write(&mut f, b"0 0 1").is_ok());
        tell(wrote, || format!("wrote {file} of {pid}"));
    }
    let traced = nix::sys::ptrace::seize(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::ptrace::Options::empty(),
    );
    tell(traced.is_ok(), || format!("traced {pid}"));
    let Ok(pidfd) = pidfd_open(Pid::from_raw(pid).expect("a PID"), PidfdFlags::empty()) else {
        return;
    };
    for number in [0, 3, 5, 8] {
        let taken = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty());
        tell(taken.is_ok(), || format!("took descriptor {number} of {pid}"));
    }
    for flags in [CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS] {
        tell(setns(&pidfd, flags).is_ok(), || format!("entered {flags:?} of {pid}"));
    }
}

/// Waits for a process that runs the runtime's executable, which lies nowhere,
/// and tries to change that.
fn executable() {
    println!("waiting");
    let runtime = loop {
        let found = fs::read_dir("/proc").expect("read /proc").flatten().find_map(|entry| {
            let link = entry.path().join("exe");
            let detached =
                |link: &std::path::Path| fs::read_link(link).is_ok_and(|to| to.as_os_str() == "/");
            let looks_so = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
            (looks_so && detached(&link))
                .then(|| open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok())?
        });
        if let Some(found) = found
            && fs::read_link(own_link(&found)).is_ok_and(|to| to.as_os_str() == "/")
        {
            break found;
        }
    };
    println!("caught");
    change(&runtime, "");
    let own = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS);
    println!("unshared: {}", own.is_ok());
    change(&runtime, "in a user namespace of its own: ");
}

fn own_link(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn change(runtime: &OwnedFd, place: &str) {
    for (set, clear) in [(0, READ_ONLY), (NO_EXEC, 0)] {
        let change = AttrChange { set, clear, ..AttrChange::default() };
        tell(mount_setattr(runtime.as_fd(), Depth::Top, change).is_ok(), || {
            format!("{place}changed the mount: set {set}, cleared {clear}")
        });
    }
    let clone = clone_mount(runtime, "", Depth::Top);
    tell(clone.is_ok(), || format!("{place}cloned the mount"));
    let link = own_link(runtime);
    let mode = fs::Permissions::from_mode(0o755);
    tell(fs::set_permissions(&link, mode).is_ok(), || format!("{place}changed its mode"));
    tell(File::options().write(true).open(&link).is_ok(), || format!("{place}opened it"));
}
