//! FIFOs that containerd made. The shim keeps both ends open. So a client that
//! goes away (when containerd restarts) neither ends the container's input nor
//! breaks its output, and output that was written waits for the client.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, open};
use rustix::io::Errno;
use sandbox_core::sys::let_go::let_go_later;
use sandbox_core::sys::mount::{Depth, clone_mount};
use tokio::sync::watch;

use super::Owner;
use crate::error::{Context, Error, Result};

/// A FIFO for input.
pub(super) struct Input {
    /// The end that is read: by the console, or for the process.
    pub(super) read_end: OwnedFd,
    /// The shim's end, which keeps the process from reading EOF.
    pub(super) write_end: OwnedFd,
}

impl Input {
    /// Opens both ends, which do not hold each other: a client gets EPIPE once
    /// the read end is closed.
    pub(super) fn open(path: &str) -> Result<Self> {
        let both = open_fifo(path)?;
        let end = |access| reopen(&both, access).context(|| format!("open stdin FIFO {path}"));
        Ok(Self { read_end: end(OFlags::RDONLY)?, write_end: end(OFlags::WRONLY)? })
    }
}

/// Size of the pipe for output that waits for its reader: pipe(7). With more
/// than the usual 64 KiB the writer waits less often. Only what is written
/// takes memory.
const OUTPUT_SIZE: usize = 256 * 1024;

/// A FIFO that the container writes: one nonblocking descriptor that is both
/// ends.
pub(super) struct Output(pub(super) OwnedFd);

impl Output {
    pub(super) fn open(path: &str) -> Result<Self> {
        let both = open_fifo(path)?;
        // The node may forbid it. The pipe then keeps its size.
        let _ = rustix::pipe::fcntl_setpipe_size(&both, OUTPUT_SIZE);
        Ok(Self(both))
    }

    /// Opens a write end for a process, which then writes to its client itself.
    pub(super) fn write_end(&self, owner: &Owner<'_>) -> Result<OwnedFd> {
        owner.chown(&self.0).context(|| "chown of an output FIFO")?;
        // On a mount of its own that is nowhere, so that the process sees no path of the host in
        // `/proc/self/fd`.
        let nowhere = clone_mount(&self.0, "", Depth::Top).context(|| "clone an output FIFO")?;
        let write_end = reopen(&nowhere, OFlags::WRONLY).context(|| "open an output FIFO")?;
        let_go_later([nowhere]);
        Ok(write_end)
    }

    /// Whether all that was written has been read.
    pub(super) fn is_read(&self) -> bool {
        rustix::io::ioctl_fionread(&self.0).unwrap_or(0) == 0
    }

    /// Returns the same FIFO, to wait for it.
    pub(super) fn duplicate(&self) -> Option<Self> {
        self.0.try_clone().ok().map(Self)
    }

    /// Closes the FIFO once it has been read to the end: at once if a client
    /// reads it, later if containerd is away or its reader has not opened it
    /// yet, and at the latest when the process is forgotten.
    pub(super) fn release(self: Arc<Self>, mut forgotten: watch::Receiver<()>) {
        let mut state = EndedOutput::Unread(self);
        if state.advance() {
            return;
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = forgotten.changed() => {}
                () = until(Duration::from_millis(250), || state.advance()) => {}
            }
        });
    }
}

/// The longest time between two looks whether a client has read its output.
pub(super) const READ_CHECKS: Duration = Duration::from_millis(50);

/// Waits until `holds` returns true. A pipe signals neither that it becomes
/// empty nor that it is opened, so this checks after 1 ms and then at growing
/// intervals.
pub(super) async fn until(longest: Duration, mut holds: impl FnMut() -> bool) {
    let mut wait = Duration::from_millis(1);
    while !holds() {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}

/// The shim's end of a FIFO whose writer has ended.
enum EndedOutput {
    /// Both ends, while it holds bytes.
    Unread(Arc<Output>),
    /// A write end, while no reader has opened the FIFO. A reader that opens it
    /// after the last writer has closed it would wait forever: a short exec
    /// ends before a client with many threads has opened its output.
    Unopened(OwnedFd),
}

impl EndedOutput {
    /// Goes on as far as possible. Returns whether the FIFO can be closed now.
    fn advance(&mut self) -> bool {
        if let Self::Unread(both) = self {
            if !both.is_read() {
                return false;
            }
            match reopen(&both.0, OFlags::WRONLY | OFlags::NONBLOCK) {
                // Dropping `both` also closes our own read end.
                Ok(write_end) => *self = Self::Unopened(write_end),
                // There will be room later.
                Err(Errno::MFILE | Errno::NFILE) => return false,
                Err(_) => return true,
            }
        }
        let Self::Unopened(write_end) = self else { return false };
        let mut asked = [PollFd::new(&*write_end, PollFlags::OUT)];
        // An error on a write end means that no process has it open for
        // reading.
        let polled = poll(&mut asked, Some(&Timespec::default()));
        polled.is_err() || !asked[0].revents().contains(PollFlags::ERR)
    }
}

/// Opens a FIFO without blocking and without waiting for the other side: Linux
/// allows both ends in one descriptor (fifo(7)).
fn open_fifo(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = open(path, flags, Mode::empty()).context(|| format!("open FIFO {path}"))?;
    let stat = rustix::fs::fstat(&fifo).context(|| format!("stat {path}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(Error::invalid(format!("stdio {path:?} is not a FIFO")));
    }
    Ok(fifo)
}

/// Opens the same FIFO again, blocking as programs expect.
pub(super) fn reopen(fifo: &OwnedFd, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    open(path, access | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    use super::*;

    const OWNER: Owner<'_> = Owner { uid: 0, gid: 0, namespace: "n", container: "c" };

    struct Fifo {
        _directory: tempfile::TempDir,
        path: String,
    }

    impl Fifo {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("fifo");
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            Self { path: path.to_str().unwrap().to_string(), _directory: directory }
        }

        fn output(&self) -> (Output, OwnedFd) {
            let output = Output::open(&self.path).unwrap();
            let write_end = output.write_end(&OWNER).unwrap();
            (output, write_end)
        }

        fn reader(&self) -> File {
            let flags = OFlags::NONBLOCK.bits() as i32;
            File::options().read(true).custom_flags(flags).open(&self.path).unwrap()
        }
    }

    #[tokio::test]
    async fn output_survives_the_reader() {
        let fifo = Fifo::new();
        let (output, write_end) = fifo.output();
        let mut container = File::from(write_end);
        container.write_all(b"one ").unwrap();
        let mut first = fifo.reader();
        let mut read = [0; 4];
        first.read_exact(&mut read).unwrap();
        drop(first);
        // Without a reader there is no EPIPE and nothing is lost, even after
        // the exit.
        container.write_all(b"two").unwrap();
        drop(container);
        let (_keep, forgotten) = watch::channel(());
        Arc::new(output).release(forgotten);
        let mut second = fifo.reader();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut rest = [0; 3];
        second.read_exact(&mut rest).unwrap();
        assert_eq!((&read, &rest), (b"one ", b"two"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(second.read(&mut read).unwrap(), 0, "then the end");
    }

    #[tokio::test]
    async fn a_reader_that_has_read_all_gets_eof_at_once() {
        let fifo = Fifo::new();
        let (output, write_end) = fifo.output();
        let mut reader = fifo.reader();
        drop(write_end);
        assert!(reader.read(&mut [0; 1]).is_err(), "the shim keeps it open");
        let (_keep, forgotten) = watch::channel(());
        Arc::new(output).release(forgotten);
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_late_reader_gets_eof_too() {
        let fifo = Fifo::new();
        let (output, write_end) = fifo.output();
        drop(write_end);
        let (_keep, forgotten) = watch::channel(());
        Arc::new(output).release(forgotten);
        // Opened as by a client: this waits for a writer.
        let path = fifo.path.clone();
        let reader = std::thread::spawn(move || File::open(path).unwrap().read(&mut [0; 1]));
        while !reader.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(reader.join().unwrap().unwrap(), 0);
    }

    /// Returns the streams of a process that has written this and ended.
    fn ended_after(fifo: &Fifo, bytes: &[u8]) -> super::super::Io {
        let (output, write_end) = fifo.output();
        File::from(write_end).write_all(bytes).unwrap();
        let mut io = super::super::Io::default();
        io.outputs.push(super::super::Output::Direct(output));
        io.release();
        io
    }

    #[tokio::test]
    async fn an_exit_waits_for_a_reader() {
        let fifo = Fifo::new();
        let (output, write_end) = fifo.output();
        let mut io = super::super::Io::default();
        io.outputs.push(super::super::Output::Direct(output));
        assert!(io.unread().is_none(), "there is nothing to read");
        File::from(write_end).write_all(b"late").unwrap();
        let waiting = tokio::spawn(io.unread().expect("something to read"));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let (mut reader, mut read) = (fifo.reader(), [0; 4]);
        reader.read_exact(&mut read).unwrap();
        waiting.await.unwrap();
        assert!(io.unread().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_does_not_wait_for_ever() {
        let fifo = Fifo::new();
        let (output, write_end) = fifo.output();
        File::from(write_end).write_all(b"never read").unwrap();
        let mut io = super::super::Io::default();
        io.outputs.push(super::super::Output::Direct(output));
        let begun = tokio::time::Instant::now();
        io.unread().expect("something to read").await;
        assert!(begun.elapsed() >= super::super::READER_TIMEOUT);
    }

    #[tokio::test]
    async fn delete_waits_for_a_reader() {
        let fifo = Fifo::new();
        let waiting = tokio::spawn(ended_after(&fifo, b"late").read_to_end());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let (mut reader, mut read) = (fifo.reader(), [0; 4]);
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"late");
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn delete_does_not_wait_for_ever() {
        let fifo = Fifo::new();
        let begun = tokio::time::Instant::now();
        ended_after(&fifo, b"never read").read_to_end().await;
        assert!(begun.elapsed() >= super::super::READER_TIMEOUT);
    }

    #[test]
    fn input_ends_only_when_the_shim_closes_it_too() {
        let fifo = Fifo::new();
        let input = Input::open(&fifo.path).unwrap();
        let mut client = File::options().write(true).open(&fifo.path).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut container = File::from(input.read_end);
        let mut read = [0; 5];
        container.read_exact(&mut read).unwrap();
        rustix::io::ioctl_fionbio(&container, true).unwrap();
        assert!(container.read(&mut read).is_err(), "no EOF although the client is gone");
        drop(input.write_end);
        assert_eq!(container.read(&mut read).unwrap(), 0);
    }

    #[test]
    fn the_process_owns_its_output() {
        let fifo = Fifo::new();
        let owner = Owner { uid: 4242, gid: 4343, ..OWNER };
        Output::open(&fifo.path).unwrap().write_end(&owner).unwrap();
        let metadata = std::fs::metadata(&fifo.path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (4242, 4343));
    }

    #[test]
    fn a_file_that_is_no_fifo_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Output::open(file.path().to_str().unwrap()).err().unwrap();
        assert!(error.to_string().contains("is not a FIFO"), "{error}");
        let error = Output::open("/nowhere/fifo").err().unwrap();
        assert!(error.to_string().contains("/nowhere/fifo"), "{error}");
    }
}
