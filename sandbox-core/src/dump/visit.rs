//! Clones of the shim that look at something in a container's namespaces and report it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Error, FailureKind, Result};
use crate::sys::child::Child;
use crate::sys::clone::SingleThreaded;
use crate::sys::descriptor::close_others;
use crate::sys::process::exit_now;

/// The most bytes of a report.
const MAX_REPORT: u64 = 8 << 20;

/// A clone at work. Dropping this value kills it.
#[derive(Debug)]
pub struct Visit {
    pipe: File,
    report: Vec<u8>,
    _child: Child,
}

impl Visit {
    /// Clones this process for `work`. The clone has no descriptors but those that are kept,
    /// and 0, 1 and 2.
    pub(super) fn begin(
        kept: &[BorrowedFd<'_>],
        work: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC).context(|| "pipe")?;
        let alone = SingleThreaded::prove().context(|| "clone the shim")?;
        let child = Child::run(&alone, CloneFlags::empty(), || {
            let streams =
                [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
            let kept: Vec<_> =
                kept.iter().copied().chain([theirs.as_fd()]).chain(streams).collect();
            let worked = close_others(&kept).context(|| "close_range").and_then(|()| work());
            let (first, bytes) = match worked {
                Ok(bytes) => (b'.', bytes),
                Err(error) => {
                    let first = if error.kind == FailureKind::Invalid { b'?' } else { b'!' };
                    (first, error.to_string().into_bytes())
                }
            };
            let Ok(pipe) = theirs.try_clone() else { exit_now(1) };
            let mut pipe = File::from(pipe);
            let _ = pipe.write_all(&[first]).and_then(|()| pipe.write_all(&bytes));
        });
        let child = child.context(|| "clone the shim")?;
        rustix::io::ioctl_fionbio(&pipe, true).context(|| "FIONBIO")?;
        Ok(Self { pipe: pipe.into(), report: Vec::new(), _child: child })
    }

    /// Returns the report once it is whole, and `None` as long as the visit must be waited for:
    /// then it is readable.
    ///
    /// # Errors
    /// What the clone failed at.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match self.pipe.read(&mut chunk) {
                Ok(0) => return self.finished().map(Some),
                Ok(length) => self.report.extend_from_slice(&chunk[..length]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if Errno::from_io_error(&e) == Some(Errno::INTR) => {}
                Err(e) => return Err(e).context(|| "read the report of a clone of the shim"),
            }
            if self.report.len() as u64 > MAX_REPORT {
                return Err(Error::internal("the report of a clone of the shim is too long"));
            }
        }
    }

    fn finished(&mut self) -> Result<Vec<u8>> {
        let mut report = std::mem::take(&mut self.report);
        let text = |report: &[u8]| String::from_utf8_lossy(&report[1..]).into_owned();
        match report.first() {
            Some(b'.') => Ok(report.split_off(1)),
            Some(b'?') => Err(Error::invalid(text(&report))),
            Some(_) => Err(Error::internal(text(&report))),
            None => Err(Error::internal("a clone of the shim was killed at its work")),
        }
    }
}

impl AsFd for Visit {
    /// Returns a descriptor that is readable when there is something of the report.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Opens the proc of the host, to read in it from another mount namespace.
pub(super) fn host_proc() -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/proc", flags, Mode::empty()).context(|| "open /proc")
}
