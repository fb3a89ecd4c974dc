//! The descriptors that Create and Exec requests carry.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use crate::control::message::Donations;
use crate::error::{Context, Error, Result};

/// The donated descriptors by their purpose.
#[derive(Debug)]
pub(crate) struct Donated {
    /// Standard input, output and error.
    pub(crate) stdio: [Option<OwnedFd>; 3],
    /// The directory of the cgroup that it is to be born in, if boot may do so.
    pub(crate) cgroup_directory: Option<OwnedFd>,
    /// `cgroup.procs` files (version 1: `tasks`), to which the newborn writes "0" if it was
    /// not born there.
    pub(crate) cgroup_procs: Vec<OwnedFd>,
    /// The `cgroup.procs` of the init's own cgroup, below that of its cgroup namespace.
    pub(crate) init_procs: Option<OwnedFd>,
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
    /// Sorts the descriptors, which come in the order of [`Donations`].
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
        let cgroup_directory = next_if(donations.cgroup_directory);
        let cgroup_procs = rest.by_ref().take(donations.cgroup_procs.into()).collect();
        let init_procs = if donations.init_procs { rest.next() } else { None };
        let seccomp = match (donations.seccomp, rest.next()) {
            (Some(flags), Some(file)) => Some(Seccomp::read(file, flags)?),
            _ => None,
        };
        Ok(Self { stdio, cgroup_directory, cgroup_procs, init_procs, seccomp })
    }
}

impl Seccomp {
    fn read(file: OwnedFd, flags: u32) -> Result<Self> {
        let mut program = Vec::new();
        File::from(file).read_to_end(&mut program).context(|| "read the seccomp program")?;
        Ok(Self { program, flags })
    }
}
