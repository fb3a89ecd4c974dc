//! Output that others may hold after its process: what an exec leaves in the
//! background, another container of the pod. The process writes into a pipe,
//! and the shim passes that on to the client. So the shim decides when the
//! client's stream ends.
//!
//! ```text
//!   passing on ──── all write ends are closed ────► the client reads the rest, then EOF
//!        │ cut
//!        ▼
//!   passing on what was written by then ──────────► the client reads the rest, then EOF;
//!                                                   what comes later is dropped
//! ```

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::pipe::{Pipe, nonblocking, shift, waiting};
use super::{Owner, fifo};
use crate::error::{Context, Result};
use crate::ready::register;

/// The place where the shim passes output on.
pub(super) enum Place {
    Fifo(Arc<fifo::Output>),
    /// A device that the client named.
    Device(OwnedFd),
}

impl Place {
    fn descriptor(&self) -> &OwnedFd {
        match self {
            Self::Fifo(fifo) => &fifo.0,
            Self::Device(device) => device,
        }
    }
}

/// One stream of a process, as it is kept with the process.
pub(super) struct Stream {
    /// What passes it on, as long as it does.
    passage: Weak<Passage>,
    /// The client's FIFO, until that has been read to its end.
    fifo: Weak<fifo::Output>,
}

/// The passing on of one stream.
struct Passage {
    /// The shim's end of the pipe that the process writes.
    pipe: AsyncFd<OwnedFd>,
    place: Place,
    passed: Arc<AtomicU64>,
}

/// What ends a passage.
pub(super) struct Ends {
    /// Turns true when the client's stream must end, whoever still writes.
    pub(super) cut: watch::Receiver<bool>,
    /// Is closed when the process is forgotten.
    pub(super) forgotten: watch::Receiver<()>,
}

/// Output that was written and that the client has not read.
pub(super) struct Unread {
    fifo: fifo::Output,
    passed: Arc<AtomicU64>,
    end: u64,
}

impl Stream {
    /// Begins to pass it on. Returns the write end for the process.
    pub(super) fn begin(place: Place, owner: &Owner<'_>, ends: Ends) -> Result<(Self, OwnedFd)> {
        let Pipe { read_end, write_end } = Pipe::new(owner)?;
        nonblocking(&read_end)?;
        let pipe =
            register(read_end, Interest::READABLE).context(|| "register a pipe with epoll")?;
        let fifo = match &place {
            Place::Fifo(fifo) => Arc::downgrade(fifo),
            Place::Device(_) => Weak::new(),
        };
        let passage = Arc::new(Passage { pipe, place, passed: Arc::default() });
        let stream = Self { passage: Arc::downgrade(&passage), fifo };
        tokio::spawn(run(passage, ends));
        Ok((stream, write_end))
    }

    /// Returns what the process has written and its client has not read; `None`
    /// if there is nothing.
    pub(super) fn unread(&self) -> Option<Unread> {
        match self.passage.upgrade() {
            Some(passage) => passage.unread(),
            None => Unread::all(&*self.fifo.upgrade()?),
        }
    }
}

impl Passage {
    /// Returns what is unread, as [`Stream::unread`] does.
    fn unread(&self) -> Option<Unread> {
        // The process may have ended before the shim saw its last words.
        let _ = self.pass(u64::MAX);
        let Place::Fifo(fifo) = &self.place else { return None };
        let waiting = waiting(self.pipe.get_ref());
        if waiting == 0 && fifo.is_read() {
            return None;
        }
        let end = self.passed.load(Ordering::Relaxed) + waiting;
        Some(Unread { fifo: fifo.duplicate()?, passed: self.passed.clone(), end })
    }

    /// Passes on what it can at once, as far as `end`. Returns as `shift` does.
    fn pass(&self, end: u64) -> rustix::io::Result<Option<usize>> {
        let length = end.saturating_sub(self.passed.load(Ordering::Relaxed));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let moved = shift(self.pipe.get_ref(), self.place.descriptor(), length)?;
        self.passed.fetch_add(moved.unwrap_or(0) as u64, Ordering::Relaxed);
        Ok(moved)
    }

    /// Passes on as far as `end`. Returns whether the pipe has ended before.
    async fn pass_on(&self, end: u64) -> std::io::Result<bool> {
        // Rarely needed: most clients read faster than the process writes.
        let mut place = None;
        while self.passed.load(Ordering::Relaxed) < end {
            let mut readable = self.pipe.readable().await?;
            match self.pass(end)? {
                Some(0) => return Ok(true),
                Some(_) => tokio::task::yield_now().await,
                None if waiting(self.pipe.get_ref()) == 0 => readable.clear_ready(),
                None => self.room(&mut place).await?,
            }
        }
        Ok(false)
    }

    /// Waits until the client has read something.
    async fn room(&self, place: &mut Option<AsyncFd<OwnedFd>>) -> std::io::Result<()> {
        let place = match place {
            Some(place) => place,
            None => {
                place.insert(register(self.place.descriptor().try_clone()?, Interest::WRITABLE)?)
            }
        };
        let mut writable = place.writable().await?;
        if !super::pipe::has_room(place.get_ref()) {
            writable.clear_ready();
        }
        Ok(())
    }
}

/// Passes on until the end of the pipe, or until it is cut.
async fn run(passage: Arc<Passage>, ends: Ends) {
    let Ends { mut cut, mut forgotten } = ends;
    let mut ended = tokio::select! {
        ended = passage.pass_on(u64::MAX) => Some(ended),
        () = cut_off(&mut cut) => None,
    };
    if ended.is_none() {
        let end = passage.passed.load(Ordering::Relaxed) + waiting(passage.pipe.get_ref());
        ended = tokio::select! {
            ended = passage.pass_on(end) => Some(ended),
            _ = forgotten.changed() => None,
        };
    }
    // Others hold it only within a call.
    let Some(Passage { pipe, place, .. }) = Arc::into_inner(passage) else { return };
    if let Place::Fifo(fifo) = place {
        fifo.release(forgotten);
    }
    if !matches!(ended, Some(Ok(true))) {
        let _ = drop_output(pipe).await;
    }
}

async fn cut_off(cut: &mut watch::Receiver<bool>) {
    let _ = cut.wait_for(|cut| *cut).await;
}

/// Time for which writers to a stream without a client fill the pipe before it is emptied. It
/// bounds what they can cost the shim: a hundred calls a second for each stream.
const DROP_PAUSE: Duration = Duration::from_millis(10);

/// The most that a pipe may hold by default (`/proc/sys/fs/pipe-max-size`). Its pages count as
/// the writer's memory.
const LARGE_PIPE: usize = 1 << 20;

/// Reads and drops what is written to a stream without a client, until it ends.
/// Without a reader, its writers would be killed by SIGPIPE, as with runc.
async fn drop_output(pipe: AsyncFd<OwnedFd>) -> std::io::Result<()> {
    let nowhere = open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    loop {
        let mut readable = pipe.readable().await?;
        match shift(pipe.get_ref(), &nowhere, usize::MAX)? {
            Some(0) => return Ok(()),
            Some(dropped) => {
                if dropped >= fcntl_getpipe_size(pipe.get_ref())? {
                    // A flood goes on at 100 MB/s instead of 6.
                    let _ = fcntl_setpipe_size(pipe.get_ref(), LARGE_PIPE);
                }
                tokio::time::sleep(DROP_PAUSE).await;
            }
            None => readable.clear_ready(),
        }
    }
}

impl Unread {
    /// Returns all that waits in a FIFO into which the shim passes nothing more.
    pub(super) fn all(fifo: &fifo::Output) -> Option<Self> {
        let end = waiting(&fifo.0);
        let fifo = (end > 0).then(|| fifo.duplicate())??;
        Some(Self { fifo, passed: Arc::new(AtomicU64::new(end)), end })
    }

    /// Ends when the client has read it. What others write meanwhile does not
    /// count.
    pub(super) async fn read(self) {
        fifo::until(fifo::READ_CHECKS, || {
            self.passed.load(Ordering::Relaxed).saturating_sub(waiting(&self.fifo.0)) >= self.end
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::stdio::{CutAt, Io, Stdio, open as open_stdio};

    const OWNER: Owner<'_> = Owner { uid: 0, gid: 0, namespace: "n", container: "c" };

    /// Returns an exec's streams, its output, and its client.
    async fn exec(directory: &tempfile::TempDir) -> (Io, File, File) {
        let path = directory.path().join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = OFlags::NONBLOCK.bits() as i32;
        let client = File::options().read(true).custom_flags(flags).open(&path).unwrap();
        let stdout = path.to_str().unwrap().to_string();
        let stdio = Stdio { stdout, ..Stdio::default() };
        let (io, donated) = open_stdio(&stdio, OWNER, CutAt::Delete).await.unwrap();
        (io, donated.stdout.unwrap().into(), client)
    }

    /// Reads up to the end of the stream, without blocking the shim's thread.
    async fn read_to_end(mut client: File) -> Vec<u8> {
        let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            match client.read(&mut chunk) {
                Ok(0) => return read,
                Ok(length) => read.extend(&chunk[..length]),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_last_writer_before_any_exit() {
        let directory = tempfile::tempdir().unwrap();
        let (_io, mut process, client) = exec(&directory).await;
        process.write_all(b"all of it").unwrap();
        drop(process);
        assert_eq!(read_to_end(client).await, b"all of it");
    }

    #[tokio::test]
    async fn output_survives_its_client() {
        let directory = tempfile::tempdir().unwrap();
        let (mut io, mut process, client) = exec(&directory).await;
        drop(client);
        process.write_all(b"one ").unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        process.write_all(b"two").unwrap();
        drop(process);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        io.release();
        let flags = OFlags::NONBLOCK.bits() as i32;
        let path = directory.path().join("out");
        let client = File::options().read(true).custom_flags(flags).open(path).unwrap();
        assert_eq!(read_to_end(client).await, b"one two");
    }

    #[tokio::test]
    async fn delete_ends_a_stream_that_is_still_held() {
        let directory = tempfile::tempdir().unwrap();
        let (mut io, mut process, client) = exec(&directory).await;
        process.write_all(b"before").unwrap();
        io.release();
        process.write_all(b" and after the exit").unwrap();
        let reading = tokio::spawn(read_to_end(client));
        io.read_to_end().await;
        assert_eq!(reading.await.unwrap(), b"before and after the exit");
        // More than all pipes take: it is dropped, and no error kills the
        // writer.
        rustix::io::ioctl_fionbio(&process, true).unwrap();
        let mut written = 0;
        while written < 1 << 20 {
            match process.write(&[b'x'; 4096]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The CPU time of this thread, which is all of the shim.
    fn cpu_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).unwrap()
    }

    #[tokio::test]
    async fn a_flood_that_is_dropped_costs_next_to_nothing() {
        const FLOOD: usize = 16 << 20;
        let directory = tempfile::tempdir().unwrap();
        let (mut io, mut process, client) = exec(&directory).await;
        io.release();
        let reading = tokio::spawn(read_to_end(client));
        io.read_to_end().await;
        reading.await.unwrap();
        let (cpu, began) = (cpu_time(), std::time::Instant::now());
        // In small pieces, which could wake the shim for each.
        let writer = std::thread::spawn(move || {
            for _ in 0..FLOOD / 512 {
                process.write_all(&[b'x'; 512]).unwrap();
            }
        });
        while !writer.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        writer.join().expect("it gets no error");
        let (cost, time) = (cpu_time() - cpu, began.elapsed());
        assert!(cost < time / 4, "{cost:?} of {time:?}");
        assert!(time > Duration::from_millis(100), "{time:?}: it is not slowed");
        assert!(time < Duration::from_secs(10), "{time:?}");
    }

    #[tokio::test]
    async fn delete_does_not_wait_for_what_is_written_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let (io, mut process, client) = exec(&directory).await;
        process.write_all(b"in time").unwrap();
        let deleted = io.read_to_end();
        let late = process.try_clone().unwrap();
        let writer = tokio::spawn(async move {
            for _ in 0..1000 {
                (&late).write_all(b", too late").unwrap();
                tokio::task::yield_now().await;
            }
        });
        let reading = tokio::spawn(read_to_end(client));
        deleted.await;
        assert!(!writer.is_finished());
        let read = reading.await.unwrap();
        // It may have been in the pipe when the shim looked.
        assert!(read.starts_with(b"in time") && read.len() < 100, "{} bytes", read.len());
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn an_exit_waits_for_what_its_process_has_written() {
        let directory = tempfile::tempdir().unwrap();
        let (io, mut process, mut client) = exec(&directory).await;
        assert!(io.unread().is_none(), "there is nothing to read");
        process.write_all(b"last words").unwrap();
        let waiting = tokio::spawn(io.unread().expect("something to read"));
        // A process in the background goes on.
        process.write_all(b", and others").unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        client.read_exact(&mut [0; 10]).unwrap();
        waiting.await.unwrap();
        assert!(io.unread().is_some(), "the others' output is unread");
    }

    #[tokio::test]
    async fn an_exit_waits_for_a_stream_that_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (io, mut process, client) = exec(&directory).await;
        process.write_all(b"last words").unwrap();
        drop(process);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let waiting = tokio::spawn(io.unread().expect("something to read"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        assert_eq!(read_to_end(client).await, b"last words");
        waiting.await.unwrap();
        assert!(io.unread().is_none());
    }

    #[tokio::test]
    async fn a_slow_client_gets_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let (io, mut process, client) = exec(&directory).await;
        let writer = std::thread::spawn(move || {
            for n in 0..100_000_u32 {
                process.write_all(&n.to_le_bytes()).unwrap();
            }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let read = read_to_end(client).await;
        let wanted: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        assert!(read == wanted, "{} bytes", read.len());
        writer.join().unwrap();
        io.read_to_end().await;
    }
}
