//! The descriptors that come with a Create or an Exec.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::paths::DEV_NULL;
use super::terminal::Terminal;
use crate::control::message::Donations;
use crate::error::{Context, Error, Result};
use crate::sys::descriptor::install_stdio;

/// Sorted by what they are for.
#[derive(Debug)]
pub(crate) struct Donated {
    stdio: [Option<OwnedFd>; 3],
    cgroup_procs: Vec<OwnedFd>,
    /// The container's seccomp program.
    pub(crate) seccomp: Option<Seccomp>,
}

/// A compiled seccomp program.
#[derive(Debug)]
pub(crate) struct Seccomp {
    pub(crate) program: Vec<u8>,
    pub(crate) flags: u32,
}

impl Donated {
    /// Takes them in the order that [`Donations`] documents.
    pub(crate) fn sort(donations: Donations, descriptors: Vec<OwnedFd>) -> Result<Self> {
        if descriptors.len() != donations.count() {
            return Err(Error::internal(format!(
                "a request announced {} descriptors and brought {}",
                donations.count(),
                descriptors.len()
            )));
        }
        let mut rest = descriptors.into_iter();
        let mut next_if = |wanted: bool| if wanted { rest.next() } else { None };
        let stdio =
            [next_if(donations.stdin), next_if(donations.stdout), next_if(donations.stderr)];
        let cgroup_procs = rest.by_ref().take(donations.cgroup_procs.into()).collect();
        let seccomp = match (donations.seccomp, rest.next()) {
            (Some(flags), Some(file)) => Some(Seccomp::read(file, flags)?),
            _ => None,
        };
        Ok(Self { stdio, cgroup_procs, seccomp })
    }

    /// Moves this process into the container's cgroup: "0" is whoever writes.
    pub(crate) fn join_cgroups(&self) -> Result<()> {
        for procs in &self.cgroup_procs {
            rustix::io::write(procs, b"0").context(|| "join the container's cgroup")?;
        }
        Ok(())
    }

    /// Puts stdio into its place, `/dev/null` where none was given. Must be
    /// called while boot's root is in sight.
    pub(crate) fn install_stdio(&self, terminal: Option<&Terminal>) -> Result<()> {
        let null = rustix::fs::open(DEV_NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open the sandbox's {DEV_NULL}"))?;
        for (place, given) in (0..).zip(&self.stdio) {
            let fd: BorrowedFd<'_> = match (terminal, given) {
                (Some(terminal), _) => terminal.peer.as_fd(),
                (None, Some(given)) => given.as_fd(),
                (None, None) => null.as_fd(),
            };
            install_stdio(fd, place).context(|| format!("put descriptor {place} into place"))?;
        }
        Ok(())
    }
}

impl Seccomp {
    fn read(file: OwnedFd, flags: u32) -> Result<Self> {
        let mut program = Vec::new();
        File::from(file).read_to_end(&mut program).context(|| "read the seccomp program")?;
        Ok(Self { program, flags })
    }
}
