//! The system calls that tell how many CPUs and how much memory there is, and that are answered
//! as the container's views say.

use crate::spec::plan::WatchedCall;
use crate::sys::classic_bpf::ARCHITECTURE;
use crate::sys::seccomp_listener::Data;
use crate::types::Limited;

/// Such a call, by a caller of this machine's own architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ViewCall {
    /// `sched_getaffinity(2)`
    Affinity,
    /// `sysinfo(2)`
    SystemInfo,
}

impl ViewCall {
    /// Returns those that can be answered: by structures of 64 bits.
    fn all() -> impl Iterator<Item = Self> {
        let all = [Self::Affinity, Self::SystemInfo];
        all.into_iter().filter(|_| cfg!(target_pointer_width = "64"))
    }

    /// Returns those that the kernel would answer wrongly, as calls to be announced.
    pub(crate) fn watched(limited: Limited) -> impl Iterator<Item = WatchedCall> {
        let wrong = move |call: &Self| match call {
            Self::Affinity => limited.cpus,
            Self::SystemInfo => limited.memory,
        };
        Self::all().filter(wrong).map(|call| WatchedCall {
            number: call.number(),
            capability: None,
            tests: Vec::new(),
        })
    }

    /// Returns the call that this is, if it is one.
    pub(crate) fn of(data: &Data) -> Option<Self> {
        Self::all()
            .filter(|_| data.architecture == ARCHITECTURE)
            .find(|call| call.number() == data.number)
    }

    fn number(self) -> u32 {
        let number = match self {
            Self::Affinity => libc::SYS_sched_getaffinity,
            Self::SystemInfo => libc::SYS_sysinfo,
        };
        number as u32
    }
}
