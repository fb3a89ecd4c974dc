//! Reads the kernel's requests and replies to them, when the device is readable.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file_system::FileSystem;
use super::protocol::{self, MAX_REQUEST, Operation, Request};
use super::{Content, Unanswered, reply};

/// How many requests one turn takes, so that boot's loop comes to what else it has to do.
const MAX_TURN: usize = 32;

/// How many requests of one container may wait. Each is a process that sleeps; the one beyond
/// is told that memory is short.
const MAX_WAITING: usize = 256;

/// Serves one file system, through a device (`/dev/fuse`) that it was mounted with.
#[derive(Debug)]
pub(crate) struct Server {
    device: OwnedFd,
    pub(super) files: FileSystem,
    waiting: VecDeque<Waiting>,
    /// What tests count.
    #[cfg(test)]
    pub(super) taken: Vec<Operation>,
}

/// A request whose answer is not there yet.
#[derive(Debug)]
struct Waiting {
    serial: u32,
    request: Request,
}

/// What has become of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// It goes on.
    Open,
    /// It was unmounted everywhere, or aborted: nothing more will come.
    Ended,
}

impl Server {
    /// Serves a file system that was just mounted. `owner` are the user and the group that own
    /// all files, as the user namespace of the mount numbers them.
    pub(crate) fn new(device: OwnedFd, owner: (u32, u32)) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&device)?;
        rustix::fs::fcntl_setfl(&device, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            device,
            files: FileSystem::new(owner),
            waiting: VecDeque::new(),
            #[cfg(test)]
            taken: Vec::new(),
        })
    }

    /// Makes a container's directory. Its name is the serial number, above zero, that no other
    /// container of this server has ever had.
    pub(crate) fn add_container(&mut self, serial: u32) {
        self.files.add_container(serial);
    }

    /// Hides a path from a container, if it is one of the host's sysfs that is passed through.
    pub(crate) fn hide(&mut self, serial: u32, path: &Path) {
        self.files.hide(serial, path);
    }

    /// Takes a container's directory away. What waits there, and what is still open, gets
    /// `ESTALE`.
    pub(crate) fn remove_container(&mut self, serial: u32) {
        self.files.remove_container(serial);
        for request in self.take_waiting(serial) {
            self.refuse(request.unique, Errno::STALE);
        }
    }

    /// Takes the requests that are there, but not more than a turn's worth, and replies to them.
    ///
    /// # Errors
    /// Only if the device cannot be served at all.
    pub(crate) fn serve_some(&mut self, content: &mut impl Content) -> io::Result<Served> {
        let mut buffer = [0; MAX_REQUEST];
        for _ in 0..MAX_TURN {
            match rustix::io::read(&self.device, &mut buffer) {
                Ok(length) => self.take(buffer.get(..length).unwrap_or(&[]), content)?,
                Err(Errno::AGAIN) => break,
                // The process that asked was killed before its request was taken.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Served::Ended),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Served::Open)
    }

    /// Answers the requests of a container that wait, now that what they waited for is there or
    /// will never be.
    pub(crate) fn resume(&mut self, serial: u32, content: &mut impl Content) {
        for request in self.take_waiting(serial) {
            self.answer(request, content);
        }
    }

    fn take_waiting(&mut self, serial: u32) -> Vec<Request> {
        let all = std::mem::take(&mut self.waiting);
        let (of_it, others): (VecDeque<_>, _) = all.into_iter().partition(|w| w.serial == serial);
        self.waiting = others;
        of_it.into_iter().map(|waiting| waiting.request).collect()
    }

    fn take(&mut self, bytes: &[u8], content: &mut impl Content) -> io::Result<()> {
        let request = match protocol::parse(bytes) {
            Ok(request) => request,
            Err(malformed) => {
                malformed.unique.into_iter().for_each(|unique| self.refuse(unique, Errno::IO));
                return Ok(());
            }
        };
        #[cfg(test)]
        self.taken.push(request.operation.clone());
        match request.operation {
            Operation::Init { major, minor, flags } => {
                return self.init(request.unique, (major, minor), flags);
            }
            Operation::Forget { lookups } => self.files.forget(request.node, lookups),
            Operation::BatchForget { forgotten } => {
                forgotten.into_iter().for_each(|(node, lookups)| self.files.forget(node, lookups));
            }
            Operation::Interrupt { of } => self.interrupt(of),
            Operation::Release { handle } => {
                self.files.release(handle);
                self.reply(request.unique, &[]);
            }
            Operation::ReleaseDirectory | Operation::Destroy => self.reply(request.unique, &[]),
            _ => self.answer(request, content),
        }
        Ok(())
    }

    /// Agrees on the version and the features.
    fn init(&self, unique: u64, version: (u32, u32), flags: u32) -> io::Result<()> {
        let (major, minor) = version;
        if major < 7 || (major == 7 && minor < reply::MINOR) {
            self.refuse(unique, Errno::PROTO);
            return Err(io::Error::other(format!(
                "this kernel speaks version {major}.{minor} of FUSE; views need 7.{}",
                reply::MINOR
            )));
        }
        // A kernel with a number above 7 asks again with the one that it is answered.
        self.reply(unique, &reply::init(flags));
        Ok(())
    }

    /// Ends a request that waits: its process got a signal.
    fn interrupt(&mut self, unique: u64) {
        if let Some(at) = self.waiting.iter().position(|w| w.request.unique == unique) {
            self.waiting.remove(at);
            self.refuse(unique, Errno::INTR);
        }
    }

    fn answer(&mut self, request: Request, content: &mut impl Content) {
        match self.files.answer(request.node, &request.operation, content) {
            Ok(body) => self.reply(request.unique, &body),
            Err(Unanswered::Errno(errno)) => self.refuse(request.unique, errno),
            Err(Unanswered::Wait) => self.put_aside(request),
        }
    }

    fn put_aside(&mut self, request: Request) {
        let serial = self.files.container_of(request.node);
        match serial {
            Some(serial) if self.count_waiting(serial) < MAX_WAITING => {
                self.waiting.push_back(Waiting { serial, request });
            }
            _ => self.refuse(request.unique, Errno::NOMEM),
        }
    }

    pub(super) fn count_waiting(&self, serial: u32) -> usize {
        self.waiting.iter().filter(|waiting| waiting.serial == serial).count()
    }

    fn reply(&self, unique: u64, body: &[u8]) {
        match self.write(unique, 0, body) {
            // The last is of a file system that has ended.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            // The process must not sleep for ever.
            Err(_) => self.refuse(unique, Errno::IO),
        }
    }

    fn refuse(&self, unique: u64, errno: Errno) {
        // The request is no longer there if this fails, and the process has gone on.
        let _ = self.write(unique, -errno.raw_os_error(), &[]);
    }

    /// Writes `struct fuse_out_header` and what follows it.
    fn write(&self, unique: u64, error: i32, body: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(16 + body.len()).map_err(|_| Errno::TOOBIG)?;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        rustix::io::retry_on_intr(|| rustix::io::writev(&self.device, &parts)).map(drop)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
