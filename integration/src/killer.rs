//! Kills a process, or sends it a signal, at a moment that is the same each time: just before its
//! n-th system call that changes something.

use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The calls that make, remove or change what outlives the process, or tell another process to.
/// By their numbers on x86_64 (`asm/unistd_64.h`).
const CHANGING: [(i64, &str); 20] = [
    (1, "write"),
    (46, "sendmsg"),
    (56, "clone"),
    (58, "vfork"),
    (62, "kill"),
    (82, "rename"),
    (83, "mkdir"),
    (84, "rmdir"),
    (87, "unlink"),
    (88, "symlink"),
    (231, "exit_group"),
    (257, "openat"),
    (258, "mkdirat"),
    (263, "unlinkat"),
    (264, "renameat"),
    (266, "symlinkat"),
    (316, "renameat2"),
    (424, "pidfd_send_signal"),
    (435, "clone3"),
    (2, "open"),
];

/// `O_CREAT`: an open without it changes nothing.
const CREATES: u64 = 0o100;

/// What became of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was killed, or got its signal, just before this call.
    KilledBefore(String),
    /// It ended by itself, after fewer calls.
    Ended,
}

/// A thread that traces a process of one thread.
#[derive(Debug)]
pub struct Killer(JoinHandle<Fate>);

impl Killer {
    /// Begins to trace a process, and kills it just before the call with this number, from 0 on.
    pub fn before(pid: i32, number: usize) -> Killer {
        Killer::sending(Signal::SIGKILL, pid, number)
    }

    /// Begins to trace a process, and sends it a signal just before the call with this number. It
    /// goes on untraced.
    pub fn sending(sent: Signal, pid: i32, number: usize) -> Killer {
        let (traced, traces) = std::sync::mpsc::channel();
        // Only the thread that traces may control the process.
        let killer = thread::spawn(move || {
            let pid = Pid::from_raw(pid);
            ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).expect("trace the process");
            ptrace::interrupt(pid).expect("stop it");
            let stop = waitpid(pid, Some(WaitPidFlag::__WALL)).expect("wait until it has stopped");
            assert!(matches!(stop, WaitStatus::PtraceEvent(..)), "{stop:?}");
            traced.send(()).expect("the one who waits");
            follow(pid, number, sent)
        });
        traces.recv().expect("the process is traced");
        Killer(killer)
    }

    /// Waits for the end of the process, or until it got its signal.
    pub fn fate(self) -> Fate {
        self.0.join().expect("the thread that traces")
    }
}

fn follow(pid: Pid, number: usize, sent: Signal) -> Fate {
    let (mut signal, mut seen) = (None, 0);
    loop {
        match ptrace::syscall(pid, signal.take()) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("let the process go on: {error}"),
        }
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(_)) => {
                let Some(call) = entered(pid) else { continue };
                if seen == number {
                    kill(pid, sent).expect("kill it");
                    match sent {
                        Signal::SIGKILL => _ = waitpid(pid, Some(WaitPidFlag::__WALL)),
                        _ => ptrace::detach(pid, None).expect("let it go on"),
                    }
                    return Fate::KilledBefore(call);
                }
                seen += 1;
            }
            Ok(WaitStatus::Stopped(_, delivered)) => signal = Some(delivered),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Fate::Ended;
            }
            Ok(_) => {}
            Err(error) => panic!("wait for the process: {error}"),
        }
    }
}

/// Returns the name of the call that the process is about to make, if it changes something.
fn entered(pid: Pid) -> Option<String> {
    /// `PTRACE_SYSCALL_INFO_ENTRY` of ptrace(2).
    const ENTRY: u8 = 1;
    if ptrace::syscall_info(pid).ok()?.op != ENTRY {
        return None;
    }
    let registers = ptrace::getregs(pid).ok()?;
    let number = registers.orig_rax as i64;
    let (_, name) = CHANGING.iter().find(|(known, _)| *known == number)?;
    let creates = match *name {
        "open" => registers.rsi & CREATES != 0,
        "openat" => registers.rdx & CREATES != 0,
        _ => true,
    };
    creates.then(|| (*name).to_owned())
}
