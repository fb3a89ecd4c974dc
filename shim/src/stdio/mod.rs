//! Standard input and output of containers.
//!
//! The shim opens what a request names and donates descriptors to the
//! container. It copies no byte, except between a pseudo terminal and the place
//! where its output goes: from a pipe to a FIFO, the kernel moves the pages.
//!
//! ```text
//!   client ──write──► FIFO stdin ─► shim ─► pipe ──read──► container
//!                                              shim keeps a write end of the FIFO until CloseIO
//!   client ◄──read── FIFO stdout ◄─write── container
//!                                              an init's output; shim keeps both ends until the exit
//!   client ◄──read── FIFO stdout ◄─ shim ◄─ pipe ◄─write── container
//!                                              output that others may hold after the process: an exec's
//!   client ◄──read── FIFO stdout ◄─ shim ◄─ pty master      with a terminal
//! ```

mod binary;
mod console;
mod feed;
mod fifo;
mod file;
mod passage;
mod path;
mod pipe;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, OFlags, Uid};
use sandbox_core::spec::plan::Terminal;
use tokio::sync::watch;

use console::Console;
pub(crate) use console::Drained;
use feed::Feed;
use passage::{Ends, Place, Stream};

use crate::error::{Context, Error, Result};

/// The streams that a Create or an Exec request names, as containerd gets them
/// back from State.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// The user and the container of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// Host IDs of the process's user, which then owns the files: a process can
    /// open `/dev/stdout` again only if it owns it.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The names that a `binary://` logger gets.
    pub(crate) namespace: &'a str,
    pub(crate) container: &'a str,
}

impl Owner<'_> {
    /// Gives the process a file that was opened for it.
    fn chown(&self, fd: impl AsFd) -> std::io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
    }
}

/// The descriptors that are donated to the process. `None` means `/dev/null`.
#[derive(Debug, Default)]
pub(crate) struct Donated {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Donated {
    /// Returns the descriptors in the order in which they travel.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd)
    }
}

/// The moment at which a client's output ends, whatever still holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum CutAt {
    /// None is needed: all processes of an init's PID namespace end with it.
    #[default]
    Never,
    /// The exit of an init that shares its PIDs with other containers.
    Exit,
    /// The Delete of an exec. Processes that it has left in the background
    /// write to its client until then.
    Delete,
}

/// Time for which an exit waits until its output has been read, and Delete
/// after it.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// The descriptors that the shim keeps open while a process lives, and a little
/// longer.
#[derive(Default)]
pub(crate) struct Io {
    /// A write end of the FIFO for input.
    stdin: Option<OwnedFd>,
    feed: Option<Feed>,
    outputs: Vec<Output>,
    cut_at: CutAt,
    /// Whether the output that the shim passes on is cut.
    cut: watch::Sender<bool>,
    console: Option<Console>,
    logger: Option<binary::Logger>,
    /// The streams to which a terminal will be connected.
    copies: Option<(Option<Input>, Option<Sink>)>,
    /// The place of the shim's own lines in the process's output, if it may write some.
    notes: Option<Notes>,
    /// Dropped with the process's entry in the table. Tasks that wait for a
    /// reader of the process's output hold the receiving end.
    forgotten: Arc<watch::Sender<()>>,
}

/// An end of a process's output for the shim.
struct Notes {
    /// Non-blocking: a description of its own.
    fd: OwnedFd,
    /// What ends a line there.
    end: &'static str,
}

/// One output of a process without a terminal, while its client reads it.
enum Output {
    /// A FIFO that the process writes itself.
    Direct(fifo::Output),
    /// A pipe that the shim passes on.
    Passed(Stream),
}

/// The origin of input.
struct Input {
    read_end: OwnedFd,
    /// What keeps a FIFO from ending.
    write_end: Option<OwnedFd>,
}

/// The destination of output.
enum Sink {
    Fifo(fifo::Output),
    File(OwnedFd),
    /// A device other than `/dev/null`.
    Device(OwnedFd),
    /// A pipe to a logger.
    Logger(OwnedFd),
}

/// Opens what a request names.
pub(crate) async fn open(stdio: &Stdio, owner: Owner<'_>, cut_at: CutAt) -> Result<(Io, Donated)> {
    let (mut io, mut donated) = (Io { cut_at, ..Io::default() }, Donated::default());
    let stdin = path::input(&stdio.stdin)?;
    let (stdout, stderr) = outputs(stdio, &owner, &mut io).await?;
    if stdio.terminal {
        let stdin = stdin.map(|stdin| io.pollable(stdin, &owner)).transpose()?;
        io.copies = Some((stdin, stdout));
        return Ok((io, donated));
    }
    if let Some(stdin) = stdin {
        donated.stdin = Some(io.feed(stdin, &owner)?);
    }
    donated.stdout = stdout.map(|sink| io.take(sink, &owner)).transpose()?;
    donated.stderr = stderr.map(|sink| io.take(sink, &owner)).transpose()?;
    Ok((io, donated))
}

/// Opens standard output and error. A logger takes both.
async fn outputs(
    stdio: &Stdio,
    owner: &Owner<'_>,
    io: &mut Io,
) -> Result<(Option<Sink>, Option<Sink>)> {
    if let Some(uri) = binary::uri(&stdio.stdout) {
        let (logger, [stdout, stderr]) = binary::start(&uri, owner).await?;
        io.logger = Some(logger);
        return Ok((Some(Sink::Logger(stdout)), Some(Sink::Logger(stderr))));
    }
    let stderr = if stdio.terminal { "" } else { &stdio.stderr };
    Ok((output(&stdio.stdout, owner)?, output(stderr, owner)?))
}

fn output(uri: &str, owner: &Owner<'_>) -> Result<Option<Sink>> {
    match uri.split_once("://") {
        _ if uri.is_empty() => Ok(None),
        None => path::output(uri, owner),
        Some(("fifo", path)) => Ok(Some(Sink::Fifo(fifo::Output::open(path)?))),
        Some(("file", path)) => Ok(Some(Sink::File(file::open(path, owner)?))),
        Some((scheme, _)) => Err(unsupported(uri, scheme)),
    }
}

fn unsupported(uri: &str, scheme: &str) -> Error {
    let instead = match scheme {
        // containerd passes on the address of a sandbox's streaming service.
        "ttrpc+unix" | "ttrpc+vsock" | "grpc+unix" | "grpc+vsock" => {
            "FIFOs, which containerd makes with io_type = \"fifo\""
        }
        _ => "a path, fifo://, file:// or binary://",
    };
    Error::invalid(format!("stdio {uri:?}: {scheme:?} is not supported; expected {instead}"))
}

impl Sink {
    fn descriptor(&self) -> &OwnedFd {
        match self {
            Self::Fifo(fifo::Output(fd)) | Self::File(fd) | Self::Device(fd) | Self::Logger(fd) => {
                fd
            }
        }
    }
}

/// What Create and Exec open.
impl Io {
    /// Keeps an end of the process's output for lines of the shim: of its standard error, or
    /// else its standard output, or what its terminal shows. Without either, lines are lost.
    pub(crate) fn keep_notes(&mut self, donated: &Donated) -> Result<()> {
        let terminal = self.copies.as_ref().and_then(|(_, sink)| sink.as_ref());
        let end = if self.copies.is_some() { "\r\n" } else { "\n" };
        let pipe = donated.stderr.as_ref().or(donated.stdout.as_ref());
        if let Some(output) = terminal.map(Sink::descriptor).or(pipe) {
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY;
            let fd = fifo::reopen(output, flags).context(|| "open the output for the user log")?;
            self.notes = Some(Notes { fd, end });
        }
        Ok(())
    }

    /// Writes a line of the shim into the process's output: all of it, or nothing if there is
    /// no room.
    pub(crate) fn note(&self, line: &str) -> io::Result<()> {
        let notes = self.notes.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let bytes = format!("{line}{}", notes.end);
        match rustix::io::write(&notes.fd, bytes.as_bytes())? {
            length if length == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Begins to pass input on. Returns the end for the process.
    fn feed(&mut self, input: Input, owner: &Owner<'_>) -> Result<OwnedFd> {
        let (feed, read_end) = Feed::begin(input.read_end, owner)?;
        (self.feed, self.stdin) = (Some(feed), input.write_end);
        Ok(read_end)
    }

    /// Returns the input as a pipe, for which the console can wait.
    fn pollable(&mut self, input: Input, owner: &Owner<'_>) -> Result<Input> {
        match input.write_end {
            Some(_) => Ok(input),
            None => Ok(Input { read_end: self.feed(input, owner)?, write_end: None }),
        }
    }

    /// Takes an output. Returns the descriptor for the process.
    fn take(&mut self, sink: Sink, owner: &Owner<'_>) -> Result<OwnedFd> {
        let place = match sink {
            Sink::File(fd) | Sink::Logger(fd) => return Ok(fd),
            Sink::Fifo(fifo) if self.cut_at == CutAt::Never => {
                let write_end = fifo.write_end(owner)?;
                self.outputs.push(Output::Direct(fifo));
                return Ok(write_end);
            }
            Sink::Fifo(fifo) => Place::Fifo(Arc::new(fifo)),
            Sink::Device(device) => Place::Device(device),
        };
        let ends = Ends { cut: self.cut.subscribe(), forgotten: self.forgotten.subscribe() };
        let (stream, write_end) = Stream::begin(place, owner, ends)?;
        self.outputs.push(Output::Passed(stream));
        Ok(write_end)
    }
}

impl Io {
    /// Starts to copy between a terminal and its FIFOs.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> Result<()> {
        let (stdin, sink) = self.copies.take().unwrap_or_default();
        let stdin = stdin.map(|stdin| {
            self.stdin = stdin.write_end;
            stdin.read_end
        });
        self.console = Some(Console::start(master, stdin, sink, self.forgotten.subscribe())?);
        Ok(())
    }

    /// Carries out CloseIO: the container reads the rest of its input, then
    /// EOF.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Carries out ResizePty. Does nothing without a terminal.
    pub(crate) fn resize(&self, size: Terminal) -> Result<()> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(size))
    }

    /// Returns the size of the terminal; `None` if there is none.
    pub(crate) fn size(&self) -> Result<Option<Terminal>> {
        self.console.as_ref().map(Console::size).transpose()
    }

    /// Returns the number of the terminal in the container's devpts.
    pub(crate) fn terminal_number(&self) -> Option<u32> {
        self.console.as_ref().and_then(Console::number)
    }

    /// Reports the end of the process to the console. The future ends when all
    /// output of the process has been copied.
    pub(crate) fn drained(&self) -> Option<Drained> {
        self.console.as_ref().map(Console::process_is_gone)
    }

    /// Waits for the readers of an ended process's output; `None` if nothing is
    /// unread. The future ends when the output so far has been read, or after a
    /// timeout. A client opens its end in a thread of its own. As soon as it
    /// receives the exit, it abandons what is not open by then (containerd's
    /// `client/task.go`, `Delete`).
    pub(crate) fn unread(&self) -> Option<impl Future<Output = ()> + use<>> {
        let unread: Vec<_> = self.outputs.iter().filter_map(Output::unread).collect();
        if unread.is_empty() {
            return None;
        }
        let read = async {
            for output in unread {
                output.read().await;
            }
        };
        Some(async {
            let _ = tokio::time::timeout(READER_TIMEOUT, read).await;
        })
    }

    /// Cuts the output off. Ends when all that was written by now has been
    /// read, or after a timeout if no reader comes.
    pub(crate) fn read_to_end(&self) -> impl Future<Output = ()> + use<> {
        self.cut.send_replace(true);
        let forgotten = self.forgotten.clone();
        async move {
            let _ = tokio::time::timeout(READER_TIMEOUT, forgotten.closed()).await;
        }
    }

    /// Closes the streams of an ended process: readers get the rest of its
    /// output, then EOF. An exec's output ends with its last writer, or with
    /// Delete.
    pub(crate) fn release(&mut self) {
        self.stdin = None;
        self.logger = None;
        // Readers wait for its end.
        self.notes = None;
        if self.cut_at != CutAt::Delete {
            self.cut.send_replace(true);
        }
        for output in self.outputs.drain(..) {
            if let Output::Direct(fifo) = output {
                Arc::new(fifo).release(self.forgotten.subscribe());
            }
        }
    }
}

impl Output {
    fn unread(&self) -> Option<passage::Unread> {
        match self {
            Self::Direct(fifo) => passage::Unread::all(fifo),
            Self::Passed(stream) => stream.unread(),
        }
    }
}
