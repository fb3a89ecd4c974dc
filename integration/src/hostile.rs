//! The attacks of `integration/src/bin/hostile_boot.rs`, a sandbox process that
//! was taken over. A test asks for one by an exec whose ID is the attack's
//! name.

use std::fmt;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::str::FromStr;
use std::time::Duration;

/// The ID of a container to whose Start boot never replies.
pub const NEVER_STARTS: &str = "never-starts";

/// Defines [`Attack`], each with its name.
macro_rules! attacks {
    ($($(#[$doc:meta])* $attack:ident = $name:literal,)+) => {
        /// An attack that boot makes in place of a reply, or beside one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attack {
            $($(#[$doc])* $attack,)+
        }

        impl Attack {
            /// All attacks.
            pub const ALL: &[Attack] = &[$(Attack::$attack,)+];

            /// Returns the exec ID that asks for the attack.
            pub fn name(self) -> &'static str {
                match self {
                    $(Attack::$attack => $name,)+
                }
            }
        }
    };
}

attacks! {
    /// Sends bytes that are no message.
    Garbage = "garbage",
    /// Sends an empty message.
    Empty = "empty",
    /// Sends a packet without the byte for its kind.
    NoTag = "no-tag",
    /// Sends a packet whose first byte is unknown.
    WrongTag = "wrong-tag",
    /// Sends a packet of more than the greatest length.
    TooLong = "too-long",
    /// Sends a string whose length is 2^64 - 1.
    EndlessString = "endless-string",
    /// Sends a socket in the place of a memfd.
    NoMemfd = "no-memfd",
    /// Sends a message in a memfd of 2^40 bytes.
    EndlessMemfd = "endless-memfd",
    /// Sends 250 descriptors.
    Hundreds = "hundreds",
    /// Sends a descriptor with an exit.
    AnExitWithDescriptors = "an-exit-with-descriptors",
    /// Replies without a process.
    NoProcess = "no-process",
    /// Replies with a process, but without its pidfd.
    NoDescriptors = "no-descriptors",
    /// Replies with the shim's pidfd.
    TheShim = "the-shim",
    /// Replies with boot's pidfd.
    Itself = "itself",
    /// Replies with a descriptor that is no pidfd.
    NoPidfd = "no-pidfd",
    /// Replies with the pidfd of another process.
    AnotherPidfd = "another-pidfd",
    /// Sends a file in the place of a seccomp listener.
    NoListener = "no-listener",
    /// Sends a socket that lingers in the place of a pidfd.
    ASocketThatLingers = "a-socket-that-lingers",
    /// Sends a socket that lingers in the place of a terminal.
    ATerminalThatLingers = "a-terminal-that-lingers",
    /// Sends a socket that lingers with an exit.
    AnExitThatLingers = "an-exit-that-lingers",
    /// Sends a socket that lingers 253 times.
    HundredsThatLinger = "hundreds-that-linger",
    /// Sends a socket that lingers to the shim's end of the mounts channel.
    AMountsChannelThatLingers = "a-mounts-channel-that-lingers",
    /// Replies with the null device as a terminal; the next ones with the file
    /// that they are named after.
    TerminalNull = "terminal-null",
    /// A file.
    TerminalFile = "terminal-file",
    /// A directory.
    TerminalDirectory = "terminal-directory",
    /// A pipe.
    TerminalPipe = "terminal-pipe",
    /// A socket.
    TerminalSocket = "terminal-socket",
    /// A pidfd.
    TerminalPidfd = "terminal-pidfd",
    /// A descriptor that is only a path.
    TerminalPath = "terminal-path",
    /// The slave side of a terminal.
    TerminalSlave = "terminal-slave",
    /// Clears the non-blocking flag of a terminal again and again.
    TerminalThatBlocks = "terminal-that-blocks",
    /// Replies with a failure of thousands of control characters.
    ALongFailure = "a-long-failure",
    /// Replies to requests that were never sent, and reports exits of unknown
    /// processes.
    RepliesToNothing = "replies-to-nothing",
    /// Replies twice.
    TwoReplies = "two-replies",
    /// Never replies.
    NoReply = "no-reply",
    /// Reports no exit of the processes that are running.
    ReportsNoExits = "reports-no-exits",
    /// Shuts the channel down and goes on running.
    ClosesItsChannel = "closes-its-channel",
    /// Reads no more messages.
    ReadsNothing = "reads-nothing",
    /// Sends exits of unknown processes without end.
    NeverStopsSending = "never-stops-sending",
    /// Logs lines of a megabyte.
    LogsLongLines = "logs-long-lines",
    /// Logs a line without end.
    LogsOneLine = "logs-one-line",
    /// Logs many short lines.
    LogsShortLines = "logs-short-lines",
    /// Logs lines of three thousand bytes.
    LogsMediumLines = "logs-medium-lines",
    /// Logs empty lines.
    LogsNothing = "logs-nothing",
    /// Logs control characters and the line of another program.
    LogsEscapes = "logs-escapes",
    /// Writes into the user log what is no record.
    WritesNoRecords = "writes-no-records",
    /// Writes a cut record into the user log, and nothing more.
    WritesACutRecord = "writes-a-cut-record",
    /// Writes records into the user log without end, of invented programs and calls, of its own
    /// container and of others.
    WritesManyRecords = "writes-many-records",
    /// Ends with a message that is longer than the panic log.
    LongPanic = "long-panic",
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no attack has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hostile_boot has no attack {:?}", self.0)
    }
}

impl std::error::Error for Unknown {}

impl FromStr for Attack {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Attack, Unknown> {
        let found = Attack::ALL.iter().copied().find(|attack| attack.name() == name);
        found.ok_or_else(|| Unknown(name.to_owned()))
    }
}

/// Makes a TCP connection with more data to send than its other end takes. The
/// process that closes it last waits for a quarter of an hour (socket(7),
/// `SO_LINGER`), as long as the other end is open. Returns that end second.
pub fn lingering_socket() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 65536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(900)))?;
    Ok((socket, other))
}
