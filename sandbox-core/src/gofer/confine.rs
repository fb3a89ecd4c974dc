//! What the gofer gives up, once no hook is left to run: hooks are programs of the host with all
//! rights of its root.
//!
//! The gofer stays root of the host, which mounts: a gofer that was taken over has the host's
//! files in any case. What it loses are the roads that lead on from there without a trace (a
//! program, a module of the kernel, another process, a socket) and most of the kernel's code
//! in which there could be a fault.

use std::ffi::c_long;

use caps::{CapSet, Capability, CapsHashSet};
use rustix::thread::set_no_new_privs;

use crate::error::{Context, Error, Result};
use crate::sys::confine::{allow_only, leave_others_alone};

/// The capabilities that the gofer keeps, and for what.
const NEEDED: [Capability; 15] = [
    // To mount, to enter namespaces, and for layers' attributes ("trusted.").
    Capability::CAP_SYS_ADMIN,
    // To leave the mount namespace of hooks (setns(2)).
    Capability::CAP_SYS_CHROOT,
    // To make files as the containers' root (setfsuid(2)), and ID maps that hold ID 0.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETFCAP,
    // Device nodes.
    Capability::CAP_MKNOD,
    // An overlay works with the capabilities of the process that has mounted it, for as long as
    // it is mounted: all that count for files.
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_LEASE,
    Capability::CAP_LINUX_IMMUTABLE,
    Capability::CAP_MAC_ADMIN,
    Capability::CAP_MAC_OVERRIDE,
];

/// The system calls that the gofer makes, by what they are for. The tests of the gofer make all
/// of the first four groups; the last group is what an allocator, a signal or the C library of
/// another build may need besides.
const CALLS: &[c_long] = &[
    // Mounts and namespaces.
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // Files.
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Channels.
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_socketpair,
    // Itself, and its children.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_seccomp,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_uname,
    libc::SYS_waitid,
    // Memory, time, signals.
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_gettimeofday,
    libc::SYS_kill,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];

/// Those that only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[c_long] = &[];

/// Keeps what the rest of the work takes.
pub(super) fn confine() -> Result<()> {
    set_no_new_privs(true).context(|| "prctl PR_SET_NO_NEW_PRIVS")?;
    // A container of the host's, in which containerd runs, may have fewer.
    let held = caps::read(None, CapSet::Permitted).map_err(|e| failed(&e))?;
    let kept: CapsHashSet = NEEDED.into_iter().filter(|needed| held.contains(needed)).collect();
    caps::set(None, CapSet::Effective, &kept).map_err(|e| failed(&e))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(|e| failed(&e))?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(|e| failed(&e))?;
    leave_others_alone().context(|| "landlock_restrict_self")?;
    match allow_only(&[CALLS, OLD_CALLS].concat()) {
        // A kernel that was built without filters. A list that is wrong fails in the tests.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(()),
        loaded => loaded.context(|| "load the gofer's filter"),
    }
}

fn failed(error: &caps::errors::CapsError) -> Error {
    Error::internal(format!("set the gofer's capabilities: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};

    use super::*;

    /// What this process tries once it is confined, by its name.
    const TRIALS: [(&str, fn()); 4] = [
        ("a program", || drop(Command::new("/bin/true").status())),
        ("another process's memory", || {
            let _ = nix::sys::ptrace::attach(nix::unistd::Pid::from_raw(1));
        }),
        ("a socket", || {
            use rustix::net::{AddressFamily, SocketType, socket};
            drop(socket(AddressFamily::INET, SocketType::STREAM, None));
        }),
        ("a keyring", || drop(crate::sys::process::join_session_keyring(c"mine"))),
    ];

    /// Returns what this process can do to the one that started it, which is root's too.
    fn reached() -> Vec<&'static str> {
        let parent = rustix::process::getppid().expect("a process that waits");
        let of_parent = |name: &str| format!("/proc/{}/{name}", parent.as_raw_pid());
        let write = |path| std::fs::OpenOptions::new().write(true).open(path);
        let tried = [
            ("memory", write(of_parent("mem")).is_ok()),
            ("files", std::fs::read_dir(of_parent("root")).is_ok()),
            ("descriptors", std::fs::read_link(of_parent("fd/0")).is_ok()),
            ("signals", rustix::process::test_kill_process(parent).is_ok()),
        ];
        tried.into_iter().filter(|(_, could)| *could).map(|(name, _)| name).collect()
    }

    /// Runs alone in a process of its own, which the test below starts.
    #[test]
    fn one_trial() {
        let Ok(name) = std::env::var("CONFINED_TRIAL") else { return };
        println!("before: {:?}", reached());
        confine().expect("confine this thread");
        println!("after: {:?}", reached());
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("read it");
        let held = status.lines().filter(|line| {
            ["CapPrm", "CapEff", "CapInh", "NoNewPrivs", "Seccomp:"]
                .iter()
                .any(|name| line.starts_with(name))
        });
        println!("held {}", held.collect::<Vec<_>>().join(" "));
        let trial = TRIALS.iter().find(|(trial, _)| *trial == name);
        trial.expect("a trial").1();
        println!("survived");
    }

    fn run_trial(name: &str) -> (ExitStatus, String) {
        let mut test = Command::new(std::env::current_exe().expect("this program"));
        test.args(["--exact", "gofer::confine::tests::one_trial", "--nocapture"]);
        test.env("CONFINED_TRIAL", name).stderr(Stdio::null());
        let ran = test.output().expect("run this program again");
        (ran.status, String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    #[test]
    fn the_gofer_reaches_no_process_beside_it() {
        let (_, printed) = run_trial(TRIALS[0].0);
        let all = r#"before: ["memory", "files", "descriptors", "signals"]"#;
        assert!(printed.contains(all), "attempts that fail anyhow: {printed}");
        // It binds the thread that asks.
        let known = std::thread::spawn(leave_others_alone).join().expect("a thread");
        let left = if known.expect("ask the kernel") { "[]" } else { r#"["signals"]"# };
        assert!(printed.contains(&format!("after: {left}")), "{printed}");
    }

    #[test]
    fn what_the_gofer_does_not_do_kills_it() {
        for (name, _) in TRIALS {
            let (status, printed) = run_trial(name);
            assert!(printed.contains("NoNewPrivs:\t1 Seccomp:\t2"), "{name}: {printed}");
            let of_kept = NEEDED.iter().fold(0u64, |mask, kept| mask | kept.bitmask());
            let kept = |line: &str| {
                let found = printed.split(line).nth(1).and_then(|rest| rest.split(' ').next());
                let found = found.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
                found.unwrap_or_else(|| panic!("no {line} in {printed}"))
            };
            for set in ["CapPrm:\t", "CapEff:\t"] {
                assert_eq!(kept(set) & !of_kept, 0, "{name}: {printed}");
            }
            assert_eq!(kept("CapInh:\t"), 0);
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {printed}");
            assert!(!printed.contains("survived"), "{name}");
        }
    }
}
