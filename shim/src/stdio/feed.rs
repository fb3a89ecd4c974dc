//! Standard input: the shim passes it on from what the client named into a pipe.
//! A FIFO would not do: without a writer, a process that opens `/dev/stdin`
//! again waits for ever (fifo(7)); in a pipe it reads the end.

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::Owner;
use super::pipe::{Pipe, has_input, has_room, nonblocking, shift};
use crate::error::{Context, Result};
use crate::ready::register;

/// A running feed. The process reads EOF when this is dropped.
pub(super) struct Feed(AbortHandle);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Feed {
    /// Begins to pass on. Returns the read end for the process. Passing on ends
    /// with the source, or when no process reads any more: then the source is
    /// closed, and a client that writes gets EPIPE.
    pub(super) fn begin(source: OwnedFd, owner: &Owner<'_>) -> Result<(Self, OwnedFd)> {
        let Pipe { read_end, write_end } = Pipe::new(owner)?;
        nonblocking(&write_end)?;
        let pipe = register(write_end, Interest::WRITABLE | Interest::ERROR)
            .context(|| "register a pipe with epoll")?;
        let source = Source::new(source)?;
        let feed = tokio::spawn(async move {
            tokio::select! {
                _ = pass_on(&source, &pipe) => {}
                _ = pipe.ready(Interest::ERROR) => {}
            }
        });
        Ok((Self(feed.abort_handle()), read_end))
    }
}

/// Where input comes from.
enum Source {
    /// What can be waited for: a FIFO, a terminal.
    Waited(AsyncFd<OwnedFd>),
    /// What never waits: a file, /dev/null.
    File(OwnedFd),
}

impl Source {
    fn new(fd: OwnedFd) -> Result<Self> {
        nonblocking(&fd)?;
        let duplicate = fd.try_clone().context(|| "duplicate a descriptor")?;
        Ok(match register(duplicate, Interest::READABLE) {
            Ok(waited) => Self::Waited(waited),
            // epoll refuses what is always ready.
            Err(_) => Self::File(fd),
        })
    }
}

async fn pass_on(source: &Source, pipe: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    loop {
        let (mut readable, from) = match source {
            Source::Waited(fd) => (Some(fd.readable().await?), fd.get_ref()),
            Source::File(fd) => (None, fd),
        };
        match shift(from, pipe.get_ref(), usize::MAX)? {
            Some(0) => return Ok(()),
            Some(_) => tokio::task::yield_now().await,
            None => match &mut readable {
                // The question is not whether the pipe has room: it may have got
                // some by now.
                Some(readable) if !has_input(from) => readable.clear_ready(),
                _ => room(pipe).await?,
            },
        }
    }
}

/// Waits until the process has read something.
async fn room(pipe: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    let mut writable = pipe.writable().await?;
    if !has_room(pipe.get_ref()) {
        writable.clear_ready();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    const OWNER: Owner<'_> = Owner { uid: 0, gid: 0, namespace: "n", container: "c" };

    /// Returns a feed, its client and its process.
    fn piped() -> (Feed, File, File) {
        let client = rustix::pipe::pipe().unwrap();
        let (feed, process) = Feed::begin(client.0, &OWNER).unwrap();
        (feed, client.1.into(), process.into())
    }

    /// Reads in a thread, as a process does.
    async fn read_to_end(mut process: File) -> Vec<u8> {
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            process.read_to_end(&mut read).unwrap();
            read
        });
        while !reading.is_finished() {
            tokio::task::yield_now().await;
        }
        reading.join().unwrap()
    }

    #[tokio::test]
    async fn input_that_is_opened_again_ends_as_the_first_did() {
        let (_feed, mut client, mut process) = piped();
        client.write_all(b"the script").unwrap();
        drop(client);
        let again = || File::open(format!("/proc/self/fd/{}", process.as_raw_fd())).unwrap();
        assert_eq!(read_to_end(again()).await, b"the script");
        // Now there is no writer at all.
        assert_eq!(again().read(&mut [0]).unwrap(), 0);
        assert_eq!(process.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_a_pipe_takes_goes_in() {
        let (_feed, mut client, process) = piped();
        let blob: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        let written = blob.clone();
        let writer = std::thread::spawn(move || client.write_all(&written).unwrap());
        assert!(read_to_end(process).await == blob);
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn the_client_of_a_process_that_reads_no_more_gets_an_error() {
        let (_feed, mut client, process) = piped();
        drop(process);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(client.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn input_ends_when_it_is_dropped() {
        let (feed, _client, process) = piped();
        drop(feed);
        assert_eq!(read_to_end(process).await, b"");
    }

    #[tokio::test]
    async fn a_file_goes_in() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let blob = vec![b'x'; 300_000];
        file.write_all(&blob).unwrap();
        let (_feed, process) = Feed::begin(file.reopen().unwrap().into(), &OWNER).unwrap();
        assert!(read_to_end(process.into()).await == blob);
    }
}
