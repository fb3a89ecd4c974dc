//! A sandbox process that was taken over. Tests install it in the place of
//! `palisade-sandbox`. It starts as boot does and speaks the shim's protocol, with a
//! sleeping process for each container. An exec's ID names the [`Attack`] that
//! it makes: it serves no other exec.
//!
//! It never leaves the host's file systems, so it can attack with more than a
//! boot that was taken over would have.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use integration::hostile::{Attack, NEVER_STARTS, lingering_socket};
use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid};
use rustix::pty::OpenptFlags;
use sandbox_core::control::donation::{BootFlags, STARTED};
use sandbox_core::control::message::{
    Done, MAX_PACKET, Numbered, RawFamily, RawSocket, Request, Upward,
};
use sandbox_core::control::packet::{Received, receive_packet, send_packet, send_packet_for};
use sandbox_core::control::refusal::{Answer, Caller, Refusal};
use sandbox_core::error::{Failure, FailureKind};
use sandbox_core::sys::descriptor::adopt;
use sandbox_core::sys::network::bring_loopback_up;
use sandbox_core::types::{Call, ProcessId};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.iter().any(|arg| arg == "gofer") {
        match execute_real_gofer(&args)? {}
    }
    let boot = Boot::start(&BootFlags::parse(args.into_iter().skip(1))?)?;
    boot.serve()
}

/// Executes the real gofer, which is no part of the sandbox.
fn execute_real_gofer(args: &[OsString]) -> Outcome<Infallible> {
    let shim = format!("/proc/{}/exe", std::os::unix::process::parent_id());
    let real = std::fs::read_link(shim)?.with_file_name("palisade-sandbox-honest");
    Err(Command::new(real).args(&args[1..]).env_clear().exec().into())
}

struct Boot {
    control: OwnedFd,
    mounts: OwnedFd,
    log: OwnedFd,
    user_log: Option<OwnedFd>,
    panic_log: OwnedFd,
    children: Vec<Child>,
}

/// A sleeping process.
struct Child {
    pidfd: OwnedFd,
    id: ProcessId,
}

impl Boot {
    /// Starts as boot does: the shim receives the report that it is up.
    fn start(flags: &BootFlags) -> Outcome<Self> {
        let start_sync = adopt(flags.start_sync_fd)?;
        let boot = Self {
            control: adopt(flags.controller_fd)?,
            mounts: adopt(flags.mounts_fd)?,
            log: adopt(flags.log_fd)?,
            user_log: flags.user_log_fd.map(adopt).transpose()?,
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
                self.send(&Upward::Exited { process: child.id, status: 137 }, &[]);
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
                let attack: Attack = exec.parse().unwrap_or_else(|e| panic!("{e}"));
                self.announce(attack.name());
                let asked = ExecRequest { number, container, exec };
                match self.attack(attack, &asked)? {
                    Then::Nothing => {}
                    Then::Serve => self.new_process(number, asked.process())?,
                }
            }
            Request::Start { container } if container == NEVER_STARTS => {
                self.announce(NEVER_STARTS);
            }
            _ => self.reply(number, Ok(Done::Ok), &[]),
        }
        Ok(true)
    }

    /// Starts a process as boot does, except that the process only sleeps.
    fn new_process(&mut self, number: u64, id: ProcessId) -> Outcome<()> {
        let (pid, pidfd) = sleeper()?;
        self.reply_with_process(number, pid, &[pidfd.as_fd()]);
        self.children.push(Child { pidfd, id });
        Ok(())
    }

    fn send(&self, message: &Upward, fds: &[BorrowedFd<'_>]) {
        self.send_for(None, message, fds);
    }

    /// Sends a message for a process. The shim may have closed the channel; the
    /// test checks the effect.
    fn send_for(&self, process: Option<i32>, message: &Upward, fds: &[BorrowedFd<'_>]) {
        let bytes = postcard::to_stdvec(message).expect("messages can be encoded");
        let _ = send_packet_for(process, &self.control, &bytes, fds);
    }

    fn reply(&self, number: u64, outcome: Result<Done, Failure>, fds: &[BorrowedFd<'_>]) {
        self.send(&Upward::Reply { number, outcome }, fds);
    }

    /// Replies with a process, and with its terminal if there is a second
    /// descriptor.
    fn reply_with_process(&self, number: u64, pid: i32, fds: &[BorrowedFd<'_>]) {
        let outcome = Ok(Done::Process { terminal: fds.len() > 1, mounts: false });
        self.send_for(Some(pid), &Upward::Reply { number, outcome }, fds);
    }

    /// Replies with a new process and another descriptor in the place of its
    /// terminal.
    fn reply_with_terminal(&mut self, asked: &ExecRequest, terminal: impl AsFd) -> Outcome<Then> {
        let (pid, pidfd) = sleeper()?;
        self.reply_with_process(asked.number, pid, &[pidfd.as_fd(), terminal.as_fd()]);
        self.children.push(asked.child(pidfd));
        Ok(Then::Nothing)
    }

    /// Logs the attack before it is made; the test finds the line in
    /// containerd's log.
    fn announce(&self, attack: &str) {
        let _ = rustix::io::write(&self.log, format!("INFO attacks by {attack}\n").as_bytes());
    }

    /// Sends bytes without the first one, which names the kind of packet.
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

/// A requested exec.
struct ExecRequest {
    number: u64,
    container: String,
    exec: String,
}

impl ExecRequest {
    fn process(&self) -> ProcessId {
        ProcessId::exec(&self.container, &self.exec)
    }

    fn child(&self, pidfd: OwnedFd) -> Child {
        Child { pidfd, id: self.process() }
    }
}

/// The remaining work for an exec after an attack.
enum Then {
    /// Serve it as boot does.
    Serve,
    Nothing,
}

impl Boot {
    fn attack(&mut self, attack: Attack, asked: &ExecRequest) -> Outcome<Then> {
        use Attack::*;
        match attack {
            Garbage | Empty | NoTag | WrongTag | TooLong | EndlessString | NoMemfd
            | EndlessMemfd => self.send_no_message(attack),
            Hundreds
            | AnExitWithDescriptors
            | NoProcess
            | NoDescriptors
            | TheShim
            | Itself
            | NoPidfd
            | AnotherPidfd
            | NoListener => self.reply_with_wrong_process(attack, asked),
            ASocketThatLingers
            | ATerminalThatLingers
            | AnExitThatLingers
            | HundredsThatLinger
            | AMountsChannelThatLingers => self.linger(attack, asked),
            TerminalNull | TerminalFile | TerminalDirectory | TerminalPipe | TerminalSocket
            | TerminalPidfd | TerminalPath | TerminalSlave => {
                self.reply_with_terminal(asked, no_terminal(attack)?)
            }
            TerminalThatBlocks => self.block_terminal(asked),
            ALongFailure | RepliesToNothing | TwoReplies | NoReply | ReportsNoExits
            | ClosesItsChannel | ReadsNothing | NeverStopsSending | LongPanic => {
                self.send_wrong_messages(attack, asked)
            }
            WritesNoRecords | WritesACutRecord | WritesManyRecords => {
                self.write_records(attack, &asked.container)
            }
            LogsLongLines | LogsOneLine | LogsShortLines | LogsMediumLines | LogsNothing
            | LogsEscapes => self.log_forever(attack),
        }
    }

    fn send_no_message(&self, attack: Attack) -> Outcome<Then> {
        match attack {
            Attack::Garbage => drop(send_packet(&self.control, &[0xff; 512], &[])),
            Attack::Empty => drop(send_packet(&self.control, &[], &[])),
            Attack::NoTag => self.send_raw(&[])?,
            Attack::WrongTag => self.send_raw(&[9, 9, 9])?,
            Attack::TooLong => self.send_raw(&vec![0; MAX_PACKET + 2])?,
            Attack::EndlessString => {
                // Reply { number, Err(Failure { Internal, a string of 2^64 - 1 bytes } }
                let mut bytes = vec![0, 1, 1, 4];
                bytes.extend([0xff; 9].into_iter().chain([0x01]));
                drop(send_packet(&self.control, &bytes, &[]));
            }
            Attack::NoMemfd => {
                let (a, _b) = seqpacket()?;
                send_in_memfd(self, a.as_fd())?;
            }
            Attack::EndlessMemfd => send_in_memfd(self, endless_memfd()?.as_fd())?,
            other => panic!("{other} is a message"),
        }
        Ok(Then::Nothing)
    }

    /// Replies with a process that is not the pod's, or with the wrong
    /// descriptors.
    fn reply_with_wrong_process(&mut self, attack: Attack, asked: &ExecRequest) -> Outcome<Then> {
        let null = null()?;
        let (number, own_pid) = (asked.number, getpid().as_raw_pid());
        match attack {
            Attack::Hundreds => self.reply(number, Ok(Done::Ok), &[null.as_fd(); 250]),
            Attack::AnExitWithDescriptors => self.send(&exit_without_id(), &[null.as_fd()]),
            Attack::NoProcess => self.reply(number, Ok(Done::Ok), &[]),
            Attack::NoDescriptors => self.reply_with_process(number, own_pid, &[]),
            Attack::TheShim => {
                let shim = getsockopt(&self.control, PeerPidfd)?;
                self.reply_with_process(number, own_pid, &[shim.as_fd()]);
            }
            Attack::Itself => {
                let own = pidfd_open(getpid(), PidfdFlags::empty())?;
                self.reply_with_process(number, own_pid, &[own.as_fd()]);
            }
            Attack::NoPidfd => self.reply_with_process(number, own_pid, &[null.as_fd()]),
            Attack::AnotherPidfd => {
                let (_, pidfd) = sleeper()?;
                self.reply_with_process(number, own_pid, &[pidfd.as_fd()]);
                self.children.push(asked.child(pidfd));
            }
            Attack::NoListener => {
                let (pid, pidfd) = sleeper()?;
                let message = Upward::Listener { of: number };
                self.send_for(Some(pid), &message, &[pidfd.as_fd(), null.as_fd()]);
                self.children.push(asked.child(pidfd));
            }
            other => panic!("{other} is another attack"),
        }
        Ok(Then::Nothing)
    }

    /// Sends a socket that blocks the process that closes it last.
    fn linger(&mut self, attack: Attack, asked: &ExecRequest) -> Outcome<Then> {
        let (socket, other) = lingering_socket()?;
        // Stays open until this process ends.
        std::mem::forget(other);
        match attack {
            Attack::ASocketThatLingers => {
                self.reply_with_process(asked.number, getpid().as_raw_pid(), &[socket.as_fd()]);
            }
            Attack::ATerminalThatLingers => return self.reply_with_terminal(asked, socket),
            Attack::AnExitThatLingers => self.send(&exit_without_id(), &[socket.as_fd()]),
            Attack::HundredsThatLinger => {
                self.reply(asked.number, Ok(Done::Ok), &[socket.as_fd(); 253]);
            }
            Attack::AMountsChannelThatLingers => {
                let _ = send_packet(&self.mounts, b"no delivery", &[socket.as_fd()]);
                // If the send fails, this process must not wait for the close.
                std::mem::forget(socket);
                return Ok(Then::Serve);
            }
            other => panic!("{other} does not linger"),
        }
        Ok(Then::Nothing)
    }

    /// Fills a terminal, and clears its non-blocking flag again and again.
    fn block_terminal(&mut self, asked: &ExecRequest) -> Outcome<Then> {
        let master = terminal()?;
        let slave = slave_of(&master)?;
        let then = self.reply_with_terminal(asked, &master)?;
        thread::spawn(move || {
            loop {
                let _ = rustix::io::ioctl_fionbio(&master, false);
                let _ = rustix::io::write(&slave, b".");
                thread::sleep(Duration::from_millis(20));
            }
        });
        Ok(then)
    }

    /// Makes the attacks that need only messages, or none.
    fn send_wrong_messages(&mut self, attack: Attack, asked: &ExecRequest) -> Outcome<Then> {
        let number = asked.number;
        match attack {
            Attack::ALongFailure => {
                let message = "so\x1b[2J sorry\n\0\u{7f}".repeat(3000);
                let failure = Failure { kind: FailureKind::NotFound, message };
                self.reply(number, Err(failure), &[]);
            }
            Attack::RepliesToNothing => {
                for other in 1..200 {
                    self.reply(number + other, Ok(Done::Ok), &[]);
                    self.send(&exit_of_unknown(other), &[]);
                }
                // No container of this test is granted one.
                let family = RawFamily::Packet { headers: true, protocol: 3_u16.to_be() };
                let socket = RawSocket { family, nonblocking: false };
                for of in 0..100 {
                    let container = asked.container.clone();
                    self.send(&Upward::RawSocket { of, container, socket }, &[]);
                    // It gets those of its own containers, once.
                    for container in [asked.container.clone(), "none".to_owned()] {
                        self.send(&Upward::ViewSources { container }, &[]);
                    }
                }
                return Ok(Then::Serve);
            }
            Attack::TwoReplies => {
                self.reply(number, Ok(Done::Ok), &[]);
                self.reply(number, Ok(Done::Ok), &[]);
            }
            Attack::NoReply => {}
            Attack::ReportsNoExits => {
                self.children.clear();
                return Ok(Then::Serve);
            }
            Attack::ClosesItsChannel => {
                rustix::net::shutdown(&self.control, Shutdown::Both)?;
                thread::sleep(Duration::MAX);
            }
            Attack::ReadsNothing => thread::sleep(Duration::MAX),
            Attack::NeverStopsSending => {
                let control = self.control.try_clone()?;
                let bytes = postcard::to_stdvec(&exit_of_unknown(1))?;
                thread::spawn(move || while send_packet(&control, &bytes, &[]).is_ok() {});
                return Ok(Then::Serve);
            }
            Attack::LongPanic => {
                let long = "\x1b[2Jpanic ".repeat(10_000);
                let _ = rustix::io::pwrite(&self.panic_log, long.as_bytes(), 0);
                let _ = rustix::io::pwrite(&self.panic_log, &long.as_bytes()[..16384], 0);
                std::process::exit(1);
            }
            other => panic!("{other} needs more than messages"),
        }
        Ok(Then::Nothing)
    }

    /// Logs without end, beside an exec that is served as usual.
    fn log_forever(&self, attack: Attack) -> Outcome<Then> {
        let text = match attack {
            Attack::LogsLongLines => [vec![b'x'; 1 << 20], vec![b'\n']].concat(),
            Attack::LogsOneLine => vec![b'x'; 4000],
            Attack::LogsShortLines => b"WARN hello\n".repeat(100),
            Attack::LogsMediumLines => [vec![b'y'; 3000], vec![b'\n']].concat(),
            Attack::LogsNothing => b"\n".repeat(4096),
            Attack::LogsEscapes => {
                b"ERROR \x1b[2Jcleared \0 \x07 \xff\xfe level=fatal msg=\"x\"\r\n".to_vec()
            }
            other => panic!("{other} logs nothing"),
        };
        let mut log = File::from(self.log.try_clone()?);
        thread::spawn(move || while log.write_all(&text).is_ok() {});
        Ok(Then::Serve)
    }
}

impl Boot {
    /// Writes into the user log, beside an exec that is served as usual.
    fn write_records(&self, attack: Attack, container: &str) -> Outcome<Then> {
        let user_log = self.user_log.as_ref().ok_or("there is no user log")?;
        let mut pipe = File::from(user_log.try_clone()?);
        let container = container.to_owned();
        match attack {
            Attack::WritesNoRecords => pipe.write_all(&[0xff; 5000])?,
            Attack::WritesACutRecord => pipe.write_all(&record(&container, 0)?[..20])?,
            Attack::WritesManyRecords => {
                thread::spawn(move || {
                    for number in 0.. {
                        let of = if number % 3 == 0 { "unknown" } else { &container };
                        let bytes = record(of, number).expect("a record");
                        if pipe.write_all(&bytes).is_err() {
                            break;
                        }
                    }
                });
            }
            other => panic!("{other} writes no records"),
        }
        Ok(Then::Serve)
    }
}

/// Encodes a record of an invented program and call.
fn record(container: &str, number: u32) -> Outcome<Vec<u8>> {
    let program = format!("\x1b[2J\nlevel=fatal {number}\u{202e}");
    let call = Call { audit: 0xc000_003e, number, arguments: [u64::from(number); 6] };
    let refusal = Refusal {
        container: container.to_owned(),
        caller: Caller { pid: -7, uid: number, program },
        call: Some(call),
        answer: if number.is_multiple_of(2) { Answer::Watched } else { Answer::Refused(1) },
        times: u64::MAX,
    };
    Ok(refusal.to_bytes()?)
}

fn exit_without_id() -> Upward {
    Upward::Exited { process: ProcessId::init(""), status: 0 }
}

fn exit_of_unknown(number: u64) -> Upward {
    Upward::Exited {
        process: ProcessId {
            container: format!("unknown-{number}"),
            exec: number.is_multiple_of(2).then(|| "x".to_owned()),
        },
        status: u32::MAX,
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Opens the file that an attack presents as the master side of a terminal.
fn no_terminal(attack: Attack) -> Outcome<OwnedFd> {
    Ok(match attack {
        Attack::TerminalNull => null()?,
        Attack::TerminalFile => File::open("/etc/passwd")?.into(),
        Attack::TerminalDirectory => File::open("/")?.into(),
        Attack::TerminalPipe => rustix::pipe::pipe()?.0,
        Attack::TerminalSocket => seqpacket()?.0,
        Attack::TerminalPidfd => pidfd_open(getpid(), PidfdFlags::empty())?,
        Attack::TerminalPath => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::open("/dev/ptmx", flags, Mode::empty())?
        }
        Attack::TerminalSlave => {
            let master = terminal()?;
            let slave = slave_of(&master)?;
            // Once the master is closed, the slave belongs to no terminal.
            std::mem::forget(master);
            slave
        }
        other => panic!("{other} shows no terminal"),
    })
}

fn slave_of(master: &OwnedFd) -> Outcome<OwnedFd> {
    let name = rustix::pty::ptsname(master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, name, flags, Mode::empty())?)
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
