//! Standard input and output of containers.
//!
//! What a request names is opened here, and the descriptors are donated to the
//! container: nothing is copied in the shim, except between a pseudo terminal
//! and where its output goes.
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

/// What a Create or an Exec request names, as containerd wants it told again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Whose process it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// Host IDs of the process's user: it can open `/dev/stdout` again if that
    /// is its own.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// For `binary://` loggers.
    pub(crate) namespace: &'a str,
    pub(crate) container: &'a str,
}

impl Owner<'_> {
    /// Makes a file that was opened for the process its own.
    fn take(&self, fd: impl AsFd) -> std::io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
    }
}

/// What the container gets. `None` means `/dev/null`.
#[derive(Debug, Default)]
pub(crate) struct Donated {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Donated {
    /// In the order in which they travel.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd)
    }
}

/// How long an exit waits for output to be read, and Delete after it.
const LATE_READER: Duration = Duration::from_secs(1);

/// What the shim keeps open while a process lives, and a little longer.
#[derive(Default)]
pub(crate) struct Io {
    stdin: Option<OwnedFd>,
    fifos: Vec<fifo::Output>,
    console: Option<Console>,
    logger: Option<binary::Logger>,
    /// The other end of what a terminal is copied to and from.
    copies: Option<(Option<fifo::Input>, Option<Sink>)>,
    /// Goes with the process's entry in the table. Whoever waits for a reader of
    /// the process's output holds the other end.
    forgotten: Arc<watch::Sender<()>>,
}

/// Where a terminal's output goes.
enum Sink {
    Fifo(fifo::Output),
    File(OwnedFd),
    Logger(OwnedFd),
}

/// One opened output.
struct Opened {
    /// For the container.
    descriptor: OwnedFd,
    /// Kept open by the shim.
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

/// Standard output and error. A logger takes both.
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
    /// Begins to copy between a terminal and its FIFOs.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> Result<()> {
        let (stdin, sink) = self.copies.take().unwrap_or_default();
        let stdin = stdin.map(|stdin| {
            self.stdin = Some(stdin.write_end);
            stdin.read_end
        });
        self.console = Some(Console::start(master, stdin, sink, self.forgotten.subscribe())?);
        Ok(())
    }

    /// CloseIO: the container reads to the end of what was written, then EOF.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// ResizePty; nothing without a terminal.
    pub(crate) fn resize(&self, size: Terminal) -> Result<()> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(size))
    }

    /// Tells the console that its process is gone; the future ends when all
    /// that it wrote has been passed on.
    pub(crate) fn drained(&self) -> Option<Drained> {
        self.console.as_ref().map(Console::process_is_gone)
    }

    /// Output of an ended process that nobody has read yet, if there is some. The
    /// future ends when it has been read, or nobody has come for a while. A client
    /// opens its end in a thread of its own, and as soon as it hears of the end
    /// gives up what is not open by then (containerd's `client/task.go`, `Delete`).
    pub(crate) fn unread(&self) -> Option<impl Future<Output = ()> + use<>> {
        let unread = self.fifos.iter().filter(|fifo| !fifo.is_read());
        let unread: Vec<_> = unread.filter_map(fifo::Output::another).collect();
        if unread.is_empty() {
            return None;
        }
        let read = async {
            for fifo in unread {
                fifo.read().await;
            }
        };
        Some(async { drop(tokio::time::timeout(LATE_READER, read).await) })
    }

    /// Ends when all output has been read, or nobody has come to read it for a
    /// while.
    pub(crate) fn read_to_end(&self) -> impl Future<Output = ()> + use<> {
        let forgotten = self.forgotten.clone();
        async move {
            let _ = tokio::time::timeout(LATE_READER, forgotten.closed()).await;
        }
    }

    /// The process is gone: readers get to the end of what it wrote, then EOF.
    pub(crate) fn release(&mut self) {
        self.stdin = None;
        self.logger = None;
        for fifo in self.fifos.drain(..) {
            fifo.release(self.forgotten.subscribe());
        }
    }
}
