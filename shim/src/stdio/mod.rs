//! Standard input and output of containers.
//!
//! The shim opens what a request names and donates the descriptors to the
//! container. The shim copies nothing, except between a pseudo terminal and the
//! place where its output goes.
//!
//! ```text
//!   client ──write──► FIFO stdin ──read──► container      shim keeps a write end until CloseIO
//!   client ◄──read── FIFO stdout ◄─write── container      shim keeps both ends until the exit
//!   client ◄──────── FIFO stdout ◄─ shim ◄─ pty master    with a terminal
//! ```

mod binary;
mod console;
mod fifo;
mod file;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use sandbox_core::spec::plan::Terminal;
use tokio::sync::watch;

use console::Console;
pub(crate) use console::Drained;

use crate::error::{Error, Result};

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

/// Time for which an exit waits until its output has been read, and Delete
/// after it.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// The descriptors that the shim keeps open while a process lives, and a little
/// longer.
#[derive(Default)]
pub(crate) struct Io {
    stdin: Option<OwnedFd>,
    fifos: Vec<fifo::Output>,
    console: Option<Console>,
    logger: Option<binary::Logger>,
    /// The streams to which a terminal will be connected.
    copies: Option<(Option<fifo::Input>, Option<Sink>)>,
    /// Dropped with the process's entry in the table. Tasks that wait for a
    /// reader of the process's output hold the receiving end.
    forgotten: Arc<watch::Sender<()>>,
}

/// The destination of a terminal's output.
enum Sink {
    Fifo(fifo::Output),
    File(OwnedFd),
    Logger(OwnedFd),
}

/// An opened output.
struct Opened {
    /// The descriptor for the container.
    descriptor: OwnedFd,
    /// The FIFO that the shim keeps open.
    fifo: Option<fifo::Output>,
    logger: bool,
}

/// Opens what a request names.
pub(crate) async fn open(stdio: &Stdio, owner: Owner<'_>) -> Result<(Io, Donated)> {
    let (mut io, mut donated) = (Io::default(), Donated::default());
    let stdin = match stdio.stdin.as_str() {
        "" => None,
        path => Some(fifo::Input::open(path, &owner)?),
    };
    let (stdout, stderr) = outputs(stdio, &owner, &mut io).await?;
    if stdio.terminal {
        let sink = stdout.map(|opened| match opened.fifo {
            Some(fifo) => Sink::Fifo(fifo),
            None if opened.logger => Sink::Logger(opened.descriptor),
            None => Sink::File(opened.descriptor),
        });
        io.copies = Some((stdin, sink));
        return Ok((io, donated));
    }
    if let Some(stdin) = stdin {
        donated.stdin = Some(stdin.read_end);
        io.stdin = Some(stdin.write_end);
    }
    for (opened, slot) in [(stdout, &mut donated.stdout), (stderr, &mut donated.stderr)] {
        if let Some(opened) = opened {
            io.fifos.extend(opened.fifo);
            *slot = Some(opened.descriptor);
        }
    }
    Ok((io, donated))
}

/// Opens standard output and error. A logger takes both.
async fn outputs(
    stdio: &Stdio,
    owner: &Owner<'_>,
    io: &mut Io,
) -> Result<(Option<Opened>, Option<Opened>)> {
    if let Some(uri) = binary::uri(&stdio.stdout) {
        let (logger, [stdout, stderr]) = binary::start(&uri, owner).await?;
        io.logger = Some(logger);
        let opened = |descriptor| Some(Opened { descriptor, fifo: None, logger: true });
        return Ok((opened(stdout), opened(stderr)));
    }
    let stderr = if stdio.terminal { "" } else { &stdio.stderr };
    Ok((output(&stdio.stdout, owner)?, output(stderr, owner)?))
}

fn output(uri: &str, owner: &Owner<'_>) -> Result<Option<Opened>> {
    let opened = match uri.split_once("://") {
        _ if uri.is_empty() => return Ok(None),
        None | Some(("fifo", _)) => {
            let path = uri.strip_prefix("fifo://").unwrap_or(uri);
            let (fifo, descriptor) = fifo::Output::open(path, owner)?;
            Opened { descriptor, fifo: Some(fifo), logger: false }
        }
        Some(("file", path)) => {
            Opened { descriptor: file::open(path, owner)?, fifo: None, logger: false }
        }
        Some((scheme, _)) => {
            return Err(Error::invalid(format!(
                "stdio {uri:?}: {scheme:?} is not supported; expected a FIFO, file:// or binary://"
            )));
        }
    };
    Ok(Some(opened))
}

impl Io {
    /// Starts to copy between a terminal and its FIFOs.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> Result<()> {
        let (stdin, sink) = self.copies.take().unwrap_or_default();
        let stdin = stdin.map(|stdin| {
            self.stdin = Some(stdin.write_end);
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

    /// Reports the end of the process to the console. The future ends when all
    /// output of the process has been copied.
    pub(crate) fn drained(&self) -> Option<Drained> {
        self.console.as_ref().map(Console::process_is_gone)
    }

    /// Waits for the readers of an ended process's output; `None` if nothing is
    /// unread. The future ends when the output has been read, or after a
    /// timeout. A client opens its end in a thread of its own. As soon as it
    /// receives the exit, it abandons what is not open by then (containerd's
    /// `client/task.go`, `Delete`).
    pub(crate) fn unread(&self) -> Option<impl Future<Output = ()> + use<>> {
        let unread = self.fifos.iter().filter(|fifo| !fifo.is_read());
        let unread: Vec<_> = unread.filter_map(fifo::Output::duplicate).collect();
        if unread.is_empty() {
            return None;
        }
        let read = async {
            for fifo in unread {
                fifo.read().await;
            }
        };
        Some(async {
            let _ = tokio::time::timeout(READER_TIMEOUT, read).await;
        })
    }

    /// Ends when all output has been read, or after a timeout if no reader
    /// comes.
    pub(crate) fn read_to_end(&self) -> impl Future<Output = ()> + use<> {
        let forgotten = self.forgotten.clone();
        async move {
            let _ = tokio::time::timeout(READER_TIMEOUT, forgotten.closed()).await;
        }
    }

    /// Closes the streams of an ended process: readers get the rest of its
    /// output, then EOF.
    pub(crate) fn release(&mut self) {
        self.stdin = None;
        self.logger = None;
        for fifo in self.fifos.drain(..) {
            fifo.release(self.forgotten.subscribe());
        }
    }
}
