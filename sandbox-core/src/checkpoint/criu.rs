//! What is said to criu and by it: its RPC, in which each message is one packet of a seqpacket
//! socket (`criu swrk DESCRIPTOR`). Only the fields that Palisade uses are here; their numbers are
//! those of criu's `rpc.proto`. criu 3.19 is the first that knows all of them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use prost::Message as _;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::{Context, Error, Result};

/// The longest message that is taken from criu: it sends an error's text at most.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The longest text of an error that is passed on.
const MAX_ERROR: usize = 1024;

/// The first version that knows all options used here: 3.19.
pub const FIRST_VERSION: (i32, i32) = (3, 19);

/// The kinds of request and response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// None.
    Empty = 0,
    /// Save a tree of processes.
    Dump = 1,
    /// Bring one back.
    Restore = 2,
    /// A notification, or the reply to it.
    Notify = 6,
    /// Ask what the kernel is able to do.
    FeatureCheck = 9,
    /// Ask for criu's version.
    Version = 10,
}

/// A message to criu.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// What is asked for.
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// How, for [`Kind::Dump`] and [`Kind::Restore`].
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    /// Whether criu goes on after a notification.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    /// Whether criu takes one more request over the same socket.
    #[prost(bool, tag = "4")]
    pub keep_open: bool,
    /// What is asked for by [`Kind::FeatureCheck`].
    #[prost(message, optional, tag = "5")]
    pub features: Option<Features>,
}

/// How a tree of processes is saved or brought back. What is false, empty or zero is left out of
/// the message, which criu takes for its default.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Options {
    /// The folder of the images: a descriptor of the process that made the socket. -1, where
    /// `images_dir` counts, is the default.
    #[prost(int32, required, tag = "1", default = "-1")]
    pub images_dir_fd: i32,
    /// The root of the tree that is saved.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// Whether the processes run on after they were saved.
    #[prost(bool, tag = "3")]
    pub leave_running: bool,
    /// Whether unix sockets may be connected to processes outside.
    #[prost(bool, tag = "4")]
    pub ext_unix_sk: bool,
    /// Whether established TCP connections are saved, for which criu must have CAP_NET_ADMIN over
    /// the network.
    #[prost(bool, tag = "5")]
    pub tcp_established: bool,
    /// Whether file locks are saved.
    #[prost(bool, tag = "8")]
    pub file_locks: bool,
    /// How much criu logs: 1 errors, 2 warnings, 3 information, 4 all.
    #[prost(int32, tag = "9")]
    pub log_level: i32,
    /// The name of the log in the work folder.
    #[prost(string, tag = "10")]
    pub log_file: String,
    /// Whether criu sends notifications, and waits for their replies.
    #[prost(bool, tag = "12")]
    pub notify_scripts: bool,
    /// The root of the mounts that criu makes.
    #[prost(string, tag = "13")]
    pub root: String,
    /// The folder of log and statistics, as `images_dir_fd`; that of the images by default.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// Whether the root of the restored tree is a child of the process that started criu.
    #[prost(bool, tag = "26")]
    pub rst_sibling: bool,
    /// Descriptors of criu that stand for files outside.
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    /// What is done with cgroups: 0 is nothing. See [`IGNORE_CGROUPS`].
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// The most bytes of a deleted file that is still open.
    #[prost(uint32, tag = "35")]
    pub ghost_limit: u32,
    /// What lies outside, in the form of criu's `--external`: `mnt[/dev]:/dev`,
    /// `file[1b:e2012]`, `tty[8800:a0]`.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// Namespaces that the restored tree joins instead of having them made.
    #[prost(message, repeated, tag = "39")]
    pub join_ns: Vec<JoinNamespace>,
    /// The cgroup that is frozen while the processes are seized: an absolute path.
    #[prost(string, tag = "44")]
    pub freeze_cgroup: String,
    /// Seconds after which criu gives up seizing processes.
    #[prost(uint32, tag = "45")]
    pub timeout: u32,
    /// Whether established TCP connections are closed.
    #[prost(bool, tag = "52")]
    pub tcp_close: bool,
    /// Whether criu runs without capabilities over the host.
    #[prost(bool, tag = "67")]
    pub unprivileged: bool,
    /// The folder of the images, by its path for criu.
    #[prost(string, tag = "68")]
    pub images_dir: String,
    /// Whether criu logs to its standard error.
    #[prost(bool, tag = "71")]
    pub log_to_stderr: bool,
}

/// [`Options::manage_cgroups_mode`]: criu leaves cgroups alone.
pub const IGNORE_CGROUPS: Option<i32> = Some(0);

/// A descriptor that stands for a file outside.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InheritFd {
    /// The file as it was named when it was saved: [`super::manifest::Inherited::key`].
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// criu's descriptor.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// A namespace that is joined.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinNamespace {
    /// Its kind: `mnt`, `net`, `ipc`, `uts`, `user`.
    #[prost(string, required, tag = "1")]
    pub ns: String,
    /// Its file, by its path for criu.
    #[prost(string, required, tag = "2")]
    pub ns_file: String,
    /// For a user namespace, the IDs to take there.
    #[prost(string, optional, tag = "3")]
    pub extra_opt: Option<String>,
}

/// What the kernel is able to do.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Features {
    /// Whether it keeps count of the pages that were written.
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
    /// Whether pages can be brought back when they are used.
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
}

/// A message from criu.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// What it answers, or [`Kind::Notify`].
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// Whether that was done.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// The result of a restore.
    #[prost(message, optional, tag = "4")]
    pub restored: Option<Restored>,
    /// What is going on.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notification>,
    /// The number of an error.
    #[prost(int32, tag = "7")]
    pub errno: i32,
    /// The answer to [`Kind::FeatureCheck`].
    #[prost(message, optional, tag = "8")]
    pub features: Option<Features>,
    /// The first error that was logged, which need not be the one that counts: see
    /// [`last_error`].
    #[prost(string, tag = "9")]
    pub message: String,
    /// The answer to [`Kind::Version`].
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

/// The result of a restore.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Restored {
    /// The root of the tree, in criu's PID namespace.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// A moment at which criu waits for a reply: [`Request::go_on`], or [`Request::stop`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Notification {
    /// Its name, such as `setup-namespaces`.
    #[prost(string, tag = "1")]
    pub script: String,
    /// The root of the tree, in criu's PID namespace, where there is one by then.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// criu's version.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Version {
    /// The first number.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// The second.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// The third.
    #[prost(int32, tag = "4")]
    pub sublevel: i32,
}

impl Version {
    /// Whether it knows all that is used here.
    pub fn suffices(&self) -> bool {
        (self.major, self.minor) >= FIRST_VERSION
    }
}

impl std::fmt::Display for VersionText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0.major, self.0.minor)?;
        match self.0.sublevel {
            0 => Ok(()),
            sublevel => write!(f, ".{sublevel}"),
        }
    }
}

/// A version for people: `4.2.1`.
#[derive(Clone, Copy, Debug)]
pub struct VersionText<'a>(pub &'a Version);

impl Request {
    /// Asks criu to save a tree of processes.
    pub fn dump(options: Options) -> Self {
        Self { kind: Kind::Dump.into(), options: Some(options), ..Self::default() }
    }

    /// Asks criu to bring one back.
    pub fn restore(options: Options) -> Self {
        Self { kind: Kind::Restore.into(), options: Some(options), ..Self::default() }
    }

    /// Asks for criu's version. criu takes one more request.
    pub fn version() -> Self {
        Self { kind: Kind::Version.into(), keep_open: true, ..Self::default() }
    }

    /// Asks what the kernel is able to do.
    pub fn features() -> Self {
        let all = Features { mem_track: Some(true), lazy_pages: Some(true) };
        Self { kind: Kind::FeatureCheck.into(), features: Some(all), ..Self::default() }
    }

    /// Lets criu go on after a notification.
    pub fn go_on() -> Self {
        let kind = Kind::Notify.into();
        Self { kind, notify_success: Some(true), keep_open: true, ..Self::default() }
    }

    /// Lets criu fail after a notification.
    pub fn stop() -> Self {
        Self { notify_success: Some(false), ..Self::go_on() }
    }

    /// Returns the bytes of its packet.
    pub fn to_packet(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl Response {
    /// Reads a packet.
    ///
    /// # Errors
    /// `Invalid` if it is no message, or longer than [`MAX_MESSAGE`].
    pub fn from_packet(packet: &[u8]) -> Result<Self> {
        if packet.len() > MAX_MESSAGE {
            return Err(Error::invalid("criu sent a message that is too long"));
        }
        Self::decode(packet)
            .map_err(|e| Error::invalid(format!("criu sent what is no message of its: {e}")))
    }

    /// Whether criu waits for a reply.
    pub fn is_notification(&self) -> bool {
        self.kind == i32::from(Kind::Notify)
    }

    /// Returns what a failure is told by, without the log: criu's message and error number.
    pub fn failure(&self) -> String {
        let text = printable(self.message.as_bytes());
        match (text.is_empty(), self.errno) {
            (true, 0) => "it gives no reason".to_owned(),
            (true, errno) => io::Error::from_raw_os_error(errno).to_string(),
            (false, _) => text,
        }
    }
}

/// The result of [`receive`].
#[derive(Debug, PartialEq)]
pub enum Received {
    /// A message.
    Response(Response),
    /// criu has closed the socket: it has ended.
    Closed,
    /// The socket is non-blocking and has no message.
    WouldBlock,
}

/// Sends a message to criu. One that is gone is an error, and no signal.
pub fn request(socket: impl AsFd, request: &Request) -> Result<()> {
    send(socket, &request.to_packet(), SendFlags::NOSIGNAL)
        .map(drop)
        .context(|| "send a request to criu")
}

/// Receives a message from criu.
///
/// # Errors
/// The socket fails, or it brings what is no message.
pub fn receive(socket: impl AsFd) -> Result<Received> {
    let mut buffer = vec![MaybeUninit::uninit(); MAX_MESSAGE];
    loop {
        let received = recv(&socket, &mut *buffer, RecvFlags::TRUNC);
        return match received {
            Ok(((bytes, _), length)) if length == bytes.len() => match length {
                0 => Ok(Received::Closed),
                _ => Response::from_packet(bytes).map(Received::Response),
            },
            Ok(_) => Err(Error::invalid("criu sent a message that is too long")),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(Received::WouldBlock),
            Err(Errno::CONNRESET) => Ok(Received::Closed),
            Err(e) => Err(e).context(|| "receive from criu"),
        };
    }
}

/// The last bytes of criu's log in which the reason of a failure is looked for.
const LOG_TAIL: u64 = 64 * 1024;

/// Reads the last lines of criu's log.
pub fn log_tail(mut log: File) -> Vec<u8> {
    let length = log.metadata().map_or(0, |found| found.len());
    let mut tail = Vec::new();
    let from = SeekFrom::Start(length.saturating_sub(LOG_TAIL));
    let _ = log.seek(from).and_then(|_| log.take(LOG_TAIL).read_to_end(&mut tail));
    tail
}

/// Returns the text of the last error in criu's log, before the line that only says that it has
/// failed. `None` if there is none.
pub fn last_error(log: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"Error (";
    let is_summary = |text: &str| text.ends_with("FAILED.");
    let text = |line: &[u8]| {
        let at = line.windows(MARK.len()).position(|window| window == MARK)?;
        let text = printable(&line[at + MARK.len()..]);
        // `criu/mount.c:1137): mnt: …`
        let text = text.split_once("): ").map_or(text.as_str(), |(_, text)| text).trim();
        (!text.is_empty() && !is_summary(text)).then(|| text.to_owned())
    };
    log.rsplit(|byte| *byte == b'\n').find_map(text)
}

/// Cuts a text and takes its control characters out: it may name files of the container.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR)]);
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_encoded_by_the_numbers_of_criu() {
        let options = Options {
            pid: 7,
            manage_cgroups_mode: IGNORE_CGROUPS,
            external: vec!["mnt[/dev]:/dev".into()],
            unprivileged: true,
            ..Options::default()
        };
        let bytes = Request::dump(options).to_packet();
        let mut expected = vec![0x08, 1, 0x12, 37];
        // images_dir_fd is required: -1 in ten bytes.
        expected.extend([0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        expected.extend([0x10, 7, 0x90, 0x02, 0, 0xaa, 0x02, 14]);
        expected.extend(b"mnt[/dev]:/dev");
        expected.extend([0x98, 0x04, 1]);
        assert_eq!(bytes[4..], expected[4..]);
        assert_eq!(bytes[..3], expected[..3]);
        assert_eq!(usize::from(bytes[3]), bytes.len() - 4);
    }

    #[test]
    fn a_response_is_read_with_fields_that_are_not_known_here() {
        let bytes = [0x08, 6, 0x10, 1, 0x2a, 9, 0x0a, 5, b'h', b'e', b'l', b'l', b'o', 0x10, 3];
        let mut with_more = bytes.to_vec();
        with_more.extend([0xf8, 0x07, 1]);
        let response = Response::from_packet(&with_more).unwrap();
        assert!(response.is_notification() && response.success);
        let notification = response.notify.unwrap();
        assert_eq!((notification.script.as_str(), notification.pid), ("hello", Some(3)));
        assert!(Response::from_packet(&with_more[..6]).is_err());
        assert!(Response::from_packet(&vec![0; MAX_MESSAGE + 1]).is_err());
    }

    #[test]
    fn messages_travel_as_packets() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, criu) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        assert_eq!(receive(&ours).unwrap(), Received::WouldBlock);
        request(&ours, &Request::version()).unwrap();
        let mut packet = [0; 64];
        let ((), length) =
            rustix::net::recv(&criu, &mut packet[..], RecvFlags::empty()).map(|n| ((), n)).unwrap();
        assert_eq!(packet[..length.0], Request::version().to_packet());
        let version = Version { major: 4, minor: 2, sublevel: 1 };
        let response = Response {
            kind: Kind::Version.into(),
            success: true,
            version: Some(version.clone()),
            ..Response::default()
        };
        send(&criu, &response.encode_to_vec(), SendFlags::empty()).unwrap();
        assert_eq!(receive(&ours).unwrap(), Received::Response(response));
        assert_eq!(VersionText(&version).to_string(), "4.2.1");
        assert!(version.suffices() && !Version { major: 3, minor: 18, sublevel: 9 }.suffices());
        send(&criu, &vec![8; MAX_MESSAGE + 1], SendFlags::empty()).unwrap();
        assert!(receive(&ours).unwrap_err().to_string().contains("too long"));
        drop(criu);
        assert_eq!(receive(&ours).unwrap(), Received::Closed);
    }

    #[test]
    fn the_last_error_of_a_log_is_the_one_before_the_summary() {
        let log = b"(00.000012) Version: 4.2.1\n\
            (00.001) Error (criu/mount.c:1): first\n\
            (00.002) 7: Error (criu/files-reg.c:9): Can't lookup mount=27 for fd=0 path=/x\x1b[0m\n\
            (00.003) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        let error = last_error(log).unwrap();
        assert_eq!(error, "Can't lookup mount=27 for fd=0 path=/x[0m");
        assert_eq!(last_error(b"(00.1) Warn  (x.c:1): fine\n"), None);
        assert_eq!(last_error(b""), None);
        assert!(
            last_error(&[b"Error (".as_slice(), &vec![b'x'; 9999]].concat()).unwrap().len()
                <= MAX_ERROR
        );
    }

    #[test]
    fn the_tail_of_a_log_is_its_end() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), [vec![b'x'; 100_000], b"end".to_vec()].concat()).unwrap();
        let tail = log_tail(File::open(path.path()).unwrap());
        assert!(tail.ends_with(b"end") && tail.len() == LOG_TAIL as usize);
    }
}
