//! A sandbox process that was taken over. Tests install it in the place of
//! `palisade`: it starts up as boot does and serves the shim by its words, with
//! a process that sleeps for each that it is asked for, until an exec's ID names
//! one of its [attacks](attack).
//!
//! It never leaves the host's file systems, so it has more to attack with than a
//! boot that was taken over would have.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid};
use rustix::pty::OpenptFlags;
use sandbox_core::control::donation::{BootFlags, STARTED};
use sandbox_core::control::message::{Done, MAX_PACKET, Numbered, Request, Upward};
use sandbox_core::control::packet::{Received, receive_packet, send_packet, send_packet_for};
use sandbox_core::error::{Failure, FailureKind};
use sandbox_core::sys::descriptor::adopt;
use sandbox_core::sys::network::bring_loopback_up;
use sandbox_core::types::ProcessId;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.iter().any(|arg| arg == "gofer") {
        match become_honest(&args)? {}
    }
    let boot = Boot::start(&BootFlags::parse(args.into_iter().skip(1))?)?;
    boot.serve()
}

/// The gofer is no part of the sandbox: it is the real one.
fn become_honest(args: &[OsString]) -> Outcome<Infallible> {
    let shim = format!("/proc/{}/exe", std::os::unix::process::parent_id());
    let honest = std::fs::read_link(shim)?.with_file_name("palisade-honest");
    Err(Command::new(honest).args(&args[1..]).env_clear().exec().into())
}

struct Boot {
    control: OwnedFd,
    mounts: OwnedFd,
    log: OwnedFd,
    panic_log: OwnedFd,
    children: Vec<Child>,
}

/// One of the processes that sleep.
struct Child {
    pidfd: OwnedFd,
    id: ProcessId,
}

impl Boot {
    /// As an honest one: the shim learns that it is up.
    fn start(flags: &BootFlags) -> Outcome<Self> {
        let start_sync = adopt(flags.start_sync_fd)?;
        let boot = Self {
            control: adopt(flags.controller_fd)?,
            mounts: adopt(flags.mounts_fd)?,
            log: adopt(flags.log_fd)?,
            panic_log: adopt(flags.panic_log_fd)?,
            children: Vec::new(),
        };
        bring_loopback_up()?;
        rustix::io::write(&start_sync, &[STARTED])?;
        Ok(boot)
    }

    fn serve(mut self) -> Outcome<()> {
        loop {
            let mut ready = vec![PollFd::new(&self.control, PollFlags::IN)];
            ready.extend(self.children.iter().map(|c| PollFd::new(&c.pidfd, PollFlags::IN)));
            poll(&mut ready, None)?;
            let ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
            for index in (0..self.children.len()).rev().filter(|index| ready[index + 1]) {
                let child = self.children.swap_remove(index);
                self.say(&Upward::Exited { process: child.id, status: 137 }, &[]);
                waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
            }
            if ready[0] && !self.take_request()? {
                return Ok(());
            }
        }
    }

    fn take_request(&mut self) -> Outcome<bool> {
        let Received::Packet { bytes, .. } = receive_packet(&self.control, 8 << 20, 32)? else {
            return Ok(false);
        };
        let Numbered { number, request } = postcard::from_bytes(&bytes)?;
        match request {
            Request::Create { plan, .. } => match plan.process {
                None => self.reply(number, Ok(Done::Ok), &[]),
                Some(_) => self.new_process(number, ProcessId::init(plan.id))?,
            },
            Request::Exec { container, exec, .. } => {
                if !attack(self, number, &container, &exec)? {
                    self.new_process(number, ProcessId::exec(container, exec))?;
                }
            }
            Request::Start { container } if container == "never-starts" => self.was_asked(),
            _ => self.reply(number, Ok(Done::Ok), &[]),
        }
        Ok(true)
    }

    /// As an honest one does it, but that the process only sleeps.
    fn new_process(&mut self, number: u64, id: ProcessId) -> Outcome<()> {
        let (pid, pidfd) = sleeper()?;
        self.present(number, pid, &[pidfd.as_fd()]);
        self.children.push(Child { pidfd, id });
        Ok(())
    }

    fn say(&self, message: &Upward, fds: &[BorrowedFd<'_>]) {
        self.say_for(None, message, fds);
    }

    /// What the shim makes of it is the test's to see; it may have hung up.
    fn say_for(&self, process: Option<i32>, message: &Upward, fds: &[BorrowedFd<'_>]) {
        let bytes = postcard::to_stdvec(message).expect("messages can be encoded");
        let _ = send_packet_for(process, &self.control, &bytes, fds);
    }

    fn reply(&self, number: u64, outcome: Result<Done, Failure>, fds: &[BorrowedFd<'_>]) {
        self.say(&Upward::Reply { number, outcome }, fds);
    }

    /// A process, and its terminal if there is a second descriptor.
    fn present(&self, number: u64, pid: i32, fds: &[BorrowedFd<'_>]) {
        let outcome = Ok(Done::Process { terminal: fds.len() > 1 });
        self.say_for(Some(pid), &Upward::Reply { number, outcome }, fds);
    }

    /// A new process with something in the place of its terminal.
    fn present_terminal(
        &mut self,
        number: u64,
        child: impl FnOnce(OwnedFd) -> Child,
        terminal: impl AsFd,
    ) -> Outcome<()> {
        let (pid, pidfd) = sleeper()?;
        self.present(number, pid, &[pidfd.as_fd(), terminal.as_fd()]);
        self.children.push(child(pidfd));
        Ok(())
    }

    /// Tells the test, which reads it in containerd's log.
    fn was_asked(&self) {
        let _ = rustix::io::write(&self.log, b"INFO was asked\n");
    }

    /// Bytes as they are, without the first one that says what they are.
    fn send_raw(&self, bytes: &[u8]) -> Outcome<()> {
        Ok(rustix::net::send(&self.control, bytes, SendFlags::NOSIGNAL).map(drop)?)
    }
}

fn sleeper() -> Outcome<(i32, OwnedFd)> {
    let mut command = Command::new("/bin/sleep");
    command.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn()?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    Ok((child.id().cast_signed(), pidfd))
}

/// Does what an exec's ID says; false when that is the ID of an honest exec.
fn attack(boot: &mut Boot, number: u64, container: &str, name: &str) -> Outcome<bool> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let own_pid = getpid().as_raw_pid();
    let child = |pidfd| Child { pidfd, id: ProcessId::exec(container, name) };
    match name {
        // What is no message.
        "garbage" => drop(send_packet(&boot.control, &[0xff; 512], &[])),
        "empty" => drop(send_packet(&boot.control, &[], &[])),
        "no-tag" => boot.send_raw(&[])?,
        "wrong-tag" => boot.send_raw(&[9, 9, 9])?,
        "too-long" => boot.send_raw(&vec![0; MAX_PACKET + 2])?,
        "endless-string" => {
            // Reply { number, Err(Failure { Internal, a string of 2^64 - 1 bytes } }
            let mut bytes = vec![0, 1, 1, 4];
            bytes.extend([0xff; 9].into_iter().chain([0x01]));
            drop(send_packet(&boot.control, &bytes, &[]));
        }
        "no-memfd" => {
            let (a, _b) = seqpacket()?;
            send_in_memfd(boot, a.as_fd())?;
        }
        "endless-memfd" => send_in_memfd(boot, endless_memfd()?.as_fd())?,
        // Descriptors.
        "hundreds" => boot.reply(number, Ok(Done::Ok), &[null.as_fd(); 250]),
        "an-exit-with-descriptors" => {
            let process = ProcessId::init("");
            boot.say(&Upward::Exited { process, status: 0 }, &[null.as_fd()]);
        }
        "no-process" => boot.reply(number, Ok(Done::Ok), &[]),
        "no-descriptors" => boot.present(number, own_pid, &[]),
        "the-shim" => {
            let shim = getsockopt(&boot.control, PeerPidfd)?;
            boot.present(number, own_pid, &[shim.as_fd()]);
        }
        "itself" => {
            let own = pidfd_open(getpid(), PidfdFlags::empty())?;
            boot.present(number, own_pid, &[own.as_fd()]);
        }
        "no-pidfd" => boot.present(number, own_pid, &[null.as_fd()]),
        "another-than-said" => {
            let (_, pidfd) = sleeper()?;
            boot.present(number, own_pid, &[pidfd.as_fd()]);
            boot.children.push(child(pidfd));
        }
        "a-socket-that-lingers" => {
            let socket = lingering_socket()?;
            boot.present(number, own_pid, &[socket.as_fd()]);
        }
        "a-terminal-that-lingers" => boot.present_terminal(number, child, lingering_socket()?)?,
        "an-exit-that-lingers" => {
            let process = ProcessId::init("");
            let socket = lingering_socket()?;
            boot.say(&Upward::Exited { process, status: 0 }, &[socket.as_fd()]);
        }
        "hundreds-that-linger" => {
            let socket = lingering_socket()?;
            boot.reply(number, Ok(Done::Ok), &[socket.as_fd(); 253]);
        }
        "a-mounts-channel-that-lingers" => {
            let socket = lingering_socket()?;
            let _ = send_packet(&boot.mounts, b"for nobody", &[socket.as_fd()]);
            // Where that is refused, it must not wait itself.
            std::mem::forget(socket);
            return Ok(false);
        }
        // Terminals.
        "terminal-null" => boot.present_terminal(number, child, null)?,
        "terminal-file" => boot.present_terminal(number, child, File::open("/etc/passwd")?)?,
        "terminal-directory" => boot.present_terminal(number, child, File::open("/")?)?,
        "terminal-pipe" => boot.present_terminal(number, child, rustix::pipe::pipe()?.0)?,
        "terminal-socket" => boot.present_terminal(number, child, seqpacket()?.0)?,
        "terminal-pidfd" => {
            boot.present_terminal(number, child, pidfd_open(getpid(), PidfdFlags::empty())?)?;
        }
        "terminal-path" => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            boot.present_terminal(
                number,
                child,
                rustix::fs::open("/dev/ptmx", flags, Mode::empty())?,
            )?;
        }
        "terminal-slave" => {
            let master = terminal()?;
            let name = rustix::pty::ptsname(&master, Vec::new())?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let slave = rustix::fs::openat(CWD, name, flags, Mode::empty())?;
            boot.present_terminal(number, child, slave)?;
        }
        "terminal-that-blocks" => {
            let master = terminal()?;
            let name = rustix::pty::ptsname(&master, Vec::new())?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let slave = rustix::fs::openat(CWD, name, flags, Mode::empty())?;
            boot.present_terminal(number, child, &master)?;
            thread::spawn(move || {
                loop {
                    let _ = rustix::io::ioctl_fionbio(&master, false);
                    let _ = rustix::io::write(&slave, b".");
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        _ => return attack_by_talk(boot, number, name),
    }
    Ok(true)
}

/// The attacks that need nothing but words, or none.
fn attack_by_talk(boot: &mut Boot, number: u64, name: &str) -> Outcome<bool> {
    let stranger = |number: u64| Upward::Exited {
        process: ProcessId {
            container: format!("stranger-{number}"),
            exec: number.is_multiple_of(2).then(|| "x".to_owned()),
        },
        status: u32::MAX,
    };
    match name {
        "a-long-failure" => {
            let message = "so\x1b[2J sorry\n\0\u{7f}".repeat(3000);
            let failure = Failure { kind: FailureKind::NotFound, message };
            boot.reply(number, Err(failure), &[]);
        }
        "answers-to-nothing" => {
            for other in 1..200 {
                boot.reply(number + other, Ok(Done::Ok), &[]);
                boot.say(&stranger(other), &[]);
            }
            return Ok(false);
        }
        "two-answers" => {
            boot.reply(number, Ok(Done::Ok), &[]);
            boot.reply(number, Ok(Done::Ok), &[]);
        }
        "silence" => boot.was_asked(),
        "keeps-exits-to-itself" => boot.children.clear(),
        "hangs-up" => {
            rustix::net::shutdown(&boot.control, Shutdown::Both)?;
            thread::sleep(Duration::MAX);
        }
        "is-deaf" => {
            boot.was_asked();
            thread::sleep(Duration::MAX);
        }
        "never-stops-talking" => {
            let control = boot.control.try_clone()?;
            let bytes = postcard::to_stdvec(&stranger(1))?;
            thread::spawn(move || while send_packet(&control, &bytes, &[]).is_ok() {});
            return Ok(false);
        }
        "logs-long-lines" => {
            return log_forever(boot, &[vec![b'x'; 1 << 20], vec![b'\n']].concat());
        }
        "logs-one-line" => return log_forever(boot, &[b'x'; 4000]),
        "logs-short-lines" => return log_forever(boot, &b"WARN hello\n".repeat(100)),
        "logs-medium-lines" => return log_forever(boot, &[vec![b'y'; 3000], vec![b'\n']].concat()),
        "logs-nothing" => return log_forever(boot, &b"\n".repeat(4096)),
        "logs-escapes" => {
            let line = b"ERROR \x1b[2Jcleared \0 \x07 \xff\xfe level=fatal msg=\"x\"\r\n";
            return log_forever(boot, line);
        }
        "panics-for-long" => {
            let long = "\x1b[2Jpanic ".repeat(10_000);
            let _ = rustix::io::pwrite(&boot.panic_log, long.as_bytes(), 0);
            let _ = rustix::io::pwrite(&boot.panic_log, &long.as_bytes()[..16384], 0);
            std::process::exit(1);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Beside an honest exec.
fn log_forever(boot: &Boot, text: &[u8]) -> Outcome<bool> {
    let mut log = File::from(boot.log.try_clone()?);
    let text = text.to_vec();
    thread::spawn(move || while log.write_all(&text).is_ok() {});
    Ok(false)
}

fn seqpacket() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn terminal() -> io::Result<OwnedFd> {
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    Ok(master)
}

/// A TCP connection with more to send than its other end takes. Whoever is the
/// last to close it waits for a quarter of an hour (socket(7), SO_LINGER).
fn lingering_socket() -> Outcome<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 65536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(900)))?;
    // Open for as long as this process lives.
    std::mem::forget(other);
    Ok(socket)
}

fn send_in_memfd(boot: &Boot, memfd: BorrowedFd<'_>) -> Outcome<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [memfd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let tag = [io::IoSlice::new(&[1])];
    Ok(rustix::net::sendmsg(&boot.control, &tag, &mut ancillary, SendFlags::NOSIGNAL).map(drop)?)
}

fn endless_memfd() -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create("endless", MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&memfd, 1 << 40)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memfd, seals)?;
    Ok(memfd)
}
