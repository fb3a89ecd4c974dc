//! The messages between shim and boot, in both directions, and their encoding.
//!
//! One message is one packet of a seqpacket socket; descriptors travel beside
//! it as `SCM_RIGHTS`. The shim treats all messages from boot as hostile:
//! decoding is bounded by [`MAX_PACKET`] and allocates no more than the packet
//! holds; the shim looks every string up in its own tables and uses none as a
//! path.

use std::num::{NonZeroU8, NonZeroU32};

use serde::{Deserialize, Serialize};

use super::encoding::Message;
use crate::error::Failure;
use crate::spec::plan::{ContainerPlan, ProcessPlan};
use crate::types::{Capacity, ProcessId, ViewSource};

/// The size of the largest packet, in bytes. A larger request travels in a
/// memfd, as the packet's first descriptor.
pub const MAX_PACKET: usize = 64 * 1024;

/// The most descriptors that one packet carries (the kernel's `SCM_MAX_FD` is
/// 253).
pub const MAX_DESCRIPTORS: usize = 32;

/// A request of the shim to boot. Each lists its descriptors in the order in
/// which they travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Creates a container, up to its gate. The gofer has sent the mounts on
    /// the mounts channel before.
    ///
    /// Descriptors: those of [`Donations`].
    Create {
        /// The container's plan.
        plan: Box<ContainerPlan>,
        /// The descriptors that travel with the request.
        donations: Donations,
        /// The CPUs and the memory that the container is told it has.
        capacity: Capacity,
    },
    /// Opens the gate of a created container.
    Start {
        /// The container's ID.
        container: String,
    },
    /// Restores a container from a checkpoint, whose images the gofer has sent with the mounts.
    ///
    /// Descriptors: those of [`Donations`].
    Restore {
        /// The container's plan.
        plan: Box<ContainerPlan>,
        /// The descriptors that travel with the request.
        donations: Donations,
        /// The CPUs and the memory that the container is told it has.
        capacity: Capacity,
        /// What the checkpoint says beside its images.
        saved: Box<Saved>,
    },
    /// Starts one more process in a running container.
    ///
    /// Descriptors: those of [`Donations`].
    Exec {
        /// The container's ID.
        container: String,
        /// The exec's ID, unique in the container.
        exec: String,
        /// The process's plan.
        process: Box<ProcessPlan>,
        /// The descriptors that travel with the request.
        donations: Donations,
    },
    /// Lets a process go on whose seccomp listener an agent has, or fails the request that
    /// it belongs to. See [`Upward::Listener`].
    ListenerHandedOver {
        /// The number of that request.
        of: u64,
        /// Why no agent has it.
        refused: Option<String>,
    },
    /// Brings a raw socket, or the errno with which it was refused. See [`Upward::RawSocket`].
    /// boot does not reply.
    ///
    /// Descriptors: the socket, if it was not refused.
    RawSocket {
        /// The number in boot's message.
        of: u64,
        /// The errno.
        refused: Option<u16>,
    },
    /// Brings files that a container's views are made from. See [`Upward::ViewSources`]. boot
    /// does not reply.
    ///
    /// Descriptors: the files, in the order in which they are listed.
    ViewSources {
        /// The container's ID.
        container: String,
        /// What was opened.
        opened: Vec<ViewFile>,
        /// Whether no more come.
        complete: bool,
    },
    /// Forgets a container that has exited, or kills and forgets one that was
    /// not started.
    Delete {
        /// The container's ID.
        container: String,
    },
    /// Sends the new capacity after an update of the resources.
    Update {
        /// The container's ID; `None` for the sandbox itself.
        container: Option<String>,
        /// The new capacity.
        capacity: Capacity,
    },
    /// Changes what boot logs.
    SetLogLevel {
        /// The least important records that it logs.
        level: LogLevel,
    },
    /// Kills a process of a container, for which the shim has no room. Its exit is reported.
    Kill {
        /// The process.
        process: ProcessId,
    },
    /// Switches the sampler of boot's allocator on or off (`sys::heap`).
    ///
    /// Descriptors: the table that it fills, if it is switched on.
    HeapProfile {
        /// One in so many bytes is sampled; `None` switches it off.
        every: Option<NonZeroU32>,
    },
}

/// What a checkpoint says about its container beside criu's images. It is as hostile as those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The names of the files that run criu, among those that the gofer has sent: its loader,
    /// and criu itself.
    pub programs: [String; 2],
    /// The host name that the container had.
    pub host_name: String,
    /// criu's names of the files that came from outside, and what stands for each.
    pub inherited: Vec<(String, Inherited)>,
    /// The content of each tmpfs: the name of an archive beside the images, and the index of
    /// the mount in the plan.
    pub tmpfs: Vec<(String, usize)>,
    /// Whether connections are restored rather than closed.
    pub open_tcp: bool,
}

/// What stands for a file that a restored process had from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inherited {
    /// Standard input, output or error, by its number.
    Stream(u8),
    /// The container's side of its terminal.
    Terminal,
    /// The null device.
    Null,
}

/// How important a record of boot's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Something failed that boot has to do.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Something that an administrator may want to know.
    Info,
    /// What boot does, for those who look for a fault.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

impl Request {
    /// Returns what is asked for, as logs name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Restore { .. } => "restore",
            Self::Exec { .. } => "exec",
            Self::ListenerHandedOver { .. } => "listener-handed-over",
            Self::RawSocket { .. } => "raw-socket",
            Self::ViewSources { .. } => "view-sources",
            Self::Delete { .. } => "delete",
            Self::Update { .. } => "update",
            Self::Kill { .. } => "kill",
            Self::SetLogLevel { .. } => "set-log-level",
            Self::HeapProfile { .. } => "heap-profile",
        }
    }
}

/// The descriptors that a Create or Exec carries, in this order: stdio, then
/// `cgroup.procs`, then that of the init's own cgroup, then seccomp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Donations {
    /// Whether there is a standard input; without one it is `/dev/null`.
    pub stdin: bool,
    /// Whether there is a standard output; without one it is `/dev/null`.
    pub stdout: bool,
    /// Whether there is a standard error; without one it is `/dev/null`.
    pub stderr: bool,
    /// Whether there is the directory of a cgroup of version 2 to be born in. If the kernel
    /// refuses that, the process is moved there.
    pub cgroup_directory: bool,
    /// The number of open `cgroup.procs` files (version 1: `tasks`) to write
    /// "0" to, one for each hierarchy. Zero if boot is in that cgroup already.
    pub cgroup_procs: u8,
    /// Whether there is one more `cgroup.procs`, to which the init writes "0" once its
    /// cgroup namespace is made. With Create only: the container divides its cgroup.
    pub init_procs: bool,
    /// The `SECCOMP_FILTER_FLAG_`s to load the seccomp program with, if there
    /// is a file that holds one (`struct sock_filter`s). With Create only: boot
    /// keeps it for the container's execs.
    pub seccomp: Option<u32>,
}

impl Donations {
    /// Returns the number of descriptors.
    pub fn count(self) -> usize {
        usize::from(self.stdin)
            + usize::from(self.stdout)
            + usize::from(self.stderr)
            + usize::from(self.cgroup_directory)
            + usize::from(self.cgroup_procs)
            + usize::from(self.init_procs)
            + usize::from(self.seccomp.is_some())
    }
}

/// A request with the number that its reply will carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// The number, which the shim never uses twice for one sandbox.
    pub number: u64,
    /// The request.
    pub request: Request,
}

impl Message for Numbered {
    const NAME: &str = "a request";
}

impl Numbered {
    /// Returns the number of a request of which only the first bytes are there
    /// ([`BEGINNING`](super::packet::BEGINNING)).
    pub fn number_of(bytes: &[u8]) -> Option<u64> {
        postcard::take_from_bytes(bytes).ok().map(|(number, _)| number)
    }
}

/// A message of boot to the shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Upward {
    /// The reply to a request.
    Reply {
        /// The request's number.
        number: u64,
        /// The result.
        outcome: Result<Done, Failure>,
    },
    /// The process of a request has a seccomp program and waits until an agent has its
    /// listener. Descriptors: its pidfd, then the listener.
    Listener {
        /// The number of the request: a Create, a Start or an Exec.
        of: u64,
    },
    /// A process wants a raw socket in the pod's network, which belongs to the host, and may have
    /// it.
    RawSocket {
        /// The number that the answer will have.
        of: u64,
        /// The container of the process.
        container: String,
        /// The socket.
        socket: RawSocket,
    },
    /// Somebody looks at the views of a container, for the first time.
    ViewSources {
        /// The container's ID.
        container: String,
    },
    /// A process has ended. boot reports exec'd processes before the init of
    /// their container.
    Exited {
        /// The process.
        process: ProcessId,
        /// The exit code, or 128 + the number of the signal that ended it.
        status: u32,
    },
}

/// What is opened for a container's views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewFile {
    /// A file of the container's own cgroup.
    Own(ViewSource),
    /// A file of a cgroup above that one, whose limits hold as well.
    Above(ViewSource),
    /// The directory `/sys/devices/system/cpu`, on a mount of its own.
    SysfsCpu,
    /// The directory `/sys/devices/system/node`, likewise.
    SysfsNode,
}

/// A raw socket: packet(7), raw(7), ipv6(7). No other socket can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawSocket {
    /// Its family, with the protocol.
    pub family: RawFamily,
    /// Whether it does not block (`SOCK_NONBLOCK`).
    pub nonblocking: bool,
}

/// The family and the protocol of a raw socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawFamily {
    /// `AF_PACKET`.
    Packet {
        /// Whether packets come with the header of their device (`SOCK_RAW`).
        headers: bool,
        /// The protocol (`ETH_P_`), in network byte order.
        protocol: u16,
    },
    /// `AF_INET`, with a protocol that is not 0: the kernel would look for a module.
    Ipv4(NonZeroU8),
    /// `AF_INET6`, likewise.
    Ipv6(NonZeroU8),
}

impl RawSocket {
    /// Returns the socket that these arguments of socket(2) ask for. `None` for any other. The
    /// kernel takes the lower halves.
    pub fn of(arguments: [u64; 6]) -> Option<Self> {
        let [family, kind, protocol] =
            [arguments[0], arguments[1], arguments[2]].map(|argument| argument as i32);
        let flags = kind & !0xf;
        if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
            return None;
        }
        let ip = || NonZeroU8::new(u8::try_from(protocol).ok()?);
        let family = match (family, kind & 0xf) {
            // As in the kernel, what is beyond sixteen bits is not looked at.
            (libc::AF_PACKET, libc::SOCK_RAW) => {
                RawFamily::Packet { headers: true, protocol: protocol as u16 }
            }
            (libc::AF_PACKET, libc::SOCK_DGRAM) => {
                RawFamily::Packet { headers: false, protocol: protocol as u16 }
            }
            (libc::AF_INET, libc::SOCK_RAW) => RawFamily::Ipv4(ip()?),
            (libc::AF_INET6, libc::SOCK_RAW) => RawFamily::Ipv6(ip()?),
            _ => return None,
        };
        Some(Self { family, nonblocking: flags & libc::SOCK_NONBLOCK != 0 })
    }

    /// Returns the arguments of socket(2): family, type and protocol.
    pub fn arguments(self) -> [i32; 3] {
        let (family, kind, protocol) = match self.family {
            RawFamily::Packet { headers: true, protocol } => {
                (libc::AF_PACKET, libc::SOCK_RAW, protocol.into())
            }
            RawFamily::Packet { headers: false, protocol } => {
                (libc::AF_PACKET, libc::SOCK_DGRAM, protocol.into())
            }
            RawFamily::Ipv4(protocol) => (libc::AF_INET, libc::SOCK_RAW, protocol.get().into()),
            RawFamily::Ipv6(protocol) => (libc::AF_INET6, libc::SOCK_RAW, protocol.get().into()),
        };
        [family, kind | if self.nonblocking { libc::SOCK_NONBLOCK } else { 0 }, protocol]
    }
}

impl Message for Upward {
    const NAME: &str = "a message to the shim";
}

/// The result of a request that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// There is no more to report.
    Ok,
    /// A process was made. Descriptors: its pidfd, then the master side of its
    /// terminal if `terminal`, then the mount namespace that it has left if `mounts`.
    Process {
        /// Whether a terminal comes with it.
        terminal: bool,
        /// Whether a mount namespace comes with it.
        mounts: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_raw_socket_can_be_named() {
        const FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let named = |family: i32, kind: i32, protocol: i32| {
            let high = 0xdead_0000_0000_0000_u64;
            let [family, kind, protocol] =
                [family, kind, protocol].map(|value| high | u64::from(value.cast_unsigned()));
            RawSocket::of([family, kind, protocol, 0, 0, 0]).map(RawSocket::arguments)
        };
        let all = i32::from(3_u16.to_be());
        for (family, kind, protocol) in [
            (libc::AF_PACKET, libc::SOCK_RAW, all),
            (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            (libc::AF_INET, libc::SOCK_RAW, 1),
            (libc::AF_INET6, libc::SOCK_RAW, 255),
        ] {
            assert_eq!(named(family, kind, protocol), Some([family, kind, protocol]));
            let nonblocking = Some([family, kind | libc::SOCK_NONBLOCK, protocol]);
            assert_eq!(named(family, kind | FLAGS, protocol), nonblocking);
            assert_eq!(named(family, kind | 0x10, protocol), None, "an unknown flag");
        }
        for (family, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_RAW, 0),
            (libc::AF_INET, libc::SOCK_RAW, 256),
            (libc::AF_INET6, libc::SOCK_RAW, -1),
            (libc::AF_INET, libc::SOCK_STREAM, 6),
            (libc::AF_INET, libc::SOCK_DGRAM, 1),
            (libc::AF_INET, 10, 1),
            (libc::AF_PACKET, 10, all),
            (libc::AF_NETLINK, libc::SOCK_RAW, 0),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_XDP, libc::SOCK_RAW, 0),
            (0, 0, 0),
        ] {
            assert_eq!(named(family, kind, protocol), None, "{family} {kind} {protocol}");
        }
    }
}
