//! What `integration/src/bin/hostile_boot.rs`, a sandbox process that was taken
//! over, can be asked for: an exec whose ID is the name of an attack.

use std::fmt;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::str::FromStr;
use std::time::Duration;

/// The ID of a container whose Start boot never answers.
pub const NEVER_STARTS: &str = "never-starts";

/// Defines [`Attack`], each with its name.
macro_rules! attacks {
    ($($(#[$doc:meta])* $attack:ident = $name:literal,)+) => {
        /// What boot does in place of an answer, or beside one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attack {
            $($(#[$doc])* $attack,)+
        }

        impl Attack {
            /// All of them.
            pub const ALL: &[Attack] = &[$(Attack::$attack,)+];

            /// The exec ID that asks for it.
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
    /// Sends a packet without the byte that says what follows.
    NoTag = "no-tag",
    /// Sends a packet whose first byte is unknown.
    WrongTag = "wrong-tag",
    /// Sends a packet that is longer than any.
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
    /// Shows a process without a pidfd.
    NoDescriptors = "no-descriptors",
    /// Shows the shim as a process of the pod.
    TheShim = "the-shim",
    /// Shows boot as the process.
    Itself = "itself",
    /// Shows a process with a descriptor that is no pidfd.
    NoPidfd = "no-pidfd",
    /// Shows a process with another one's pidfd.
    AnotherThanSaid = "another-than-said",
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
    /// Shows the null device as a terminal; the next ones show what they are named after.
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
    /// Clears the non-blocking flag of a terminal all the time.
    TerminalThatBlocks = "terminal-that-blocks",
    /// Replies with a failure of thousands of control characters.
    ALongFailure = "a-long-failure",
    /// Replies to requests that there were not, and reports exits of strangers.
    AnswersToNothing = "answers-to-nothing",
    /// Replies twice.
    TwoAnswers = "two-answers",
    /// Never replies.
    Silence = "silence",
    /// Reports no exit of what runs so far.
    KeepsExitsToItself = "keeps-exits-to-itself",
    /// Shuts the channel down and lives on.
    HangsUp = "hangs-up",
    /// Reads no message any more.
    IsDeaf = "is-deaf",
    /// Sends exits of strangers without end.
    NeverStopsTalking = "never-stops-talking",
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
    /// Logs control characters and what looks like another program's line.
    LogsEscapes = "logs-escapes",
    /// Ends with a message of more than the panic log holds.
    PanicsForLong = "panics-for-long",
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of no attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hostile_boot knows no attack {:?}", self.0)
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

/// Makes a TCP connection with more to send than its other end takes. Whoever is
/// the last to close it waits for a quarter of an hour (socket(7), `SO_LINGER`),
/// as long as there is the other end, which comes second.
pub fn lingering_socket() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 65536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(900)))?;
    Ok((socket, other))
}
