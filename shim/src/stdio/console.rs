//! Pseudo terminals. The shim has the master side and copies between it and the
//! FIFOs of the client.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use sandbox_core::spec::plan::Terminal;
use sandbox_core::sys::alarm::interrupt_after;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Sink, fifo};
use crate::error::{Context, Result};
use crate::ready::register;

/// Time for which an exit waits for a client that does not read. The copying
/// goes on after it, until the process is forgotten.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A future that ends when the output has been copied.
pub(crate) type Drained = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Bytes of one read from a terminal, whose buffer is 4 KiB.
const CHUNK: usize = 4096;

/// Time for which a call on a terminal may block this thread, which must never
/// block.
const STALL: Duration = Duration::from_millis(5);
/// Number of calls that may block before the terminal is not copied any more.
const STALLS: u32 = 20;

/// The master side. boot made it. A boot that was taken over may still have it:
/// it shares the open file, whose nonblocking flag it can clear at any time.
/// There is no other way to read a terminal without waiting, so a call that
/// blocks is interrupted.
struct Master {
    fd: AsyncFd<OwnedFd>,
    stalls: AtomicU32,
}

impl Master {
    fn new(fd: OwnedFd) -> Result<Self> {
        Ok(Self { fd: nonblocking(fd)?, stalls: AtomicU32::new(0) })
    }

    fn read(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        self.call(|fd| read(fd, buffer))
    }

    async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let write = |fd: &OwnedFd| match self.call(|_| write(fd, rest)) {
                // Keep the readiness, and let other tasks run.
                Err(Errno::INTR) => Ok(0),
                other => Ok(other?),
            };
            let written = self.fd.async_io(Interest::WRITABLE, write).await?;
            rest = &rest[written..];
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Calls `call`. Returns `INTR` if it blocked, and `DEADLK` once it has
    /// blocked too often.
    fn call<T>(
        &self,
        call: impl FnOnce(&OwnedFd) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        let called = interrupt_after(STALL, || call(self.fd.get_ref()));
        match called.unwrap_or(Err(Errno::AGAIN)) {
            Err(Errno::INTR) if self.stalls.fetch_add(1, Ordering::Relaxed) == STALLS => {
                log::warn!("a terminal of the sandbox blocks its reader; it is copied no more");
                Err(Errno::DEADLK)
            }
            other => other,
        }
    }
}

/// A terminal that is copied in both directions.
pub(super) struct Console {
    master: Arc<Master>,
    gone: watch::Sender<bool>,
    drained: watch::Receiver<bool>,
    input: Option<AbortHandle>,
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

impl Console {
    pub(super) fn start(
        master: OwnedFd,
        stdin: Option<OwnedFd>,
        sink: Option<Sink>,
        forgotten: watch::Receiver<()>,
    ) -> Result<Self> {
        let master = Arc::new(Master::new(master)?);
        let input = match stdin {
            None => None,
            Some(stdin) => {
                let copy = input(nonblocking(stdin)?, master.clone());
                Some(tokio::spawn(copy).abort_handle())
            }
        };
        let (gone, process) = watch::channel(false);
        let (done, drained) = watch::channel(false);
        let sink = sink.map(Writer::new).transpose()?;
        let output = Output { master: master.clone(), sink, process, forgotten };
        tokio::spawn(async move {
            let sink = output.run().await;
            let _ = done.send(true);
            drop(sink);
        });
        Ok(Self { master, gone, drained, input })
    }

    pub(super) fn resize(&self, size: Terminal) -> Result<()> {
        let Terminal { width, height } = size;
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.master.fd.get_ref(), size)
            .context(|| format!("set the terminal to {width}x{height}"))
    }

    pub(super) fn size(&self) -> Result<Terminal> {
        let size = tcgetwinsize(self.master.fd.get_ref());
        let Winsize { ws_row: height, ws_col: width, .. } =
            size.context(|| "get the size of the terminal")?;
        Ok(Terminal { width, height })
    }

    /// Returns the terminal's number in its devpts.
    pub(super) fn number(&self) -> Option<u32> {
        let name = rustix::pty::ptsname(self.master.fd.get_ref(), Vec::new()).ok()?;
        name.to_str().ok()?.rsplit('/').next()?.parse().ok()
    }

    pub(super) fn process_is_gone(&self) -> Drained {
        self.gone.send_replace(true);
        let mut drained = self.drained.clone();
        Box::pin(async move {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained.wait_for(|done| *done)).await;
        })
    }
}

fn nonblocking(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    ioctl_fionbio(&fd, true).context(|| "FIONBIO")?;
    register(fd, Interest::READABLE | Interest::WRITABLE).context(|| "register with epoll")
}

/// Copies from the client to the terminal, until the last writer of the FIFO
/// has closed it.
async fn input(stdin: AsyncFd<OwnedFd>, master: Arc<Master>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = match read_some(&stdin, &mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        if master.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// The copying from the terminal to the client.
struct Output {
    master: Arc<Master>,
    sink: Option<Writer>,
    process: watch::Receiver<bool>,
    forgotten: watch::Receiver<()>,
}

impl Output {
    /// Copies until the last program has closed the terminal, or the process
    /// has ended and all its output has been read: the kernel flushes a
    /// terminal before it reports that there is nothing to read (n_tty_read in
    /// drivers/tty/n_tty.c). Returns the sink, still open.
    async fn run(mut self) -> Option<Writer> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = match self.master.read(&mut buffer) {
                Ok(0) | Err(Errno::IO) => break,
                Ok(length) => length,
                Err(Errno::AGAIN) if *self.process.borrow() => break,
                Err(Errno::AGAIN | Errno::INTR) => {
                    if self.wait().await {
                        continue;
                    }
                    break;
                }
                Err(_) => break,
            };
            if let Some(sink) = &self.sink
                && !self.pass_on(sink, &buffer[..length]).await
            {
                break;
            }
            // There may always be more to read.
            tokio::task::yield_now().await;
        }
        if let Some(Writer::Fifo(fifo)) = self.sink.take() {
            Arc::new(fifo::Output(fifo.into_inner())).release(self.forgotten);
            return None;
        }
        self.sink
    }

    /// Waits for output or for the exit. Returns false if neither can come any
    /// more.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            ready = self.master.fd.readable() => ready.map(|mut guard| guard.clear_ready()).is_ok(),
            changed = self.process.changed() => changed.is_ok(),
        }
    }

    /// Writes to the sink. Returns false if that fails, or when the process is
    /// forgotten.
    async fn pass_on(&self, sink: &Writer, bytes: &[u8]) -> bool {
        let mut forgotten = self.forgotten.clone();
        tokio::select! {
            written = sink.write_all(bytes) => written.is_ok(),
            _ = forgotten.changed() => false,
        }
    }
}

/// A sink, registered with epoll if it can be waited for.
enum Writer {
    Fifo(AsyncFd<OwnedFd>),
    Logger(AsyncFd<OwnedFd>),
    File(OwnedFd),
}

impl Writer {
    fn new(sink: Sink) -> Result<Self> {
        Ok(match sink {
            Sink::Fifo(fifo::Output(fd)) => Self::Fifo(nonblocking(fd)?),
            Sink::Logger(fd) | Sink::Device(fd) => Self::Logger(nonblocking(fd)?),
            Sink::File(fd) => Self::File(fd),
        })
    }

    async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fd) | Self::Logger(fd) => write_all(fd, bytes).await,
            Self::File(fd) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    rest = &rest[write(fd, rest)?..];
                }
                Ok(())
            }
        }
    }
}

async fn read_some(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = fd.readable().await?;
        if let Ok(result) = guard.try_io(|fd| Ok(read(fd.get_ref(), &mut *buffer)?)) {
            return result;
        }
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = fd.async_io(Interest::WRITABLE, |fd| Ok(write(fd, rest)?)).await?;
        rest = &rest[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use nix::pty::openpty;
    use rustix::termios::tcgetwinsize;

    use super::*;
    use crate::stdio::{CutAt, Io, Owner, Stdio, open};

    /// Returns a terminal that is connected to a client's FIFOs.
    async fn terminal(directory: &tempfile::TempDir) -> (Io, File, File, File) {
        let path = |name: &str| {
            let path = directory.path().join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            path.to_str().unwrap().to_string()
        };
        let stdio =
            Stdio { stdin: path("in"), stdout: path("out"), stderr: String::new(), terminal: true };
        let owner = Owner { uid: 0, gid: 0, namespace: "n", container: "c" };
        let (mut io, donated) = open(&stdio, owner, CutAt::Never).await.unwrap();
        assert!(donated.stdin.is_none() && donated.stdout.is_none());
        let pty = openpty(None, None).unwrap();
        io.attach(pty.master).unwrap();
        let client = |path: &str| File::options().read(true).write(true).open(path).unwrap();
        (io, File::from(pty.slave), client(&stdio.stdin), client(&stdio.stdout))
    }

    async fn read_text(file: &File, length: usize) -> String {
        let fd = nonblocking(file.try_clone().unwrap().into()).unwrap();
        let mut text = vec![0; length];
        let mut at = 0;
        while at < length {
            at += read_some(&fd, &mut text[at..]).await.unwrap();
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_terminal_is_copied_both_ways_and_resized() {
        let directory = tempfile::tempdir().unwrap();
        let (io, mut slave, mut stdin, stdout) = terminal(&directory).await;
        io.resize(Terminal { width: 101, height: 37 }).unwrap();
        let size = tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (101, 37));
        stdin.write_all(b"typed\n").unwrap();
        // The terminal echoes the line, and the program reads it.
        assert_eq!(read_text(&stdout, 7).await, "typed\r\n");
        let mut line = [0; 6];
        slave.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"typed\n");
    }

    #[tokio::test]
    async fn all_output_is_there_when_the_exit_is_published() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let directory = tempfile::tempdir_in(&directory).unwrap();
            let (mut io, mut slave, _stdin, stdout) = terminal(&directory).await;
            slave.write_all(&[b'x'; 3000]).unwrap();
            // Another process still has the terminal open, as a daemon may.
            let _daemon = slave.try_clone().unwrap();
            drop(slave);
            io.drained().unwrap().await;
            io.release();
            assert_eq!(rustix::io::ioctl_fionread(&stdout).unwrap(), 3000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_delays_no_exit() {
        let directory = tempfile::tempdir().unwrap();
        let (io, slave, _stdin, stdout) = terminal(&directory).await;
        rustix::io::ioctl_fionbio(&slave, true).unwrap();
        // More than the FIFO takes.
        for _ in 0..200 {
            let _ = write(&slave, &[b'x'; 1000]);
            tokio::task::yield_now().await;
        }
        io.drained().unwrap().await;
        drop((io, stdout));
    }
}
