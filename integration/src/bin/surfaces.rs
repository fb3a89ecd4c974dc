//! The parts of the kernel that a process reaches, as docs/threat-model.md lists them: tests bind
//! this program into a container. It prints a line for each, with the kernel's answer: `reached`,
//! or the name of the errno with which the call was refused. A call reached its part of the kernel
//! if it was done, or failed for a reason of that part, such as a descriptor that is none.

use std::process::Command;

use nix::errno::Errno;
use nix::libc;

/// A surface, and the call that tries it.
type Surface = (&'static str, fn() -> Result<(), Errno>);

const SURFACES: [Surface; 27] = [
    ("user namespace by unshare", || call(libc::SYS_unshare, [NEW_USER, 0, 0, 0], &[])),
    ("user namespace by clone", by_clone),
    ("user namespace by clone3", by_clone3),
    ("user namespace after writing the limit", after_writing),
    ("io_uring", || call(libc::SYS_io_uring_setup, [1, 0, 0, 0], &[Errno::EFAULT])),
    ("bpf", || call(libc::SYS_bpf, [15, 0, 0, 0], &[Errno::EINVAL, Errno::EBADF, Errno::EFAULT])),
    ("perf", || call(libc::SYS_perf_event_open, [0, 0, -1, -1], &[Errno::EFAULT, Errno::EINVAL])),
    ("userfaultfd", || call(libc::SYS_userfaultfd, [1, 0, 0, 0], &[])),
    ("add_key", || call(libc::SYS_add_key, [0, 0, 0, 0], &[Errno::EFAULT])),
    ("request_key", || call(libc::SYS_request_key, [0, 0, 0, 0], &[Errno::EFAULT])),
    ("keyctl", || call(libc::SYS_keyctl, [0, -3, 0, 0], &[Errno::EACCES, Errno::ENOKEY])),
    ("AF_ALG", || family(libc::SYS_socket, 38)),
    ("AF_VSOCK", || family(libc::SYS_socket, 40)),
    ("AF_XDP", || family(libc::SYS_socket, 44)),
    ("AF_ALG with high bits", || family(libc::SYS_socket, 38 | HIGH)),
    ("socketpair of AF_TIPC", || family(libc::SYS_socketpair, 30)),
    ("TCP_ULP", tcp_ulp),
    ("MSG_OOB by sendto", || out_of_band(Send::To)),
    ("MSG_OOB by sendmsg", || out_of_band(Send::Message)),
    ("MSG_OOB by sendmmsg", || out_of_band(Send::Messages)),
    ("TIOCSTI", || call(libc::SYS_ioctl, [-1, 0x5412, 0, 0], &[Errno::EBADF])),
    ("TIOCSTI with high bits", || {
        call(libc::SYS_ioctl, [-1, 0x5412 | HIGH, 0, 0], &[Errno::EBADF])
    }),
    ("personality", || call(libc::SYS_personality, [0x0040_0000, 0, 0, 0], &[])),
    ("obsolete calls", obsolete),
    ("socketcall of i386", || i386(102, 1, &[Errno::EFAULT])),
    ("AF_ALG by i386", || i386(359, 38, &[Errno::EINVAL])),
    ("io_uring by i386", || i386(425, 1, &[Errno::EFAULT])),
];

/// Surfaces that only the strict baseline shuts, tried if an argument asks for them.
const STRICT: [Surface; 6] = [
    ("multicast", || call(libc::SYS_setsockopt, [-1, 0, 35, 0], &[Errno::EBADF])),
    ("multicast of IPv6", || call(libc::SYS_setsockopt, [-1, 41, 20, 0], &[Errno::EBADF])),
    ("ptrace", || call(libc::SYS_ptrace, [16, -1, 0, 0], &[Errno::ESRCH])),
    ("mount", || call(libc::SYS_open_tree, [-1, 0, -1, 0], &[Errno::EINVAL])),
    ("remap_file_pages", || call(libc::SYS_remap_file_pages, [1, 0, 1, 0], &[Errno::EINVAL])),
    ("i386", || i386(20, 0, &[])),
];

/// Calls that take a capability, tried if an argument asks for them. All that is passed for an
/// address is null: who may, gets no further.
const MIGHTY: [Surface; 21] = [
    ("bind mount", || call(libc::SYS_mount, [0, 0, 0, 0x1000], &[])),
    ("umount2", || call(libc::SYS_umount2, [0, 2, 0, 0], &[])),
    ("pivot_root", || call(libc::SYS_pivot_root, [0, 0, 0, 0], &[])),
    ("fsopen", || call(libc::SYS_fsopen, [0, 0, 0, 0], &[])),
    ("setns", || call(libc::SYS_setns, [-1, 0, 0, 0], &[])),
    ("unshare of mounts", || call(libc::SYS_unshare, [0x2_0000, 0, 0, 0], &[])),
    ("sethostname", || call(libc::SYS_sethostname, [0, 0, 0, 0], &[])),
    ("chroot", || call(libc::SYS_chroot, [0, 0, 0, 0], &[])),
    ("device", || call(libc::SYS_mknodat, [-100, 0, 0o020_600, 0x101], &[])),
    ("raw socket", || call(libc::SYS_socket, [2, 3 | 0x8_0000, 1, 0], &[])),
    ("packets", || call(libc::SYS_socket, [17, 2, 0, 0], &[])),
    ("reboot", || call(libc::SYS_reboot, [0, 0, 0, 0], &[])),
    ("module", || call(libc::SYS_finit_module, [-1, 0, 0, 0], &[])),
    ("kexec", || call(libc::SYS_kexec_load, [0, 0, 0, 0], &[])),
    ("swapon", || call(libc::SYS_swapon, [0, 0, 0, 0], &[])),
    ("acct", || call(libc::SYS_acct, [0, 0, 0, 0], &[])),
    ("clock", || call(libc::SYS_clock_settime, [0, 0, 0, 0], &[])),
    ("file handle", || call(libc::SYS_open_by_handle_at, [-1, 0, 0, 0], &[])),
    ("vhangup", || call(libc::SYS_vhangup, [0, 0, 0, 0], &[])),
    // Two that take none.
    ("pipe node", || call(libc::SYS_mknodat, [-100, 0, 0o010_600, 0], &[])),
    ("datagrams", || call(libc::SYS_socket, [2, 2, 0, 0], &[])),
];

const NEW_USER: i64 = libc::CLONE_NEWUSER as i64;
/// Bits that the kernel cuts off.
const HIGH: i64 = 0x1_0000_0000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["one", name] => one(name),
        ["strict"] => all(&STRICT),
        ["mighty"] => all(&MIGHTY),
        ["some", ref names @ ..] => {
            let known = |name: &&str| surface(name);
            all(&names.iter().map(known).collect::<Vec<_>>());
        }
        ["named", program] => {
            rename(program);
            one("bpf");
        }
        ["flood", seconds] => flood(seconds.parse().expect("seconds"), false),
        ["invent", seconds] => flood(seconds.parse().expect("seconds"), true),
        _ => all(&SURFACES),
    }
}

/// Tries each in a process of its own.
fn all(surfaces: &[Surface]) {
    for (name, _) in surfaces {
        let tried = Command::new("/proc/self/exe").args(["one", name]).output().expect("run again");
        let answer = String::from_utf8_lossy(&tried.stdout);
        println!("{name}: {}", if answer.is_empty() { "killed" } else { answer.trim() });
    }
}

fn surface(name: &str) -> Surface {
    let mut all = SURFACES.iter().chain(&STRICT).chain(&MIGHTY);
    *all.find(|(known, _)| *known == name).expect("a surface")
}

/// Gives this process the name of another program.
fn rename(program: &str) {
    std::fs::write("/proc/self/comm", program).expect("take a name");
}

/// Makes refused calls as fast as possible: the same one, or others under other names.
fn flood(seconds: u64, invents: bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    let one = move |thread: i64| {
        for number in 0.. {
            if std::time::Instant::now() >= end {
                return number;
            }
            if invents {
                rename(&format!("p{thread}-{number}"));
                let _ = call(libc::SYS_personality, [0x40_0000 + (number << 8), 0, 0, 0], &[]);
            } else {
                let _ = call(libc::SYS_bpf, [0, 0, 0, 0], &[]);
            }
        }
        0
    };
    let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(move || one(n))).collect();
    let calls: i64 = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
    println!("{calls}");
}

fn one(name: &str) {
    match surface(name).1() {
        Ok(()) => println!("reached"),
        Err(errno) => println!("{errno:?}"),
    }
}

/// Makes a system call. `within` are the errors by which the part of the kernel that is called
/// answers.
fn call(number: i64, args: [i64; 4], within: &[Errno]) -> Result<(), Errno> {
    let [a, b, c, d] = args;
    // SAFETY: what is passed for an address is null, or is valid for the whole call.
    let result = unsafe { libc::syscall(number, a, b, c, d, 0) };
    match Errno::result(result) {
        Err(errno) if !within.contains(&errno) => Err(errno),
        _ => Ok(()),
    }
}

fn by_clone() -> Result<(), Errno> {
    // SAFETY: without CLONE_VM the child is a copy, and only ends.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, NEW_USER | i64::from(libc::SIGCHLD), 0, 0, 0, 0) };
    end_child(pid)
}

fn by_clone3() -> Result<(), Errno> {
    // struct clone_args: the flags, and the signal at its end.
    let args: [u64; 8] = [NEW_USER as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    // SAFETY: the arguments have their length, and the child is a copy that only ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    end_child(pid)
}

fn end_child(pid: i64) -> Result<(), Errno> {
    match Errno::result(pid)? {
        // SAFETY: it ends at once, without any destructor.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn after_writing() -> Result<(), Errno> {
    let _ = std::fs::write("/proc/sys/user/max_user_namespaces", "1000");
    call(libc::SYS_unshare, [NEW_USER, 0, 0, 0], &[])
}

/// The kernel looks at the type, which is none, or at the address, before the family.
fn family(number: i64, family: i64) -> Result<(), Errno> {
    call(number, [family, 15, 0, 0], &[Errno::EINVAL, Errno::EFAULT])
}

fn tcp_ulp() -> Result<(), Errno> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let name = b"none\0";
    let fd = i64::from(std::os::fd::AsRawFd::as_raw_fd(&socket));
    // SAFETY: the name has its length.
    let result =
        unsafe { libc::syscall(libc::SYS_setsockopt, fd, 6, 31, name.as_ptr(), name.len()) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

enum Send {
    To,
    Message,
    Messages,
}

fn out_of_band(how: Send) -> Result<(), Errno> {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let mut byte = [1u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: all zeros are a message without parts.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    let sent = match how {
        // SAFETY: the byte is there.
        Send::To => unsafe { libc::send(fd, byte.as_ptr().cast(), 1, libc::MSG_OOB) as i64 },
        // SAFETY: the message has one part, which is there.
        Send::Message => unsafe {
            libc::sendmsg(fd, &raw const message.msg_hdr, libc::MSG_OOB) as i64
        },
        // SAFETY: there is one message, with one part.
        Send::Messages => unsafe {
            libc::syscall(libc::SYS_sendmmsg, fd, &raw mut message, 1, libc::MSG_OOB)
        },
    };
    Errno::result(sent).map(|_| ())
}

/// ustat(2) and sysfs(2), on machines that have them.
#[cfg(target_arch = "x86_64")]
fn obsolete() -> Result<(), Errno> {
    call(libc::SYS_ustat, [0, 0, 0, 0], &[Errno::EINVAL, Errno::EFAULT])
        .or_else(|_| call(libc::SYS_sysfs, [3, 0, 0, 0], &[]))
}

#[cfg(not(target_arch = "x86_64"))]
fn obsolete() -> Result<(), Errno> {
    call(libc::SYS_lookup_dcookie, [0, 0, 0, 0], &[Errno::EPERM, Errno::EINVAL, Errno::EFAULT])
}

/// Makes a call of i386, whose numbers and arguments are others. Where the kernel runs none, the
/// process is killed.
#[cfg(target_arch = "x86_64")]
fn i386(number: i64, first: i64, within: &[Errno]) -> Result<(), Errno> {
    let result: i64;
    // SAFETY: the kernel changes no register but rax and those of x86-64's calls, and rbx is put
    // back. The second argument is 15, as a type of sockets none, and as an address unmapped.
    unsafe {
        std::arch::asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) first => _,
            inout("rax") number => result,
            in("rcx") 15_i64,
            in("rdx") 0_i64,
            in("rsi") 0_i64,
            in("rdi") 0_i64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let result = i64::from(result as i32);
    match result {
        -4095..0 if !within.contains(&Errno::from_raw(-result as i32)) => {
            Err(Errno::from_raw(-result as i32))
        }
        _ => Ok(()),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn i386(_: i64, _: i64, _: &[Errno]) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}
